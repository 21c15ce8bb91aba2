"""Log p(x) by a grid: exact where an exact answer exists, one decoding for all data, and honest where it fails."""

import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch
from pyro import poutine
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DataError, PairError
from pyro_vae.evidence import ais, importance, quadrature
from pyro_vae.evidence.grid import Grid
from pyro_vae.evidence.latent_sums import DirectSums, SharedSums, sums_over
from pyro_vae.ops.pairwise import pairwise_log_prob
from pyro_vae.ops.streaming import LogMoments
from pyro_vae.pairs.density import Density
from pyro_vae.pairs.pair import Pair
from tests.objectives.test_objectives import ConvDecoder, conv, hand_written, normal, one_layer, perceptron
from tests.objectives.test_objectives import pixels as single_pixels

pytestmark = pytest.mark.usefixtures("float64")


def exact(found, expected, tolerance=1e-8):
    return (found - torch.as_tensor(expected)).abs().max().item() <= tolerance


def assert_exact(found, expected, tolerance=1e-8):
    assert set(found.verdict) == {"ok"}, found.reason
    assert exact(found.value, expected, tolerance), (found.value - torch.as_tensor(expected)).abs().max()
    assert (found.stderr <= 1e-6).all()


def axes(dim, width=9.0, step=0.05):
    """A dense grid of its own: the nodes, and the logarithm of a node's volume."""
    axis = torch.arange(-width, width, step)
    return torch.cartesian_prod(*[axis] * dim).reshape(-1, dim), dim * math.log(step)


@torch.no_grad()
def dense(log_likelihood, dim=2, **options):
    """Log p(x) under a standard normal prior; ``log_likelihood`` is [rows, nodes] of nodes [nodes, dim]."""
    z, log_cell = axes(dim, **options)
    return torch.logsumexp(log_likelihood(z) + standard(dim).log_prob(z) + log_cell, 1)


def scored(fn, x):
    """Row by row: [rows, nodes]."""
    return torch.stack([fn.log_prob(one) for one in x])


def pixels(num, *shape):
    return single_pixels(num, *shape).double()


def standard(size):
    return dist.Normal(torch.zeros(size), 1.0).to_event(1)


def wide_guide(dim=2, scale=0.7):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(dim), scale).to_event(1))

    return guide


def likelihood_of(make, dim=2):
    """A model with a standard normal prior whose likelihood is the distribution that ``make`` makes of z."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(dim))
            pyro.sample("x", make(z), obs=x)

    return model


# Exact answers


def linear(W, scale):
    return pv.problems.linear_gaussian(W=torch.tensor(W), scale=scale)


def test_e1():
    problem = linear([[1.0]], 0.5**0.5)
    found = quadrature(problem.model, problem.guide(), torch.tensor([[1.3]]))
    assert_exact(found, [-1.6850044206])
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    by_hermite = np.log((weights / weights.sum() * scipy.stats.norm.pdf(1.3, nodes, 0.5**0.5)).sum())
    assert_exact(found, [by_hermite])
    assert found.side == "point"
    assert found.value.dtype == found.stderr.dtype == torch.float64
    assert found.ess.isnan().all()
    assert found.pareto_k.isnan().all()


def e2():
    return linear([[1.0, 0.8], [0.5, 1.0], [0.4, 1.0], [1.0, 0.2], [0.3, 0.2]], 0.5**0.5)


@pytest.mark.parametrize(
    "options", [{}, {"mean_field": True}, {"shift": 1.0}, {"inflate": 3.0}, {"scale": [0.1, 0.9]}], ids=str
)
def test_e2_whatever_the_guide(options):
    problem = e2()
    x = torch.cat([torch.tensor([[1.0, -0.5, 0.3, 0.8, -1.2]]), problem.sample(50, seed=0)])
    found = quadrature(problem.model, problem.guide(**options), x)
    assert_exact(found, problem.log_evidence(x))
    assert found.value[0].item() == pytest.approx(-7.2252875887, abs=1e-9)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_narrow_and_oblique_posteriors_are_resolved(scale):
    problem = linear([[1.0, 0.9], [0.9, 1.0], [1.0, 1.0]], scale)
    x = problem.sample(20, seed=1)
    assert_exact(quadrature(problem.model, problem.guide(), x), problem.log_evidence(x))


def every_x():
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)


def test_e5():
    problem = pv.problems.bernoulli_network()
    found = quadrature(problem.model, problem.guide(loc=(0.78, 0.03), scale=0.9**0.5), every_x())
    assert_exact(found, problem.log_evidence(every_x()), 1e-9)
    assert found.value[0b1011].item() == pytest.approx(-2.480659397316, abs=1e-10)
    assert found.value[0b0000].item() == pytest.approx(-3.5084749256, abs=1e-10)
    assert found.value.exp().sum().item() == pytest.approx(1, abs=1e-10)


def test_bernoulli_network_in_general():
    weights = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    problem = pv.problems.bernoulli_network(A=weights, B=[[1.5], [-2.0]], b=[0.0, 0.5], c=[0.0, 1.0, -1.0])
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    assert problem.log_evidence(x).exp().sum().item() == pytest.approx(1, abs=1e-10)
    assert_exact(quadrature(problem.model, problem.guide(), x), problem.log_evidence(x))
    draws = problem.sample(40_000, seed=0)
    share = (draws == x[5]).all(1).double().mean().item()
    p = problem.log_evidence(x)[5].exp().item()
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / 40_000)
    generator = torch.get_rng_state()
    assert torch.equal(problem.sample(40_000, seed=0), draws)
    assert torch.equal(torch.get_rng_state(), generator)
    assert problem.model(num=7).shape == (7, 3)


@pytest.mark.parametrize("wrong", [{"B": [[1.0, 0.5, 0.1]] * 3}, {"b": [0.0]}, {"A": [1.0]}], ids=str)
def test_a_network_that_does_not_fit_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"expected A \[data, hidden\], B \[hidden, 1 or 2\]"):
        pv.problems.bernoulli_network(**wrong)


# Negative controls


def densities(pair, x):
    return [Density(Pair.of(*pair, x))]


@pytest.mark.parametrize(("widths", "right"), [(1.0, True), (3.0, False)])
def test_a_coarse_step_fails_the_same_check(widths, right):
    problem = e2()
    x = problem.sample(50, seed=0)
    with torch.no_grad():
        nodes = sums_over(densities((problem.model, problem.guide()), x), max_bytes=2**26, on_progress=id)
        step = widths * torch.linalg.inv(problem.posterior_covariance).diagonal().rsqrt()
        grid = Grid.covering(torch.full((2,), -8.0), torch.full((2,), 8.0), step, max_nodes=10**6)
        value = nodes.log_sums(grid, torch.arange(50)).log_sum + grid.log_cell
    assert exact(value, problem.log_evidence(x), 1e-7) is right


def test_a_sum_without_the_prior_fails_the_same_check():
    problem = e2()
    x = problem.sample(50, seed=0)

    def model(x, mask):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=mask):
                z = pyro.sample("z", standard(2))
            pyro.sample("x", dist.Normal(z @ problem.W.T, problem.scale).to_event(1), obs=x)

    for mask, right in ((True, True), (False, False)):
        found = quadrature(functools.partial(model, mask=mask), problem.guide(), x)
        assert exact(found.value, problem.log_evidence(x)) is right


# Trained on digits


@functools.cache
def digits_pair(latent_dim):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    digits = pv.data.load("digits")
    data = pv.data.Pixels(digits.x_train[:600], "dynamic", max_value=digits.max_value)
    x = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value)[:30]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = pv.presets.mlp_vae(data_shape=(8, 8), latent_dim=latent_dim, hidden=(32,), data_mean=data.mean)
        pv.fit(vae, data, num_epochs=15, learning_rate=1e-2, progress=False)
    torch.set_default_dtype(before)
    return vae, x


def by_hand(vae, x, **options):
    return dense(lambda z: scored(vae.decode(z), x), vae.latent_dim, **options)


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_e8_digits(latent_dim):
    vae, x = digits_pair(latent_dim)
    single = quadrature(vae.model, vae.guide, x)
    assert set(single.verdict) == {"ok"}
    vae, x = vae.double(), x.double()
    try:
        found = quadrature(vae.model, vae.guide, x)
        assert_exact(found, by_hand(vae, x, step=0.1, width=7.0))
        assert exact(single.value, found.value, 1e-4)
        assert ((single.value - found.value).abs() <= 5 * single.stderr).all()
        with torch.no_grad():
            log_w = pv.draw_particles(vae.model, vae.guide, x, num_particles=2000).log_w
        value, stderr = pv.weights.log_mean_exp(log_w), pv.weights.log_mean_exp_stderr(log_w)
        assert ((value - found.value).abs() <= 4 * stderr + 1e-9).float().mean() > 0.97
        assert abs((value - found.value).mean()) <= 5 * stderr.square().sum().sqrt() / len(x) + 1e-2
        if latent_dim == 1:
            assert_exact(found, [by_scipy(vae, one) for one in x[:3]] + found.value[3:].tolist())
    finally:
        vae.float()


@torch.no_grad()
def by_scipy(vae, one):
    def joint(z):
        return math.exp(vae.decode(torch.tensor([z])).log_prob(one) + scipy.stats.norm.logpdf(z) + 20)

    return math.log(scipy.integrate.quad(joint, -7, 7, limit=500, epsabs=0, epsrel=1e-9)[0]) - 20


def test_the_choice_of_the_grid_does_not_show():
    vae, x = digits_pair(2)
    found = [quadrature(vae.model, vae.guide, x, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(found[0].value, found[1].value)
    assert (found[0].value != found[2].value).any()
    assert exact(found[0].value, found[2].value, 1e-4)
    alone = quadrature(vae.model, vae.guide, x[7:8])
    assert exact(alone.value, found[0].value[7:8], 1e-4)
    assert found[0].num_particles.shape == found[0].num_evaluations.shape == (30,)
    assert (found[0].num_evaluations > found[0].num_particles).all()


# Likelihoods


def gaussian_vae(scale):
    vae = pv.presets.mlp_vae(data_shape=(5,), latent_dim=2, hidden=(8,), likelihood="gaussian", likelihood_scale=scale)
    return vae.double(), torch.randn(20, 5)


@pytest.mark.parametrize("scale", [0.3, 0.01, "learned", "decoder"])
def test_gaussian_likelihoods(scale):
    vae, x = gaussian_vae(scale)
    narrow = {"step": 0.01, "width": 4.0} if scale == 0.01 else {}
    if narrow:  # a posterior that a guide knows nothing of
        x = vae.sample(3) + scale * torch.randn(3, 5)
    found = quadrature(vae.model, vae.guide, x)
    assert_exact(found, by_hand(vae, x, **narrow), 1e-6 if narrow else 1e-8)


def categorical(z):
    return dist.Categorical(logits=torch.stack([z[..., 0], z[..., 1], z.prod(-1), 0 * z[..., 0]], -1))


LIKELIHOODS = {
    "categorical": (categorical, lambda: torch.arange(4)),
    "a number": (lambda z: dist.Bernoulli(logits=z.sum(-1)), lambda: torch.tensor([0.0, 1.0])),
    "probabilities": (lambda z: dist.Bernoulli(torch.sigmoid(z)).to_event(1), lambda: torch.eye(2)),
    "an image": (
        lambda z: dist.Bernoulli(logits=z[..., :, None] * torch.arange(3.0)).to_event(2),
        lambda: pixels(4, 2, 3),
    ),
    "student": (lambda z: dist.StudentT(3.0, z, 0.5).to_event(1), lambda: torch.randn(4, 2)),
    "multivariate": (
        lambda z: dist.MultivariateNormal(z, torch.tensor([[1.0, 0.5], [0.5, 2.0]])),
        lambda: torch.eye(2),
    ),
    "masked for all": (
        lambda z: dist.Normal(z, 0.5).mask(torch.tensor([True, False])).to_event(1),
        lambda: torch.randn(4, 2),
    ),
    "multinomial": (lambda z: dist.Multinomial(3, logits=z), lambda: torch.tensor([[1.0, 2.0], [3.0, 0.0]])),
    "poisson": (lambda z: dist.Poisson(z.exp()).to_event(1), lambda: torch.tensor([[1.0, 2.0], [3.0, 0.0]])),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_other_likelihoods(name):
    make, data = LIKELIHOODS[name]
    x = data()
    model, guide = likelihood_of(make), wide_guide()
    expected = dense(lambda z: scored(make(z), x))
    assert_exact(quadrature(model, guide, x), expected)
    with torch.no_grad():
        nodes = sums_over(densities((model, guide), x), max_bytes=2**26, on_progress=id)
    assert isinstance(nodes, SharedSums)


def test_two_observed_sites_and_a_factor():
    x = torch.randn(6, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(2))
            pyro.sample("a", dist.Normal(z[..., 0], 0.5), obs=x[:, 0])
            pyro.sample("b", dist.Normal(z.prod(-1), 0.7), obs=x[:, 1])
            pyro.factor("c", -z.square().sum(-1))

    def log_likelihood(z):
        by_site = dist.Normal(z[:, 0], 0.5).log_prob(x[:, :1]) + dist.Normal(z.prod(-1), 0.7).log_prob(x[:, 1:])
        return by_site - z.square().sum(-1)

    assert_exact(quadrature(model, wide_guide(), x), dense(log_likelihood))


def test_a_model_without_data_has_a_density_of_one():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", standard(2))

    assert_exact(quadrature(model, wide_guide(), torch.zeros(3, 1)), torch.zeros(3))


@pytest.mark.parametrize("scale", [0.5, 1e-3])
def test_pairs_of_values_and_distributions(scale):
    values, params = torch.randn(7, 2, 3), torch.randn(5, 2, 3)
    fns = [
        dist.Normal(params, scale).to_event(2),
        dist.Normal(params, params.exp()).to_event(1).to_event(1),
        dist.Laplace(params, scale).to_event(2),
        dist.Bernoulli(logits=params / scale, validate_args=False).to_event(2),
    ]
    for fn in fns:
        x = (values > 0).double() if fn.support.base_constraint is dist.constraints.boolean else values
        expected = fn.log_prob(x[:, None]).T
        for max_bytes in (1, 2**26):
            found = pairwise_log_prob(fn, x, max_bytes=max_bytes)
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-9)


# Pairs


def test_a_hand_written_pair():
    model, guide, modules, x = hand_written(num=20)
    x = x.double()
    decoder = modules[1]
    expected = dense(lambda z: scored(dist.Bernoulli(logits=decoder(z)).to_event(1), x))
    assert_exact(quadrature(model, guide, x), expected)


def test_a_decoder_that_takes_no_particles():
    model, guide, modules, x = conv(num=7)
    x = x.double()
    assert isinstance(modules[1], ConvDecoder)
    expected = dense(lambda z: scored(dist.Bernoulli(logits=modules[1](z)).to_event(3), x), step=0.1)
    assert_exact(quadrature(model, guide, x), expected)


def test_a_decoder_that_mixes_its_rows_is_run_row_by_row():
    class Centred(nn.Module):
        def forward(self, z):
            return (z - z.mean(0, keepdim=True)) @ torch.ones(2, 4) + 1.0

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(2))
            pyro.sample("x", dist.Bernoulli(logits=Centred()(z)).to_event(1), obs=x)

    x = pixels(1, 4)  # of one row nothing is left of z, of many together something is
    expected = dist.Bernoulli(logits=torch.ones(4)).to_event(1).log_prob(x)
    assert_exact(quadrature(model, wide_guide(scale=1.0), x), expected)


def hierarchy(num=6):
    prior, decoder = perceptron(1, 2), perceptron(1, 4)

    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", standard(1))
            z1 = pyro.sample("z1", normal(prior(z2)))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z1)).to_event(1), obs=x)

    nets = nn.ModuleList([perceptron(4, 2), perceptron(1, 2)])

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", normal(nets[0](x)))
            pyro.sample("z2", normal(nets[1](z1)))

    return model, guide, prior, decoder, pixels(num, 4)


def test_two_sites_of_one_dimension():
    model, guide, prior, decoder, x = hierarchy()

    def log_likelihood(z):
        z2, z1 = z[:, :1], z[:, 1:]
        log_prior = normal(prior(z2)).log_prob(z1) - standard(1).log_prob(z1)
        return log_prior + scored(dist.Bernoulli(logits=decoder(z1)).to_event(1), x)

    expected = dense(log_likelihood, width=12.0)
    assert_exact(quadrature(model, guide, x), expected)
    with torch.no_grad():
        assert isinstance(sums_over(densities((model, guide), x), max_bytes=2**26, on_progress=id), SharedSums)


def test_a_two_site_pair_meets_its_closed_form():
    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", standard(1))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z1, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(2 * x / 3, (2 / 3) ** 0.5).to_event(1))
            pyro.sample("z2", dist.Normal(z1 / 2, 0.5**0.5).to_event(1))

    x = torch.linspace(-3, 3, 20)[:, None]
    assert_exact(quadrature(model, guide, x), dist.Normal(0.0, 3**0.5).log_prob(x[:, 0]))


def positive_pair():
    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.LogNormal(0.2, 0.8))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(x + 1, 1.5))

    return model, guide


def test_a_positive_latent():
    def joint(rate, x):
        return scipy.stats.lognorm.pdf(rate, 0.8, scale=math.exp(0.2)) * scipy.stats.poisson.pmf(x, rate)

    x = torch.tensor([0.0, 1.0, 4.0])
    expected = [math.log(scipy.integrate.quad(joint, 0, np.inf, (k,), epsabs=0, epsrel=1e-11)[0]) for k in x.tolist()]
    assert_exact(quadrature(*positive_pair(), x), expected)


def test_a_simplex():
    def model(x):
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 3.0, 1.5])))
            pyro.sample("x", dist.Categorical(p), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("p", dist.Dirichlet(torch.ones(3)))

    expected = (torch.tensor([2.0, 3.0, 1.5]) / 6.5).log()
    assert_exact(quadrature(model, guide, torch.arange(3)), expected)


# Where datapoints differ in more than x


def conditional(x):
    """The first column is a class, which is given: p(x | z, class)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", standard(1))
        pyro.sample("x", dist.Normal(z + x[:, :1] * z, 0.5).to_event(1), obs=x[:, 1:])


def test_a_likelihood_that_depends_on_x_is_evaluated_row_by_row():
    x = torch.cat([torch.arange(6)[:, None] % 3, torch.randn(6, 1)], 1)
    expected = dist.Normal(0.0, ((1 + x[:, 0]) ** 2 + 0.25).sqrt()).log_prob(x[:, 1])
    guide = wide_guide(1)
    assert_exact(quadrature(conditional, guide, x), expected)
    assert_exact(quadrature(conditional, guide, x, max_bytes=2**12), expected)
    with torch.no_grad():
        parts = densities((conditional, guide), x)
        assert isinstance(sums_over(parts, max_bytes=2**26, on_progress=id), DirectSums)
        grid = Grid.covering(torch.tensor([-8.0]), torch.tensor([8.0]), torch.tensor([0.02]), max_nodes=10**6)
        wrong = (
            SharedSums(parts, max_bytes=2**26, on_progress=id).log_sums(grid, torch.arange(6)).log_sum + grid.log_cell
        )
    assert not exact(wrong, expected, 0.01)  # what sharing would have said


@pytest.mark.parametrize("num", [10, 300])
@pytest.mark.parametrize("amortised", [True, False])
def test_a_prior_that_depends_on_the_row(num, amortised):
    c = torch.linspace(-3, 3, num)

    def model(x):
        with pyro.plate("data", num) as index:
            z = pyro.sample("z", dist.Normal(c[index], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x) if amortised else num):
            pyro.sample("z", dist.Normal((c + x) / 2, 0.5**0.5))

    x = torch.randn(num)
    assert_exact(quadrature(model, guide, x), dist.Normal(c, 2**0.5).log_prob(x))


def test_a_guide_with_a_parameter_for_each_row_does_not_hinder_sharing():
    model, x = likelihood_of(lambda z: dist.Normal(z, 1.0).to_event(1), 1), torch.randn(9, 1)
    pyro.param("loc", torch.zeros(9, 1))

    def guide(x):
        with pyro.plate("data", 9):
            pyro.sample("z", dist.Normal(pyro.param("loc"), 0.5).to_event(1))

    assert_exact(quadrature(model, guide, x), dist.Normal(0.0, 2**0.5).log_prob(x[:, 0]))
    assert list(pyro.get_param_store()) == ["loc"]
    with torch.no_grad():
        assert isinstance(sums_over(densities((model, guide), x), max_bytes=2**26, on_progress=id), SharedSums)


def test_a_mask_is_respected():
    seen = torch.arange(8) % 2 == 0
    x = torch.randn(8, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(1))
            with poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    expected = torch.where(seen, dist.Normal(0.0, 2**0.5).log_prob(x[:, 0]), 0.0)
    assert_exact(quadrature(model, wide_guide(1), x), expected)


@pytest.mark.parametrize("estimate", [quadrature, ais, functools.partial(importance, proposal="refined")])
def test_a_mask_on_latents_is_refused(estimate):
    def model(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=x > 0):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=x > 0):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    with pytest.raises(PairError, match=r"latent sites \['z'\] are masked for some datapoints, expected"):
        estimate(model, guide, torch.tensor([1.0, -1.0]))


def test_missing_values_masked_by_what_is_in_x():
    x = torch.randn(8, 2)
    x[:4, 1] = -99.0

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(1))
            pyro.sample("x", dist.Normal(z, 1.0).expand([*z.shape[:-1], 2]).mask(x > -9).to_event(1), obs=x)

    both = dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + 1.0).log_prob(x)
    expected = torch.where(torch.arange(8) < 4, dist.Normal(0.0, 2**0.5).log_prob(x[:, 0]), both)
    assert_exact(quadrature(model, wide_guide(1), x), expected)


# The grid is decoded once


def decoded(vae, x, **options):
    rows = []
    hook = vae.decoder.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    found = quadrature(vae.model, vae.guide, x, **options)
    hook.remove()
    return found, rows


def test_each_node_is_decoded_once_for_all_data():
    vae, x = digits_pair(2)
    found, rows = decoded(vae, x)
    most = found.num_evaluations.max().item()
    assert found.num_particles.max() < most < sum(rows) < most + 8 * len(x) + 512 + 100
    again, rows_again = decoded(vae, x.repeat(3, 1, 1))
    assert sum(rows_again) < sum(rows) + 20 * len(x) + 0.2 * most  # and not three times as many
    assert exact(again.value, found.value.repeat(3), 1e-4)


@pytest.mark.parametrize("max_bytes", [2**15, 2**18])
def test_memory_is_bounded(max_bytes):
    vae, x = digits_pair(2)
    found, rows = decoded(vae, x, max_bytes=max_bytes, tolerance=1e-3)
    assert max(rows) * 64 * 4 <= max(max_bytes, 2 * 64 * 4)
    assert exact(found.value, quadrature(vae.model, vae.guide, x).value, 1e-3)


def test_scores_are_bounded_too(monkeypatch):
    largest = []
    of = LogMoments.of
    monkeypatch.setattr(LogMoments, "of", lambda log_w: largest.append(log_w.numel()) or of(log_w))
    problem = pv.problems.bernoulli_network()
    quadrature(problem.model, problem.guide(), every_x().repeat(5, 1), max_bytes=2**16)
    assert max(largest) * 8 <= 2**16


# Where it fails, it says so


def test_a_grid_that_does_not_settle_is_unreliable():
    problem = linear([[1.0, 0.0], [0.0, 1.0]], 0.05)
    x = torch.tensor([[0.5, -0.3]])
    found = quadrature(problem.model, problem.guide(), x, max_nodes=2_000)
    assert found.verdict.tolist() == ["unreliable"]
    assert "nodes did not settle: its last halving changed the value by" in found.reason[0]
    assert found.stderr > 1e-3
    assert found.num_particles <= 2_000
    assert not exact(found.value, problem.log_evidence(x), 1e-3)
    assert_exact(quadrature(problem.model, problem.guide(), x), problem.log_evidence(x))


def test_only_the_datapoints_that_do_not_settle_are_refined_and_unreliable():
    # The second column says how precise the first one is.
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(1))
            pyro.sample("x", dist.Normal(z, x[:, 1:]).to_event(1), obs=x[:, :1])

    x = torch.tensor([[0.5, 1.0], [0.5, 0.1], [0.5, 1e-5]])
    found = quadrature(model, wide_guide(1), x, max_nodes=5_000)
    assert found.verdict.tolist() == ["ok", "ok", "unreliable"]
    assert found.num_particles[0] < found.num_particles[1] < found.num_particles[2]
    assert (found.num_evaluations >= found.num_particles).all()
    expected = dist.Normal(0.0, (1 + x[:2, 1] ** 2).sqrt()).log_prob(x[:2, 0])
    assert exact(found.value[:2], expected)


@pytest.mark.parametrize("guide", [{"shift": -40.0}, {"scale": [1e-3]}, {"shift": 300.0, "scale": [1e-3]}], ids=str)
def test_the_box_is_widened_until_it_holds_the_mass(guide):
    problem = linear([[1.0]], 0.3)
    x = torch.tensor([[0.0], [60.0]])  # the posterior of the second one is 55 standard deviations from the prior
    assert_exact(quadrature(problem.model, problem.guide(**guide), x), problem.log_evidence(x))


@pytest.mark.parametrize("flat", [True, False])
def test_mass_that_has_no_end_is_unreliable(flat):
    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=not flat):
                z = pyro.sample("z", dist.Cauchy(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=0 * z), obs=x)

    found = quadrature(model, wide_scalar, torch.ones(2), max_nodes=100_000)
    assert found.verdict.tolist() == ["unreliable"] * 2
    if flat:
        assert found.reason[0].endswith("of the mass may be outside of the widest grid")


def wide_scalar(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def test_a_density_that_is_not_a_number_is_unreliable():
    model = likelihood_of(lambda z: dist.Normal(z.log(), 1.0, validate_args=False).to_event(1), 1)
    found = quadrature(model, wide_guide(1), torch.zeros(2, 1))
    assert found.verdict.tolist() == ["unreliable"] * 2
    assert found.reason[0].startswith("the value is nan")


def test_data_that_cannot_be_are_unreliable():
    model = likelihood_of(lambda z: dist.Normal(z, 1.0).mask(False).to_event(1), 1)

    def impossible(x):
        model(x)
        with pyro.plate("more", len(x)):
            pyro.factor("never", torch.full((len(x),), -math.inf))

    found = quadrature(impossible, wide_guide(1), torch.zeros(2, 1), max_nodes=1000)
    assert found.value.tolist() == [-math.inf] * 2
    assert found.verdict.tolist() == ["unreliable"] * 2


# What is refused


def test_more_than_two_dimensions_are_refused():
    problem = linear([[1.0, 0.0, 0.0]], 1.0)
    with pytest.raises(PairError, match=r"the pair has 3 latent dimensions.*use importance, psis or ais"):
        quadrature(problem.model, problem.guide(), torch.zeros(2, 1))


def test_discrete_latents_are_refused():
    def program(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.5))

    with pytest.raises(PairError, match="expected continuous latents"):
        quadrature(program, program, torch.zeros(2, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"tolerance": math.nan}, "tolerance=nan"),
        ({"max_nodes": 10}, "max_nodes=10: expected at least 100"),
        ({"max_bytes": 0}, "max_bytes=0: expected at least 1"),
    ],
    ids=str,
)
def test_options_that_cannot_be_used_are_refused(options, message):
    problem = linear([[1.0]], 1.0)
    with pytest.raises(ConfigError, match=message):
        quadrature(problem.model, problem.guide(), torch.zeros(2, 1), **options)


@pytest.mark.parametrize("x", [torch.zeros(0, 1), torch.tensor([[math.nan]])], ids=["empty", "nan"])
def test_unusable_data_are_refused(x):
    problem = linear([[1.0]], 1.0)
    with pytest.raises(DataError):
        quadrature(problem.model, problem.guide(), x)


# Nothing is changed


def test_nothing_is_trained_and_nothing_else_is_touched():
    decoder = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
    model, guide, modules, x = one_layer(perceptron(4, 4), decoder, pixels(10, 4))
    modules.train()
    loc = pyro.param("loc", torch.ones(3))
    before = {name: value.clone() for name, value in modules.state_dict().items()}
    kept, generator, numpy_generator = x.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()
    found = quadrature(model, guide, x)
    assert set(found.verdict) == {"ok"}
    assert all(torch.equal(value, before[name]) for name, value in modules.state_dict().items())
    assert all(parameter.grad is None for parameter in modules.parameters())
    assert all(module.training for module in modules.modules())
    assert torch.equal(torch.get_rng_state(), generator)
    assert (np.random.get_state()[1] == numpy_generator).all()
    assert list(pyro.get_param_store().keys()) == ["loc"]
    assert pyro.param("loc") is loc
    assert torch.equal(x, kept)
    assert not found.value.requires_grad
