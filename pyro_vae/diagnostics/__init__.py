"""What can be asked of a trained pair besides its bound."""

__all__ = ["LatentSummary", "latent_summary"]

from .latents import LatentSummary, latent_summary
