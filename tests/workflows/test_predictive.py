"""Predictive draws and expectations against the exact ones of a linear-Gaussian pair."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.errors import ConfigError, PairError
from tests.statistics import SIGMAS, assert_mean, assert_not_mean

NUM = 200


@pytest.fixture
def problem(float64):
    return pv.problems.linear_gaussian(W=[[1.0, 0.3], [0.5, -1.0], [0.0, 2.0]], scale=0.7, loc=[0.0, 1.0, -1.0])


def exact(problem, x):
    """Mean and standard deviation of p(x_rep | x), entry by entry."""
    q = problem.posterior(x)
    variance = torch.einsum("dk,kl,dl->d", problem.W, problem.posterior_covariance, problem.W) + problem.scale.square()
    return problem.loc + q.mean @ problem.W.T, variance.sqrt()


def standardised(problem, x, **options):
    found = pv.posterior_predictive(problem.model, problem.guide(shift=0.4, inflate=1.3), x, **options)
    mean, spread = exact(problem, x)
    return (found["x"] - mean) / spread


def test_replicates_have_the_exact_posterior_predictive(problem):
    x = problem.sample(NUM, seed=0)
    draws = standardised(problem, x, num_draws=20, num_particles=2000)
    assert draws.shape == (20, NUM, 3)
    assert_mean(draws[:, :, 0].flatten(), 0.0, sd=1.0)
    assert_mean(draws[:, :, 0].square().flatten(), 1.0, sd=math.sqrt(2))


def test_without_the_correction_they_do_not(problem):
    draws = standardised(problem, problem.sample(NUM, seed=0), num_draws=20, corrected=False)
    assert_not_mean(draws[:, :, 0].flatten(), 0.0, sd=1.0)


def test_replicates_of_a_pair_that_takes_no_particles_are_drawn_one_by_one(problem):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            if z.ndim > 2:
                raise RuntimeError("one particle at a time")
            pyro.sample("x", dist.Normal(problem.loc + z @ problem.W.T, problem.scale).to_event(1), obs=x)

    x = problem.sample(NUM, seed=0)
    found = pv.posterior_predictive(model, problem.guide(inflate=1.2), x, num_draws=20, num_particles=200)
    mean, spread = exact(problem, x)
    assert_mean(((found["x"] - mean) / spread)[:, :, 1].flatten(), 0.0, sd=1.0)


def test_expectations_are_exact_with_their_error_bars(problem):
    x = problem.sample(NUM, seed=0)
    q = problem.posterior(x)
    found = pv.predict(problem.model, problem.guide(inflate=1.4), x, lambda z: z["z"] ** 2, num_particles=1000)
    truth = q.mean.square() + q.variance
    gap = (found.mean - truth) / found.stderr
    assert gap.abs().max() < SIGMAS + 1
    assert 0.8 < gap.std() < 1.2
    assert set(found.verdict) == {"ok"}
    # Under the guide's own draws, the known-wrong way, the same comparison fails.
    own = pv.draw_particles(problem.model, problem.guide(inflate=1.4), x, num_particles=1000).z["z"].square()
    assert ((own.mean(0) - truth) / found.stderr).abs().mean() > 3


def test_a_poor_guide_is_said_to_be_one(problem):
    x = problem.sample(20, seed=0)
    found = pv.predict(problem.model, problem.guide(shift=6.0), x, lambda z: z["z"], num_particles=200)
    assert set(found.verdict) == {"unreliable"}
    assert all(found.reason)


def test_a_mode_that_no_draw_reaches_is_in_neither_the_error_bar_nor_the_verdict(float64):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 3.0).to_event(1))
            pyro.sample("x", dist.Normal(z.square(), 1.0).to_event(1), obs=x)  # E[z | x] = 0: z and -z are alike

    def guide(x, sides=(1.0,)):
        signs = dist.MixtureSameFamily(
            dist.Categorical(torch.ones(len(sides))), dist.Normal(3.0 * torch.tensor(sides), 0.25)
        )
        with pyro.plate("data", len(x)):
            pyro.sample("z", signs.expand([len(x), 1]).to_event(1))

    x = torch.full((50, 1), 9.0)
    one = pv.predict(model, guide, x, lambda z: z["z"])
    assert (one.mean > 20 * one.stderr).all()
    assert set(one.verdict) == {"ok"}
    both = pv.predict(model, lambda x: guide(x, (1.0, -1.0)), x, lambda z: z["z"])
    assert (both.mean.abs() < SIGMAS * both.stderr).all()

    def one_side(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(3.0 * torch.ones(1), 0.25).to_event(1))

    prior_too = pv.predict(model, one_side, x, lambda z: z["z"], num_particles=4000, from_prior=2000)
    assert (prior_too.mean.abs() < (SIGMAS + 1) * prior_too.stderr).all()
    again = pv.posterior_predictive(model, one_side, x, num_particles=4000, from_prior=2000)["z"]
    assert 0.3 < (again < 0).double().mean() < 0.7
    assert (pv.posterior_predictive(model, one_side, x)["z"] > 0).all()


def test_blocks_of_rows_are_put_together(problem):
    x = problem.sample(50, seed=0)
    pair = problem.model, problem.guide(inflate=1.2)
    found = pv.predict(*pair, x, lambda z: z["z"], num_particles=300, max_bytes=2**14)
    assert found.mean.shape == (50, 2)
    assert found.verdict.shape == (50,)
    gap = (found.mean - problem.posterior(x).mean) / found.stderr
    assert gap.abs().max() < SIGMAS + 1


def test_prior_predictive_is_the_marginal(problem):
    found = pv.prior_predictive(problem.model, 4000)
    assert_mean(found["x"], problem.loc)
    assert_mean(found["x"][:, 2].add(1).square(), 4.0 + 0.49)
    assert found["z"].shape == (4000, 2)


@pytest.mark.parametrize("draw", ["posterior", "prior"])
def test_seeds_rule_and_nothing_else_moves(problem, draw):
    x = problem.sample(10, seed=0)

    def found(seed):
        if draw == "prior":
            return pv.prior_predictive(problem.model, 10, seed=seed)["x"]
        return pv.posterior_predictive(problem.model, problem.guide(), x, num_draws=3, seed=seed)["x"]

    before = torch.get_rng_state()
    assert torch.equal(found(0), found(0))
    assert not torch.equal(found(0), found(1))
    assert torch.equal(before, torch.get_rng_state())
    assert not list(pyro.get_param_store())


def test_bad_input_gets_one_line(problem):
    x = problem.sample(5, seed=0)
    pair = problem.model, problem.guide()
    with pytest.raises(PairError, match=r"expected \(1000, 5\) and further dimensions, got \(5, 2\)"):
        pv.predict(*pair, x, lambda z: z["z"].mean(0))
    with pytest.raises(PairError, match="got float"):
        pv.predict(*pair, x, lambda z: 1.0)
    with pytest.raises(ConfigError, match="num_particles"):
        pv.posterior_predictive(*pair, x, num_draws=10, num_particles=5)
    with pytest.raises(ConfigError, match="from_prior=9: expected fewer than num_particles=9"):
        pv.predict(*pair, x, lambda z: z["z"], num_particles=9, from_prior=9)
    with pytest.raises(ConfigError, match="from_prior=5: expected 0 with corrected=False"):
        pv.posterior_predictive(*pair, x, num_draws=10, corrected=False, from_prior=5)
    with pytest.raises(PairError, match="x=None and num=None"):
        pv.prior_predictive(lambda x: problem.model(x), 3)
    with pytest.raises(PairError, match="x=None and num=None"):
        pv.prior_predictive(lambda x, num: problem.model(torch.as_tensor(x)), 3)
    with pytest.raises(PairError, match="site 'z' has 1 datapoints"):
        pv.prior_predictive(lambda x, scale: problem.model(x), 3)


def test_the_expectation_of_an_event_is_its_probability(problem):
    x = problem.sample(50, seed=0)
    found = pv.predict(problem.model, problem.guide(inflate=1.5), x, lambda z: z["z"] > 0)
    q = problem.posterior(x)
    exact = torch.distributions.Normal(q.mean, q.variance.sqrt()).cdf(torch.zeros(()))
    assert ((found.mean - (1 - exact)).abs() < SIGMAS * found.stderr + 1e-3).all()
