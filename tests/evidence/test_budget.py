"""Draws go where the error is large: the target is met, the cap held, and neither order nor mean is disturbed."""

import io
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from tqdm import tqdm

import pyro_vae as pv
from pyro_vae.errors import ConfigError
from pyro_vae.evidence import budget as drawing
from pyro_vae.evidence import from_weights as sampling
from pyro_vae.evidence import importance, psis
from pyro_vae.ops.streaming import TailMoments
from pyro_vae.pairs import pair
from pyro_vae.pairs import vectorization as probing
from pyro_vae.pairs.memory import Footprint
from tests.objectives.test_objectives import conv, hand_written, pixels, two_layer
from tests.statistics import assert_mean
from tests.test_exams import E2_LOG_P, e2_data, linear

pytestmark = pytest.mark.usefixtures("float64")

estimators = pytest.mark.parametrize("estimate", [importance, psis])


def uneven(problem, good=1.05, bad=2.0):
    """A guide that is close to the posterior where the first number of x is positive, and far from it elsewhere."""
    factor = torch.linalg.cholesky(problem.posterior_covariance)

    def guide(x):
        width = torch.where(x[:, 0] > 0, good, bad)[:, None, None]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(problem.posterior(x).mean, scale_tril=width * factor))

    return guide


def assert_right(found, exact):
    """Each datapoint's value within five of the standard errors that are stated for it."""
    assert ((found.value - exact).abs() <= 5 * found.stderr + 1e-12).all()


# The rule


@estimators
@pytest.mark.parametrize("target", [0.05, 0.01])
def test_the_target_is_met_at_less_than_uniform_cost(estimate, target):
    problem, x = linear(), linear().sample(60, seed=0)
    found = estimate(problem.model, uneven(problem), x, target_stderr=target)
    raw = found if estimate is importance else importance(problem.model, uneven(problem), x, target_stderr=target)
    assert (raw.stderr <= target).all()
    assert torch.equal(found.num_particles, raw.num_particles)
    assert_right(found, problem.log_evidence(x))
    assert (found.num_particles < 100_000).all()
    if target == 0.01:
        good = x[:, 0] > 0
        assert found.num_particles[good].max() * 4 < found.num_particles[~good].min()
        most = int(found.num_particles.max())
        assert found.num_evaluations.sum() < 0.6 * most * len(x)
        uniform = estimate(problem.model, uneven(problem), x, num_particles=most // 2)
        assert (uniform.stderr > target).any()  # half of the most would not have done for all


def test_draws_that_are_already_good_enough_are_the_first_few():
    problem, x = linear(), linear().sample(20, seed=0)
    found = importance(problem.model, problem.guide(), x, target_stderr=0.01)
    assert (found.num_particles == 1024).all()
    assert_right(found, problem.log_evidence(x))


def test_the_cost_is_about_what_the_error_asks_for():
    # chi2 / target^2 draws: 0.33 / 1e-4.
    problem, x = linear(), linear().sample(200, seed=0)
    found = importance(problem.model, problem.guide(inflate=1.5), x, target_stderr=0.01)
    chi2 = 1.5**4 / (2 * 1.5**2 - 1) - 1
    assert (found.num_particles >= 0.8 * chi2 / 0.01**2).all()
    assert (found.num_particles <= 1.6 * chi2 / 0.01**2).all()


@estimators
@pytest.mark.parametrize("most", [2, 100, 256, 300, 2000])
def test_the_cap_is_held(estimate, most):
    problem, x = linear(), linear().sample(30, seed=0)
    found = estimate(problem.model, problem.guide(inflate=2.0), x, target_stderr=1e-4, num_particles=most)
    assert (found.num_particles == most).all()
    assert (found.num_evaluations == most).all()
    assert_right(found, problem.log_evidence(x)) if most > 100 else None


def test_those_that_reach_the_target_stop_and_the_others_go_to_the_cap():
    problem, x = linear(), linear().sample(60, seed=0)
    found = importance(problem.model, uneven(problem, bad=3.0), x, target_stderr=0.01, num_particles=3000)
    good = x[:, 0] > 0
    assert (found.stderr[good] <= 0.01).all()
    assert (found.num_particles[good] < 3000).all()
    assert (found.num_particles[~good] == 3000).all()
    assert (found.stderr[~good] > 0.01).all()


def relative_errors(inflate, target, num=700):
    """Of p-hat: they would be 0 on average for any number of draws that does not depend on them."""
    problem = linear()
    guide = problem.guide(mean_field=True, inflate=inflate)
    found = importance(problem.model, guide, e2_data(num), target_stderr=target, num_particles=2000)
    return torch.expm1(found.value - E2_LOG_P), found.num_particles


@pytest.mark.parametrize(("inflate", "target"), [(2.0, 0.05), (1.5, 0.1)])
def test_stopping_by_the_draws_biases_no_more_than_the_squared_error(inflate, target):
    errors, _ = relative_errors(inflate, target)
    assert_mean(errors, 0.0, slack=target**2)


def test_a_rule_that_looks_at_a_handful_of_draws_fails_the_same_check(monkeypatch):
    monkeypatch.setattr(drawing, "_FIRST", 4)
    errors, num_particles = relative_errors(1.5, 0.1)
    assert num_particles.unique().numel() > 5
    with pytest.raises(AssertionError):
        assert_mean(errors, 0.0, slack=0.1**2)


def test_no_look_ends_one_draw_short_of_its_target():
    counts = torch.tensor([256, 431, 305, 99_999])
    summary = TailMoments.of(torch.randn(50, 4), capacity=50)._replace(num_particles=counts)
    for factor in (1 + 1e-6, 1.001, 1.5, 100.0):
        target = (summary.log_moments.stderr / math.sqrt(factor)).max().item()
        reached = summary.log_moments.stderr <= target
        goal = drawing._goal(summary, drawing.Budget(100_000, target))
        assert torch.equal(goal > counts, ~reached)
        assert (goal <= 100_000).all()
    assert (goal <= (4 * counts * 1.2).long()).all()  # an error from few draws says little about how many are missing


def test_what_no_number_of_draws_can_mend_stops_at_the_cap():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("x", torch.where(x[:, 0] > 0, -math.inf, 0.0).expand_as(z))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.tensor([[1.0], [-1.0], [1.0]])
    found = importance(model, guide, x, target_stderr=0.01, num_particles=1700)
    assert found.num_particles.tolist() == [1700, 1024, 1700]
    assert found.verdict.tolist() == ["unreliable", "ok", "unreliable"]
    assert found.value[1] == pytest.approx(0.0, abs=1e-12)


# What stays as it is


@pytest.mark.parametrize("proposal", ["guide", "defensive"])
def test_the_draws_depend_on_the_seed_alone(proposal):
    problem, x = linear(), linear().sample(10, seed=0)
    found = []
    for caller_seed, seed in ((1, 0), (2, 0), (1, 7)):
        torch.manual_seed(caller_seed)
        found.append(importance(problem.model, uneven(problem), x, proposal=proposal, target_stderr=0.03, seed=seed))
    assert torch.equal(found[0].value, found[1].value)
    assert torch.equal(found[0].num_particles, found[1].num_particles)
    assert (found[0].value != found[2].value).all()


@pytest.mark.parametrize("proposal", ["guide", "defensive"])
@pytest.mark.parametrize("max_bytes", [2**15, 2**26])
def test_the_order_of_rows_is_kept(proposal, max_bytes):
    problem, x = linear(), linear().sample(40, seed=1)
    found = importance(problem.model, uneven(problem), x, proposal=proposal, target_stderr=0.06, max_bytes=max_bytes)
    exact = problem.log_evidence(x)
    assert_right(found, exact)
    assert ((found.value - exact.roll(1)).abs() > 5 * found.stderr).any()
    assert (found.stderr <= 0.06).all()


def test_more_rows_than_are_settled_together():
    problem = linear()
    x = problem.sample(2500, seed=2)
    found = importance(problem.model, uneven(problem, bad=1.5), x, target_stderr=0.05)
    exact = problem.log_evidence(x)
    assert_right(found, exact)
    assert found.value.shape == found.num_particles.shape == found.verdict.shape == (2500,)
    assert (found.stderr <= 0.05).all()


# Any pair


def own_parameters(num):
    """A guide with a mean for each datapoint, looked up by the plate's indices: its rows cannot be given alone."""
    problem = linear()
    x = problem.sample(num, seed=3)
    loc = problem.posterior(x).mean
    scale = torch.linspace(1.05, 2.0, num)[:, None] * problem.posterior_covariance.diagonal().sqrt()

    def guide(x):
        with pyro.plate("data", len(x)) as rows:
            pyro.sample("z", dist.Normal(loc[rows], scale[rows]).to_event(1))

    return problem.model, guide, x, problem.log_evidence(x)


@pytest.mark.parametrize("proposal", ["guide", "defensive"])
def test_rows_that_cannot_be_given_alone_are_drawn_together(proposal):
    model, guide, x, exact = own_parameters(7)
    assert not probing.rows_are_independent(model, guide, x)
    found = importance(model, guide, x, proposal=proposal, target_stderr=0.02)
    assert_right(found, exact)
    assert (found.stderr <= 0.02).all()
    assert found.num_particles.unique().numel() == 1
    few = importance(model, guide, x, proposal=proposal, num_particles=300, max_bytes=2**10)
    assert_right(few, exact)


@pytest.mark.parametrize("build", [hand_written, conv, two_layer])
@pytest.mark.parametrize("proposal", ["guide", "defensive"])
def test_foreign_pairs(build, proposal):
    torch.set_default_dtype(torch.float32)  # as they are
    model, guide, _, x = build(num=3)
    found = importance(model, guide, x, proposal=proposal, target_stderr=0.05, num_particles=500)
    plain = importance(model, guide, x, num_particles=500, seed=1)
    assert ((found.value - plain.value).abs() <= 5 * torch.hypot(found.stderr, plain.stderr)).all()
    assert ((found.stderr <= 0.05) | (found.num_particles == 500)).all()


# The cost


def small_vae():
    torch.set_default_dtype(torch.float32)
    return pv.presets.mlp_vae(data_shape=(8,), latent_dim=3, hidden=(16,)), pixels(9, 8)


@pytest.fixture
def decoded(monkeypatch):
    """Rows of latents that the decoder of a VAE saw, without those that only tried out what the pair can do."""
    monkeypatch.setattr(probing, "_same_alone_and_elsewhere", lambda *_: True)
    monkeypatch.setattr(pair, "measured", lambda *_: Footprint(625, 3, 1))
    vae, x = small_vae()
    rows = []
    vae.decoder.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0][..., 0].numel()))
    return vae, x, rows


@pytest.mark.parametrize("max_bytes", [2**19, 2**26])
@pytest.mark.parametrize(
    "options",
    [
        {"num_particles": 500},
        {"target_stderr": 0.05, "num_particles": 3000},
        {"target_stderr": 0.05, "num_particles": 500},
    ],
    ids=str,
)
@pytest.mark.usefixtures("first_opinion")
def test_evaluations_are_what_the_decoder_saw(decoded, options, max_bytes):
    vae, x, rows = decoded
    found = importance(vae.model, vae.guide, x, max_bytes=max_bytes, **options)
    assert sum(rows) == found.num_evaluations.sum()
    assert torch.equal(found.num_evaluations, found.num_particles)


@pytest.mark.usefixtures("first_opinion")
@pytest.mark.parametrize("options", [{"num_particles": 500}, {"target_stderr": 0.05, "num_particles": 2000}], ids=str)
def test_a_mixture_decodes_each_row_once_more_for_each_look(decoded, options):
    vae, x, rows = decoded
    found = importance(vae.model, vae.guide, x, proposal="defensive", **options)
    total = found.num_evaluations.sum()
    assert torch.equal(found.num_evaluations, found.num_particles)
    assert total <= sum(rows) <= total + 20 * len(x)
    if "target_stderr" not in options:
        assert sum(rows) == total + len(x)


@pytest.mark.parametrize(
    "options",
    [
        {"num_particles": 500},
        {"target_stderr": 0.05},
        {"num_particles": 300, "proposal": "defensive"},
    ],
    ids=str,
)
def test_the_bar_ends_where_it_said_it_would(monkeypatch, options):
    bars = []

    def bar(total, show, unit="evaluation"):
        bars.append(tqdm(total=total, file=io.StringIO(), disable=False))
        return bars[-1]

    monkeypatch.setattr(sampling, "progress_bar", bar)
    problem, x = linear(), linear().sample(10, seed=0)
    found = importance(problem.model, uneven(problem), x, progress=True, **options)
    assert bars[0].n == bars[0].total == found.num_evaluations.sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_stderr": 0.0}, r"target_stderr=0\.0: expected a finite number of at least 1e-06"),
        ({"target_stderr": -1.0}, "target_stderr"),
        ({"target_stderr": math.nan}, "target_stderr=nan"),
        ({"target_stderr": 0.1, "num_particles": 1}, "num_particles=1: expected at least 2"),
    ],
    ids=["zero", "negative", "nan", "one"],
)
@estimators
def test_what_cannot_be_is_refused(estimate, options, message):
    problem = linear()
    with pytest.raises(ConfigError, match=message) as caught:
        estimate(problem.model, problem.guide(), problem.sample(2, seed=0), **options)
    assert "\n" not in str(caught.value)
