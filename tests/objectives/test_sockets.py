"""The pair in other people's hands: stock SVI, Predictive, effect handlers, and pairs that are not ours."""

import math
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import PairError, StaleParamStoreError
from tests.statistics import assert_mean

LOSSES = {
    "Trace_ELBO": lambda: Trace_ELBO(),
    "Trace_ELBO of 3 particles": lambda: Trace_ELBO(num_particles=3, vectorize_particles=True),
    "TraceMeanField_ELBO": lambda: TraceMeanField_ELBO(),
    "RenyiELBO": lambda: RenyiELBO(alpha=0.0, num_particles=4, vectorize_particles=True),
    "IWAE": lambda: pv.objectives.IWAE(num_particles=4),
}


def small_vae(name="vae", data_shape=(6,), **options):
    return pv.presets.mlp_vae(data_shape=data_shape, latent_dim=2, hidden=(16,), name=name, **options)


def toy(num=64):
    """Two binary patterns with a few flipped pixels: something to learn."""
    pattern = torch.tensor([[1.0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
    x = pattern[torch.arange(num) % 2]
    return (x - torch.bernoulli(torch.full_like(x, 0.05))).abs()


def weights(vae):
    return {name: parameter.detach().clone() for name, parameter in vae.named_parameters()}


def moved(vae, before):
    return {name for name, parameter in vae.named_parameters() if not torch.equal(parameter, before[name])}


def svi(vae, loss=None):
    return SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), loss=loss or Trace_ELBO())


def seeded(seed, function, *args, **kwargs):
    torch.manual_seed(seed)
    return function(*args, **kwargs)


# --- stock SVI


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_stock_svi_trains_every_parameter(loss, local):
    vae, x = small_vae(), toy()
    before = weights(vae)
    with pyro.settings.context(module_local_params=local):
        stepper = svi(vae, LOSSES[loss]())
        losses = torch.tensor([stepper.step(x) for _ in range(100)])
    assert moved(vae, before) == set(before)
    # From 6 log 2 = 4.2 nats per datapoint for a fair coin per pixel towards the 1.9 that the patterns need.
    assert losses[-10:].mean() < 0.8 * losses[:10].mean()


def test_stock_svi_trains_the_learned_scale_of_a_likelihood():
    vae = small_vae(likelihood="gaussian", likelihood_scale="learned")
    before = weights(vae)
    svi(vae).step(toy())
    assert "likelihood.log_scale" in moved(vae, before) == set(before)


def test_frozen_parameters_stay_out_of_svi():
    vae = small_vae()
    vae.decoder.requires_grad_(False)
    before = weights(vae)
    svi(vae).step(toy())
    assert moved(vae, before) == {name for name in before if name.startswith("encoder.")}


def test_svi_evaluate_loss_moves_nothing():
    vae = small_vae()
    before = weights(vae)
    svi(vae).evaluate_loss(toy())
    assert not moved(vae, before)


# --- two VAEs in one process


@pytest.mark.parametrize("local", [False, True])
def test_two_vaes_with_two_names_both_train(local):
    first, second = small_vae("first"), small_vae("second")
    before = weights(first), weights(second)
    with pyro.settings.context(module_local_params=local):
        for vae in (first, second):
            svi(vae).step(toy())
    assert moved(first, before[0]) == set(before[0])
    assert moved(second, before[1]) == set(before[1])


@pytest.mark.parametrize("local", [False, True])
def test_two_vaes_with_one_name_are_refused_by_svi_before_anything_moves(local):
    first, second, x = small_vae(), small_vae(), toy()
    with pyro.settings.context(module_local_params=local):
        svi(first).step(x)
        before = weights(first), weights(second)
        with pytest.raises(StaleParamStoreError, match="name="):
            svi(second).step(x)
        assert not moved(first, before[0])
        assert not moved(second, before[1])
        with pyro.get_param_store().scope():  # the way out that the message offers
            svi(second).step(x)
    assert moved(second, before[1]) == set(before[1])
    assert not moved(first, before[0])


@pytest.mark.filterwarnings("ignore:batch_size")
def test_two_vaes_with_one_name_both_work_outside_svi():
    first, second, x = small_vae(), small_vae(), toy(20)
    alone = [pv.evidence.importance(vae.model, vae.guide, x, num_particles=10).value for vae in (first, second)]
    Trace_ELBO().loss(first.model, first.guide, x)  # now the store holds the parameters of the first
    beside = [pv.evidence.importance(vae.model, vae.guide, x, num_particles=10).value for vae in (first, second)]
    assert torch.equal(torch.stack(alone), torch.stack(beside))
    assert not torch.equal(alone[0], alone[1])
    draws = [seeded(0, pv.draw_particles, vae.model, vae.guide, x, num_particles=3).log_w for vae in (first, second)]
    assert not torch.equal(*draws)
    before = weights(first), weights(second)
    for vae in (first, second):
        pv.fit(vae, x, num_epochs=1, progress=False)
    assert moved(first, before[0]) == set(before[0])
    assert moved(second, before[1]) == set(before[1])


# --- Predictive and the other handlers


@pytest.mark.parametrize("parallel", [False, True])
def test_posterior_predictive_in_two_steps_draws_images_not_the_data(parallel):
    vae, num_samples = small_vae(data_shape=(2, 3)), 200
    x = toy(7).reshape(7, 2, 3)
    z = Predictive(vae.guide, num_samples=num_samples)(x)["z"]
    assert z.shape == (num_samples, 7, 2)
    draws = Predictive(vae.model, posterior_samples={"z": z}, parallel=parallel)(None, 7)["x"]
    assert draws.shape == (num_samples, 7, 2, 3)
    assert not torch.equal(draws, x.expand_as(draws))
    with torch.no_grad():
        assert_mean((draws - vae.decode(z).mean).flatten(0, 1), 0.0)


def test_prior_predictive():
    vae = small_vae(data_shape=(2, 3))
    assert vae.model(num=5).shape == (5, 2, 3)
    assert vae.model().shape == (1, 2, 3)
    draws = Predictive(vae.model, num_samples=4)(None, 5)
    assert draws["x"].shape == (4, 5, 2, 3)
    assert draws["z"].shape == (4, 5, 2)


def test_conditioning_on_x_is_passing_x():
    vae, x = small_vae(), toy(10)
    conditioned = pyro.condition(lambda _: vae.model(num=10), data={"x": x})
    expected = seeded(0, pv.draw_particles, vae.model, vae.guide, x, num_particles=3)
    found = seeded(0, pv.draw_particles, conditioned, vae.guide, x, num_particles=3)
    torch.testing.assert_close(found.log_w, expected.log_w)


def test_conditioning_on_z_generates_from_it():
    vae, z = small_vae(), torch.randn(10, 2)
    trace = poutine.trace(pyro.condition(vae.model, data={"z": z})).get_trace(num=10)
    assert torch.equal(trace.nodes["z"]["value"], z)
    torch.testing.assert_close(trace.nodes["x"]["fn"].mean, vae.decode(z).mean)


@pytest.mark.parametrize("loss", [Trace_ELBO(), pv.objectives.ELBO(), pv.objectives.IWAE(num_particles=5)])
def test_poutine_scale_scales_losses_and_leaves_log_weights_alone(loss):
    vae, x = small_vae(), toy(10)
    scaled = poutine.scale(vae.model, scale=0.1), poutine.scale(vae.guide, scale=0.1)
    plain = seeded(0, loss.loss, vae.model, vae.guide, x)
    assert math.isclose(seeded(0, loss.loss, *scaled, x), 0.1 * plain, rel_tol=1e-5)
    expected = seeded(0, pv.draw_particles, vae.model, vae.guide, x, num_particles=3).log_w
    assert torch.equal(seeded(0, pv.draw_particles, *scaled, x, num_particles=3).log_w, expected)


def test_scaling_only_the_model_is_refused():
    vae = small_vae()
    with pytest.raises(PairError, match="scale"):
        pv.objectives.IWAE().loss(poutine.scale(vae.model, scale=0.1), vae.guide, toy(10))


def test_poutine_mask_drops_datapoints():
    vae, x, mask = small_vae(), toy(10), torch.arange(10) < 6
    masked = poutine.mask(vae.model, mask=mask), poutine.mask(vae.guide, mask=mask)
    plain = seeded(0, pv.draw_particles, vae.model, vae.guide, x, num_particles=3).log_w
    found = seeded(0, pv.draw_particles, *masked, x, num_particles=3).log_w
    torch.testing.assert_close(found, torch.where(mask, plain, 0.0))


def test_poutine_block_hides_the_latent_site():
    vae = small_vae()
    assert "z" in poutine.trace(vae.guide).get_trace(toy(10)).nodes
    assert "z" not in poutine.trace(poutine.block(vae.guide, hide=["z"])).get_trace(toy(10)).nodes


def test_a_trace_holds_the_pair_and_all_of_its_parameters():
    vae, x = small_vae(), toy(10)
    guide = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
    assert guide.stochastic_nodes == ["data", "z"]
    assert model.observation_nodes == ["x"]
    registered = {id(p) for p in pyro.get_param_store().values()}
    assert registered == {id(p) for p in vae.parameters()}
    model.compute_log_prob()
    guide.compute_log_prob()
    assert model.nodes["x"]["log_prob"].shape == model.nodes["z"]["log_prob"].shape == (10,)
    particles = seeded(0, pv.draw_particles, vae.model, vae.guide, x)
    again = seeded(0, poutine.trace(vae.guide).get_trace, x)
    assert torch.equal(again.nodes["z"]["value"], particles.z["z"][0])


# --- a pair that is not ours, whose decoder cannot take a particle dimension


class Upsampler(nn.Module):
    """An ordinary convolutional decoder: flattens everything but the first dimension."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 1, 4)
        self.seen = []

    def forward(self, z):
        logits = self.up(z.view(z.shape[0], 2, 1, 1))
        self.seen.append(z.detach())
        return logits


class Foreign(nn.Module):
    """A hand-written Pyro pair, as in a tutorial."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(16, 4), Upsampler()

    def q(self, x):
        loc, log_scale = self.encoder(x.flatten(1)).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def model(self, x):
        pyro.module("foreign.decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(3), obs=x)

    def guide(self, x):
        pyro.module("foreign.encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q(x))

    def log_w(self, x, z):
        """The log-weight of one particle per datapoint, by hand."""
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
        pixels = torch.distributions.Bernoulli(logits=self.decoder(z)).log_prob(x)
        return prior + pixels.sum((1, 2, 3)) - self.q(x).log_prob(z)


def images(num):
    return torch.bernoulli(torch.full((num, 1, 4, 4), 0.3))


# As many datapoints as particles, and one datapoint: where a decoder could mistake one dimension for the other.
@pytest.mark.parametrize("num", [1, 2, 5])
@pytest.mark.usefixtures("float64")
def test_foreign_conv_pair_draws_the_weights_of_an_explicit_loop(num):
    pair, x, particles = Foreign(), images(num), 5
    found = pv.draw_particles(pair.model, pair.guide, x, num_particles=particles)
    assert found.z["z"].shape == (particles, num, 2)
    loop = torch.stack([pair.log_w(x, z) for z in found.z["z"]])
    torch.testing.assert_close(found.log_w, loop)
    torch.testing.assert_close(found.log_p - found.log_q, found.log_w)
    assert all(a.ne(b).any() for a, b in pairwise(found.z["z"]))


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.usefixtures("float64")
def test_foreign_conv_pair_has_the_iwae_and_gradient_of_an_explicit_loop(num):
    pair, x, particles = Foreign(), images(num), 3
    with torch.no_grad():
        z = seeded(0, pv.draw_particles, pair.model, pair.guide, x, num_particles=particles).z["z"]
        q = pair.q(x).base_dist
        noise = (z - q.loc) / q.scale
    loss = seeded(0, pv.objectives.IWAE(num_particles=particles)(pair.model, pair.guide), x)
    q = pair.q(x).base_dist
    log_w = torch.stack([pair.log_w(x, q.loc + q.scale * e) for e in noise])
    loop = -(torch.logsumexp(log_w, 0) - math.log(particles)).sum()
    torch.testing.assert_close(loss, loop)
    found = torch.autograd.grad(loss, list(pair.parameters()))
    expected = torch.autograd.grad(loop, list(pair.parameters()))
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("float64", "first_opinion")
def test_foreign_conv_pair_has_the_evidence_of_an_explicit_loop():
    pair, x, particles = Foreign(), images(4), 7
    evidence = pv.evidence.importance(pair.model, pair.guide, x, num_particles=particles)
    draws = pair.decoder.seen[-particles:]  # what the decoder was given, particle by particle
    with torch.no_grad():
        w = torch.stack([pair.log_w(x, z) for z in draws]).exp()
    torch.testing.assert_close(evidence.value, w.mean(0).log())
    torch.testing.assert_close(evidence.stderr, w.std(0) / w.mean(0) / math.sqrt(particles))
    torch.testing.assert_close(evidence.ess, w.sum(0) ** 2 / (w**2).sum(0))


def test_foreign_conv_pair_trains_in_fit():
    pair = Foreign()
    before = weights(pair)
    pv.fit(pair, images(8), objective=pv.objectives.IWAE(num_particles=3), num_epochs=1, batch_size=8, progress=False)
    assert moved(pair, before) == set(before)


# --- a VAE of ours with a convolutional decoder of theirs


class Strict(Upsampler):
    """A decoder that takes ``[n, d]`` and nothing else."""

    def forward(self, z):
        assert z.ndim == 2
        return super().forward(z)


@pytest.mark.usefixtures("float64")
def test_vae_folds_particles_into_the_batch_of_a_conv_decoder():
    vae = pv.VAE(
        encoder=pv.nn.MLP((1, 4, 4), (8,), (2, 2)),
        decoder=Strict(),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.likelihoods.Bernoulli((1, 4, 4)),
    )
    x = images(5)
    found = pv.draw_particles(vae.model, vae.guide, x, num_particles=3)
    assert [tuple(z.shape) for z in vae.decoder.seen] == [(15, 2)]  # once, for all particles
    loop = [vae.prior().log_prob(z) + vae.decode(z).log_prob(x) - vae.encode(x).log_prob(z) for z in found.z["z"]]
    torch.testing.assert_close(found.log_w, torch.stack(loop))
