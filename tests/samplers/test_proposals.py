"""What is drawn from: any proposal is unbiased, and the better ones are better where the guide is too narrow."""

import math
from typing import get_args

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import pyro_vae as pv
from pyro_vae.errors import ConfigError, PairError
from pyro_vae.evidence import importance
from pyro_vae.evidence.budget import require_proposal
from pyro_vae.ops.choices import Proposal
from pyro_vae.pairs.density import Density
from pyro_vae.pairs.pair import Pair
from pyro_vae.samplers import fitted_proposal as refinement
from pyro_vae.samplers import proposals
from pyro_vae.samplers.fitted_proposal import FIT_EVALUATIONS, inflation
from tests.objectives.test_objectives import conv, hand_written, pixels, two_layer
from tests.ops.test_verdicts import three_latents
from tests.statistics import assert_mean
from tests.test_exams import E1_LOG_P, e1_data, linear

pytestmark = pytest.mark.usefixtures("float64")

every_proposal = pytest.mark.parametrize("proposal", get_args(Proposal))
better = pytest.mark.parametrize("proposal", ["defensive", "refined"])


def conjugate(inflate):
    """E1 with a guide that is a multiple of the posterior, whose weights have the tail shape 1 - inflate^2."""
    problem = pv.problems.linear_gaussian(W=[[1.0]], scale=0.5**0.5)
    return problem, problem.guide(inflate=inflate)


def relative_errors(model, guide, x, exact, **options):
    """Of p-hat, whose mean is 0 if the weights are unbiased."""
    return torch.expm1(importance(model, guide, x, **options).value - exact)


def rmse(found, exact):
    return (found.value - exact).square().mean().sqrt().item()


USES_OF_THE_GUIDES_DENSITY = {
    "defensive": lambda pair, x, z: importance(*pair, x, proposal="defensive"),
    "refined": lambda pair, x, z: importance(*pair, x, proposal="refined"),
    "sandwich": lambda pair, x, z: pv.evidence.sandwich(*pair, x, {"z": z}, method="iwae"),
    "gaps": lambda pair, x, z: pv.diagnostics.inference_gaps(*pair, x, log_evidence=torch.zeros(len(x))),
    "calibration": lambda pair, x, z: pv.diagnostics.calibration(*pair, x),
}


@pytest.mark.parametrize("use", USES_OF_THE_GUIDES_DENSITY)
def test_a_point_mass_is_refused_wherever_the_guides_density_is_asked_for(use):
    """Its "density" of 1 at the point made the defensive weights too large, and the lower bound lie above log p(x)."""
    problem = linear()
    x = problem.sample(4, seed=0)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(problem.posterior(x).mean, event_dim=1))

    with pytest.raises(PairError, match="point masses"):
        USES_OF_THE_GUIDES_DENSITY[use]((problem.model, guide), x, problem.posterior(x).mean)


def test_an_automatic_guide_of_all_datapoints():
    problem, x = linear(), linear().sample(6, seed=0)
    guide = AutoNormal(problem.model, init_scale=0.7, create_plates=lambda x: pyro.plate("data", len(x), dim=-1))
    guide(x)
    with torch.no_grad():
        for name, value in guide.named_parameters():
            if "locs" in name:
                value.copy_(problem.posterior(x).mean)
    before = {name: value.detach().clone() for name, value in guide.named_parameters()}
    found = importance(problem.model, guide, x, num_particles=2000)
    assert ((found.value - problem.log_evidence(x)).abs() <= 5 * found.stderr).all()
    with pytest.raises(PairError, match=r"auxiliary.*proposal='guide'"):
        importance(problem.model, guide, x, proposal="defensive")
    assert all(torch.equal(value, before[name]) for name, value in guide.named_parameters())


# The defensive mixture


def test_a_mixture_bounds_the_weights():
    problem, guide = conjugate(0.4)
    x = problem.sample(100, seed=0)
    plain, safe = (
        importance(problem.model, guide, x, num_particles=10_000, proposal=proposal)
        for proposal in ("guide", "defensive")
    )
    assert plain.pareto_k.median() > 0.7  # 1 - 0.4^2 = 0.84
    assert plain.share("unreliable") > 0.7
    assert safe.pareto_k.median() < 0.3
    assert safe.share("unreliable") < 0.05
    exact = problem.log_evidence(x)
    assert rmse(safe, exact) < 0.3 * rmse(plain, exact)
    assert ((safe.value - exact).abs() <= 5 * safe.stderr).all()


def test_no_weight_exceeds_ten_times_the_likelihood():
    problem, guide = conjugate(0.3)
    x = problem.sample(20, seed=0)
    with torch.no_grad():
        ((_, log_w),) = proposals.DefensiveProposal(Pair.of(problem.model, guide, x), 2**26)(torch.arange(20), 1000)
    most = dist.Normal(0.0, 0.5**0.5).log_prob(torch.zeros(())) + math.log(10)  # at x = z
    assert log_w.shape == (1000, 20)
    assert (log_w <= most + 1e-9).all()


@pytest.mark.parametrize("num_particles", [2, 3, 11, 200])
@pytest.mark.parametrize("inflate", [0.4, 1.0, 2.0])
def test_a_mixture_is_unbiased(inflate, num_particles):
    problem, guide = conjugate(inflate)
    errors = relative_errors(
        problem.model, guide, e1_data(5000), E1_LOG_P, num_particles=num_particles, proposal="defensive"
    )
    assert_mean(errors, 0.0)


@pytest.mark.usefixtures("first_opinion")
@pytest.mark.parametrize("max_bytes", [1, 2**11, 2**14])
def test_a_mixture_in_blocks_is_unbiased_too(max_bytes):
    problem, guide = conjugate(0.4)
    errors = relative_errors(
        problem.model, guide, e1_data(100), E1_LOG_P, num_particles=37, proposal="defensive", max_bytes=max_bytes
    )
    assert_mean(errors, 0.0)


WRONG = {
    "the density of the guide alone": lambda terms, share: terms.log_q,
    "the density of the prior alone": lambda terms, share: terms.log_prior,
    "equal shares": lambda terms, share: torch.logaddexp(terms.log_prior, terms.log_q) - math.log(2),
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_that_ignore_the_mixture_fail_the_same_check(monkeypatch, name):
    def wrong(density, num, from_prior):
        u = torch.cat([density.draw_prior(from_prior), density.draw(num - from_prior)])
        terms = density.terms(u)
        return u, terms.log_p - WRONG[name](terms, from_prior / num)

    monkeypatch.setattr(Density, "draw_defensive", wrong)
    problem, guide = conjugate(0.9)
    errors = relative_errors(problem.model, guide, e1_data(3000), E1_LOG_P, num_particles=50, proposal="defensive")
    with pytest.raises(AssertionError):
        assert_mean(errors, 0.0)


def test_the_error_bar_of_a_mixture_holds():
    problem, guide = conjugate(0.5)
    x = problem.sample(500, seed=3)
    found = importance(problem.model, guide, x, num_particles=2000, proposal="defensive")
    covered = ((found.value - problem.log_evidence(x)).abs() < 1.96 * found.stderr).double().mean()
    assert 0.92 <= covered <= 0.985  # fixed shares have rather less noise than independent draws


# A Gaussian of the evaluator's own


@pytest.mark.parametrize("dim", [1, 2, 3, 10, 50])
def test_the_width_of_a_refined_proposal_costs_half_of_the_draws_where_it_was_not_needed(dim):
    square = inflation(dim) ** 2
    assert (math.sqrt(2 * square - 1) / square) ** dim == pytest.approx(0.5)
    assert square > 1


def test_the_answer_of_a_refined_proposal_does_not_depend_on_the_guide():
    problem, x = three_latents(), three_latents().sample(50, seed=0)
    exact = problem.log_evidence(x)
    for guide in (problem.guide(inflate=1 / 3), problem.guide(shift=(1.0, -1.0, 0.5)), problem.guide(inflate=3.0)):
        found = importance(problem.model, guide, x, num_particles=1000, proposal="refined")
        assert (found.num_particles == 1000).all()
        assert (found.num_evaluations == 1000 + FIT_EVALUATIONS).all()
        assert found.ess.median() == pytest.approx(500, rel=0.15)
        assert found.share("ok") == 1
        assert_mean((found.value - exact) / found.stderr, 0.0)
        assert ((found.value - exact).abs() < 5 * found.stderr).all()


def test_draws_from_the_gaussian_of_the_largest_elbo_itself_have_heavy_tails(monkeypatch):
    # x is a half-line's worth of z: the posterior has one steep flank and one Gaussian tail.
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=8 * (z - 1)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    x = torch.ones(40)
    wide = importance(model, guide, x, num_particles=5000, proposal="refined")
    monkeypatch.setattr(refinement, "inflation", lambda dim: 1.0)
    narrow = importance(model, guide, x, num_particles=5000, proposal="refined")
    assert wide.pareto_k.median() < 0.2 < 0.5 < narrow.pareto_k.median()


def test_fewer_rows_at_once_are_the_same_gaussians():
    problem, x = linear(), linear().sample(5, seed=0)
    found, pieces = (
        importance(problem.model, problem.guide(), x, num_particles=500, proposal="refined", max_bytes=max_bytes)
        for max_bytes in (2**26, 2**12)
    )
    error = (found.stderr.square() + pieces.stderr.square()).sqrt()
    assert ((found.value - pieces.value).abs() < 5 * error).all()


# Any pair


@better
def test_two_layers(proposal):
    # x = z1 + noise, z1 = z2 + noise, z2 standard normal: x ~ N(0, 3), with a guide of half the right widths.
    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z1, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(2 * x / 3, 0.6 * (2 / 3) ** 0.5).to_event(1))
            pyro.sample("z2", dist.Normal(z1 / 2, 0.6 * 0.5**0.5).to_event(1))

    x = torch.linspace(-3, 3, 200)[:, None]
    exact = dist.Normal(0.0, 3.0**0.5).log_prob(x[:, 0])
    plain = importance(model, guide, x, num_particles=500)
    found = importance(model, guide, x, num_particles=500, proposal=proposal)
    assert rmse(found, exact) < 0.7 * rmse(plain, exact)
    assert found.pareto_k.median() < plain.pareto_k.median() - 0.2
    assert_mean(relative_errors(model, guide, x, exact, num_particles=500, proposal=proposal), 0.0)


@every_proposal
@pytest.mark.parametrize("width", [0.5, 1.3])
def test_positive_latents(proposal, width):
    # log z ~ N(0, 1) and x | z ~ N(log z, 1): x ~ N(0, 2).
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.log(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(x / 2, width * 0.5**0.5))

    x = torch.linspace(-2, 2, 400)
    exact = dist.Normal(0.0, 2.0**0.5).log_prob(x)
    found = importance(model, guide, x, num_particles=1000, proposal=proposal)
    assert_mean(relative_errors(model, guide, x, exact, num_particles=1000, proposal=proposal), 0.0)
    if width == 0.5 and proposal == "defensive":
        plain = importance(model, guide, x, num_particles=1000)
        assert found.pareto_k.median() < plain.pareto_k.median() - 0.2


@better
@pytest.mark.parametrize("build", [hand_written, conv, two_layer])
@pytest.mark.parametrize("max_bytes", [2**16, 2**26])
def test_foreign_pairs_agree_with_their_guides(build, proposal, max_bytes):
    torch.set_default_dtype(torch.float32)  # as they are
    model, guide, _, x = build(num=3)
    plain = importance(model, guide, x, num_particles=100)
    found = importance(model, guide, x, num_particles=100, proposal=proposal, max_bytes=max_bytes)
    assert ((found.value - plain.value).abs() <= 5 * torch.hypot(found.stderr, plain.stderr)).all()


def test_discrete_latents_cannot_be_mixed():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(len(x))))

    x = torch.linspace(-1, 2, 30)
    exact = torch.logaddexp(
        dist.Normal(0.0, 1.0).log_prob(x) + math.log(0.7), dist.Normal(1.0, 1.0).log_prob(x) + math.log(0.3)
    )
    found = importance(model, guide, x, num_particles=1000)
    assert ((found.value - exact).abs() <= 5 * found.stderr).all()
    with pytest.raises(PairError, match=r"site 'z'.*Bernoulli.*proposal='guide'") as caught:
        importance(model, guide, x, proposal="defensive")
    assert "\n" not in str(caught.value)


@better
def test_a_vae_is_left_as_it_was(proposal):
    torch.set_default_dtype(torch.float32)
    vae, x = pv.presets.mlp_vae(data_shape=(8,), latent_dim=2, hidden=(16,)), pixels(6, 8)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    generator = torch.get_rng_state()
    importance(vae.model, vae.guide, x, num_particles=50, proposal=proposal)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not list(pyro.get_param_store().keys())
    assert vae.training


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("refine", "proposal='refine': expected one of 'guide', 'defensive', 'refined': did you mean 'refined'"),
        ("inflated", "proposal='inflated' was removed: use 'refined'"),
        ("prior", "proposal='prior': expected one of 'guide', 'defensive', 'refined'$"),
        ("", "proposal=''"),
    ],
)
def test_unknown_names_are_refused(name, message):
    require_proposal("defensive")
    with pytest.raises(ConfigError, match=message):
        require_proposal(name)
