"""Missing data against exact answers: marginals, posteriors and conditional distributions of a linear-Gaussian pair."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DataError, PairError, ShapeError
from tests.looks import LOOKS
from tests.statistics import SIGMAS, assert_mean, assert_not_mean

SHARES = (0.1, 0.3, 0.5, 0.7)
NUM = 600


@pytest.fixture
def problem(float64):
    torch.manual_seed(0)
    return pv.problems.linear_gaussian(W=torch.randn(8, 3), scale=0.6, loc=torch.arange(8) / 4)


def hidden(x, share):
    """Which entries are observed, each with the same probability."""
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) > share


def vaes():
    return {
        "vae": pv.presets.mlp_vae(data_shape=(2, 3), latent_dim=2, hidden=(8,)),
        "two layers": pv.presets.burda_two_layer_vae(data_shape=(2, 3)),
        "mixture": pv.presets.mlp_vae(data_shape=(2, 3), latent_dim=2, hidden=(8,), prior="mixture"),
    }


def masked_vae():
    posterior = pv.posteriors.DiagonalNormal(2)
    return pv.VAE(
        encoder=pv.nn.MaskedEncoder(pv.nn.MLP((2, 6), (8,), posterior.param_shape)),
        decoder=pv.nn.MLP(2, (8,), (2, 6)),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.likelihoods.Gaussian((6,)),
        posterior=posterior,
    )


@pytest.mark.parametrize("share", SHARES)
def test_log_p_of_observed_data_is_the_exact_marginal(problem, share):
    x, seed = problem.sample(NUM, seed=1), SHARES.index(share)
    mask = hidden(x, share)
    guide = problem.guide(shift=0.2, inflate=1.5)  # with no shift log w - log p(x) is the same for all x and masks
    pair = pv.Incomplete((problem.model, guide))
    given = x.masked_fill(~mask, torch.nan)
    found = pv.evidence.importance(pair.model, pair.guide, given, num_particles=500, seed=seed)
    gap = (found.value - problem.log_evidence(x, mask)) / found.stderr
    assert gap.abs().max() < SIGMAS
    assert abs(gap.mean()) < 3 / math.sqrt(NUM)
    # Filling in what is missing, the known-wrong way, is far off by the same measure.
    wrong = pv.evidence.importance(
        problem.model, guide, torch.where(mask, x, problem.loc), num_particles=500, seed=seed
    )
    assert abs(((wrong.value - problem.log_evidence(x, mask)) / wrong.stderr).mean()) > 3


def test_exact_marginal_is_that_of_the_entries_that_are_left(problem):
    x = problem.sample(5, seed=1)
    mask = torch.tensor([True, False, True, True, False, False, True, True])
    left = pv.problems.linear_gaussian(W=problem.W[mask], scale=problem.scale[mask], loc=problem.loc[mask])
    masks = mask.expand(x.shape)
    torch.testing.assert_close(problem.log_evidence(x, masks), left.log_evidence(x[:, mask]))
    torch.testing.assert_close(problem.posterior(x, masks).mean, left.posterior(x[:, mask]).mean)
    whole = torch.ones_like(x, dtype=torch.bool)
    torch.testing.assert_close(problem.log_evidence(x, whole), problem.log_evidence(x))
    torch.testing.assert_close(problem.posterior(x, ~whole).mean, torch.zeros(5, 3))


def test_miwae_is_a_lower_bound_that_tightens(problem):
    x = problem.sample(NUM, seed=1)
    mask = hidden(x, 0.5)
    pair = pv.Incomplete((problem.model, problem.guide(inflate=1.5)))
    log_w = pv.draw_particles(pair.model, pair.guide, x.masked_fill(~mask, torch.nan), num_particles=50).log_w
    bounds = [pv.objectives.IWAE(num_particles=k).bound(log_w[:k]) for k in (1, 5, 50)]
    exact = problem.log_evidence(x, mask).mean()
    means = [bound.mean() for bound in bounds]
    assert means[0] < means[1] < means[2] < exact + 0.02


@pytest.mark.parametrize("name", vaes())
@pytest.mark.parametrize("objective", [pv.objectives.ELBO(), pv.objectives.IWAE(num_particles=5, gradient="dreg")])
def test_with_nothing_missing_the_bound_and_its_gradient_are_the_same_bit_for_bit(name, objective):
    vae, x = vaes()[name], torch.bernoulli(torch.full((7, 2, 3), 0.5))
    found = []
    for pair in (vae, pv.Incomplete(vae)):
        torch.manual_seed(0)
        vae.zero_grad()
        loss = objective(pair.model, pair.guide)
        value = loss(x)
        value.backward()
        found.append([value.detach(), *(part.grad.clone() for part in vae.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_with_nothing_missing_the_evidence_is_the_same_bit_for_bit():
    vae, x = vaes()["vae"], torch.bernoulli(torch.full((7, 2, 3), 0.5))
    pair = pv.Incomplete(vae)
    for estimate in (pv.evidence.importance, pv.evidence.psis, pv.evidence.elbo):
        assert torch.equal(
            estimate(vae.model, vae.guide, x, num_particles=50).value,
            estimate(pair.model, pair.guide, x, num_particles=50).value,
        )


@pytest.mark.parametrize("name", [*vaes(), "masked"])
def test_hidden_values_change_nothing(name):
    vae = masked_vae() if name == "masked" else vaes()[name]
    x = torch.bernoulli(torch.full((7, *vae.data_shape), 0.5))
    mask = torch.rand(x.shape) > 0.5
    found = []
    for filling in (0.0, 1.0, torch.nan):
        torch.manual_seed(1)
        given = x.masked_fill(~mask, filling)
        found.append(
            pv.draw_particles(vae.model, vae.guide, given, num_particles=4, mask=mask).log_w
            if filling == filling
            else pv.draw_particles(pv.Incomplete(vae).model, pv.Incomplete(vae).guide, given, num_particles=4).log_w
        )
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_masked_encoder_knows_a_zero_from_a_gap():
    vae, x = masked_vae(), torch.zeros(1, 6)
    assert not torch.equal(vae.encode(x).mean, vae.encode(x, mask=torch.arange(6) < 3).mean)
    plain = vaes()["vae"]
    zeros = torch.zeros(1, 2, 3)
    assert torch.equal(plain.encode(zeros).mean, plain.encode(zeros, mask=torch.zeros(2, 3, dtype=torch.bool)).mean)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "continuous_bernoulli", "discretised_logistic"])
def test_each_likelihood_of_the_observed_entries_is_the_sum_over_them(likelihood, float64):
    vae = pv.presets.mlp_vae(data_shape=(5,), latent_dim=2, hidden=(8,), likelihood=likelihood)
    z, x = torch.randn(3, 4, 2), torch.bernoulli(torch.full((4, 5), 0.5))
    mask = torch.rand(4, 5) > 0.5
    p = vae.decode(z)
    entries = p.base_dist.log_prob(x.expand(3, 4, 5))
    torch.testing.assert_close(vae.likelihood.observed(p, mask).log_prob(x), (entries * mask).sum(-1))


@pytest.mark.parametrize("name", ["ais", "smc", "psis", "quadrature", "evaluate", "latent_summary", "elbo_parts"])
def test_every_kind_of_look_takes_missing_data(name):
    pair = pv.Incomplete(masked_vae())
    x = torch.randn(6, 6).masked_fill(torch.rand(6, 6) > 0.5, torch.nan)
    x[0] = torch.nan  # a datapoint of which nothing is known
    assert LOOKS[name](pair.model, pair.guide, x) is not None


def test_a_grid_agrees_and_nothing_observed_is_certain():
    pair = pv.Incomplete(masked_vae())
    x = torch.randn(6, 6).masked_fill(torch.rand(6, 6) > 0.5, torch.nan)
    x[0] = torch.nan
    grid = pv.evidence.quadrature(pair.model, pair.guide, x)
    drawn = pv.evidence.importance(pair.model, pair.guide, x, num_particles=2000, proposal="refined")
    assert ((grid.value - drawn.value).abs() < SIGMAS * drawn.stderr + 1e-4).all()
    assert abs(grid.value[0]) < 1e-5


def test_training_on_missing_data_learns_the_marginals(problem):
    x = problem.sample(300, seed=1)
    mask = hidden(x, 0.3)
    torch.manual_seed(0)
    vae = pv.presets.mlp_vae(data_shape=(8,), latent_dim=3, hidden=(32,), likelihood="gaussian").double()
    pair = pv.Incomplete(vae)
    given = x.masked_fill(~mask, torch.nan)
    history = pv.fit(pair, given, num_epochs=40, batch_size=50, learning_rate=1e-2, validation=given[:50])
    assert history.epochs[-1].train_bound > history.epochs[0].train_bound + 1
    found = pv.evaluate(pair, given, estimator="is", num_particles=100)
    exact = problem.log_evidence(x, mask).mean()
    variance = problem.W.square().sum(1) + problem.scale.square()
    apart = torch.distributions.Normal(problem.loc, variance.sqrt()).log_prob(x)[mask].sum() / len(x)
    assert exact - 1.0 < found.log_evidence.mean < exact + 0.5
    assert found.log_evidence.mean > apart + 0.5  # what entries say of each other has been learned


@pytest.mark.parametrize("share", SHARES)
def test_imputations_are_of_the_conditional_distribution(problem, share):
    x = problem.sample(NUM, seed=2)
    mask = hidden(x, share)
    found = pv.impute((problem.model, problem.guide(inflate=1.2)), x, mask=mask, num_particles=400)
    q = problem.posterior(x, mask)
    mean = problem.loc + q.mean @ problem.W.T
    variance = torch.einsum("dk,nkl,dl->nd", problem.W, q.covariance_matrix, problem.W) + problem.scale.square()
    for values in (found.mean, *found.draws):
        assert torch.equal(values[mask], x[mask])
    standard = ((found.draws - mean) / variance.sqrt())[:, ~mask]
    assert_mean(standard[0], 0.0, sd=1.0)
    assert_mean(standard[0].square(), 1.0, sd=math.sqrt(2) * 1.5)  # entries of a datapoint go together
    assert ((found.mean - mean)[~mask].abs() < 0.35 * variance.sqrt()[~mask]).all()
    covered = ((found.lower <= x) & (x <= found.upper))[~mask].double()
    assert 0.87 < covered.mean() < 0.93
    # The interval of the mean alone, the known-wrong way, is too short.
    narrow = (mean + 1.645 * (variance - problem.scale.square()).sqrt() > x)[~mask]
    assert narrow.double().mean() < 0.95


def test_uncorrected_imputations_fail(problem):
    x = problem.sample(NUM, seed=2)
    mask = hidden(x, 0.5)
    guide = problem.guide(shift=0.3, inflate=1.5)
    mean = problem.loc + problem.posterior(x, mask).mean @ problem.W.T
    pair = pv.Incomplete((problem.model, guide))
    given = x.masked_fill(~mask, torch.nan)
    corrected = pv.impute(pair, given, num_particles=1000).mean - mean
    uncorrected = (
        pv.posterior_predictive(pair.model, pair.guide, given, corrected=False, num_draws=50)["x"].mean(0) - mean
    )
    assert_mean(corrected[~mask], 0.0)
    assert_not_mean(uncorrected[~mask], 0.0)


def test_seeds_and_blocks(problem):
    x = problem.sample(20, seed=2)
    mask = hidden(x, 0.5)
    pair = problem.model, problem.guide(inflate=1.2)
    one, same, other = (pv.impute(pair, x, mask=mask, seed=seed).mean for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    blocks = pv.impute(pair, x, mask=mask, max_bytes=2**14)
    assert blocks.draws.shape == (20, 20, 8)
    assert blocks.verdict.shape == (20,)


BAD = {
    "NaN with no leave": (lambda vae: vae.model(torch.full((2, 2, 3), torch.nan)), DataError, "pyro_vae.Incomplete"),
    "infinite": (lambda vae: pv.impute(vae, torch.full((2, 2, 3), torch.inf)), DataError, "non-finite"),
    "mask of numbers": (lambda vae: vae.model(torch.zeros(2, 2, 3), mask=torch.ones(2, 2, 3)), DataError, "booleans"),
    "mask of another shape": (
        lambda vae: vae.guide(torch.zeros(2, 2, 3), mask=torch.ones(2, 3, 2, dtype=torch.bool)),
        ShapeError,
        r"expected the shape of x, \(2, 2, 3\), got \(2, 3, 2\)",
    ),
    "no pair": (lambda vae: pv.Incomplete(3), PairError, "found int"),
    "no mask": (lambda vae: pv.Incomplete((lambda x: None, vae.guide)), PairError, "the model takes no mask="),
    "number beside data": (lambda vae: vae.model(torch.zeros(2, 2, 3), 3), ConfigError, "num=3: found 2"),
    "no draws of the guide": (lambda vae: pv.impute(vae, torch.zeros(2, 2, 3), from_prior=1000), ConfigError, "fewer"),
    "noise of another size": (lambda vae: pv.decoder_prior(vae).at({"z": torch.zeros(3)}), ShapeError, "expected val"),
    "noise of another site": (lambda vae: pv.decoder_prior(vae).at({"w": torch.zeros(2)}), ShapeError, "'z': 2"),
    "level": (lambda vae: pv.impute(vae, torch.zeros(2, 2, 3), level=90), ConfigError, "such as 0.9"),
    "observed entry that does not suit": (
        lambda vae: pv.impute(vae, torch.tensor([[[5.0, torch.nan, 0.0], [0.0, 0.0, 0.0]]])),
        DataError,
        "Bernoulli",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line(name):
    call, kind, text = BAD[name]
    with pytest.raises(kind, match=text) as caught:
        call(vaes()["vae"])
    assert "\n" not in str(caught.value)


def observing(what, prior, likelihood):
    """A pair that observes a function of x, under a likelihood given z."""

    def model(x=None, num=None, mask=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(len(x)))
            mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
            observed = what(x)
            pyro.sample("y", likelihood(z, x).mask(mask[:, : observed.shape[1]]).to_event(1), obs=observed)

    def guide(x, mask=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", prior(len(x)))

    return model, guide


def white(num):
    return dist.Normal(torch.zeros(num, 1), 1.0).to_event(1)


def coin(num):
    return dist.Bernoulli(torch.full((num,), 0.5))


def test_values_on_another_scale_are_not_imputed():
    x = torch.tensor([[20.0, torch.nan, 21.0]])
    with pytest.raises(PairError, match="observed site 'y' holds something else than x"):
        pv.impute(observing(torch.log1p, white, lambda z, x: dist.Normal(3 + z.expand_as(x), 0.1)), x)
    with pytest.raises(PairError, match="observed site 'y' holds something else than x"):
        pv.impute(observing(lambda x: x[:, :2], white, lambda z, x: dist.Normal(z.expand_as(x[:, :2]), 1.0)), x)


def test_a_distribution_without_a_mean_is_imputed_from_draws():
    x = torch.tensor([[0.0, torch.nan, 1.0]])
    pair = observing(
        lambda x: x, white, lambda z, x: dist.Categorical(torch.tensor([0.2, 0.3, 0.5]).expand(*x.shape, 3))
    )
    found = pv.impute(pair, x, num_particles=4000).mean
    assert torch.equal(found[0, ::2], x[0, ::2])
    assert abs(found[0, 1] - 1.3) < SIGMAS * 0.781 / 4000**0.5


def test_discrete_latents_are_imputed_without_draws_from_the_prior():
    pair = observing(lambda x: x, coin, lambda z, x: dist.Normal(4 * z[..., None].expand(x.shape), 1.0))
    x = torch.tensor([[4.0, torch.nan]])
    found = pv.impute(pair, x, num_particles=4000, from_prior=0).mean[0, 1]
    share = 1 / (1 + math.exp(-8.0))
    assert abs(found - 4 * share) < 0.05
    with pytest.raises(PairError, match="no reparameterised distribution"):
        pv.impute(pair, x)


def test_an_incomplete_pair_may_be_told_so_twice(problem):
    pair = pv.Incomplete((problem.model, problem.guide()))
    x = problem.sample(5, seed=0).masked_fill(torch.rand(5, 8) < 0.3, torch.nan)
    one, other = (pv.evidence.elbo(each.model, each.guide, x).value for each in (pair, pv.Incomplete(pair)))
    assert torch.equal(one, other)


def test_the_parameters_are_the_pairs_own():
    vae = vaes()["vae"]
    assert {id(part) for part in pv.Incomplete(vae).parameters()} == {id(part) for part in vae.parameters()}
    assert isinstance(pv.Incomplete((vae.model, vae.guide)), nn.Module)


KINDS = ["count", "normal", ("categorical", 3), "normal", ["categorical", 2]]


def table(num):
    counts, reals = torch.poisson(torch.full((num, 1), 2.0)), torch.randn(num, 2)
    codes = torch.randint(3, (num, 1)), torch.randint(2, (num, 1))
    return torch.cat([counts, reals[:, :1], codes[0], reals[:, 1:], codes[1]], 1)


def test_a_mixed_table_has_the_sum_of_its_columns_densities(float64):
    columns = pv.likelihoods.Columns(KINDS)
    assert columns.param_shape == (1 + 2 + 3 + 2 + 2,)
    params, x = torch.randn(4, 7, 10), table(7).double()
    p = columns(params)
    expected = (
        torch.distributions.Poisson(params[..., 0].exp()).log_prob(x[:, 0])
        + torch.distributions.Normal(params[..., 1], params[..., 2].exp()).log_prob(x[:, 1])
        + torch.distributions.Categorical(logits=params[..., 3:6]).log_prob(x[:, 2])
        + torch.distributions.Normal(params[..., 6], params[..., 7].exp()).log_prob(x[:, 3])
        + torch.distributions.Categorical(logits=params[..., 8:]).log_prob(x[:, 4])
    )
    torch.testing.assert_close(p.log_prob(x), expected)
    mask = torch.tensor([True, False, False, False, True])
    expected = torch.distributions.Poisson(params[..., 0].exp()).log_prob(x[:, 0]) + torch.distributions.Categorical(
        logits=params[..., 8:]
    ).log_prob(x[:, 4])
    torch.testing.assert_close(columns.observed(p, mask.expand(7, 5)).log_prob(x), expected)


def test_draws_of_a_mixed_table_have_its_moments(float64):
    p = pv.likelihoods.Columns(KINDS)(torch.randn(10))
    drawn = p.sample((4000,))
    pv.likelihoods.Columns(KINDS).check(drawn)
    assert_mean(drawn, p.mean, sd=p.variance.sqrt())
    assert torch.equal(p.base_dist.expand((3, 5)).mean, p.mean.expand(3, 5))


def test_a_mixed_table_starts_at_its_mean(float64):
    columns, x = pv.likelihoods.Columns(KINDS), table(50).double()
    p = columns(columns.output_bias(x.mean(0)))
    torch.testing.assert_close(p.mean[[0, 1, 3]], x.mean(0)[[0, 1, 3]])
    assert columns.hits(torch.full((10,), 99.0)) == 3


def test_a_mixed_table_is_imputed_and_saved(tmp_path):
    x = table(60)
    mask = torch.rand(x.shape) > 0.3
    vae = pv.presets.table_vae(kinds=KINDS, latent_dim=2, hidden=(16,), data_mean=x.mean(0))
    pair = pv.Incomplete(vae)
    pv.fit(pair, x.masked_fill(~mask, torch.nan), num_epochs=2, batch_size=20)
    found = pv.impute(vae, x, mask=mask, num_particles=100, num_imputations=5)
    for filled in (*found.draws, found.mode):
        vae.likelihood.check(filled)
        assert torch.equal(filled[mask], x[mask])
    pv.save(vae, tmp_path / "table.safetensors")
    again = pv.load(tmp_path / "table.safetensors")
    assert torch.equal(again.encode(x, mask=mask).mean, vae.encode(x, mask=mask).mean)


BAD_TABLES = {
    "kind": (lambda: pv.likelihoods.Columns(["normal", "ordinal"]), ConfigError, "column 1: found 'ordinal'"),
    "half a category": (lambda: pv.likelihoods.Columns([("categorical", 2.5)]), ConfigError, "column 0"),
    "categories in words": (lambda: pv.likelihoods.Columns([("categorical", "x")]), ConfigError, "column 0"),
    "one category": (lambda: pv.likelihoods.Columns([("categorical", 1)]), ConfigError, "column 0"),
    "negative count": (lambda: pv.likelihoods.Columns(["count"]).check(torch.tensor([[-1.0]])), DataError, "found -1"),
    "category": (
        lambda: pv.likelihoods.Columns(["normal", ("categorical", 3)]).check(torch.tensor([[0.0, 3.0]])),
        DataError,
        "column 1: expected categories 0 to 2, found 3",
    ),
    "no columns": (lambda: pv.presets.table_vae(kinds=[]), ConfigError, "kinds: found none"),
    "vamp": (lambda: pv.presets.table_vae(kinds=["count"], prior="vamp"), ConfigError, "'standard' or 'mixture'"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_gets_one_line(name):
    call, kind, text = BAD_TABLES[name]
    with pytest.raises(kind, match=text):
        call()
