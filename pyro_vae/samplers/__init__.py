"""Samplers: proposals, tempered paths, chains and fits for each datapoint, shared by evidence and refinement."""
