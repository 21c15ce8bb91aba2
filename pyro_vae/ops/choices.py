"""The names that options take, each list in one place; without torch, so that the command line answers at once.

Whoever gives a name its meaning, such as the registry of estimators, holds its own keys against the list here.
"""

from __future__ import annotations

__all__ = [
    "Binarisation",
    "DatasetName",
    "EstimatorName",
    "FamilyName",
    "GradientName",
    "LikelihoodName",
    "ObjectiveName",
    "PosteriorName",
    "PresetName",
    "PriorName",
    "Proposal",
    "RefinementMethod",
    "Schedule",
    "ViewName",
]

from typing import Literal

Binarisation = Literal["static", "dynamic", "threshold", "none"]
DatasetName = Literal["digits", "mnist", "fashion_mnist", "kmnist", "omniglot"]
EstimatorName = Literal["is", "psis", "ais", "smc", "grid"]
FamilyName = Literal["diagonal", "full", "flow"]
GradientName = Literal["total", "path", "dreg", "reinforce", "reinforce_baseline", "rloo", "vimco", "score"]
LikelihoodName = Literal["bernoulli", "gaussian", "continuous_bernoulli", "discretised_logistic"]
ObjectiveName = Literal["elbo", "iwae", "renyi", "wake_sleep", "beta_vae"]
PosteriorName = Literal["diagonal", "full"]
PresetName = Literal["mlp", "conv", "burda", "burda_two_layer"]
PriorName = Literal["standard", "mixture", "vamp"]
Proposal = Literal["guide", "defensive", "refined"]
RefinementMethod = Literal["hmc", "nuts", "sir", "svi"]
Schedule = Literal["constant", "cosine", "burda"]
ViewName = Literal[
    "history",
    "reconstructions",
    "samples",
    "manifold",
    "latents",
    "interpolations",
    "neighbours",
    "traversals",
]
