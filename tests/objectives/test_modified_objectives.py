"""Objectives that are not the bound itself, and the bound in parts: closed forms, and what each is labelled."""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DataError, PairError, require_number
from pyro_vae.objectives import CUBO, ELBO, BetaTCVAE, BetaVAE, FreeBits, InfoVAE, ReweightedWakeSleep
from pyro_vae.objectives.beta_tcvae import log_aggregate
from pyro_vae.objectives.info_vae import mmd
from pyro_vae.pairs.pair import Pair
from pyro_vae.training.schedules import CyclicalWarmup, LinearWarmup
from tests.objectives.test_gradients import LAYERED_X, Layered
from tests.statistics import assert_mean, assert_not_mean
from tests.test_exams import E2_ELBO, E2_SCALE, e2_data, linear

pytestmark = pytest.mark.usefixtures("float64")


def e2_guide(problem):
    return problem.guide(shift=(0.1, -0.2), scale=E2_SCALE)


def e2_kl(problem):
    loc = problem.posterior(e2_data()).mean[0] + torch.tensor([0.1, -0.2])
    q = dist.Normal(loc, torch.tensor(E2_SCALE)).to_event(1)
    return torch.distributions.kl_divergence(q, dist.Normal(torch.zeros(2), 1.0).to_event(1)).item()


def small_vae(latent_dim=2):
    torch.manual_seed(3)
    return pv.presets.mlp_vae(data_shape=(6,), latent_dim=latent_dim, hidden=(8,)).double()


def gradient_of(vae, x, objective):
    vae.zero_grad()
    torch.manual_seed(0)
    objective(vae.model, vae.guide)(x).backward()
    return torch.cat([parameter.grad.flatten() for parameter in vae.parameters()])


def pixels(num):
    return torch.bernoulli(torch.full((num, 6), 0.4))


# beta-VAE and its warm-up


@pytest.mark.parametrize("analytic_kl", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0])
def test_beta_weighs_the_kl_term(beta, analytic_kl):
    problem = linear()
    objective = BetaVAE(beta=beta, analytic_kl=analytic_kl)
    bound = objective.estimate(problem.model, e2_guide(problem), e2_data(20_000)).bound
    assert_mean(bound, E2_ELBO + (1 - beta) * e2_kl(problem))
    assert_not_mean(bound, E2_ELBO)
    assert objective.side == ("lower" if beta >= 1 else "not a bound")


def test_beta_one_is_the_elbo_draw_by_draw():
    problem = linear()
    found = []
    for objective in (ELBO(), BetaVAE(beta=1.0)):
        torch.manual_seed(0)
        found.append(objective.estimate(problem.model, e2_guide(problem), e2_data(9)).bound)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("beta", [-1.0, math.inf, math.nan])
def test_a_weight_that_is_none_is_refused(beta):
    with pytest.raises(ConfigError, match="beta="):
        BetaVAE(beta=beta)
    with pytest.raises(ConfigError, match="beta="):
        BetaTCVAE(beta=beta, num_data=10)


def test_a_warm_up_counts_the_steps_of_svi_and_of_a_torch_optimiser():
    vae, x = small_vae(), pixels(4)
    objective = BetaVAE(beta=LinearWarmup(num_steps=4, end=2.0))
    assert objective.side == "not a bound"
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), loss=objective)
    weights = []
    for _ in range(3):
        weights.append(objective.weight)
        svi.step(x)
        svi.evaluate_loss(x)  # which is no step
    loss = objective(vae.model, vae.guide)
    loss.bound(x)  # nor is this
    objective.estimate(vae.model, vae.guide, x)
    for _ in range(3):
        weights.append(objective.weight)
        loss(x).backward()
    assert weights == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]


def test_warm_ups_rise_as_they_say():
    linear_, cyclical = LinearWarmup(num_steps=4), CyclicalWarmup(period=4, num_cycles=2, ramp=0.5, end=2.0)
    assert [linear_(step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert [cyclical(step) for step in range(10)] == [0, 1, 2, 2, 0, 1, 2, 2, 2, 2]
    for make in (
        lambda: LinearWarmup(num_steps=0),
        lambda: CyclicalWarmup(period=0),
        lambda: CyclicalWarmup(period=4, num_cycles=0),
        lambda: CyclicalWarmup(period=4, ramp=0.0),
    ):
        with pytest.raises(ConfigError):
            make()


# Free bits


def test_free_bits_charge_the_mean_of_the_batch_and_no_less_than_the_threshold():
    vae, x = small_vae(), pixels(20)
    q, p = vae.encode(x), dist.Normal(torch.zeros(2), 1.0)
    kl = torch.distributions.kl_divergence(q.base_dist, p).mean(0)
    threshold = kl.mean().item()  # between the two dimensions
    assert kl.min() < threshold < kl.max()
    charged = kl.max() + threshold
    torch.manual_seed(0)
    found = FreeBits(threshold=threshold).estimate(vae.model, vae.guide, x)
    torch.manual_seed(0)
    exact = ELBO(analytic_kl=True).estimate(vae.model, vae.guide, x).bound
    per_datapoint = torch.distributions.kl_divergence(q.base_dist, p).sum(-1)
    torch.testing.assert_close(found.bound, exact + per_datapoint - charged)
    with pytest.raises(ConfigError, match="threshold=-1"):
        FreeBits(threshold=-1.0)


def test_below_its_threshold_a_dimension_feels_no_kl_term():
    vae, x = small_vae(), pixels(20)

    gradient = partial(gradient_of, vae, x)
    torch.testing.assert_close(gradient(FreeBits(threshold=100.0)), gradient(BetaVAE(beta=0.0)))
    torch.testing.assert_close(gradient(FreeBits(threshold=0.0)), gradient(ELBO(analytic_kl=True)))


# Total correlation


def test_the_aggregate_posterior_is_estimated_without_bias():
    # Over all minibatches of three that hold datapoint 0, with a latent value that was drawn for it.
    log_q = torch.randn(7)
    found = []
    for others in itertools.combinations(range(1, 7), 2):
        rows = [0, *others]
        found.append(log_aggregate(log_q[rows].expand(3, 3), num_data=7)[0].exp())
    torch.testing.assert_close(torch.stack(found).mean(), log_q.exp().mean())
    equal_shares = torch.stack([log_q[[0, *o]].exp().mean() for o in itertools.combinations(range(1, 7), 2)]).mean()
    assert (equal_shares - log_q.exp().mean()).abs() > 1e-2  # the negative control


class Spread(nn.Module):
    """q(z | x) = N(x, s^2 I) and a likelihood of one value: the aggregate posterior is that of x, a little wider."""

    def __init__(self, scale=0.5):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[-1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0 * z, 1e3).to_event(1), obs=0 * x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, self.scale).to_event(1))


def correlated(num):
    torch.manual_seed(0)
    return torch.randn(num, 2) @ torch.linalg.cholesky(torch.tensor([[1.0, 0.8], [0.8, 1.0]])).T


def test_total_correlation_of_a_gaussian():
    x, pair = correlated(2000), Spread()
    variance, covariance = 1 + 0.5**2, 0.8
    exact = -0.5 * math.log(1 - (covariance / variance) ** 2)
    losses = []
    for beta in (1.0, 2.0):
        torch.manual_seed(1)
        losses.append(BetaTCVAE(beta=beta, num_data=2000).estimate(pair.model, pair.guide, x).bound)
    torch.manual_seed(1)
    torch.testing.assert_close(losses[0], ELBO().estimate(pair.model, pair.guide, x).bound)
    correlation = losses[0] - losses[1]
    assert correlation.mean().item() == pytest.approx(exact, abs=0.05)
    independent = x[torch.randperm(2000)]
    independent[:, 0] = x[:, 0]
    torch.manual_seed(1)
    none = ELBO().estimate(pair.model, pair.guide, independent).bound
    torch.manual_seed(1)
    none = none - BetaTCVAE(beta=2.0, num_data=2000).estimate(pair.model, pair.guide, independent).bound
    assert none.mean().item() == pytest.approx(0, abs=0.05)


class Slanted(Spread):
    """The same with a correlation in every q(z | x)."""

    def guide(self, x):
        factor = self.scale * torch.linalg.cholesky(torch.tensor([[1.0, -0.6], [-0.6, 1.0]]))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x, scale_tril=factor))


def test_total_correlation_of_gaussians_with_correlations():
    x, pair = correlated(2000), Slanted()
    exact = -0.5 * math.log(1 - ((0.8 - 0.6 * 0.5**2) / (1 + 0.5**2)) ** 2)
    losses = []
    for beta in (1.0, 2.0):
        torch.manual_seed(1)
        losses.append(BetaTCVAE(beta=beta, num_data=2000).estimate(pair.model, pair.guide, x).bound)
    assert (losses[0] - losses[1]).mean().item() == pytest.approx(exact, abs=0.05)


def test_total_correlation_needs_marginals_that_are_known():
    pair, x = Spread(), correlated(4)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LowRankMultivariateNormal(x, torch.ones(2, 1), torch.ones(2)))

    with pytest.raises(PairError, match="known marginals"):
        BetaTCVAE(num_data=10).loss(pair.model, guide, x)


def test_free_bits_by_draws():
    problem, x = linear(), e2_data(4)
    free = {}
    for threshold in (0.0, 100.0):
        torch.manual_seed(1)
        free[threshold] = FreeBits(threshold=threshold, analytic_kl=False).estimate(problem.model, problem.guide(), x)
    torch.testing.assert_close(free[0.0].bound.mean(), free[0.0].elbo.mean())  # where the estimate is positive
    torch.testing.assert_close(free[0.0].bound - free[100.0].bound, 100 - parts_kl(problem, x))


def parts_kl(problem, x):
    """The KL term of the same draws, averaged over datapoints, for each of them."""
    torch.manual_seed(1)
    sites = ELBO()._sites(Pair(problem.model, problem.guide(), (x,), {}))
    return sites.divergence.mean().expand(len(x))


# Maximum mean discrepancy


def test_mmd_of_two_gaussians_is_unbiased():
    # E k(z, y) for z - y ~ N(m, 2 I), with a kernel of variance d: (d / (d + 2))^(d / 2) exp(-m^2 / (2 (d + 2))).
    shift = torch.tensor([0.5, -1.0])
    exact = 2 * 0.5 * (1 - math.exp(-1.25 / 8))
    found = torch.stack([mmd(torch.randn(6, 2) + shift, torch.randn(6, 2)) for _ in range(20_000)])
    assert_mean(found, exact)
    same = torch.stack([mmd(torch.randn(6, 2), torch.randn(6, 2)) for _ in range(20_000)])
    assert_mean(same, 0.0)
    assert_not_mean(found, 0.0)


def test_mmd_is_of_the_aggregate_posterior_and_not_of_a_datapoints_particles():
    # Every datapoint's particles sit in one place, but together they are the prior: there is nothing to pay.
    torch.manual_seed(0)
    x, pair = torch.randn(400, 2), Spread(scale=0.01)
    plain = BetaVAE(beta=0.0).estimate(pair.model, pair.guide, x).bound
    found = [
        InfoVAE(mmd_weight=100.0, num_particles=3).estimate(pair.model, pair.guide, x).bound.mean() for _ in range(30)
    ]
    charged = plain.mean() - torch.stack(found)
    assert charged.mean().abs() < 0.5  # 100 times a discrepancy of a few thousandths, for this sample of x
    far = InfoVAE(mmd_weight=100.0).estimate(pair.model, pair.guide, 0 * x).bound.mean()
    assert plain.mean() - far > 10


def test_mmd_of_layers_is_from_draws_of_the_whole_prior():
    chain = {"top": 0.0, "slope1": 0.0, "loc1": 0.0, "log_scale1": 0.5 * math.log(2)}
    chain |= {"slope2": 0.5, "loc2": 0.0, "log_scale2": 0.5 * math.log(0.5)}  # z1 and z2 jointly as in the prior
    pair = Layered(2, 100, start=chain)
    x = torch.full((100,), LAYERED_X)
    differences = []
    for seed in range(100):
        bounds = []
        for weight in (0.0, 1.0):
            torch.manual_seed(seed)
            bounds.append(InfoVAE(mmd_weight=weight).estimate(pair.model, pair.guide, x).bound.mean())
        differences.append(bounds[0] - bounds[1])
    assert_mean(torch.stack(differences).detach(), 0.0)


def test_a_batch_of_one_has_no_aggregate():
    vae, x = small_vae(), pixels(1)

    gradient = partial(gradient_of, vae, x)
    torch.testing.assert_close(gradient(BetaTCVAE(num_data=10)), gradient(ELBO()))
    torch.testing.assert_close(gradient(InfoVAE(mmd_weight=5.0)), gradient(BetaVAE(beta=0.0)))
    torch.testing.assert_close(gradient(FreeBits(threshold=0.0)), gradient(ELBO(analytic_kl=True)))


@pytest.mark.parametrize("weights", [{"mmd_weight": -1.0}, {"mmd_weight": 1.0, "kl_weight": math.inf}])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ConfigError, match="weight="):
        InfoVAE(**weights)


# The ELBO in parts


@pytest.mark.parametrize("analytic_kl", [False, True])
def test_parts_of_the_elbo(analytic_kl):
    problem = linear()
    x = e2_data(300)
    parts = pv.diagnostics.elbo_parts(problem.model, e2_guide(problem), x, num_particles=70, analytic_kl=analytic_kl)
    kl = e2_kl(problem)
    assert_mean((parts.reconstruction - (E2_ELBO + kl)) / parts.reconstruction_stderr, 0.0)
    if analytic_kl:
        torch.testing.assert_close(parts.kl["z"], torch.full((300,), kl))
        assert parts.kl_stderr["z"].max() < 1e-12
    else:
        assert_mean((parts.kl["z"] - kl) / parts.kl_stderr["z"], 0.0)
        assert ((parts.kl["z"] - kl) / parts.kl_stderr["z"]).std().item() == pytest.approx(1, abs=0.2)
    assert_mean(parts.elbo, E2_ELBO)
    torch.testing.assert_close(parts.elbo, parts.reconstruction - parts.kl["z"])


def test_parts_of_a_layered_pair_are_by_site():
    pair, x = Layered(2, 200), torch.full((200,), LAYERED_X)
    parts = pv.diagnostics.elbo_parts(pair.model, pair.guide, x, num_particles=500)
    assert list(parts.kl) == ["z1", "z2"]
    elbo = pv.evidence.elbo(pair.model, pair.guide, x, num_particles=500)
    gap = (parts.elbo - elbo.value) / (elbo.stderr * math.sqrt(2))
    assert_mean(gap, 0.0)
    # E[log q(z2 | z1) - log p(z2)] by hand: z2 is N(m, v) with the guide's moments.
    slope, loc, scale = 0.7, -0.2, math.exp(-0.4)
    z1_mean, z1_variance = 0.5 * LAYERED_X + 0.1, math.exp(-0.6)
    mean, variance = slope * z1_mean + loc, slope**2 * z1_variance + scale**2
    exact = -math.log(scale) - 0.5 + 0.5 * (variance + (mean - 0.2) ** 2)
    assert_mean((parts.kl["z2"] - exact) / parts.kl_stderr["z2"], 0.0)


def test_parts_leave_everything_as_it_was_and_refuse_bad_data():
    vae, x = small_vae(), pixels(5)
    state = torch.get_rng_state()
    first, second = (pv.diagnostics.elbo_parts(vae.model, vae.guide, x, num_particles=3) for _ in range(2))
    assert torch.equal(first.reconstruction, second.reconstruction)
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(pyro.get_param_store().keys())
    with pytest.raises(DataError):
        pv.diagnostics.elbo_parts(vae.model, vae.guide, x * math.nan)
    with pytest.raises(ConfigError, match="num_particles=1"):
        pv.diagnostics.elbo_parts(vae.model, vae.guide, x, num_particles=1)


# What a whole minibatch is, and what a second run of the model leaves behind


@pytest.mark.parametrize(
    "objective", [BetaTCVAE(num_data=10), InfoVAE(mmd_weight=1.0), FreeBits()], ids=lambda o: type(o).__name__
)
def test_masked_datapoints_are_refused_where_they_would_be_counted(objective):
    vae, x = small_vae(), pixels(4)
    mask = torch.tensor([True, True, True, False])
    model, guide = (pyro.poutine.mask(program, mask=mask) for program in (vae.model, vae.guide))
    with pytest.raises(PairError, match="masked"):
        objective(model, guide)(x)
    for every in (True, None):
        same = model if every is None else pyro.poutine.mask(vae.model, mask=True)
        assert every is None or math.isfinite(objective(same, vae.guide)(x).item())


class Learned(nn.Module):
    """A prior with a parameter, and a decoder with a batch normalisation."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([3.0, 3.0]))
        self.encoder = nn.Linear(6, 2)
        self.decoder = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 6))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mean, 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.3).to_event(1))


def test_mmd_teaches_a_learned_prior():
    pair, x = Learned(), pixels(50)
    InfoVAE(mmd_weight=100.0)(pair.model, pair.guide)(x).backward()
    assert (pair.mean.grad > 0.1).all()  # towards the guide's draws, which are below it


@pytest.mark.parametrize(
    "objective", [InfoVAE(mmd_weight=1.0), ReweightedWakeSleep(insomnia=0.5)], ids=["mmd", "sleep"]
)
def test_a_second_run_of_the_model_leaves_no_trace_in_a_batch_normalisation(objective):
    pair, x = Learned(), pixels(50)
    loss = objective(pair.model, pair.guide)
    ELBO(num_particles=2)(pair.model, pair.guide)(x)
    before = pair.decoder[0].running_mean.clone()
    loss(x).backward()
    assert pair.decoder[0].training
    moved = (pair.decoder[0].running_mean - before).abs().max()
    assert moved < 0.3  # a step towards the guide's draws; the prior's are at 3 and would add 0.3


# Dreams in the place of data


def chain(transform=lambda x: x):
    slope = nn.Parameter(torch.tensor(0.3))

    def model(x, other=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=transform(x))

    def guide(x, other=None):
        pyro.param("slope", slope)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.5))

    return model, guide, slope


def sleep_gradient(slope, estimate):
    return -torch.autograd.grad(estimate.loss, [slope])[0] / len(estimate.bound)


def test_a_dream_takes_the_place_of_the_argument_that_is_observed():
    # E_p[(z - a x) x / s^2] = (2 - 5 a) / s^2 for x = 2 z + noise.
    exact = (2 - 5 * 0.3) / 0.25
    x = torch.randn(100_000)
    other = torch.randn(100_000)
    for arguments in (((x,), {}), ((x, other), {}), ((), {"x": x}), ((), {"other": other, "x": x})):
        model, guide, slope = chain()
        pyro.clear_param_store()
        found = ReweightedWakeSleep(insomnia=0.0).estimate(model, guide, *arguments[0], **arguments[1])
        assert sleep_gradient(slope, found).item() == pytest.approx(exact, abs=0.1)

    model, guide, slope = chain()

    def swapped_model(other, x):
        model(x)

    def swapped_guide(other, x):
        guide(x)

    pyro.clear_param_store()
    found = ReweightedWakeSleep(insomnia=0.0).estimate(swapped_model, swapped_guide, other, x)
    assert sleep_gradient(slope, found).item() == pytest.approx(exact, abs=0.1)


def test_a_dream_that_does_not_fit_is_refused():
    x = torch.randn(10)
    asleep = ReweightedWakeSleep(insomnia=0.5)
    model, guide, _ = chain(transform=lambda x: (x - 1) / 2)
    with pytest.raises(PairError, match="as it was passed"):
        asleep.loss_and_grads(model, guide, x)
    pyro.clear_param_store()
    model, guide, _ = chain(transform=lambda x: x.double())
    with pytest.raises(PairError, match=r"float64 does not fit data of torch\.int64"):
        asleep.loss_and_grads(model, guide, torch.arange(10))
    pyro.clear_param_store()
    model, guide, _ = chain()
    auto = pyro.infer.autoguide.AutoNormal(model, create_plates=lambda x: pyro.plate("data", len(x)))
    with pytest.raises(PairError, match=r"auxiliary sites .* insomnia=1"):
        asleep.loss_and_grads(model, auto, x)


def test_a_checkpoint_cannot_name_a_function(tmp_path):
    vae = small_vae().float()
    with pytest.raises(ConfigError, match=r"objective\.beta is a function.*dataclass"):
        pv.fit(
            vae,
            pixels(4).float(),
            batch_size=4,
            objective=BetaVAE(beta=lambda step: 1.0),
            checkpoint=tmp_path / "state",
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: require_number("share", "half", least=0, most=1), "share='half'.*at least 0 and at most 1"),
        (lambda: require_number("weight", None), "weight=None"),
        (lambda: LinearWarmup(10, end=-1.0), "end"),
        (lambda: LinearWarmup(10, end=math.nan), "end"),
        (lambda: ReweightedWakeSleep(num_particles=1), "num_particles"),
        (lambda: CUBO(num_particles=1), "num_particles"),
    ],
)
def test_what_is_no_number_is_refused_in_one_line(make, name):
    with pytest.raises(ConfigError, match=f"{name}") as caught:
        make()
    assert "\n" not in str(caught.value)
