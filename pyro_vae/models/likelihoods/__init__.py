"""Likelihoods p(x | z): modules that turn the decoder's output into a distribution over x.

Each says in ``param_shape`` what the decoder has to return for one datapoint, and in
:meth:`~pyro_vae.models.likelihoods.base.Likelihood.check` which data it is a density of.
"""

from .base import Likelihood
from .bernoulli import Bernoulli
from .columns import Columns
from .continuous_bernoulli import ContinuousBernoulli
from .discretised_logistic import DiscretisedLogistic
from .gaussian import Gaussian

__all__ = ["Bernoulli", "Columns", "ContinuousBernoulli", "DiscretisedLogistic", "Gaussian", "Likelihood"]
