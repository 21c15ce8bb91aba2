"""A pair inside a program of one's own, under Pyro's handlers: densities and values by hand."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal

import pyro_vae as pv
from pyro_vae.errors import ConfigError
from tests.statistics import assert_mean

SLOPE = torch.tensor([0.5, -1.0])


@pytest.fixture
def problem(float64):
    return pv.problems.linear_gaussian(W=[[1.0, 0.3], [0.5, -1.0], [0.0, 2.0]], scale=0.7)


@pytest.fixture
def vae():
    return pv.presets.mlp_vae(data_shape=(3,), latent_dim=2, hidden=(8,), likelihood="gaussian")


def regression(problem):
    """The pair and, on its z, a regression with known slopes."""

    def model(x, y=None):
        z = pv.embed(problem.model, x, name="table")["z"]
        with pyro.plate("rows", len(x)):
            return pyro.sample("y", dist.Normal(z @ SLOPE.to(z), 0.3), obs=y)

    return model


def test_the_joint_density_is_the_product_of_the_parts(problem):
    x, y = torch.randn(4, 3), torch.randn(4)
    found = poutine.trace(regression(problem)).get_trace(x, y)
    inner = poutine.trace(poutine.condition(problem.model, {"z": found.nodes["table/z"]["value"]})).get_trace(x)
    expected = (
        inner.log_prob_sum() + dist.Normal(found.nodes["table/z"]["value"] @ SLOPE.double(), 0.3).log_prob(y).sum()
    )
    torch.testing.assert_close(found.log_prob_sum(), expected)


def test_sites_and_plates_have_the_prefix_and_parameters_do_not(vae):
    x = torch.randn(4, 3)
    found = poutine.trace(lambda: pv.embed(vae.model, x, name="a")).get_trace()
    assert [name for name, site in found.nodes.items() if site["type"] == "sample"] == ["a/data", "a/z", "a/x"]
    assert {frame.name for frame in found.nodes["a/z"]["cond_indep_stack"]} == {"a/data"}
    assert all(name.startswith("vae$$$") for name in found.param_nodes)


def test_embedding_twice_nests_the_names(problem):
    program = lambda: pv.embed(lambda: pv.embed(problem.model, torch.zeros(2, 3), name="in"), name="out")  # noqa: E731
    found = poutine.trace(program).get_trace()
    assert "out/in/z" in found.nodes
    assert list(program()) == ["in/z", "in/x"]


def test_an_empty_name_is_refused(problem):
    with pytest.raises(ConfigError, match="expected a name"):
        pv.embed(problem.model, torch.zeros(2, 3), name="")


def test_condition_and_do_know_the_new_names(problem):
    x, z = torch.zeros(4, 3), torch.ones(4, 2)
    conditioned = poutine.trace(poutine.condition(regression(problem), {"table/z": z})).get_trace(x)
    assert conditioned.nodes["table/z"]["is_observed"]
    done = poutine.trace(pyro.do(regression(problem), {"table/z": z})).get_trace(x)
    assert torch.equal(pyro.do(lambda: pv.embed(problem.model, x, name="table"), {"table/z": z})()["z"], z)
    assert done.nodes["y"]["fn"].mean.tolist() == (z @ SLOPE.double()).tolist()
    by_hand = dist.Normal(torch.zeros(2), 1.0).log_prob(z).sum()
    conditioned.compute_log_prob()
    torch.testing.assert_close(conditioned.nodes["table/z"]["log_prob_sum"], by_hand)


def test_block_scale_and_mask_act_on_an_embedded_pair(problem):
    x = torch.randn(4, 3)
    plain = poutine.trace(lambda: pv.embed(problem.model, x, name="a")).get_trace()
    again = poutine.replay(lambda: pv.embed(problem.model, x, name="a"), trace=plain)
    total = plain.log_prob_sum()
    assert torch.isclose(poutine.trace(poutine.scale(again, scale=2.0)).get_trace().log_prob_sum(), 2 * total)
    keep = torch.tensor([True, False, True, True])
    plain.compute_log_prob()
    kept = sum(plain.nodes[name]["log_prob"][keep].sum() for name in ("a/z", "a/x"))
    assert torch.isclose(poutine.trace(poutine.mask(again, mask=keep)).get_trace().log_prob_sum(), kept)
    assert "a/z" not in poutine.trace(poutine.block(again, hide=["a/z"])).get_trace().nodes


def test_two_pairs_in_one_program_have_the_sum_of_their_elbos(problem):
    other = pv.problems.linear_gaussian(W=torch.tensor([[1.0], [2.0]]).double(), scale=0.5)
    x, u = problem.sample(5, seed=0), other.sample(7, seed=0)

    def model():
        pv.embed(problem.model, x, name="a")
        pv.embed(other.model, u, name="b")

    def guide():
        pv.embed(problem.guide(), x, name="a")
        pv.embed(other.guide(), u, name="b")

    exact = -(problem.log_evidence(x).sum() + other.log_evidence(u).sum()).item()
    assert Trace_ELBO().loss(model, guide) == pytest.approx(exact)  # both guides are exact: no noise


def test_one_pair_twice_shares_its_parameters(vae):
    def program():
        return [pv.embed(vae.model, torch.zeros(3, 3), name=name)["z"] for name in ("a", "b")]

    found = poutine.trace(program).get_trace()
    assert len(found.param_nodes) == len({name for name, _ in vae.named_parameters() if "decoder" in name})


@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceMeanField_ELBO(), pv.objectives.ELBO()])
def test_svi_trains_networks_and_globals_together(vae, loss):
    x, y = torch.randn(20, 3), torch.randn(20)

    def model():
        z = pv.embed(vae.model, x, name="table")["z"]
        if not isinstance(loss, pv.objectives.ELBO):  # which takes local latents only
            slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        else:
            slope = torch.ones(2)
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(z @ slope, 1.0), obs=y)

    weights = AutoNormal(poutine.block(model, expose=["slope"]))

    def guide():
        pv.embed(vae.guide, x, name="table")
        if not isinstance(loss, pv.objectives.ELBO):
            weights()

    before = [part.clone() for part in vae.parameters()]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=loss)
    losses = [svi.step() for _ in range(30)]
    assert losses[-1] < losses[0]
    assert not any(torch.equal(one, other) for one, other in zip(before, vae.parameters(), strict=True))


def test_predictive_of_an_embedded_pair_generates(problem):
    draws = Predictive(lambda: pv.embed(problem.model, None, 4000, name="a"), num_samples=1)()
    assert_mean(draws["a/x"].reshape(-1, 3), 0.0)


def test_nuts_runs_over_what_is_embedded(problem):
    x = problem.sample(1, seed=0)
    y = torch.tensor([0.4])
    chain = MCMC(NUTS(regression(problem)), num_samples=150, warmup_steps=60, disable_progbar=True)
    with torch.random.fork_rng(devices=[]):
        chain.run(x, y)
    found = chain.get_samples()["table/z"][:, 0]
    # The exact posterior is that of a fourth measurement.
    more = pv.problems.linear_gaussian(W=torch.cat([problem.W, SLOPE.double()[None]]), scale=[0.7, 0.7, 0.7, 0.3])
    q = more.posterior(torch.cat([x, y[None]], 1))
    assert ((found.mean(0) - q.mean[0]).abs() < 0.5 * q.stddev[0]).all()
    assert ((found.std(0) / q.stddev[0] - 1).abs() < 0.35).all()


def test_enumeration_sums_over_a_discrete_site_that_reads_z(problem):
    x, y = problem.sample(6, seed=0), torch.randn(6)

    @config_enumerate
    def model():
        z = pv.embed(problem.model, x, name="table")["z"]
        with pyro.plate("rows", len(x)):
            kind = pyro.sample("kind", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(z[..., 0] + 2 * kind, 0.5), obs=y)

    drawn = []

    def guide():
        drawn.append(pv.embed(problem.guide(), x, name="table")["z"])

    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide)
    z = drawn[-1][..., 0]
    parts = [torch.tensor(p).log() + dist.Normal(z + 2 * kind, 0.5).log_prob(y) for kind, p in ((0, 0.7), (1, 0.3))]
    by_hand = problem.log_evidence(x).sum() + torch.logsumexp(torch.stack(parts), 0).sum()
    assert loss == pytest.approx(-by_hand.item(), rel=1e-5)


def test_enumeration_leaves_a_pair_without_discrete_sites_alone(problem):
    x = problem.sample(6, seed=0)
    with pytest.warns(UserWarning, match="no sample sites configured for enumeration"):
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(problem.model), problem.guide(), x)
    assert loss == pytest.approx(-problem.log_evidence(x).sum().item())


def test_replay_repeats_an_embedded_trace_and_uncondition_draws_its_data_anew(problem):
    x = problem.sample(3000, seed=0) + 5.0

    def program():
        return pv.embed(problem.model, x, name="a")

    first = poutine.trace(program).get_trace()
    again = poutine.trace(poutine.replay(program, trace=first)).get_trace()
    assert torch.equal(again.nodes["a/z"]["value"], first.nodes["a/z"]["value"])
    assert torch.isclose(again.log_prob_sum(), first.log_prob_sum())
    assert torch.equal(program()["x"], x)
    drawn = poutine.uncondition(program)()["x"]
    assert_mean(drawn, 0.0)  # the prior's mean, not that of the data
    covariance = problem.W @ problem.W.T + problem.scale.square() * torch.eye(3).double()
    assert_mean(drawn.square(), covariance.diagonal(), sd=covariance.diagonal() * 2**0.5)


def test_a_pair_of_two_layers_is_embedded_with_the_density_of_its_parts():
    layers = pv.presets.burda_two_layer_vae(data_shape=(4,), latent_dims=(3, 2))
    x, z1, z2 = torch.bernoulli(torch.full((6, 4), 0.5)), torch.randn(6, 3), torch.randn(6, 2)
    program = pyro.condition(lambda: pv.embed(layers.model, x, name="a"), {"a/z1": z1, "a/z2": z2})
    by_hand = (layers.prior().log_prob(z2) + layers._below(1, z2).log_prob(z1) + layers.decode(z1).log_prob(x)).sum()
    torch.testing.assert_close(poutine.trace(program).get_trace().log_prob_sum(), by_hand)


def test_a_discrete_site_of_what_is_embedded_is_enumerated(problem):
    x = torch.randn(6)

    @config_enumerate
    def mixture():
        with pyro.plate("data", len(x)):
            kind = pyro.sample("kind", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(2 * kind, 0.5), obs=x)

    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(lambda: pv.embed(mixture, name="a"), lambda: None)
    parts = [torch.tensor(p).log() + dist.Normal(2.0 * kind, 0.5).log_prob(x) for kind, p in ((0, 0.7), (1, 0.3))]
    assert loss == pytest.approx(-torch.logsumexp(torch.stack(parts), 0).sum().item(), rel=1e-5)
