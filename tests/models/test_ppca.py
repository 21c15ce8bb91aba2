"""A VAE that starts as probabilistic PCA: before a step of training everything about it is known exactly."""

import pytest
import torch

import pyro_vae as pv
from pyro_vae.errors import ConfigError
from pyro_vae.models.ppca import PPCA


@pytest.fixture
def covariance():
    torch.manual_seed(0)
    root = torch.randn(5, 5)
    return root @ root.T + torch.diag(torch.arange(1.0, 6.0))


@pytest.fixture
def start(covariance):
    return PPCA.maximum_likelihood((5,), 2, mean=torch.arange(5.0), covariance=covariance)


@pytest.fixture
def vae(covariance):
    torch.manual_seed(1)
    return pv.presets.ppca_vae(
        data_shape=(5,), latent_dim=2, hidden=(8,), data_mean=torch.arange(5.0), data_covariance=covariance
    ).double()


def marginal(start):
    covariance = start.loadings @ start.loadings.T + start.scale**2 * torch.eye(5)
    return torch.distributions.MultivariateNormal(start.mean.double(), covariance.double())


def test_the_start_is_where_the_likelihood_is_greatest(start, covariance):
    """Against the closed form of Tipping & Bishop: no change of W or the scale raises it, to first order."""
    loadings = start.loadings.double().requires_grad_()
    log_scale = torch.tensor(start.scale).double().log().requires_grad_()
    fitted = loadings @ loadings.T + (2 * log_scale).exp() * torch.eye(5)
    ((fitted.logdet() + torch.linalg.solve(fitted, covariance.double()).trace()) / 2).backward()
    assert loadings.grad.abs().max() < 1e-5
    assert log_scale.grad.abs() < 1e-5


def test_its_variance_is_the_data_s_along_the_axes_and_in_total(start, covariance):
    fitted = start.loadings @ start.loadings.T + start.scale**2 * torch.eye(5)
    assert torch.allclose(torch.linalg.eigvalsh(fitted)[-2:], torch.linalg.eigvalsh(covariance)[-2:], rtol=1e-4)
    assert torch.allclose(fitted.trace(), covariance.trace(), rtol=1e-4)


def test_untrained_it_has_the_exact_log_p_and_its_guide_is_the_posterior(vae, start):
    x = 3 * torch.randn(50, 5, dtype=torch.float64)
    found = pv.evidence.importance(vae.model, vae.guide, x, num_particles=3, seed=0).value
    assert torch.allclose(found, marginal(start).log_prob(x), atol=1e-5)  # weights that are all the same


def test_untrained_it_has_the_exact_log_p_of_what_is_observed(vae, start):
    torch.manual_seed(2)
    x = 3 * torch.randn(40, 5, dtype=torch.float64)
    mask = torch.rand(x.shape) < 0.6
    mask[0] = False
    pair, whole = pv.Incomplete(vae), marginal(start)
    found = pv.evidence.importance(
        pair.model, pair.guide, x.masked_fill(~mask, torch.nan), num_particles=20_000, proposal="guide", seed=0
    )
    for row, (datapoint, seen) in enumerate(zip(x, mask, strict=True)):
        exact = torch.distributions.MultivariateNormal(whole.mean[seen], whole.covariance_matrix[seen][:, seen])
        expected = exact.log_prob(datapoint[seen]) if seen.any() else torch.zeros(()).double()
        assert (found.value[row] - expected).abs() < 4.5 * found.stderr[row] + 1e-5


def test_a_scale_mixture_starts_there_too_and_scales_by_its_factors(vae, covariance):
    torch.manual_seed(1)
    mixture = pv.presets.ppca_vae(
        data_shape=(5,),
        latent_dim=2,
        hidden=(8,),
        scale_mixture=True,
        data_mean=torch.arange(5.0),
        data_covariance=covariance,
    ).double()
    z = torch.randn(7, 2, dtype=torch.float64)
    assert torch.allclose(mixture.decode(z).mean, vae.decode(z).mean)
    mixture.decoder.net.output_bias.data[0] = torch.tensor(2.0).log()
    assert torch.allclose(mixture.decode(z).mean, vae.decode(z * torch.tensor([2.0, 1.0])).mean)


def test_its_guide_is_the_best_diagonal_gaussian_whatever_is_missing(vae, start):
    mask = torch.tensor([[True, True, False, False, False]])
    x = torch.tensor([[1.0, -2.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    seen = start.loadings[:2].double()
    precision = torch.eye(2) + seen.T @ seen / start.scale**2
    q = vae.encode(x, mask=mask)
    loc = torch.linalg.solve(precision, seen.T @ (x[0, :2] - start.mean[:2]) / start.scale**2)
    assert torch.allclose(q.mean[0], loc, atol=1e-5)
    assert torch.allclose(q.stddev[0], precision.diagonal().rsqrt(), atol=1e-5)  # 1 / P_kk, not the k-th variance
    assert not torch.allclose(q.stddev[0], torch.linalg.inv(precision).diagonal().sqrt(), atol=1e-3)


def test_more_latents_than_directions_start_at_the_prior():
    vae = pv.presets.ppca_vae(data_shape=(2,), latent_dim=4, hidden=(8,), likelihood_scale=0.1)
    q = vae.encode(torch.tensor([[1.0, -1.0]]))
    assert torch.allclose(q.mean.abs(), torch.tensor([[0.99, 0.99, 0.0, 0.0]]).sqrt(), atol=1e-6)
    assert torch.allclose(q.stddev, torch.tensor([[0.1, 0.1, 1.0, 1.0]]), atol=1e-6)


def test_it_trains_beyond_the_linear_model():
    torch.manual_seed(0)
    t = torch.randn(2000)
    x = torch.stack([t, t.square() / 2], 1) + 0.1 * torch.randn(2000, 2)
    vae = pv.presets.ppca_vae(
        data_shape=(2,), latent_dim=1, hidden=(32,), data_mean=x.mean(0), data_covariance=x.T.cov()
    )
    linear = pv.evidence.importance(vae.model, vae.guide, x[:200], num_particles=500, seed=0).mean
    assert linear > -2.7  # not far below the entropy of a Gaussian with this covariance, 2.5 nats
    history = pv.fit(vae, x, num_epochs=20, learning_rate=5e-3, seed=0, progress=False)
    assert history.epochs[0].train_elbo > linear - 0.3  # it starts there
    assert pv.evidence.importance(vae.model, vae.guide, x[:200], num_particles=500, seed=0).mean > linear + 0.3


@pytest.mark.parametrize("covariance", [torch.eye(3), torch.full((2, 2), torch.nan), torch.ones(2)])
def test_a_covariance_that_is_not_the_data_s_gets_one_line(covariance):
    with pytest.raises(ConfigError, match=r"data_covariance: found .*expected \(2, 2\)") as caught:
        pv.presets.ppca_vae(data_shape=(2,), data_covariance=covariance)
    assert "\n" not in str(caught.value)


def test_a_covariance_of_incomplete_data_may_have_negative_eigenvalues():
    start = PPCA.maximum_likelihood((2,), 1, covariance=torch.tensor([[1.0, 1.2], [1.2, 1.0]]))
    assert torch.allclose(start.loadings.square().sum(), torch.tensor(2.2), atol=1e-3)
