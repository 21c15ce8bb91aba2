"""Evaluation in one call: the numbers meet the closed form, stand in the order that theory gives, and can be read."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.models.problems import linear_gaussian
from tests.statistics import SIGMAS

NUM = 300
PROBLEM = linear_gaussian(W=[[1.0, 0.3], [0.5, -1.0], [0.2, 0.8]], scale=[0.6, 0.7, 0.8], loc=[0.5, -1.0, 0.0])


@pytest.fixture(scope="module")
def x():
    return PROBLEM.sample(NUM, seed=0)


@pytest.fixture(scope="module")
def found(x):
    """A guide that is too wide and correlated in the wrong way: every gap is far above its error."""
    return pv.evaluate(
        (PROBLEM.model, PROBLEM.guide(mean_field=True, inflate=1.3)), x, estimator="is", num_particles=2000, seed=1
    )


@pytest.fixture(scope="module")
def collapsed(x):
    """The posterior is the prior, because the data do not depend on z."""
    problem = linear_gaussian(W=[[0.0, 0.0]] * 3, scale=1.0)
    return pv.evaluate((problem.model, problem.guide(mean_field=True)), x, estimator="is", num_particles=10)


def kl_to_posterior():
    """KL of the fixture's guide to the posterior: between Gaussians of one mean, the same for every x."""
    covariance = PROBLEM.posterior_covariance.double()
    q = 1.3**2 * torch.diag(1 / torch.linalg.inv(covariance).diagonal())
    trace = torch.linalg.solve(covariance, q).trace()
    return 0.5 * (trace - 2 + torch.logdet(covariance) - torch.logdet(q)).item()


# --- The numbers --------------------------------------------------------------------------------------------------


def test_elbo_is_the_closed_form_within_its_error(x, found):
    exact = PROBLEM.log_evidence(x).double() - kl_to_posterior()
    assert kl_to_posterior() > 0.1
    assert found.elbo.mean == pytest.approx(exact.mean().item(), abs=SIGMAS * found.elbo.monte_carlo_error)
    assert found.elbo.monte_carlo_error < 0.02
    gaps = (found.elbo.value - exact).abs() / found.elbo.stderr
    assert gaps.median() < 1.5  # per datapoint too, not just in the mean


def test_log_evidence_is_the_closed_form_within_its_error(x, found):
    exact = PROBLEM.log_evidence(x).double()
    # Importance sampling errs downwards by about half its variance, which is far below its error here.
    assert found.log_evidence.mean == pytest.approx(
        exact.mean().item(), abs=SIGMAS * found.log_evidence.monte_carlo_error
    )
    assert found.log_evidence.monte_carlo_error < 0.005


def test_bounds_stand_in_the_order_of_the_table(found):
    elbo, iwae, log_evidence = found.elbo, found.iwae, found.log_evidence
    for lower, upper in ((elbo, iwae), (iwae, log_evidence), (elbo, log_evidence)):
        error = math.hypot(lower.monte_carlo_error, upper.monte_carlo_error)
        assert lower.mean <= upper.mean + SIGMAS * error
    # The gap of the ELBO is the KL divergence; 50 draws close most of it.
    assert iwae.mean - elbo.mean > kl_to_posterior() / 2
    assert log_evidence.mean - elbo.mean == pytest.approx(kl_to_posterior(), rel=0.2)
    assert [row["estimate"] for row in found.rows()] == ["ELBO", "IWAE", "log p(x)"]
    assert [row["num_particles"] for row in found.rows()] == [100, 50, 2000]


def test_no_row_is_above_log_evidence_when_draws_are_few(x):
    # With fewer draws for log p(x) than the bound's K, the "better" row would be the worse one.
    few = pv.evaluate((PROBLEM.model, PROBLEM.guide(mean_field=True, inflate=3.0)), x, estimator="is", num_particles=5)
    assert few.iwae.mean <= few.log_evidence.mean + SIGMAS * few.log_evidence.monte_carlo_error


def test_test_set_error_is_that_of_a_mean_over_datapoints(x, found):
    spread = PROBLEM.log_evidence(x).double().std().item() / math.sqrt(NUM)
    for row in found.rows():
        assert row["test_set_error"] == pytest.approx(spread, rel=0.1)
        assert row["monte_carlo_error"] < row["test_set_error"]


def test_bits_per_dimension_are_positive_for_masses_and_in_base_two():
    # Three fair coins that the model knows nothing about: one bit each.
    vae = pv.presets.mlp_vae(data_shape=(3,), latent_dim=1, hidden=())
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
    rows = pv.evaluate(vae, torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]), estimator="is", num_particles=10).rows()
    assert [row["nats"] for row in rows] == pytest.approx([-3 * math.log(2)] * 3, rel=1e-6)
    assert [row["bits_per_dimension"] for row in rows] == pytest.approx([1.0] * 3, rel=1e-6)


def test_dimensions_are_counted_over_the_whole_datapoint():
    vae = pv.presets.mlp_vae(data_shape=(2, 3), latent_dim=1, hidden=())
    assert pv.evaluate(vae, torch.zeros(4, 2, 3), estimator="is", num_particles=10).num_dimensions == 6


# --- What it leaves alone -----------------------------------------------------------------------------------------


def test_the_seed_alone_decides(x):
    pair = PROBLEM.model, PROBLEM.guide(mean_field=True)
    torch.manual_seed(1)
    first = pv.evaluate(pair, x[:20], estimator="is", num_particles=20, seed=5).to_dict()
    torch.manual_seed(2)
    assert pv.evaluate(pair, x[:20], estimator="is", num_particles=20, seed=5).to_dict() == first
    assert pv.evaluate(pair, x[:20], estimator="is", num_particles=20, seed=6).to_dict() != first


def two_layers(event):
    """A guide that draws its second site given the first one, over scalars or vectors of length one."""

    def draw(name, loc, scale):
        return pyro.sample(name, dist.Normal(loc, scale).to_event(len(event)))

    def model(x):
        with pyro.plate("data", len(x)):
            top = draw("top", torch.zeros(event), torch.ones(event))
            low = draw("low", top, 1.0)
            mean = low if event else low[..., None]
            pyro.sample("x", dist.Normal(mean.expand(*mean.shape[:-1], 3), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            mean = x.mean(-1).reshape(len(x), *event)
            top = draw("top", mean, 0.5)
            draw("low", 0.5 * top + 0.5 * mean, 0.5)

    return model, guide


def test_the_seed_alone_decides_for_two_layers_of_latents(x):
    torch.manual_seed(1)
    first = pv.evaluate(two_layers((1,)), x, estimator="is", num_particles=10, seed=5).to_dict()
    torch.manual_seed(2)
    assert pv.evaluate(two_layers((1,)), x, estimator="is", num_particles=10, seed=5).to_dict() == first
    assert set(first["latents"]) == {"top", "low"}


def test_latents_may_be_scalars(x):
    scalars = pv.evaluate(two_layers(()), x, estimator="is", num_particles=10).to_dict()
    vectors = pv.evaluate(two_layers((1,)), x, estimator="is", num_particles=10).to_dict()
    assert scalars["estimates"] == vectors["estimates"]
    assert len(scalars["latents"]["top"]["kl"]) == 1
    assert scalars["latents"]["top"] == vectors["latents"]["top"]


def test_nothing_is_trained_registered_or_drawn_from_the_caller(capsys):
    vae = pv.presets.mlp_vae(data_shape=(6,), latent_dim=2, hidden=(8,))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    state = torch.get_rng_state()
    pv.evaluate(vae, torch.ones(5, 6), num_particles=10, progress=True)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(pyro.get_param_store().keys())
    assert capsys.readouterr() == ("", "")


def test_a_vae_and_its_pair_are_evaluated_alike():
    vae = pv.presets.mlp_vae(data_shape=(6,), latent_dim=2, hidden=(8,))
    x = torch.ones(5, 6)
    as_pair = pv.evaluate((vae.model, vae.guide), x, estimator="is", num_particles=10)
    as_vae = pv.evaluate(vae, x.numpy().astype(bool), estimator="is", num_particles=10)
    assert as_vae._replace(clamped_scales={}).to_dict() == as_pair.to_dict()


# --- What it says -------------------------------------------------------------------------------------------------


def strict(content):
    """JSON as every program but Python's reads it: without NaN and Infinity."""
    return json.loads(json.dumps(content, allow_nan=False))


def test_results_are_ready_for_json(found):
    read = strict(found.to_dict())
    assert read["num_datapoints"] == NUM
    assert read["num_dimensions"] == 3
    assert read["estimates"] == found.rows() == strict(found.rows())
    assert read["latents"]["z"]["num_active"] == 2
    assert len(read["latents"]["z"]["kl"]) == len(read["latents"]["z"]["mean_variance"]) == 2


def test_latents_are_those_of_the_closed_form(x, found):
    mean = PROBLEM.posterior(x).mean.double()
    assert found.latents["z"].mean_variance.double().numpy() == pytest.approx(mean.var(0).numpy(), rel=1e-4)
    scale = 1.3 * torch.linalg.inv(PROBLEM.posterior_covariance.double()).diagonal().rsqrt()
    kl = 0.5 * (scale.square() + mean.square() - 1).mean(0) - scale.log()
    assert found.latents["z"].kl.double().numpy() == pytest.approx(kl.numpy(), rel=1e-4)


def test_what_has_no_closed_form_is_still_json(x):
    # A full-covariance guide against a diagonal prior: the KL per dimension is not known.
    read = strict(pv.evaluate((PROBLEM.model, PROBLEM.guide()), x, estimator="is", num_particles=10).to_dict())
    assert read["latents"]["z"]["kl"] == [None, None]


def test_the_table_is_aligned_and_fits_a_terminal(found, collapsed):
    for evaluation in (found, collapsed):
        lines = str(evaluation).splitlines()
        assert max(map(len, lines)) <= 100
        header, *rows = lines[:4]
        assert {len(row) for row in rows} == {len(header)}
        assert len({row.index("±") - len(row.split("±")[1].split()[0]) for row in rows}) == 1
        assert len({row.index(".", 10) for row in rows}) == 1  # decimal points of the nats stand below one another
        for title, end in (
            ("draws", 17),
            ("nats", 27),
            ("Monte-Carlo", 40),
            ("test set", 50),
            ("bits/dim", 60),
            ("ESS", 68),
        ):
            assert header[:end].endswith(title)


def test_the_table_holds_the_numbers_of_the_rows(found):
    for line, row in zip(str(found).splitlines()[1:4], found.rows(), strict=True):
        name, rest = line[:10].strip(), line[10:].replace("±", "").split()
        assert name == row["estimate"]
        assert int(rest[0]) == row["num_particles"]
        shown = [float(value) for value in rest[1:]]
        wanted = [
            row[key] for key in ("nats", "monte_carlo_error", "test_set_error", "bits_per_dimension", "median_ess")
        ]
        assert shown == pytest.approx(wanted, abs=0.06)
        assert shown[:-1] == pytest.approx(wanted[:-1], abs=0.006)
    assert "active units of z: 2 of 2, KL " in str(found)


def test_a_collapse_is_reported(found, collapsed):
    assert collapsed.latents["z"].num_active == 0
    assert "active units of z: 0 of 2, KL 0.00 nats (posterior collapse" in str(collapsed)
    assert "collapse" not in str(found)


def test_one_datapoint_is_not_called_a_collapse(x):
    # How much the posterior mean moves with x cannot be known from one x.
    single = pv.evaluate((PROBLEM.model, PROBLEM.guide(mean_field=True)), x[:1], estimator="is", num_particles=10)
    assert single.elbo.value.shape == (1,)
    assert "collapse" not in str(single)
    strict(single.to_dict())
