"""Data: arrays and image data sets in memory, batches of them, and files that survive."""

__all__ = ["BINARISATIONS", "DATASETS", "Dataset", "Pixels", "binarise", "load", "read_images"]

from .datasets import BINARISATIONS, DATASETS, Dataset, Pixels, binarise, load, read_images
