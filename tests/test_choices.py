"""Each list in :mod:`pyro_vae.ops.choices` holds the names to which the library gives a meaning, and no others."""

import re
from typing import get_args

import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli.build import build, objective_of
from pyro_vae.cli.config import TrainConfig
from pyro_vae.cli.views import VIEWS
from pyro_vae.data.datasets import BINARISATIONS, DATASETS
from pyro_vae.errors import ConfigError
from pyro_vae.evidence.budget import require_proposal
from pyro_vae.models.presets import PRESETS, likelihood_named, posterior_named, prior_named
from pyro_vae.ops import choices
from pyro_vae.samplers.families import FAMILIES
from pyro_vae.training.schedules import SCHEDULES
from pyro_vae.workflows.refinement.refine import METHODS


@pytest.mark.parametrize(
    ("listed", "registry"),
    [
        (choices.Binarisation, BINARISATIONS),
        (choices.DatasetName, DATASETS),
        (choices.EstimatorName, pv.evidence.ESTIMATORS),
        (choices.FamilyName, FAMILIES),
        (choices.RefinementMethod, METHODS),
        (choices.Schedule, SCHEDULES),
        (choices.ViewName, VIEWS),
    ],
)
def test_a_list_of_names_is_the_keys_of_its_registry(listed, registry):
    assert sorted(get_args(listed)) == sorted(registry)


@pytest.mark.parametrize(
    ("listed", "ask"),
    [
        (choices.LikelihoodName, lambda name: likelihood_named(name, (4,), 1.0, False, 2)),
        (choices.PosteriorName, lambda name: posterior_named(name, 2)),
        (choices.PriorName, lambda name: prior_named(name, 3, torch.nn.Identity(), *parts(), None)),
        (choices.Proposal, require_proposal),
    ],
)
def test_a_list_of_names_is_what_is_expected_in_place_of_an_unknown_one(listed, ask):
    with pytest.raises(ConfigError, match="='nonesuch': expected one of ") as refused:
        ask("nonesuch")
    expected = re.findall(r"'(\w+)'", str(refused.value).partition("expected one of ")[2])
    assert sorted(expected) == sorted(get_args(listed))


def parts():
    return posterior_named("diagonal", 2), likelihood_named("bernoulli", (4,), 1.0, False, 2)


def test_every_proposal_can_be_drawn_from():
    problem = pv.problems.linear_gaussian(W=[[1.0], [2.0]], scale=0.5)
    x = problem.sample(3, seed=0)
    for name in get_args(choices.Proposal):
        found = pv.evidence.importance(problem.model, problem.guide(), x, num_particles=64, proposal=name)
        assert torch.allclose(found.value, problem.log_evidence(x).to(found.value), atol=0.5)


def test_every_objective_of_the_command_line_is_made_with_its_gradients():
    made = [
        objective_of(TrainConfig(objective=name, num_particles=2).resolved())
        for name in get_args(choices.ObjectiveName)
    ]
    assert len({type(objective) for objective in made}) == len(made)
    gradients = {gradient for objective in made for gradient in objective.gradients}
    assert gradients == set(get_args(choices.GradientName))


def test_every_preset_of_the_command_line_is_one_of_the_presets():
    x_train = pv.data.Pixels(torch.randint(0, 2, (5, 8, 8), dtype=torch.uint8), max_value=1)
    for name in get_args(choices.PresetName):
        vae = build(TrainConfig(preset=name).resolved(), x_train)
        assert vae.recipe["preset"] == f"{name}_vae"
        assert f"{name}_vae" in PRESETS
