r"""Benchmarks: ``python -m benchmarks NAME`` measures the figures in the README, and ``results`` holds the records."""
