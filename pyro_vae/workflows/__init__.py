"""Workflows: evaluation, comparison, refinement, prediction, imputation and export."""
