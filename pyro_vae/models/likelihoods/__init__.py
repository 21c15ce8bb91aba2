"""Likelihoods p(x | z): modules that map the decoder's output to a distribution over x.

``param_shape`` is the shape of the decoder's output for one datapoint, and
:meth:`~pyro_vae.models.likelihoods.base.Likelihood.check` refuses data outside the support.
"""

from .base import Likelihood
from .bernoulli import Bernoulli
from .columns import Columns
from .continuous_bernoulli import ContinuousBernoulli
from .discretised_logistic import DiscretisedLogistic
from .gaussian import Gaussian

__all__ = ["Bernoulli", "Columns", "ContinuousBernoulli", "DiscretisedLogistic", "Gaussian", "Likelihood"]
