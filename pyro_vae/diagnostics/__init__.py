"""What a trained pair can be asked about: its latent dimensions, and the parts of its bound."""

__all__ = ["ELBOParts", "LatentSummary", "elbo_parts", "latent_summary"]

from .latents import LatentSummary, latent_summary
from .parts import ELBOParts, elbo_parts
