"""Gaussian fields against their definition, and a PriorVAE against the exact Gaussian process."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DataError

PLACES = torch.linspace(0, 1, 60, dtype=torch.float64)


def covariance(length):
    return torch.exp(-(((PLACES[:, None] - PLACES) / length) ** 2) / 2)


@pytest.fixture(scope="module")
def fields():
    return pv.GaussianFields(covariance, [0.2, 0.35], num_coefficients=9, num_draws=40_000)


def test_the_basis_is_orthonormal_and_leaves_out_what_it_says(fields):
    basis = fields.basis.double()
    assert torch.allclose(basis.T @ basis / 60, torch.eye(9).double(), atol=1e-5)
    kept = basis @ torch.diag(fields.variances) @ basis.T
    average = (covariance(0.2) + covariance(0.35)) / 2
    assert (average - kept).trace() / average.trace() == pytest.approx(fields.left_out, abs=1e-6)
    assert 0 < fields.left_out < 1e-4


def test_draws_have_the_covariance_of_the_fields_and_are_new_each_time(fields):
    torch.manual_seed(0)
    c = fields[:]
    assert c.shape == (40_000, 9)
    expected = fields.data_covariance
    scale = expected.diagonal().sqrt()
    error = (c.T.cov() - expected) / (scale[:, None] * scale)
    assert error.abs().max() < 5 * (3 / 40_000) ** 0.5  # kurtosis of the mixture included
    assert not torch.equal(fields[:5], fields[:5])
    assert fields[torch.tensor([3, 9])].shape == (2, 9)


def test_log_prob_is_the_mixture_over_the_settings(fields):
    c = fields[:20].double()
    basis = fields.basis.double() / 60
    each = [
        dist.MultivariateNormal(
            torch.zeros(9).double(), basis.T @ covariance(length) @ basis + fields.noise**2 * torch.eye(9).double()
        ).log_prob(c)
        for length in (0.2, 0.35)
    ]
    expected = torch.stack(each).logsumexp(0) - torch.tensor(2.0).double().log()
    assert torch.allclose(fields.log_prob(c), expected)


def test_the_exact_posterior_is_bayes_theorem_in_the_joint(fields):
    """Against conditioning of the joint Gaussian by its precision matrix, and p(length | y) by the density of y."""
    places, y = torch.tensor([5, 30, 31]), torch.tensor([1.0, -0.5, -0.4])
    found = fields.given(places, y, scale=0.1)
    log_p, means, variances = [], [], []
    for length in (0.2, 0.35):
        seen = torch.zeros(3, 60).double()
        seen[torch.arange(3), places] = 1
        precision = torch.linalg.inv(covariance(length) + 1e-9 * torch.eye(60)) + seen.T @ seen / 0.01
        posterior = torch.linalg.inv(precision)
        means.append(posterior @ seen.T @ y.double() / 0.01)
        variances.append(posterior.diagonal())
        marginal = covariance(length)[places][:, places] + 0.01 * torch.eye(3)
        log_p.append(dist.MultivariateNormal(torch.zeros(3).double(), marginal).log_prob(y.double()))
    weights = torch.stack(log_p).softmax(0)
    mean = weights @ torch.stack(means)
    second = weights @ (torch.stack(variances) + torch.stack(means).square())
    assert torch.allclose(found.mean, mean, atol=1e-5)
    assert torch.allclose(found.variance, second - mean.square(), atol=1e-5)


def test_a_prior_vae_answers_as_the_exact_process_does_and_an_untrained_one_of_another_length_does_not():
    """Of one length, for which the linear start is exact but for what is left out; the wrong length is the control."""
    places, y, errors = torch.tensor([3, 20, 41, 55]), torch.tensor([1.0, 0.3, -0.8, 0.2]), {}
    exact = pv.GaussianFields(covariance, [0.25], num_coefficients=9).given(places, y, scale=0.1)
    for length in (0.25, 0.12):
        fields = pv.GaussianFields(covariance, [length], num_coefficients=9)
        torch.manual_seed(0)
        vae = pv.presets.ppca_vae(
            data_shape=(9,), latent_dim=9, hidden=(16,), likelihood_scale=0.02, data_covariance=fields.data_covariance
        )
        before = [value.clone() for value in vae.state_dict().values()]
        prior = pv.decoder_prior(vae)

        def model(fields=fields, prior=prior):
            pyro.sample("y", dist.Normal(fields.basis[places] @ prior(), 0.1).to_event(1), obs=y)

        pyro.set_rng_seed(0)
        chain = MCMC(NUTS(model, max_tree_depth=4), 250, 100, disable_progbar=True)
        chain.run()
        draws = prior.at({"z": chain.get_samples()["field/z"]}).mean @ fields.basis.T
        errors[length] = ((draws.mean(0) - exact.mean) / exact.stddev).abs().max()
        assert all(map(torch.equal, before, vae.state_dict().values()))
        assert not len(pyro.get_param_store())
    assert errors[0.25] < 0.3  # 250 draws, nearly independent: 5 standard errors
    assert errors[0.12] > 0.6


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_coefficients": 61}, "at most 60"),
        ({"num_coefficients": 3, "noise": 0.0}, "noise=0.0: expected more than zero"),
        ({"num_coefficients": 3, "covariance": lambda _: PLACES}, r"found \(60,\), expected a finite, sym"),
        (
            {"num_coefficients": 3, "covariance": lambda _: covariance(0.0)},
            "expected a finite, symmetric square matrix",
        ),
        ({"num_coefficients": 3, "covariance": lambda _: covariance(0.2).triu()}, "expected a finite, symmetric"),
        ({"num_coefficients": 3, "covariance": lambda _: -covariance(0.2)}, "found negative eigenvalues"),
        (
            {"num_coefficients": 3, "covariance": lambda n: covariance(0.2)[:n, :n], "parameters": [30, 40]},
            r"found \(30, 30\) and \(40, 40\), expected the same number of places",
        ),
        ({"num_coefficients": 0}, "num_coefficients=0: expected at least 1"),
        ({"num_coefficients": 3, "num_draws": 0}, "num_draws=0: expected at least 1"),
        ({"num_coefficients": 3, "parameters": []}, "parameters: found none"),
    ],
)
def test_what_are_no_fields_gets_one_line(options, match):
    with pytest.raises(ConfigError, match=match) as caught:
        pv.GaussianFields(**{"covariance": covariance, "parameters": [0.2], **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("places", "y", "scale", "error", "match"),
    [
        ([3, 60], [0.0, 1.0], 0.1, ConfigError, r"places: found \[3, 60\], expected whole numbers from 0 to 59"),
        ([0.5], [0.0], 0.1, ConfigError, "expected whole numbers"),
        ([3, 4], [0.0], 0.1, ConfigError, r"y: found \(1,\), expected a value for each of 2 places"),
        ([3], [math.nan], 0.1, DataError, "non-finite"),
        ([3], [0.0], -0.1, ConfigError, "scale=-0.1: expected more than zero"),
    ],
)
def test_what_is_no_measurement_gets_one_line(fields, places, y, scale, error, match):
    with pytest.raises(error, match=match):
        fields.given(places, y, scale=scale)


def test_lists_and_arrays_are_measurements_too(fields):
    exact = fields.given(torch.tensor([3, 40]), torch.tensor([0.0, 1.0]), scale=0.1).mean
    assert torch.equal(exact, fields.given([3, 40], np.array([0.0, 1.0]), scale=0.1).mean)


def test_a_data_loader_takes_them(fields):
    assert fields[0].shape == fields.variances.shape
    (batch,) = itertools.islice(torch.utils.data.DataLoader(fields, batch_size=7), 1)
    assert batch.shape == (7, len(fields.variances))
    with pytest.raises(IndexError):
        fields[len(fields)]
