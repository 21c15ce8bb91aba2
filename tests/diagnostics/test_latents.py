"""The information of latents about the data: exact information, the KL term in its parts, and bounds in order."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.diagnostics import aggregate_posterior, latent_summary
from pyro_vae.errors import ConfigError, DataError
from tests.objectives.test_objectives import conv, hand_written, two_layer
from tests.statistics import SIGMAS, assert_mean, assert_not_mean
from tests.test_exams import linear


def exact_information(problem):
    """By dimension and whole, in nats, of the exact posterior under the model's own data."""
    covariance = problem.posterior_covariance
    return -0.5 * covariance.diagonal().log(), -0.5 * torch.logdet(covariance)


def assert_within_own_error(mean, exact, slack=0.0):
    assert ((mean.value - exact).abs() <= SIGMAS * mean.test_set_error + slack).all(), f"{mean}, expected {exact}"


@pytest.fixture(scope="module")
def exact_guide():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    problem = linear()
    found = aggregate_posterior(problem.model, problem.guide(), problem.sample(2000, seed=0))["z"]
    torch.set_default_dtype(before)
    return problem, found


@pytest.mark.usefixtures("float64")
class TestLinearGaussian:
    def test_information_is_the_closed_form(self, exact_guide):
        problem, found = exact_guide
        each, whole = exact_information(problem)
        assert whole.item() == pytest.approx(
            0.5 * torch.logdet(torch.eye(2) + problem.W.T @ problem.W / problem.scale[0] ** 2).item()
        )
        for name in ("mutual_information", "mutual_information_upper"):
            assert_within_own_error(getattr(found.each, name), each)
            assert_within_own_error(getattr(found.whole, name), whole)
        assert (
            abs(found.whole.mutual_information.value - each.sum()) > 5 * found.whole.mutual_information.test_set_error
        )
        assert found.num_data == 2000
        assert not found.at_ceiling
        assert found.collapsed.tolist() == [False, False]

    def test_the_aggregate_is_the_prior(self, exact_guide):
        _, found = exact_guide
        assert_within_own_error(found.each.prior_kl, 0.0, slack=0.002)
        assert_within_own_error(found.whole.prior_kl, 0.0, slack=0.005)
        assert found.whole.prior_kl.value < 0.02

    def test_the_parts_add_up(self, exact_guide):
        for parts in exact_guide[1][:2]:
            torch.testing.assert_close(parts.kl.value, parts.mutual_information.value + parts.prior_kl.value)

    def test_a_guide_elsewhere_has_a_distant_aggregate(self):
        problem = linear()
        x = problem.sample(2000, seed=1)
        found = aggregate_posterior(problem.model, problem.guide(shift=(2.0, 0.0)), x)["z"]
        each, whole = exact_information(problem)  # a shift says nothing about x
        assert_within_own_error(found.each.mutual_information, each)
        assert_within_own_error(found.each.prior_kl, torch.tensor([2.0, 0.0]), slack=0.005)
        assert_within_own_error(found.whole.prior_kl, 2.0, slack=0.005)
        assert_within_own_error(found.whole.mutual_information, whole)

    def test_the_kl_is_that_of_the_summary(self):
        problem = linear()
        x = problem.sample(500, seed=2)
        found = aggregate_posterior(problem.model, problem.guide(mean_field=True), x)["z"]
        summary = latent_summary(problem.model, problem.guide(mean_field=True), x)["z"]
        gap = (found.each.kl.value - summary.kl).abs()  # exact there, for these very data
        assert (gap <= SIGMAS * found.each.kl.monte_carlo_error).all()
        assert (gap > 0).all()

    @pytest.mark.parametrize("name", ["monte_carlo_error", "test_set_error"])
    def test_errors_are_those_that_repeats_show(self, name):
        problem = linear()
        same = problem.sample(100, seed=3)
        means = []
        for seed in range(60):
            x = same if name == "monte_carlo_error" else problem.sample(100)
            means.append(
                aggregate_posterior(problem.model, problem.guide(), x, seed=seed)["z"].whole.mutual_information
            )
        spread = torch.stack([mean.value for mean in means]).std()
        assert 0.7 < spread / torch.stack([getattr(mean, name) for mean in means]).mean() < 1.4

    def test_few_data_enclose_the_information(self):
        # Of 8 datapoints the information is at most log 8; with a datapoint's own component left out it is too large.
        problem = pv.problems.linear_gaussian(W=[[3.0, 0.0], [0.0, 3.0]], scale=0.5)
        exact = exact_information(problem)[1].item()
        assert exact > math.log(8) + 1
        found = [aggregate_posterior(problem.model, problem.guide(), problem.sample(8))["z"] for _ in range(100)]
        lower = torch.stack([one.whole.mutual_information.value for one in found])
        upper = torch.stack([one.whole.mutual_information_upper.value for one in found])
        assert (lower <= upper).all()
        assert lower.max() <= math.log(8) + 1e-9
        assert upper.mean() - exact > 5 * upper.std() / math.sqrt(100)
        assert_not_mean(lower, exact)
        assert all(one.at_ceiling for one in found)
        kl = torch.stack([one.whole.kl.value for one in found])
        assert_mean(kl, exact)  # the exact guide's, since its aggregate is the prior: the sum has no such error

    def test_a_dimension_without_use_is_collapsed(self):
        problem = pv.problems.linear_gaussian(W=[[1.0, 0.0]], scale=1.0)
        x = problem.sample(500, seed=4)
        for mean_field in (True, False):
            found = aggregate_posterior(problem.model, problem.guide(mean_field=mean_field), x)["z"]
            assert found.collapsed.tolist() == [False, True]
            assert found.each.mutual_information.value[1].abs() < 1e-12
        moved = aggregate_posterior(problem.model, problem.guide(shift=(0.0, 1.0)), x)["z"]
        assert moved.collapsed.tolist() == [False, True]  # away from the prior, and yet the same for every x
        assert_within_own_error(moved.each.prior_kl, torch.tensor([0.0, 0.5]), slack=0.01)
        assert moved.each.kl.value[1] > 0.3

    @pytest.mark.parametrize("max_bytes", [1, 2**15, 2**26])
    def test_blocks_change_nothing(self, max_bytes):
        problem = linear()
        x = problem.sample(30, seed=5)
        found = aggregate_posterior(problem.model, problem.guide(), x, max_bytes=max_bytes)["z"]
        expected = aggregate_posterior(problem.model, problem.guide(), x)["z"]
        torch.testing.assert_close(
            found.whole.mutual_information_upper.value, expected.whole.mutual_information_upper.value
        )
        torch.testing.assert_close(found.each.mutual_information.value, expected.each.mutual_information.value)

    def test_more_rows_than_a_block_holds(self, monkeypatch):
        problem = linear()
        x = problem.sample(30, seed=5)
        monkeypatch.setattr("pyro_vae.diagnostics.aggregate._ROWS", 7)
        found = aggregate_posterior(problem.model, problem.guide(), x, num_draws=300)["z"]
        monkeypatch.undo()
        whole = aggregate_posterior(problem.model, problem.guide(), x, num_draws=300)["z"]
        for name in ("mutual_information", "mutual_information_upper", "prior_kl"):
            one, other = getattr(found.each, name), getattr(whole.each, name)
            error = torch.hypot(one.monte_carlo_error, other.monte_carlo_error)
            assert ((one.value - other.value).abs() <= SIGMAS * error).all()

    def test_of_many_data_a_subset_is_taken(self):
        problem = linear()
        x = problem.sample(600, seed=6)
        found = aggregate_posterior(problem.model, problem.guide(), x, max_data=200)["z"]
        assert found.num_data == 200
        assert_within_own_error(found.whole.mutual_information, exact_information(problem)[1], slack=0.05)


# Any pair


@pytest.mark.parametrize("build", [hand_written, conv])
def test_foreign_pairs(build):
    model, guide, modules, x = build(num=40)
    before = {name: value.clone() for name, value in modules.state_dict().items()}
    generator = torch.get_rng_state()
    found = aggregate_posterior(model, guide, x)
    assert torch.equal(torch.get_rng_state(), generator)
    assert not pyro.get_param_store().keys()
    assert all(torch.equal(value, before[name]) for name, value in modules.state_dict().items())
    assert list(found) == ["z"]
    assert found["z"].each.kl.value.shape == (2,)
    assert found["z"].whole.kl.value.shape == ()
    assert found["z"].whole.kl.value.dtype == torch.float64
    torch.testing.assert_close(found["z"].whole.kl.value, found["z"].each.kl.value.sum())  # all is independent here
    again = aggregate_posterior(model, guide, x)["z"]
    assert torch.equal(again.whole.kl.value, found["z"].whole.kl.value)


def test_several_sites_have_no_answer():
    model, guide, _, x = two_layer(num=5)
    found = aggregate_posterior(model, guide, x)
    assert {name: len(one.each.kl.value) for name, one in found.items()} == {"z2": 2, "z1": 3}
    for one in found.values():
        assert all(mean.value.isnan().all() for parts in (one.each, one.whole) for mean in parts)
        assert not one.collapsed.any()
        assert not one.at_ceiling


def one_site(q, p):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", p)
            pyro.sample("x", dist.Normal(z.reshape(len(x), -1).sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", q(x))

    return model, guide


def test_scalar_and_shaped_latents_are_the_same_dimensions():
    x = torch.randn(100)
    scalar = one_site(lambda x: dist.Normal(x, 0.5), dist.Normal(0.0, 1.0))
    shaped = one_site(
        lambda x: dist.Normal(x[:, None, None], 0.5).to_event(2), dist.Normal(torch.zeros(1, 1), 1.0).to_event(2)
    )
    found = [aggregate_posterior(*pair, x)["z"] for pair in (scalar, shaped)]
    assert found[0].each.kl.value.shape == (1,)
    assert torch.equal(found[0].each.mutual_information.value, found[1].each.mutual_information.value)
    assert found[0].each.mutual_information.value.item() == found[0].whole.mutual_information.value.item()


def test_discrete_latents_have_information_too():
    # Two classes that the guide tells apart without fail: log 2.
    logits = torch.tensor([-20.0, 20.0]).repeat(50)
    pair = one_site(
        lambda x: dist.Bernoulli(logits=x[:, None]).to_event(1), dist.Bernoulli(torch.full((1,), 0.5)).to_event(1)
    )
    found = aggregate_posterior(*pair, logits)["z"]
    assert found.whole.mutual_information.value.item() == pytest.approx(math.log(2), abs=1e-5)
    assert found.whole.prior_kl.value.item() == pytest.approx(0, abs=1e-5)


def test_flows_and_automatic_guides_have_no_answer():
    def flow(x):
        base = dist.Normal(x[:, None].expand(-1, 2), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [dist.transforms.AffineTransform(0.0, 2.0, event_dim=1)])

    pair = one_site(flow, dist.Normal(torch.zeros(2), 1.0).to_event(1))
    found = aggregate_posterior(*pair, torch.randn(5))["z"]
    assert found.each.kl.value.isnan().all()
    assert found.whole.mutual_information.value.isnan()
    model, x = pair[0], torch.randn(5)
    automatic = pyro.infer.autoguide.AutoNormal(model, create_plates=lambda x: pyro.plate("data", len(x), dim=-1))
    automatic(x)
    found = aggregate_posterior(model, automatic, x)["z"]
    assert found.each.kl.value.isnan().all()


def test_a_prior_with_correlations():
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    prior = dist.MultivariateNormal(torch.zeros(2), covariance)
    z = prior.sample((500,))
    pair = one_site(lambda x: dist.Normal(z, 0.1).to_event(1), prior)
    found = aggregate_posterior(*pair, torch.zeros(500))["z"]
    assert found.each.prior_kl.value.max() < 0.1
    assert found.whole.prior_kl.value < 0.3
    assert (
        found.whole.kl.value < found.each.kl.value.sum()
    )  # a wrong prior of independent dimensions would give the sum


# Input


def test_unusable_input_is_refused():
    model, guide, _, x = hand_written(num=4)
    with pytest.raises(DataError, match="found one datapoint, expected at least 2"):
        aggregate_posterior(model, guide, x[:1])
    with pytest.raises(ConfigError, match="num_draws=1: expected at least 2"):
        aggregate_posterior(model, guide, x, num_draws=1)
    with pytest.raises(ConfigError, match="max_data=1: expected at least 2"):
        aggregate_posterior(model, guide, x, max_data=1)


def test_the_summary_keeps_its_fields():
    assert pv.diagnostics.LatentSummary._fields == ("mean_variance", "kl")


@pytest.mark.usefixtures("float64")
def test_a_masked_site_costs_nothing_where_it_is_masked():
    """Sequences of two steps, of which half of the datapoints have the first alone."""
    mask, loc = torch.tensor([True, False, True, False]), torch.tensor([0.5, -1.0, 2.0, 7.0])

    def program(loc, x=None):
        with pyro.plate("data", 4):
            pyro.sample("first", dist.Normal(loc, 1.0))
            with pyro.poutine.mask(mask=mask):
                pyro.sample("second", dist.Normal(loc, 1.0))
            if x is not None:
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    found = latent_summary(lambda x: program(torch.zeros(4), x), lambda x: program(loc), torch.zeros(4))
    kl, variance = loc.square() / 2, loc[mask].var()
    assert found["first"].kl.item() == pytest.approx(kl.mean().item())
    assert found["second"].kl.item() == pytest.approx((kl * mask).mean().item())
    assert found["second"].kl.item() != pytest.approx(kl.mean().item())  # as if nothing were masked
    assert found["second"].mean_variance.item() == pytest.approx(variance.item())
    assert variance != pytest.approx(loc.var().item())
