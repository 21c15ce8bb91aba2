r"""What stands in the README as a figure: measured by ``python -m benchmarks NAME``, recorded in ``results``."""
