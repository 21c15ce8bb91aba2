"""Every part in a pair: with each, every objective trains, and every estimator meets log p(x) as summed over a grid."""

import copy
import functools
import math
from functools import partial

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError, PairError
from pyro_vae.models.posteriors import DiagonalNormal
from pyro_vae.models.priors import StandardNormal, VampPrior
from pyro_vae.objectives import ELBO, IWAE
from pyro_vae.pairs.handlers import unregistered
from pyro_vae.pairs.pair import Pair
from tests.objectives.test_objectives import OBJECTIVES
from tests.statistics import assert_mean, assert_not_mean

mlp_vae = partial(pv.presets.mlp_vae, data_shape=(6,), latent_dim=2, hidden=(8,))


def two_layers(latent_dims=(1, 1), **options):
    low, high = latent_dims
    posteriors = [DiagonalNormal(low), DiagonalNormal(high)]
    return pv.HierarchicalVAE(
        encoders=[pv.nn.MLP(6, (8,), posteriors[0].param_shape), pv.nn.MLP(low, (5,), posteriors[1].param_shape)],
        posteriors=posteriors,
        decoders=[pv.nn.MLP(low, (8,), (6,)), pv.nn.MLP(high, (5,), posteriors[0].param_shape)],
        prior=StandardNormal(high),
        likelihood=pv.likelihoods.Bernoulli((6,)),
        **options,
    )


def binary(num, *shape):
    return torch.bernoulli(torch.full((num, *shape), 0.4))


# Name -> a pair with two latent dimensions in all, and data for it.
PARTS = {
    "mixture prior, continuous bernoulli": lambda: (
        mlp_vae(prior="mixture", num_components=3, likelihood="continuous_bernoulli"),
        torch.rand(8, 6),
    ),
    "vamp prior, full posterior": lambda: (mlp_vae(prior="vamp", num_components=3, posterior="full"), binary(8, 6)),
    "full posterior, discretised logistic": lambda: (
        mlp_vae(posterior="full", likelihood="discretised_logistic", num_levels=5),
        torch.randint(5, (8, 6)) / 4,
    ),
    "two layers": lambda: (two_layers(), binary(8, 6)),
    "convolutions": lambda: (pv.presets.conv_vae(data_shape=(4, 3), latent_dim=2, channels=(2,)), binary(8, 4, 3)),
}

every_part = pytest.mark.parametrize("build", PARTS.values(), ids=list(PARTS))


def away_from_the_start(vae):
    """Posteriors that differ from the prior and from each other, correlated where they can be."""
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return vae


@functools.cache
def trained(build):
    """A pair whose guide knows its model's posterior, and its data, both in float64."""
    vae, x = build()
    vae, x = away_from_the_start(vae.double()), x[:4].double()
    optimiser = torch.optim.Adam(vae.parameters(), lr=1e-2)
    loss = IWAE(num_particles=8, gradient="dreg")(vae.model, vae.guide)
    for _ in range(200):
        optimiser.zero_grad()
        loss(x).backward()
        optimiser.step()
    return vae, x, pv.evidence.quadrature(vae.model, vae.guide, x).value


def log_joint(vae, z):
    """log p(x, z) of data as a function, written out for either kind of pair; z ``[nodes, 2]``."""
    if isinstance(vae, pv.VAE):
        prior, decoded = vae.prior().log_prob(z), vae.decode(z)
    else:
        low, high = z[:, :1], z[:, 1:]
        params = vae.decoders[1](high)
        conditional = torch.distributions.Normal(params[:, 0], params[:, 1].exp())
        prior = vae.prior().log_prob(high) + conditional.log_prob(low)[:, 0]
        decoded = vae.decode(low)
    return lambda x: prior + decoded.log_prob(x)


@torch.no_grad()
def summed_log_p(vae, x):
    """log p(x) by a plain sum over a grid, wide enough for a prior that is learned, and for the layer below it."""
    learned = any(True for _ in vae.prior.parameters())
    width, num = (28.0, 801) if learned else (8.0, 161)
    if not isinstance(vae, pv.VAE):
        width, num = 60.0, 1715
    side = torch.linspace(-width, width, num, dtype=torch.float64)
    joint = log_joint(vae, torch.cartesian_prod(side, side))
    return torch.stack([torch.logsumexp(joint(one), 0) for one in x]) + 2 * math.log(side[1] - side[0])


# --- objectives


def has_closed_form(part):
    """Whether the KL divergence from q(z | x) to the prior has one, layer by layer from the top."""
    return part in ("full posterior, discretised logistic", "convolutions")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_a_gradient_for_every_part(name, part):
    vae, x = PARTS[part]()
    away_from_the_start(vae)
    objective = OBJECTIVES[name]()
    objective.step = 1
    if getattr(objective, "analytic_kl", False) and not has_closed_form(part):
        with pytest.raises(PairError, match=r"\(analytic_kl=False\)"):
            objective(vae.model, vae.guide)(x)
        return
    loss = objective(vae.model, vae.guide)(x)
    loss.backward()
    assert torch.isfinite(loss)
    gradients = {name: parameter.grad for name, parameter in vae.named_parameters()}
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients.values())
    assert any(gradient.any() for name, gradient in gradients.items() if name.startswith(vae.guided_by))


@every_part
@pytest.mark.parametrize("lead", [(1,), (2, 3), (2, 1, 2)])
def test_leading_dimensions_are_one_flat_batch(lead, build):
    vae, x = build()
    away_from_the_start(vae)
    rows = x[torch.randint(len(x), lead)]
    q = vae.encode(rows)
    assert q.batch_shape == lead
    flat = vae.encode(rows.reshape(-1, *vae.data_shape))
    torch.testing.assert_close(q.mean, flat.mean.reshape(q.mean.shape))
    p = vae.decode(q.mean)
    assert (p.batch_shape, p.event_shape) == (lead, vae.data_shape)
    torch.testing.assert_close(
        p.log_prob(rows).flatten(), vae.decode(flat.mean).log_prob(rows.flatten(0, len(lead) - 1))
    )


@every_part
def test_svi_trains_every_parameter(build):
    vae, x = build()
    before = {name: parameter.detach().clone() for name, parameter in vae.named_parameters()}
    stepper = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), loss=Trace_ELBO())
    for _ in range(2):  # what starts at zero lets nothing behind it move in the first step
        stepper.step(x)
    assert all(not torch.equal(parameter, before[name]) for name, parameter in vae.named_parameters())


# --- log p(x)


@every_part
@pytest.mark.usefixtures("float64")
def test_the_grid_finds_log_p(build):
    vae, x = build()
    away_from_the_start(vae.double())
    found = pv.evidence.quadrature(vae.model, vae.guide, x.double())
    torch.testing.assert_close(found.value, summed_log_p(vae, x.double()), rtol=0, atol=1e-6)
    assert found.share("ok") == 1


ESTIMATORS = {
    "importance": partial(pv.evidence.importance, num_particles=1500),
    "importance, refined": partial(pv.evidence.importance, num_particles=1500, proposal="refined"),
    "importance, defensive": partial(pv.evidence.importance, num_particles=1500, proposal="defensive"),
    "psis": partial(pv.evidence.psis, num_particles=1500),
    "ais": partial(pv.evidence.ais, num_particles=48, num_temperatures=15),
    "smc": partial(pv.evidence.smc, num_temperatures=15),
}


@every_part
@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=list(ESTIMATORS))
@pytest.mark.usefixtures("float64")
def test_every_estimator_finds_log_p(estimator, build):
    vae, x, exact = trained(build)
    found = estimator(vae.model, vae.guide, x, seed=1)
    told = found.verdict == "ok"
    assert told.any()
    off = (found.value - exact)[torch.as_tensor(told)]
    assert (off.abs() <= 5 * found.stderr[torch.as_tensor(told)] + 1e-9).all()


@every_part
@pytest.mark.usefixtures("float64")
def test_bounds_from_both_sides_hold_log_p(build):
    vae, _, _ = trained(build)
    x, z = pv.simulation.simulate(vae.model, torch.zeros(4, *vae.data_shape))
    lower, upper = pv.evidence.sandwich(vae.model, vae.guide, x, z, num_temperatures=20, num_particles=16)
    exact = pv.evidence.quadrature(vae.model, vae.guide, x).value
    assert (lower.value - 5 * lower.stderr - 1e-9 <= exact).all()
    assert (exact <= upper.value + 5 * upper.stderr + 1e-9).all()


# --- gradients where the encoder is part of the model, too


def one_dimensional(build_prior):
    posterior = DiagonalNormal(1)
    encoder = pv.nn.MLP(3, (4,), posterior.param_shape)
    likelihood = pv.likelihoods.Bernoulli((3,))
    vae = pv.VAE(
        encoder=encoder,
        decoder=pv.nn.MLP(1, (4,), (3,)),
        prior=build_prior(encoder, posterior),
        likelihood=likelihood,
        posterior=posterior,
    )
    return away_from_the_start(vae.double())


def exact_gradient(vae, x, objective, num_particles):
    """Return the gradient of the expectation of a bound, by a sum over a grid of the noise, differentiated through."""
    side = torch.linspace(-8, 8, 241)
    eps = torch.cartesian_prod(*[side] * num_particles).reshape(-1, num_particles).T
    mass = torch.softmax(-0.5 * eps.square().sum(0), 0)
    q = vae.encode(x[None])
    z = q.mean + q.stddev * eps[..., None]  # [particles, node, 1]
    log_w = vae.prior().log_prob(z) + vae.decode(z).log_prob(x) - q.log_prob(z)
    value = (mass * objective.bound(log_w)).sum()
    return torch.cat([part.flatten() for part in torch.autograd.grad(value, list(vae.parameters()))])


def gradient_draws(vae, x, objective, replicates=150, batch=100):
    loss = objective(vae.model, vae.guide)
    for _ in range(replicates):
        found = torch.autograd.grad(loss(x.expand(batch, -1)) / batch, list(vae.parameters()))
        yield -torch.cat([part.flatten() for part in found])


@pytest.mark.parametrize(
    "objective",
    [
        ELBO(),
        ELBO(gradient="path"),
        ELBO(gradient="rloo", num_particles=2),
        IWAE(num_particles=2),
        IWAE(num_particles=2, gradient="dreg"),
    ],
    ids=lambda objective: f"{type(objective).__name__}-{objective.gradient}-{objective.num_particles}",
)
@pytest.mark.usefixtures("float64")
def test_an_encoder_that_the_prior_shares_gets_the_gradient_of_both(objective):
    vae = one_dimensional(lambda encoder, posterior: VampPrior(binary(3, 3), encoder, posterior, latent_dim=1))
    x = torch.tensor([1.0, 0.0, 1.0])
    exact = exact_gradient(vae, x, objective, objective.num_particles)
    draws = torch.stack(list(gradient_draws(vae, x, objective)))
    assert_mean(draws, exact)
    held = one_dimensional(lambda encoder, posterior: StandardNormal(1))  # the same without the prior's part
    held.load_state_dict({name: value for name, value in vae.state_dict().items() if "pseudo" not in name})
    alone = exact_gradient(held, x, objective, objective.num_particles)
    assert_not_mean(draws[:, : len(alone)], alone)


# --- the VampPrior


@pytest.mark.usefixtures("float64")
def test_a_vamp_prior_at_the_data_is_the_aggregate_posterior():
    vae = mlp_vae().double()
    x = binary(20, 6).double()
    prior = VampPrior(x, vae.encoder, vae.posterior, latent_dim=2).double()
    z = torch.randn(7, 2)
    each = vae.encode(x).log_prob(z[:, None])
    torch.testing.assert_close(prior().log_prob(z), torch.logsumexp(each, 1) - math.log(20))


@pytest.mark.usefixtures("float64")
def test_an_aggregate_posterior_is_at_no_distance_from_the_vamp_prior_at_its_data():
    vae, x = away_from_the_start(mlp_vae().double()), binary(20, 6).double()
    for data, apart in ((x, False), (1 - x, True)):
        vae.prior = VampPrior(data, vae.encoder, vae.posterior, latent_dim=2)
        whole = pv.diagnostics.aggregate_posterior(vae.model, vae.guide, x)["z"].whole
        assert (whole.prior_kl.value.abs() > 1e-3) == apart
        torch.testing.assert_close(whole.mutual_information.value + whole.prior_kl.value, whole.kl.value)


def test_the_encoder_of_a_vamp_prior_has_one_name_and_one_place():
    vae = mlp_vae(prior="vamp")
    assert [name for name in vae.state_dict() if name.startswith("prior")] == ["prior.pseudo_inputs"]
    again = copy.deepcopy(vae)
    with torch.no_grad():
        for parameter in vae.encoder.parameters():
            parameter.zero_()
    assert again.prior().log_prob(torch.ones(2)) != vae.prior().log_prob(torch.ones(2))
    torch.testing.assert_close(vae.prior().log_prob(torch.ones(2)), StandardNormal(2)().log_prob(torch.ones(2)))


def test_a_vamp_prior_takes_whatever_encoder_the_vae_takes():
    posterior = DiagonalNormal(2)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(6, 4)).double()
    prior = VampPrior(torch.rand(3, 2, 3), encoder, posterior, latent_dim=2)
    assert prior().log_prob(torch.zeros(5, 2, dtype=torch.float64)).shape == (5,)


@pytest.mark.parametrize("part", ["encoder", "posterior"])
def test_a_vamp_prior_does_not_silently_follow_what_was_replaced(part):
    vae = mlp_vae(prior="vamp")
    setattr(vae, part, copy.deepcopy(getattr(vae, part)))
    with pytest.raises(ConfigError, match="follows another encoder or posterior"):
        vae.model(binary(4, 6))


@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_a_prior_of_many_components_takes_its_room(prior):
    few, many = (mlp_vae(prior=prior, num_components=num, latent_dim=20) for num in (2, 500))
    with unregistered():
        rows = [Pair.of(vae.model, vae.guide, binary(4, 6)).capacity(2**24) for vae in (few, many)]
    assert rows[1] == 2**24 // (8 * 4 * 500 * 20)  # eight copies of what the density of one row holds
    assert rows[0] > 50 * rows[1]


@pytest.mark.parametrize("num", [0, -1])
def test_nothing_is_not_generated(num):
    for vae in (mlp_vae(prior="mixture"), two_layers()):
        with pytest.raises(ConfigError, match="num="):
            vae.sample(num)
        with pytest.raises(ConfigError, match="num="):
            vae.model(None, num)


def test_pseudo_inputs_are_held_in_their_bounds():
    vae = mlp_vae()
    beyond, at = (
        VampPrior(u, vae.encoder, vae.posterior, latent_dim=2, bounds=(0, 1))
        for u in (torch.full((2, 6), 3.0), torch.ones(2, 6))
    )
    assert torch.equal(beyond.eval()().log_prob(torch.zeros(2)), at().log_prob(torch.zeros(2)))
    assert (beyond.pseudo_inputs == 3).all()  # looking at it changes nothing
    beyond.train()().log_prob(torch.ones(2)).backward()
    assert torch.equal(beyond.pseudo_inputs, torch.ones(2, 6))
    assert beyond.pseudo_inputs.grad.all()  # on the bound, and free to leave it


# --- two and more layers


def test_the_programs_of_two_layers_have_their_sites():
    vae = two_layers((3, 2))
    x = binary(4, 6)
    for program, args, names in (
        (vae.model, (x,), ["z2", "z1", "x"]),
        (vae.guide, (x,), ["z1", "z2"]),
        (vae.model, (None, 4), ["z2", "z1", "x"]),
    ):
        sites = pyro.poutine.trace(program).get_trace(*args).nodes
        found = {name: sites[name] for name in sites if name[0] in "zx"}
        assert list(found) == names
        assert all(site["value"].shape == (4, {"z1": 3, "z2": 2, "x": 6}[name]) for name, site in found.items())
    assert vae.latent_dims == {"z1": 3, "z2": 2}
    assert vae.sample(5).shape == (5, 6)
    assert vae.reconstruct(x).shape == x.shape
    assert vae.encode(x).mean.shape == (4, 3)
    assert set(vae.clamped_scales(x)) == {"z1", "z2", "x"}


@pytest.mark.usefixtures("float64")
def test_the_weights_of_two_layers_are_those_of_its_densities():
    vae = away_from_the_start(two_layers().double())
    x = binary(4, 6).double()
    found = pv.draw_particles(vae.model, vae.guide, x, num_particles=3)
    low, high = found.z["z1"], found.z["z2"]
    params = vae.encoders[1](low)
    q = torch.distributions.Normal(params[..., 0, :], params[..., 1, :].exp())
    log_q = vae.encode(x).log_prob(low) + q.log_prob(high)[..., 0]
    joint = [
        [log_joint(vae, torch.cat([a, b])[None])(row) for a, b, row in zip(*both, x, strict=True)]
        for both in zip(low, high, strict=True)
    ]
    log_p = torch.tensor([[value.item() for value in row] for row in joint])
    torch.testing.assert_close(found.log_w, log_p - log_q)


def test_three_layers_are_generated_from_the_top():
    dims = [4, 3, 2]
    posteriors = [DiagonalNormal(dim) for dim in dims]
    vae = pv.HierarchicalVAE(
        encoders=[nn.Linear(size, 2 * dim) for size, dim in zip([6, 4, 3], dims, strict=True)],
        posteriors=posteriors,
        decoders=[nn.Linear(4, 6), nn.Linear(3, 8), nn.Linear(2, 6)],
        prior=StandardNormal(2),
        likelihood=pv.likelihoods.Bernoulli((6,)),
    )
    assert pv.evidence.importance(vae.model, vae.guide, binary(3, 6), num_particles=50).value.shape == (3,)
    drawn = Predictive(vae.model, num_samples=5)(None, 2)
    assert {name: value.shape[-1] for name, value in drawn.items()} == {"z3": 2, "z2": 3, "z1": 4, "x": 6}


@pytest.mark.usefixtures("float64")
def test_ancestral_samples_of_two_layers_have_the_moments_of_the_model():
    vae = away_from_the_start(two_layers().double())
    side = torch.linspace(-9, 9, 361)
    z = torch.cartesian_prod(side, side)
    x = binary(1, 6)[0].double()
    joint = log_joint(vae, z)(x) - vae.decode(z[:, :1]).log_prob(x)  # p(z1, z2)
    mass = (joint + 2 * math.log(side[1] - side[0])).exp()
    exact = (mass[:, None] * vae.decode(z[:, :1]).mean).sum(0)
    draws = vae.sample(20_000)
    assert_mean(draws, exact)
    assert_mean(vae.model(None, 20_000), exact)
    assert_not_mean(draws, exact + 0.05)


def test_lists_of_layers_that_do_not_go_together():
    with pytest.raises(ConfigError, match="found 1, 1, 2 and 0"):
        pv.HierarchicalVAE(
            encoders=[nn.Linear(6, 2)],
            posteriors=[DiagonalNormal(1)],
            decoders=[nn.Linear(1, 6), nn.Linear(1, 2)],
            prior=StandardNormal(1),
            likelihood=pv.likelihoods.Bernoulli((6,)),
        )


@pytest.mark.usefixtures("float64")
def test_the_closed_form_of_a_full_posterior():
    vae, x = away_from_the_start(mlp_vae(posterior="full").double()), binary(8, 6).double()
    q = vae.encode(x)
    trace = q.covariance_matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    exact = 0.5 * (trace + q.mean.square().sum(-1) - 2) - q.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    parts = pv.diagnostics.elbo_parts(vae.model, vae.guide, x, analytic_kl=True)
    torch.testing.assert_close(parts.kl["z"], exact.detach())
