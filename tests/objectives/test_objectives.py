"""Every objective times every property: a new objective costs one line of test."""

import copy
import inspect
import types
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError, PairError
from pyro_vae.objectives import (
    CIWAE,
    CUBO,
    ELBO,
    IWAE,
    JVI,
    MIWAE,
    PIWAE,
    TVO,
    BetaTCVAE,
    BetaVAE,
    FreeBits,
    InfoVAE,
    Renyi,
    ReweightedWakeSleep,
)
from pyro_vae.objectives.gradients import PATHS
from pyro_vae.training.schedules import LinearWarmup
from tests.statistics import assert_mean

OBJECTIVES = {
    "ELBO": ELBO,
    "ELBO-5": partial(ELBO, num_particles=5),
    "ELBO-analytic": partial(ELBO, analytic_kl=True),
    "ELBO-analytic-5": partial(ELBO, num_particles=5, analytic_kl=True),
    "ELBO-path": partial(ELBO, gradient="path"),
    "ELBO-dreg-5": partial(ELBO, num_particles=5, gradient="dreg"),
    "ELBO-reinforce": partial(ELBO, gradient="reinforce"),
    "ELBO-reinforce_baseline": partial(ELBO, gradient="reinforce_baseline"),
    "ELBO-rloo": partial(ELBO, num_particles=5, gradient="rloo"),
    "IWAE": IWAE,
    "IWAE-5": partial(IWAE, num_particles=5),
    "IWAE-path": partial(IWAE, num_particles=5, gradient="path"),
    "IWAE-dreg": partial(IWAE, num_particles=5, gradient="dreg"),
    "IWAE-reinforce": partial(IWAE, num_particles=5, gradient="reinforce"),
    "IWAE-reinforce_baseline": partial(IWAE, num_particles=5, gradient="reinforce_baseline"),
    "IWAE-vimco": partial(IWAE, num_particles=5, gradient="vimco"),
    "IWAE-resampled": partial(IWAE, num_particles=5, resampled=True),
    "IWAE-resampled-dreg": partial(IWAE, num_particles=5, gradient="dreg", resampled=True),
    "Renyi": partial(Renyi, alpha=0.5, num_particles=5),
    "Renyi-negative": partial(Renyi, alpha=-0.5, num_particles=5),
    "Renyi-path": partial(Renyi, alpha=0.5, num_particles=5, gradient="path"),
    "Renyi-dreg": partial(Renyi, alpha=0.5, num_particles=5, gradient="dreg"),
    "Renyi-vimco": partial(Renyi, alpha=0.5, num_particles=5, gradient="vimco"),
    "MIWAE": partial(MIWAE, num_groups=2, num_particles=3),
    "MIWAE-path": partial(MIWAE, num_groups=2, num_particles=3, gradient="path"),
    "MIWAE-dreg": partial(MIWAE, num_groups=2, num_particles=3, gradient="dreg"),
    "PIWAE": partial(PIWAE, num_groups=2, num_particles=3),
    "PIWAE-dreg": partial(PIWAE, num_groups=2, num_particles=3, gradient="dreg"),
    "CIWAE": partial(CIWAE, beta=0.3, num_particles=4),
    "CIWAE-path": partial(CIWAE, beta=0.3, num_particles=4, gradient="path"),
    "CIWAE-dreg": partial(CIWAE, beta=0.3, num_particles=4, gradient="dreg"),
    "CUBO": CUBO,
    "CUBO-dreg": partial(CUBO, gradient="dreg"),
    "TVO": partial(TVO, num_particles=5),
    "TVO-vimco": partial(TVO, num_particles=5, gradient="vimco"),
    "JVI": partial(JVI, num_particles=5),
    "JVI-2-dreg": partial(JVI, order=2, num_particles=5, gradient="dreg"),
    "RWS": partial(ReweightedWakeSleep, num_particles=5),
    "RWS-dreg": partial(ReweightedWakeSleep, num_particles=5, gradient="dreg"),
    "RWS-half": partial(ReweightedWakeSleep, num_particles=5, insomnia=0.5),
    "RWS-sleep": partial(ReweightedWakeSleep, num_particles=5, insomnia=0.0),
    "BetaVAE": partial(BetaVAE, beta=2.0),
    "BetaVAE-warm-up": partial(BetaVAE, beta=LinearWarmup(num_steps=20), analytic_kl=True),
    "FreeBits": partial(FreeBits, threshold=0.05),
    "FreeBits-sampled": partial(FreeBits, threshold=0.05, analytic_kl=False),
    "BetaTCVAE": partial(BetaTCVAE, beta=2.0, num_data=32),
    "InfoVAE": partial(InfoVAE, mmd_weight=1.0, kl_weight=0.5),
}

every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=list(OBJECTIVES), indirect=True)


@pytest.fixture
def objective(request):
    """Made anew for every test: those with a schedule count their steps."""
    return at_start(request.param())


# Pairs: each builder returns model, guide, the modules behind them, and data


def pixels(num, *shape):
    """Two patterns and their noise: something to learn."""
    size = torch.Size(shape).numel()
    pattern = torch.arange(size) % 2 == torch.randint(2, (num, 1))
    return (pattern ^ (torch.rand(num, size) < 0.1)).float().reshape(num, *shape)


def preset(num=32):
    vae = pv.presets.mlp_vae(data_shape=(8,), latent_dim=2, hidden=(16,))
    return vae.model, vae.guide, vae, pixels(num, 8)


def normal(params):
    loc, log_scale = params.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


def standard_normal(size):
    return dist.Normal(torch.zeros(size), 1.0).to_event(1)


def perceptron(*widths):
    return nn.Sequential(nn.Linear(widths[0], 16), nn.Tanh(), nn.Linear(16, widths[1]))


def one_layer(encoder, decoder, x, subsample_size=None):
    """A pair as the Pyro tutorials write it: plain functions around two networks."""
    event_dim = x.ndim - 1

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), subsample_size=subsample_size) as rows:
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(event_dim), obs=x[rows])

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), subsample_size=subsample_size) as rows:
            pyro.sample("z", normal(encoder(x[rows])))

    return model, guide, nn.ModuleList([encoder, decoder]), x


def hand_written(num=32):
    return one_layer(perceptron(8, 4), perceptron(2, 8), pixels(num, 8))


def subsampled(num=32):
    return one_layer(perceptron(8, 4), perceptron(2, 8), pixels(num, 8), subsample_size=num // 2)


class ConvDecoder(nn.Module):
    """A decoder that knows of one batch dimension only."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 32)
        self.conv = nn.ConvTranspose2d(8, 1, 2, stride=2)

    def forward(self, z):
        return self.conv(torch.tanh(self.linear(z)).view(z.shape[0], 8, 2, 2))


def conv(num=32):
    encoder = nn.Sequential(nn.Conv2d(1, 4, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 4))
    return one_layer(encoder, ConvDecoder(), pixels(num, 1, 4, 4))


def two_layer(num=32, top_down_guide=True, wrap=nn.Sequential):
    """p(z2) p(z1 | z2) p(x | z1); the guide q(z2 | x) q(z1 | z2, x), or bottom up as in the IWAE paper."""
    nets = nn.ModuleDict(
        {"q1": perceptron(8 + 2 * top_down_guide, 6), "q2": perceptron(8 + 3 * (not top_down_guide), 4)}
    )
    prior, decoder = perceptron(2, 6), wrap(perceptron(3, 8))

    def model(x):
        pyro.module("prior", prior)
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", standard_normal(2))
            z1 = pyro.sample("z1", normal(prior(z2)))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z1)).to_event(1), obs=x)

    def joined(x, z):
        return torch.cat([x.expand(*z.shape[:-1], -1), z], -1)

    def guide(x):
        pyro.module("nets", nets)
        with pyro.plate("data", len(x)):
            if top_down_guide:
                z2 = pyro.sample("z2", normal(nets["q2"](x)))
                pyro.sample("z1", normal(nets["q1"](joined(x, z2))))
            else:
                z1 = pyro.sample("z1", normal(nets["q1"](x)))
                pyro.sample("z2", normal(nets["q2"](joined(x, z1))))

    return model, guide, nn.ModuleList([prior, decoder, nets]), pixels(num, 8)


PAIRS = {
    "preset": preset,
    "hand-written": hand_written,
    "conv": conv,
    "two-layer": two_layer,
    "subsampled": subsampled,
}

every_pair = pytest.mark.parametrize("build", PAIRS.values(), ids=list(PAIRS))


def seeded(function, *args):
    torch.manual_seed(0)
    return function(*args)


def at_start(objective):
    objective.step = 1  # of a warm-up, where the KL term already counts
    return objective


def gradients(modules):
    return [parameter.grad.clone() for parameter in modules.parameters()]


# The sockets


@every_objective
@every_pair
def test_loss_is_minus_the_scaled_bound(objective, build):
    model, guide, _, x = build()
    model, guide = poutine.scale(model, 3.0), poutine.scale(guide, 3.0)
    bound, _, scale = seeded(objective.estimate, model, guide, x)
    at_start(objective)
    subsampling = 2 if build is subsampled else 1
    assert scale == 3 * subsampling
    assert bound.shape == (len(x) // subsampling,)
    assert seeded(objective.loss, model, guide, x) == pytest.approx(-(scale * bound).sum().item(), rel=1e-6)
    if objective.side == "lower":
        assert bound.max() < 0  # below a log-probability of pixels: the loss is minimised, so it is positive


@every_objective
@every_pair
def test_loss_trains_nothing(objective, build):
    model, guide, modules, x = build()
    before = copy.deepcopy(modules.state_dict())
    assert isinstance(objective.loss(model, guide, x), float)
    with torch.no_grad():
        assert not objective.differentiable_loss(model, guide, x).requires_grad
        objective.loss_and_grads(model, guide, x)
    assert all(parameter.grad is None for parameter in modules.parameters())
    for name, value in modules.state_dict().items():
        assert torch.equal(value, before[name])


@every_objective
@every_pair
def test_every_way_to_the_gradient_is_the_same(objective, build):
    model, guide, modules, x = build()
    loss = seeded(objective.differentiable_loss, model, guide, x)
    loss.backward()
    expected = gradients(modules)
    assert all(gradient.abs().max() > 0 for gradient in expected)
    modules.zero_grad()
    assert seeded(at_start(objective).loss_and_grads, model, guide, x) == loss.item()
    for found, gradient in zip(gradients(modules), expected, strict=True):
        torch.testing.assert_close(found, gradient)
    modules.zero_grad()
    through_module = seeded(at_start(objective)(model, guide), x)
    assert through_module.item() == loss.item()
    through_module.backward()
    for found, gradient in zip(gradients(modules), expected, strict=True):
        torch.testing.assert_close(found, gradient)


def by_svi(objective, model, guide, x, steps, rate):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": rate}), loss=objective)
    for _ in range(steps):
        svi.step(x)


def by_torch(objective, model, guide, x, steps, rate):
    loss = objective(model, guide)
    optimiser = torch.optim.Adam(loss.parameters(), lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(x).backward()
        optimiser.step()


def by_fit(objective, model, guide, x, steps, rate):
    pv.fit((model, guide), x, objective=objective, num_epochs=steps, learning_rate=rate, batch_size=32, progress=False)


WAYS = by_svi, by_torch, by_fit
# The ways are taken in turn: each objective meets every pair, and every way, and each pair meets every way. That the
# gradient is the same by all of them is tested for each of the products.
TRAINING = [
    pytest.param(make, build, train := WAYS[(row + column) % len(WAYS)], id=f"{name}-{pair}-{train.__name__}")
    for row, (name, make) in enumerate(OBJECTIVES.items())
    for column, (pair, build) in enumerate(PAIRS.items())
]


@pytest.mark.parametrize(("objective", "build", "train"), TRAINING, indirect=["objective"])
def test_trains(objective, build, train):
    model, guide, modules, x = build()

    def mean_bound():
        return -sum(IWAE(num_particles=5).loss(model, guide, x) for _ in range(10)) / (10 * len(x))

    start, before = [parameter.detach().clone() for parameter in modules.parameters()], mean_bound()
    noisy = "reinforce" in objective.gradient  # no control variate, or a weak one
    train(objective, model, guide, x, *((200, 0.01) if noisy else (30, 0.05)))
    assert mean_bound() > before + 0.3
    for old, new in zip(start, modules.parameters(), strict=True):
        assert not torch.equal(old, new)  # nothing is left behind silently


@every_objective
@every_pair
def test_the_module_owns_every_parameter_once_and_nothing_else(objective, build):
    model, guide, modules, _ = build()
    owned = list(objective(model, guide).parameters())
    assert len(owned) == len({id(parameter) for parameter in owned})
    assert {id(parameter) for parameter in owned} == {id(parameter) for parameter in modules.parameters()}


@every_objective
def test_the_module_gives_the_bound_per_datapoint(objective):
    model, guide, _, x = hand_written()
    module = objective(model, guide)
    bound, _, scale = seeded(module.estimate, x)
    at_start(objective)
    assert bound.shape == (len(x),)
    assert scale == 1
    assert seeded(module, x).item() == pytest.approx(-bound.sum().item(), rel=1e-6)


def test_the_module_leaves_pyros_store_alone():
    model, guide, _, x = hand_written()
    IWAE(num_particles=2)(model, guide)(x).backward()
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize("wrap", [partial, lambda program: poutine.scale(program, 1.0)])
def test_the_module_sees_through_wrappers(wrap):
    model, guide, modules, _ = hand_written()
    owned = ELBO()(wrap(model), wrap(guide))
    assert len(list(owned.parameters())) == len(list(modules.parameters()))


def test_a_module_that_is_its_own_program_is_owned():
    encoder, decoder = perceptron(8, 4), perceptron(2, 8)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = decoder

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", standard_normal(2))
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    _, guide, modules, x = one_layer(encoder, decoder, pixels(4, 8))
    loss = ELBO()(Model(), guide)
    assert {id(p) for p in loss.parameters()} == {id(p) for p in modules.parameters()}
    loss(x).backward()


def hidden_in_a_dictionary(model, decode, decoder):
    nets = {"decoder": decoder}
    nets["again"] = nets
    return lambda x: model(x, nets["decoder"])


def hidden_in_a_function(model, decode, decoder):
    return lambda x: model(x, decode)


def hidden_in_an_object(model, decode, decoder):
    class Program:
        def __init__(self):
            self.net = decoder

        def __call__(self, x):
            return model(x, self.net)

    return Program()


def hidden_in_slots(model, decode, decoder):
    class Program:
        __slots__ = ("net",)

        def __init__(self):
            self.net = decoder

        def run(self, x):
            return model(x, self.net)

    return Program().run


def hidden_in_a_namespace_but_registered(model, decode, decoder):
    nets = types.SimpleNamespace(decoder=decoder)

    def registered(x):
        pyro.module("decoder", nets.decoder)
        return model(x, nets.decoder)

    return registered


HIDING_PLACES = [
    hidden_in_a_dictionary,
    hidden_in_a_function,
    hidden_in_an_object,
    hidden_in_slots,
    hidden_in_a_namespace_but_registered,
]


@pytest.mark.parametrize("hide", HIDING_PLACES)
def test_a_decoder_out_of_sight_is_found_or_refused_but_never_left_behind(hide):
    # The encoder is in plain view, so the module would not be empty; it would train half of the pair.
    _, guide, modules, x = hand_written()
    decoder = modules[1]

    def decode(z):
        return decoder(z)

    def model(x, net):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(1), obs=x)

    program = hide(model, decode, decoder)
    pv.evidence.elbo(program, guide, x, num_particles=2)  # which needs no parameters, but the modes of the modules
    try:
        loss = ELBO()(program, guide)
        loss(x)
    except PairError:
        return
    assert {id(p) for p in loss.parameters()} == {id(p) for p in modules.parameters()}


def test_a_pair_without_modules_is_refused():
    problem = pv.problems.linear_gaussian(W=[[1.0]])
    with pytest.raises(PairError, match="found no parameters"):
        ELBO()(problem.model, problem.guide())


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=list(OBJECTIVES))
def test_unknown_options_are_refused(make):
    if "num_particles" in inspect.signature(make).parameters:
        with pytest.raises(ConfigError, match="num_particles=0"):
            make(num_particles=0)
    if "gradient" in inspect.signature(make).parameters:
        with pytest.raises(ConfigError, match="gradient='by hand': expected one of"):
            make(gradient="by hand")


# What the bounds have to do with one another


@every_pair
def test_iwae_with_one_particle_is_the_elbo_draw_by_draw(build):
    model, guide, _, x = build()
    elbo = seeded(ELBO().estimate, model, guide, x).bound
    iwae = seeded(IWAE().estimate, model, guide, x).bound
    assert torch.equal(elbo, iwae)


@every_pair
def test_the_bound_is_that_of_the_particles(build):
    model, guide, _, x = build()
    log_w = seeded(lambda: pv.draw_particles(model, guide, x, num_particles=5).log_w)
    elbo = seeded(ELBO(num_particles=5).estimate, model, guide, x).bound
    iwae = seeded(IWAE(num_particles=5).estimate, model, guide, x).bound
    torch.testing.assert_close(elbo, log_w.mean(0))
    torch.testing.assert_close(iwae, torch.logsumexp(log_w - torch.tensor(5.0).log(), 0))
    assert (iwae >= elbo).all()


@pytest.mark.parametrize("build", [preset, conv, two_layer], ids=["preset", "conv", "two-layer"])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_analytic_kl_has_the_expectation_of_the_elbo(build, num_particles):
    # Paired datapoint by datapoint; the hierarchy's second term is exact only given the draw of the first site.
    model, guide, _, x = build(num=1)
    x = x.expand(4000, *x.shape[1:])
    with torch.no_grad():
        exact = ELBO(num_particles=num_particles, analytic_kl=True).estimate(model, guide, x).bound
        sampled = ELBO(num_particles=num_particles).estimate(model, guide, x).bound
    assert_mean(exact - sampled, 0.0)
    assert not torch.equal(exact, sampled)


# A network that takes one batch dimension only gives the same numbers


class Strict(nn.Module):
    """The same network, but like an ordinary one it refuses particle dimensions."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        if x.ndim != 2:
            raise RuntimeError(f"expected two dimensions, got {x.ndim}")
        return self.net(x)


@pytest.mark.parametrize(("num_particles", "batch"), [(1, 3), (4, 3), (3, 3), (4, 1)])
def test_a_decoder_that_is_looped_over_gives_the_same_weights(num_particles, batch):
    encoder, decoder, x = perceptron(8, 4), perceptron(2, 8), pixels(batch, 8)
    found = []
    for net in (decoder, Strict(decoder)):
        model, guide, _, _ = one_layer(encoder, net, x)
        found.append(seeded(partial(pv.draw_particles, num_particles=num_particles), model, guide, x))
    plain, looped = found
    assert torch.equal(plain.z["z"], looped.z["z"])
    for one, other in zip(plain[:3], looped[:3], strict=True):
        assert one.shape == (num_particles, batch)
        torch.testing.assert_close(one, other)


@every_objective
def test_a_decoder_that_is_looped_over_gives_the_same_loss_and_gradient(objective):
    encoder, decoder, x = perceptron(8, 4), perceptron(2, 8), pixels(6, 8)
    losses, found = [], []
    for net in (decoder, Strict(decoder)):
        model, guide, modules, _ = one_layer(encoder, net, x)
        modules.zero_grad()
        losses.append(seeded(at_start(objective).loss_and_grads, model, guide, x))
        found.append(gradients(modules))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@every_objective
def test_looping_over_the_decoder_of_a_hierarchy_changes_nothing(objective):
    # With a closed-form KL, the term of the second site belongs to the draw of the first.
    found = []
    for wrap in (nn.Sequential, Strict):
        model, guide, modules, x = seeded(partial(two_layer, num=6, wrap=wrap))
        loss = seeded(at_start(objective).loss_and_grads, model, guide, x)
        found.append([torch.tensor(loss), *gradients(modules)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def strict_two_layer(x, subsample_size=None):
    """A guide whose second network refuses particles too, so that the guide itself has to be looped over."""
    q1, q2, prior, decoder = (Strict(nn.Linear(*sizes)) for sizes in ((8, 3), (3, 2), (2, 3), (3, 8)))

    def model(x):
        with pyro.plate("data", len(x), subsample_size=subsample_size) as rows:
            z2 = pyro.sample("z2", standard_normal(2))
            z1 = pyro.sample("z1", dist.Normal(prior(z2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z1)).to_event(1), obs=x[rows])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=subsample_size) as rows:
            z1 = pyro.sample("z1", dist.Normal(q1(x[rows]), 1.0).to_event(1))
            pyro.sample("z2", dist.Normal(q2(z1), 1.0).to_event(1))

    def log_w(x, z1, z2):
        unit = dist.Normal(0.0, 1.0)
        log_p = unit.log_prob(z2).sum(-1) + unit.log_prob(z1 - prior.net(z2)).sum(-1)
        log_p = log_p + dist.Bernoulli(logits=decoder.net(z1)).log_prob(x).sum(-1)
        return log_p - unit.log_prob(z1 - q1.net(x)).sum(-1) - unit.log_prob(z2 - q2.net(z1)).sum(-1)

    return model, guide, log_w


@pytest.mark.parametrize("num_particles", [1, 4])
def test_a_guide_that_is_looped_over_gives_the_weights_of_its_draws(num_particles):
    x = pixels(5, 8)
    model, guide, log_w = strict_two_layer(x)
    found = pv.draw_particles(model, guide, x, num_particles=num_particles)
    assert found.log_w.shape == (num_particles, 5)
    assert len(set(found.z["z1"][..., 0].flatten().tolist())) == num_particles * 5
    torch.testing.assert_close(found.log_w, log_w(x, **found.z))


def test_a_guide_that_is_looped_over_keeps_to_one_minibatch():
    # The log-mean-exp over particles is of one datapoint's weights: every pass has to draw the same rows.
    x = torch.eye(8)
    model, guide, log_w = strict_two_layer(x, subsample_size=3)
    found = pv.draw_particles(model, guide, x, num_particles=4)
    candidates = torch.stack([log_w(row, **found.z) for row in x])  # [row, particle, place]
    rows = (candidates - found.log_w).abs().argmin(0)
    assert (candidates.gather(0, rows[None])[0] - found.log_w).abs().max() < 1e-5
    assert (rows == rows[0]).all(), f"the particles (rows) of a place belong to different datapoints:\n{rows}"


# Pairs that are not one data plate with local latents


def bad_pair(kind):
    """A pair with one thing wrong; data of four rows and three columns."""
    loc = nn.Parameter(torch.zeros(3))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(3))
            if kind == "only in the model":
                pyro.sample("y", standard_normal(3))
            likelihood = dist.Normal(z, 1.0)
            pyro.sample("x", likelihood if kind == "no to_event" else likelihood.to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            if kind == "only in the guide":
                pyro.sample("y", standard_normal(3))

    return model, guide


def no_plate(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def no_plate_guide(x):
    pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1))


def nested(x):
    with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", 3, dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def nested_guide(x):
    with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", 3, dim=-1):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def global_latent(program):
    def with_global(x):
        pyro.sample("everywhere", dist.Normal(0.0, 1.0))
        program(x)

    return with_global


def differently_scaled():
    model, guide = bad_pair(None)
    return poutine.scale(model, 2.0), guide


BAD_PAIRS = {
    "model without a plate": (lambda: (no_plate, bad_pair(None)[1]), r"'z' is in no plate.*pyro\.plate"),
    "guide without a plate": (lambda: (bad_pair(None)[0], no_plate_guide), r"'z' is in no plate.*pyro\.plate"),
    "nested plates": (lambda: (nested, nested_guide), "exactly one data plate"),
    "global latent": (
        lambda: tuple(global_latent(program) for program in bad_pair(None)),
        "'everywhere' is in no plate",
    ),
    "no to_event": (lambda: bad_pair("no to_event"), "to_event"),
    "only in the model": (lambda: bad_pair("only in the model"), r"\['y'\] are in the model but not in the guide"),
    "only in the guide": (lambda: bad_pair("only in the guide"), r"\['y'\] are in the guide but not in the model"),
    "no latent": (lambda: (bad_pair(None)[0], lambda x: None), "no latent site"),
    "different scales": (differently_scaled, "different scales"),
}


@pytest.mark.parametrize("rows", [4, 3])  # with three rows of three columns a missing to_event fits Pyro's plate
@pytest.mark.parametrize("num_particles", [1, 2, 3])
@pytest.mark.parametrize(("build", "message"), BAD_PAIRS.values(), ids=list(BAD_PAIRS))
def test_a_pair_that_is_no_pair_is_refused_with_a_way_out(build, message, num_particles, rows):
    model, guide = build()
    with pytest.raises(PairError, match=message):
        IWAE(num_particles=num_particles).loss(model, guide, torch.zeros(rows, 3))


@pytest.mark.parametrize("num_particles", [1, 2, 3])
def test_a_latent_site_without_to_event_is_refused(num_particles):
    # Three particles, three datapoints, three latents: then every shape fits, and the weights would be wrong.
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(PairError, match="to_event"):
        pv.draw_particles(model, guide, torch.zeros(3, 3), num_particles=num_particles)


def binary_latent(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def binary_guide(logits):
    def guide(x):
        pyro.module("logits", logits)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits(x)).to_event(1))

    return guide


@every_objective
def test_discrete_sites_are_trained_on_or_a_gradient_that_would_miss_a_term_is_refused(objective):
    logits, x = nn.Linear(3, 3), torch.randn(4, 3)
    guide = binary_guide(logits)
    assert objective.loss(binary_latent, guide, x) > -10  # the value alone needs no gradient
    if PATHS[objective.gradient] == "score":
        objective(binary_latent, guide)(x).backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in logits.parameters())
        return
    with pytest.raises(PairError, match="reparameterised"):
        objective.loss_and_grads(binary_latent, guide, x)
    with pytest.raises(PairError, match="reparameterised"):
        objective(binary_latent, guide)(x)


@pytest.mark.parametrize("num_particles", [1, 4])
def test_analytic_kl_needs_a_closed_form(num_particles):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.StudentT(3.0, torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    with pytest.raises(PairError, match=r"'z': no closed form.*analytic_kl=False"):
        ELBO(num_particles=num_particles, analytic_kl=True).loss(model, bad_pair(None)[1], torch.zeros(4, 3))


@pytest.mark.parametrize("num_particles", [1, 4])
def test_analytic_kl_needs_the_guides_order(num_particles):
    model, guide, _, x = two_layer(top_down_guide=False)
    with pytest.raises(PairError, match=r"order \['z1', 'z2'\].*analytic_kl=False"):
        ELBO(num_particles=num_particles, analytic_kl=True).loss(model, guide, x)
    assert ELBO(num_particles=num_particles).loss(model, guide, x) > 0


def test_analytic_kl_of_a_model_that_observes_nothing_is_minus_the_kl():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", standard_normal(3))

    guide, x = bad_pair(None)[1], torch.zeros(4, 3)
    assert ELBO().loss(model, guide, x) == pytest.approx(0, abs=1e-5)
    assert ELBO(analytic_kl=True).loss(model, guide, x) == pytest.approx(0, abs=1e-5)


# --- What shapes alone do not tell


class AcrossTheBatch(nn.Module):
    """A pair whose decoder takes three dimensions without a word, and then computes something else."""

    def __init__(self, layer):
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.decoder = nn.Sequential(nn.Linear(2, 16), layer, nn.Linear(16, 4))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


@pytest.mark.parametrize("layer", [nn.Softmax(dim=1), nn.BatchNorm1d(16)], ids=["softmax", "batch norm"])
def test_a_network_that_reads_particles_as_something_else_is_run_one_by_one(layer):
    pair, x = AcrossTheBatch(layer).eval(), torch.ones(16, 4)
    if isinstance(layer, nn.BatchNorm1d):
        layer.running_mean.copy_(torch.randn(16))
    found = pv.draw_particles(pair.model, pair.guide, x, num_particles=3)
    for z, log_p in zip(found.z["z"], found.log_p, strict=True):
        likelihood = dist.Bernoulli(logits=pair.decoder(z)).to_event(1).log_prob(x)
        torch.testing.assert_close(log_p, likelihood + standard_normal(2).log_prob(z))
    torch.manual_seed(0)
    bound = -IWAE(num_particles=3).loss(pair.model, pair.guide, x)
    torch.manual_seed(0)
    weighed = pv.draw_particles(pair.model, pair.guide, x, num_particles=3).log_w
    assert bound == pytest.approx(pv.weights.log_mean_exp(weighed).sum().item(), abs=1e-3)


def test_an_observed_site_without_to_event_is_refused_even_if_every_shape_fits():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", standard_normal(2))

    for num_particles in (1, 3, 4):
        with pytest.raises(PairError, match="to_event"):
            IWAE(num_particles=num_particles).loss(model, guide, torch.zeros(4, 1))


def test_a_factor_in_the_guide_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", standard_normal(2))
            pyro.factor("c", torch.full((len(x),), 7.0), has_rsample=True)

    with pytest.raises(PairError, match="'c'"):
        ELBO().loss(model, guide, torch.zeros(4, 2))


class Measured(pyro.nn.PyroModule):
    """A Pyro module with a constrained parameter, which reads and writes Pyro's store without a message."""

    def __init__(self):
        super().__init__()
        self.net = pyro.nn.PyroModule[nn.Linear](2, 3)
        self.scale = pyro.nn.PyroParam(torch.tensor(1.0), dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard_normal(2))
            pyro.sample("x", dist.Normal(self.net(z), self.scale).to_event(1), obs=x)


class Encoded(pyro.nn.PyroModule):
    def __init__(self):
        super().__init__()
        self.encoder = pyro.nn.PyroModule[nn.Linear](3, 2)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


@pytest.mark.parametrize("local", [False, True])
def test_two_pyro_module_pairs_do_not_meet_in_the_store(local):
    x = torch.randn(20, 3)
    with pyro.settings.context(module_local_params=local):
        first, second = (Measured(), Encoded()), (Measured(), Encoded())
        before = [parameter.clone() for part in second for parameter in part.parameters()]
        pv.fit(first, x, num_epochs=3, batch_size=5, progress=False)
        assert first[0].scale_unconstrained.item() != 0
        pv.evidence.importance(*second, x, num_particles=5)
        after = [parameter for part in second for parameter in part.parameters()]
        assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
        pv.fit(second, x, num_epochs=1, batch_size=5, progress=False)
        assert not torch.equal(first[0].net.weight, second[0].net.weight)
    assert not list(pyro.get_param_store().keys())
