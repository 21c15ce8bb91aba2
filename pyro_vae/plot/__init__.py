"""Pictures: values in, Axes out. Only :func:`save` writes a file, and nothing is shown."""

from .base import save
from .estimates import inference_gaps, log_evidence
from .images import images, imputations, interpolations, latent_grid, manifold, neighbours, reconstructions
from .latents import latents
from .training import history
from .traversals import traversal_grid, traversals

__all__ = [
    "history",
    "images",
    "imputations",
    "inference_gaps",
    "interpolations",
    "latent_grid",
    "latents",
    "log_evidence",
    "manifold",
    "neighbours",
    "reconstructions",
    "save",
    "traversal_grid",
    "traversals",
]
