"""Every public look at a pair and its data, on a small budget: a new one costs a row here."""

from functools import partial
from typing import get_args

import pytest
import torch
from torch.utils._pytree import tree_leaves

import pyro_vae as pv
from pyro_vae.diagnostics import aggregate_posterior, calibration, elbo_parts, inference_gaps, latent_summary
from pyro_vae.evidence import ais, elbo, estimate, importance, jackknife, psis, quadrature, recommend, sandwich, smc
from pyro_vae.ops.choices import Proposal
from pyro_vae.pairs.simulation import simulate


def rows_of(x):
    """How many datapoints there would be, were it data."""
    try:
        return len(x)
    except TypeError:
        return 1


def sandwiched(model, guide, x, **options):
    """As if the data had been made at the origin of two latent dimensions."""
    return sandwich(model, guide, x, {"z": torch.zeros(rows_of(x), 2)}, **options)


def gaps(model, guide, x):
    log_evidence = torch.zeros(rows_of(x))
    return inference_gaps(model, guide, x, log_evidence=log_evidence, num_steps=2, num_particles=3)


def tensors_of(found):
    """Whatever a look answers, as the tensors that it holds."""
    return [part for part in tree_leaves(found) if isinstance(part, torch.Tensor)]


FEW = {"num_draws": 9, "num_particles": 11}
CHAINS = {"num_particles": 2, "num_temperatures": 3, "num_steps": 1}

# Name -> function of (model, guide, x); the model has one latent site z of two dimensions.
LOOKS = {
    "elbo": partial(elbo, num_particles=3),
    **{f"importance from {name}": partial(importance, num_particles=3, proposal=name) for name in get_args(Proposal)},
    "importance to a target": partial(importance, num_particles=300, target_stderr=0.1),
    "psis": partial(psis, num_particles=30),
    "jackknife": partial(jackknife, num_particles=30),
    "ais": partial(ais, **CHAINS),
    "ais from the prior": partial(ais, **CHAINS, start="prior"),
    "smc": partial(smc, **CHAINS, num_populations=2),
    "sandwich of chains": partial(sandwiched, **CHAINS),
    "sandwich of draws": partial(sandwiched, method="iwae", num_particles=3),
    "quadrature": partial(quadrature, max_nodes=1000),
    "recommend": recommend,
    "estimate": partial(estimate, estimator="psis", num_particles=30),
    "compare": lambda *pair_and_x: pv.compare({"IS": partial(importance, num_particles=3)}, *pair_and_x, repeats=2),
    "evaluate": lambda model, guide, x: pv.evaluate((model, guide), x, estimator="is", num_particles=3),
    "latent_summary": latent_summary,
    "elbo_parts": partial(elbo_parts, num_particles=3),
    "inference_gaps": gaps,
    "calibration": partial(calibration, num_draws=9),
    "aggregate_posterior": aggregate_posterior,
    "refine by hmc": partial(pv.refine, **FEW, method="hmc", num_chains=2, num_warmup=3),
    "refine by sir": partial(pv.refine, num_draws=9, num_particles=30),
    "simulate": lambda model, guide, x: simulate(model, x),
}

OF_SEVERAL = {"aggregate_posterior"}  # which say nothing of a single datapoint

every_look = pytest.mark.parametrize("look", LOOKS.values(), ids=list(LOOKS))
