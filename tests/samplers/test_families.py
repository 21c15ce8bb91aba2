"""Learned priors, posteriors with full covariance, convolutions: densities integrate to one and score their draws."""

import math

import pytest
import torch
from torch import nn

from pyro_vae.errors import ConfigError, DataError
from pyro_vae.models.nn import MLP, ConvDecoder, ConvEncoder, ResidualBlock
from pyro_vae.models.posteriors import DiagonalNormal, FullNormal
from pyro_vae.models.priors import GaussianMixture, VampPrior
from tests.statistics import assert_mean, assert_not_mean

LEADS = [(), (1,), (5,), (3, 5), (2, 1, 4)]


def vamp(latent_dim=2, family=DiagonalNormal):
    posterior = family(latent_dim)
    return VampPrior(torch.rand(3, 4), MLP(4, (5,), posterior.param_shape), posterior, latent_dim=latent_dim)


def mixture(latent_dim=2):
    prior = GaussianMixture(latent_dim, num_components=3)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return prior


PRIORS = {
    "mixture": mixture,
    "vamp": vamp,
    "vamp of full covariance": lambda latent_dim=2: vamp(latent_dim, FullNormal),
}
every_prior = pytest.mark.parametrize("make", PRIORS.values(), ids=list(PRIORS))


@every_prior
@pytest.mark.usefixtures("float64")
def test_a_prior_integrates_to_one_and_scores_its_draws(make):
    p = make().double()()
    side = torch.linspace(-20, 20, 801)
    log_density = p.log_prob(torch.cartesian_prod(side, side)).detach()
    mass = log_density.exp() * (side[1] - side[0]) ** 2
    torch.testing.assert_close(mass.sum(), torch.tensor(1.0))
    draws = p.sample(torch.Size([20_000]))
    assert_mean(p.log_prob(draws).detach(), (mass * log_density).sum())
    assert_not_mean(p.log_prob(draws).detach(), (mass * log_density).sum() + 0.1)
    assert_mean(draws, (mass[:, None] * torch.cartesian_prod(side, side)).sum(0))


@every_prior
@pytest.mark.parametrize("lead", LEADS)
def test_a_prior_scores_any_leading_dimensions(make, lead):
    p = make(3)()
    assert (p.batch_shape, p.event_shape) == ((), (3,))
    z = torch.randn(*lead, 3)
    each = torch.stack([p.log_prob(row) for row in z.reshape(-1, 3)])
    torch.testing.assert_close(p.log_prob(z), each.reshape(lead))


@every_prior
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_gradients_of_a_prior_are_finite_at_extremes(make, size):
    prior = make()
    z = torch.tensor([[size, -size], [0.0, size]], requires_grad=True)
    prior().log_prob(z).sum().backward()
    assert torch.isfinite(z.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in prior.parameters())


def test_components_of_a_mixture_do_not_collapse():
    prior = GaussianMixture(2, num_components=2, min_scale=0.1)
    with torch.no_grad():
        prior.log_scale.fill_(-50.0)
        prior.loc.zero_()
    assert math.isclose(prior().log_prob(torch.zeros(2)).item(), -math.log(2 * math.pi * 0.01), rel_tol=1e-5)


def test_bad_priors():
    with pytest.raises(ConfigError, match="num_components=0"):
        GaussianMixture(2, num_components=0)
    with pytest.raises(DataError, match="at least one datapoint"):
        VampPrior(torch.zeros(0, 4), MLP(4, (), (2, 2)), DiagonalNormal(2), latent_dim=2)


# --- full covariance


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_a_full_posterior_reads_its_factor(lead, latent_dim):
    posterior = FullNormal(latent_dim)
    params = torch.randn(*lead, *posterior.param_shape)
    q = posterior(params)
    assert (q.batch_shape, q.event_shape) == (lead, (latent_dim,))
    assert torch.equal(q.mean, params[..., :latent_dim])
    diagonal = params[..., latent_dim : 2 * latent_dim].exp()
    torch.testing.assert_close(q.scale_tril.diagonal(dim1=-2, dim2=-1), diagonal)
    below = params[..., 2 * latent_dim :]
    if latent_dim > 1:
        torch.testing.assert_close(q.scale_tril[..., 1, 0], below[..., 0] * diagonal[..., 1])
        torch.testing.assert_close(q.scale_tril[..., -1, -2], below[..., -1] * diagonal[..., -1])
    assert not q.scale_tril.triu(1).any()


@pytest.mark.usefixtures("float64")
def test_a_full_posterior_with_nothing_below_the_diagonal_is_the_diagonal_one():
    params = torch.randn(7, 2, 3)
    full = FullNormal(3)(torch.cat([params.flatten(1), torch.zeros(7, 3)], 1))
    z = torch.randn(7, 3)
    torch.testing.assert_close(full.log_prob(z), DiagonalNormal(3)(params).log_prob(z))


@pytest.mark.usefixtures("float64")
def test_a_full_posterior_integrates_to_one_and_scores_its_draws():
    q = FullNormal(2)(torch.tensor([0.3, -0.2, 0.4, -0.5, 1.2]))
    side = torch.linspace(-12, 12, 1201)
    z = torch.cartesian_prod(side, side)
    mass = q.log_prob(z).exp() * (side[1] - side[0]) ** 2
    torch.testing.assert_close(mass.sum(), torch.tensor(1.0))
    draws = q.rsample(torch.Size([20_000]))
    assert_mean(q.log_prob(draws), -q.entropy())
    deviation = z - q.mean
    covariance = (mass[:, None, None] * deviation[:, :, None] * deviation[:, None]).sum(0)
    torch.testing.assert_close(covariance, q.covariance_matrix)
    assert_mean((draws - q.mean)[:, 0] * (draws - q.mean)[:, 1], covariance[0, 1])
    assert_not_mean((draws - q.mean)[:, 0] * (draws - q.mean)[:, 1], 0.0)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_gradients_of_a_full_posterior_are_finite_at_extremes(size):
    posterior = FullNormal(2)
    signs = torch.cartesian_prod(*[torch.tensor([-size, size])] * 4)
    params = torch.cat([signs, torch.full((16, 1), 3.0)], 1).requires_grad_()
    q = posterior(params)
    (q.log_prob(torch.zeros(2)).sum() + q.rsample().sum()).backward()
    assert torch.isfinite(params.grad).all()
    assert posterior.hits(params) == 32
    assert posterior.hits(torch.zeros(3, 5)) == 0


# --- convolutions


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("shape", [(8, 8), (1, 7, 5), (3, 6, 9)])
def test_convolutions_take_any_leading_dimensions_as_one_flat_batch(lead, shape):
    encoder = ConvEncoder(shape, (4, 6), (2, 3), num_blocks=2)
    decoder = ConvDecoder(3, (6, 4), (2, *shape))
    x, z = torch.rand(*lead, *shape), torch.randn(*lead, 3)
    assert encoder(x).shape == (*lead, 2, 3)
    assert decoder(z).shape == (*lead, 2, *shape)
    torch.testing.assert_close(encoder(x), encoder(x.reshape(-1, *shape)).reshape(*lead, 2, 3))
    torch.testing.assert_close(decoder(z), decoder(z.reshape(-1, 3)).reshape(*lead, 2, *shape))


def with_noise(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def test_an_image_does_not_see_the_others_unless_a_batch_norm_is_asked_for():
    x = torch.rand(5, 8, 8)
    alone = with_noise(ConvEncoder((8, 8), (4,), 2))
    torch.testing.assert_close(alone(x)[:1], alone(x[:1]))
    mixed = with_noise(ConvEncoder((8, 8), (4,), 2, norm=nn.BatchNorm2d))
    assert not torch.allclose(mixed(x)[:1], mixed(x[:1]), atol=1e-3)


def test_every_parameter_of_a_convolution_gets_a_gradient():
    for net, value in (
        (ConvEncoder((6, 6), (4, 3), 2), torch.rand(5, 6, 6)),
        (ConvDecoder(2, (3, 4), (6, 6)), torch.randn(5, 2)),
    ):
        with_noise(net)(value).square().sum().backward()
        assert all(parameter.grad.any() for parameter in net.parameters())


def test_a_residual_block_starts_as_the_identity_and_leaves_it():
    block, h = ResidualBlock(3), torch.rand(2, 3, 4, 4)
    assert torch.equal(block(h), h)
    assert not torch.allclose(with_noise(block)(h), h)


def test_the_output_bias_of_a_convolution_is_added_pixel_by_pixel():
    decoder, z = ConvDecoder(2, (3,), (2, 4, 4)), torch.randn(5, 2)
    before, shift = decoder(z), torch.randn(2, 4, 4)
    with torch.no_grad():
        decoder.output_bias.add_(shift)
    torch.testing.assert_close(decoder(z), before + shift)


@pytest.mark.parametrize(
    ("shape", "channels", "words"),
    [
        ((64,), (4,), r"found data of shape \(64,\), expected images"),
        ((8, 8), (4, 4, 4, 4), "of at least 9 pixels"),
        ((8, 8), (), "expected at least 1"),
        ((8, 8), (4, 0), "channels=0"),
    ],
)
def test_shapes_that_cannot_be_convolved(shape, channels, words):
    with pytest.raises(ConfigError, match=words):
        ConvEncoder(shape, channels, 2)
    with pytest.raises(ConfigError, match=words):
        ConvDecoder(2, channels, shape)
