"""Calibration: known guides have known coverage, and ranks that are no ranks are found out."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import pyro_vae as pv
from pyro_vae.diagnostics import calibration
from pyro_vae.diagnostics.calibration import _p_value, _summary
from pyro_vae.errors import ConfigError, PairError
from pyro_vae.pairs.simulation import simulate
from tests.objectives.test_objectives import conv, hand_written, subsampled, two_layer
from tests.statistics import assert_mean, assert_not_mean
from tests.test_exams import linear

NUM = 2000


def of(guide, **options):
    problem = linear()
    return calibration(problem.model, problem.guide(**guide), torch.zeros(NUM, 5), **options)


def inside(found, level):
    """Per simulation and coordinate whether the interval of that level held the truth."""
    cut = round((found.num_draws + 1) * (1 - level) / 2)
    return ((found.ranks >= cut) & (found.ranks <= found.num_draws - cut)).double()


def exact_coverage(level, width, shift=0.0):
    """Return the coverage of the central interval of N(shift, width^2), when the truth is standard normal."""
    half = width * stats.norm.ppf((1 + level) / 2)
    return stats.norm.cdf(shift + half) - stats.norm.cdf(shift - half)


@pytest.mark.usefixtures("float64")
class TestKnownGuides:
    def test_the_posterior_is_calibrated(self):
        found = of({})
        assert found.verdict.tolist() == ["calibrated"] * 2
        assert found.names == ("z[0]", "z[1]")
        assert found.ranks.shape == (NUM, 2)
        assert found.levels.tolist() == pytest.approx([0.5, 0.8, 0.9, 0.95])
        for row, level in enumerate((0.5, 0.8, 0.9, 0.95)):
            assert_mean(inside(found, level), level, sd=math.sqrt(level * (1 - level)))
            torch.testing.assert_close(inside(found, level).mean(0), found.coverage[row])
        assert_mean(found.ranks / 999, 0.5, sd=math.sqrt(1 / 12))
        assert found.shift.abs().max() < 0.1
        assert (found.spread - 1).abs().max() < 0.1

    @pytest.mark.parametrize(("inflate", "verdict"), [(0.5, "too narrow"), (2.0, "too wide"), (0.8, "too narrow")])
    def test_wrong_widths(self, inflate, verdict):
        found = of({"inflate": inflate})
        assert found.verdict.tolist() == [verdict] * 2
        assert found.p_value.max() < 1e-6
        for level in (0.5, 0.8, 0.9):
            exact = exact_coverage(level, inflate)
            assert_mean(inside(found, level), exact, sd=math.sqrt(exact * (1 - exact)))
            assert_not_mean(inside(found, level), level)
        assert found.coverage_stderr[0, 0].item() == pytest.approx(
            math.sqrt(found.coverage[0, 0] * (1 - found.coverage[0, 0]) / NUM), rel=0.01
        )
        if inflate > 0.5:  # else scores are cut where ranks end
            assert found.spread.tolist() == pytest.approx([1 / inflate] * 2, rel=0.1)

    def test_a_shift_in_one_coordinate(self):
        found = of({"shift": (0.3, 0.0)})
        assert found.verdict.tolist() == ["shifted", "calibrated"]
        sd = linear().posterior_covariance[0, 0].sqrt().item()
        assert found.shift[0].item() == pytest.approx(-0.3 / sd, rel=0.15)
        assert_mean(inside(found, 0.8)[:, 0], exact_coverage(0.8, 1.0, 0.3 / sd))
        assert of({"shift": (5.0, 0.0)}).verdict[0] == "shifted"  # where all ranks are the same

    def test_the_best_mean_field_is_too_narrow(self):
        found = of({"mean_field": True})
        assert found.verdict.tolist() == ["too narrow"] * 2
        problem = linear()
        ratio = (
            torch.linalg.inv(problem.posterior_covariance).diagonal().rsqrt()
            / problem.posterior_covariance.diagonal().sqrt()
        )
        assert_mean(inside(found, 0.9), torch.tensor([exact_coverage(0.9, width) for width in ratio.tolist()]))

    def test_draws_from_the_prior_are_calibrated_too_and_that_is_documented(self):
        problem = linear()

        def prior(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

        assert calibration(problem.model, prior, torch.zeros(NUM, 5)).verdict.tolist() == ["calibrated"] * 2
        assert "prior" in calibration.__doc__

    def test_latents_of_other_data_are_found_out(self):
        # A negative control: the same draws, ranked against latents that are not behind these data.
        problem = linear()
        drawn = simulate(problem.model, torch.zeros(NUM, 5), seed=0)
        z = problem.posterior(drawn.x).sample((99,))
        right, wrong = (z < drawn.z["z"]).sum(0), (z < drawn.z["z"].roll(1, 0)).sum(0)
        found = [_summary(ranks, 99, ("z[0]", "z[1]"), [0.9]) for ranks in (right, wrong)]
        assert found[0].verdict.tolist() == ["calibrated"] * 2
        assert found[1].verdict.tolist() == ["too narrow"] * 2


# The test of uniform ranks


@pytest.mark.parametrize(("num_draws", "num"), [(999, 500), (99, 100), (7, 200), (2, 30), (19, 12)])
def test_p_values_of_uniform_ranks_are_not_too_small(num_draws, num):
    p_value = _p_value(torch.randint(num_draws + 1, (num, 4000)), num_draws + 1)
    assert p_value.min() > 0
    for level in (0.01, 0.05, 0.2):
        share = (p_value < level).double().mean().item()
        assert share < level + 5 * math.sqrt(level / 4000) + 0.3 * level  # asymptotic tests, few simulations
        assert num < 100 or share > level / 4  # and not never


def test_the_histogram_is_pearsons():
    ranks = torch.cat([torch.arange(100).repeat(10), torch.full((60,), 50)])[:, None]  # neither shifted nor spread
    counts = torch.bincount(ranks[:, 0] * 20 // 100)
    assert _p_value(ranks, 100).item() == pytest.approx(3 * stats.chisquare(counts.numpy()).pvalue, rel=1e-6)


@pytest.mark.parametrize("shape", [lambda n: n // 2, lambda n: n**2 // 100, lambda n: 25 + n // 2])
def test_ranks_that_are_not_uniform_are_found_out(shape):
    assert _p_value(shape(torch.randint(100, (500, 3))), 100).max() < 1e-6


def test_levels_are_those_that_the_draws_allow():
    ranks = torch.arange(10).repeat(100)[:, None]  # exactly uniform on 0, ..., 9
    found = _summary(ranks, 9, ("z[0]",), (0.5, 0.8, 0.95, 0.0, 1.0))
    assert found.levels.tolist() == pytest.approx([0.6, 0.8, 1.0, 0.0, 1.0])
    torch.testing.assert_close(found.coverage[:, 0], found.levels)
    assert found.coverage_stderr.min() > 0


# Any pair


@pytest.mark.parametrize("build", [hand_written, conv, two_layer])
def test_foreign_pairs(build):
    model, guide, modules, x = build(num=40)
    before = {name: value.clone() for name, value in modules.state_dict().items()}
    generator = torch.get_rng_state()
    found = calibration(model, guide, x, num_draws=19)
    assert torch.equal(torch.get_rng_state(), generator)
    assert not pyro.get_param_store().keys()
    assert all(torch.equal(value, before[name]) for name, value in modules.state_dict().items())
    names = ("z2[0]", "z2[1]", "z1[0]", "z1[1]", "z1[2]") if build is two_layer else ("z[0]", "z[1]")
    assert found.names == names
    assert found.ranks.shape == (40, len(names))
    assert found.ranks.min() >= 0
    assert found.ranks.max() <= 19
    assert torch.equal(calibration(model, guide, x, num_draws=19).ranks, found.ranks)
    assert not torch.equal(calibration(model, guide, x, num_draws=19, seed=1).ranks, found.ranks)
    assert calibration(model, guide, x, num_draws=19, num_simulations=50).ranks.shape == (50, len(names))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("max_bytes", [1, 2**18])
def test_blocks(max_bytes):
    problem = linear()
    x = torch.zeros(60, 5)
    found = calibration(problem.model, problem.guide(scale=(1e-9, 1e-9)), x, num_draws=9, max_bytes=max_bytes)
    truth = simulate(problem.model, x, seed=0)  # a guide of no width ranks the truth against the posterior mean
    assert torch.equal(found.ranks, 9 * (truth.z["z"] > problem.posterior(truth.x).mean).long())


@pytest.mark.parametrize(("width", "verdict"), [(1.0, "calibrated"), (0.5, "too narrow")])
def test_a_constrained_latent_keeps_its_order(width, verdict):
    def model(x):
        with pyro.plate("data", len(x)):
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(scale.log(), 0.5**0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("scale", dist.LogNormal(x / 1.5, width * 3**-0.5))

    assert calibration(model, guide, torch.zeros(500)).verdict.tolist() == [verdict]


def test_a_vae_is_asked_about_data_like_its_own():
    vae = pv.presets.mlp_vae(data_shape=(6,), latent_dim=2, hidden=(8,))
    drawn = simulate(vae.model, torch.zeros(30, 6))
    assert set(drawn.x.unique().tolist()) == {0.0, 1.0}
    assert calibration(vae.model, vae.guide, torch.zeros(30, 6), num_draws=9).ranks.shape == (30, 2)


# Input


def elsewhere(x):
    """Observes a sum of what it is called with."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("total", dist.Normal(z, 1.0), obs=x.sum(-1))


def its_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.sum(-1), 1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 1}, "num_draws=1: expected at least 2"),
        ({"num_simulations": 0}, "num_simulations=0"),
        ({"levels": (0.5, 1.5)}, "levels=1.5: expected a finite number of at least 0 and at most 1"),
    ],
    ids=["draws", "simulations", "levels"],
)
def test_unusable_options_are_refused(options, message):
    model, guide, _, x = hand_written(num=4)
    with pytest.raises(ConfigError, match=message):
        calibration(model, guide, x, **options)


def test_a_model_that_does_not_observe_its_data_is_refused():
    with pytest.raises(PairError, match=r"holds something else than x .*: give the pair data that it observes"):
        calibration(elsewhere, its_guide, torch.zeros(4, 2))


def test_a_plate_that_subsamples_is_refused():
    model, guide, _, x = subsampled()
    with pytest.raises(PairError, match="holds something else than x"):
        calibration(model, guide, x)
