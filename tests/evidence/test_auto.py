"""Which estimator is recommended for what, and any of them by its short name."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DataError, PairError
from pyro_vae.evidence import ESTIMATORS, Recommendation, ais, estimate, importance, psis, quadrature, recommend, smc
from pyro_vae.evidence import auto as choice
from pyro_vae.evidence.auto import require_estimator
from pyro_vae.ops.verdicts import Judgement
from pyro_vae.workflows import evaluation
from tests.objectives.test_objectives import conv, hand_written, pixels, two_layer
from tests.ops.test_verdicts import three_latents
from tests.test_exams import linear

pytestmark = pytest.mark.usefixtures("float64")


def named(found):
    return found.estimator


# Recommendations


@pytest.mark.parametrize(("dimensions", "plural"), [(1, ""), (2, "s")])
@pytest.mark.parametrize("inflate", [0.2, 1.0])
def test_one_or_two_latents_are_for_the_grid_whatever_the_guide(dimensions, plural, inflate):
    problem = pv.problems.linear_gaussian(W=torch.randn(4, dimensions), scale=0.5)
    found = recommend(problem.model, problem.guide(inflate=inflate), problem.sample(5, seed=0))
    assert found == ("grid", "guide", f"{dimensions} latent dimension{plural}: a grid gives log p(x) to rounding")


def test_dimensions_are_counted_over_all_sites():
    def pair(num):
        def program(x, observed=True):
            with pyro.plate("data", len(x)):
                z = [pyro.sample(f"z{k}", dist.Normal(0.0, 1.0)) for k in range(num)]
                if observed:
                    pyro.sample("x", dist.Normal(sum(z), 1.0), obs=x)

        return program, functools.partial(program, observed=False)

    x = torch.randn(5)
    assert named(recommend(*pair(2), x)) == "grid"
    assert named(recommend(*pair(3), x)) != "grid"


@pytest.mark.parametrize(
    ("inflate", "proposal"), [(1.2, "guide"), (1.0, "guide"), (0.77, "refined"), (1 / 3, "refined")]
)
def test_in_more_dimensions_the_guide_is_taken_if_it_will_do(inflate, proposal):
    problem = three_latents()
    found = recommend(problem.model, problem.guide(inflate=inflate), problem.sample(200, seed=0))
    assert found[:2] == ("is", proposal)
    assert found.reason.startswith("of 64 datapoints with 2000 draws each, ")
    assert ("from a refined proposal" in found.reason) == (proposal == "refined")
    assert "\n" not in found.reason


def on_a_shell(width):
    """Latents at a distance from the origin, which no Gaussian has for its draws."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.square().sum(-1).sqrt(), width), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 4), 0.1).to_event(1))

    return model, guide, 4 * torch.ones(10)


def test_where_no_gaussian_is_close_chains_are_taken():
    found = recommend(*on_a_shell(0.02))
    assert found[:2] == ("ais", "guide")


@pytest.mark.parametrize(("unreliable", "expected"), [(1, "psis"), (2, "ais")])
def test_what_is_hardly_ok_is_smoothed_unless_it_is_unreliable(monkeypatch, unreliable, expected):
    problem = three_latents()
    found = importance(problem.model, problem.guide(), problem.sample(10, seed=0), num_particles=10)
    verdicts = np.array(["unreliable"] * unreliable + ["doubtful"] * 4 + ["ok"] * (6 - unreliable))
    monkeypatch.setattr(choice, "importance", lambda *_, **__: found._replace(judgement=Judgement(verdicts, verdicts)))
    found = recommend(problem.model, problem.guide(), problem.sample(10, seed=0))
    assert named(found) == expected
    assert found.reason.endswith(f"{6 - unreliable}0% from a refined proposal, where {unreliable}0% are unreliable")


def test_what_is_said_is_what_was_found():
    problem = three_latents()
    x = problem.sample(30, seed=0)
    guide = problem.guide(inflate=1 / 3)
    found = recommend(problem.model, guide, x, seed=3)
    plain, refined = (
        importance(problem.model, guide, x, num_particles=2000, seed=3, proposal=proposal).share("ok")
        for proposal in ("guide", "refined")
    )
    said = f"{plain:.0%} are ok from the guide, {refined:.0%} from a refined proposal"
    assert found.reason == f"of 30 datapoints with 2000 draws each, {said}"


def mixture(right):
    """Four Bernoulli latents, with a guide that knows them or one that is sure of the opposite."""
    weight = torch.tensor([3.0, -2.0, 4.0, 5.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(4)).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            p = 0.5 if right else 0.003
            pyro.sample("z", dist.Bernoulli(p * torch.ones(len(x), 4)).to_event(1))

    return model, guide, torch.tensor([12.0, 3.0, 7.0, 9.0, 12.0])


def test_discrete_latents_are_for_importance_sampling():
    model, guide, x = mixture(right=True)
    assert named(recommend(model, guide, x)) == "is"
    model, guide, x = mixture(right=False)
    found = recommend(model, guide, x)
    assert named(found) == "psis"
    assert "and nothing else can be used (site 'z' has no reparameterised distribution" in found.reason


def test_rows_that_cannot_be_given_alone_are_all_looked_at():
    problem = three_latents()
    x = problem.sample(100, seed=0)
    loc = problem.posterior(x).mean

    def guide(x):
        with pyro.plate("data", len(x)) as rows:
            pyro.sample("z", dist.MultivariateNormal(loc[rows], 1.3 * problem.posterior_covariance))

    found = recommend(problem.model, guide, x)
    assert named(found) == "is"
    assert found.reason.startswith("of 100 datapoints")


@pytest.mark.parametrize("build", [hand_written, conv, two_layer])
def test_foreign_pairs(build):
    torch.set_default_dtype(torch.float32)  # as they are
    model, guide, _, x = build(num=4)
    found = named(recommend(model, guide, x))
    assert found in ("is", "psis", "ais") if build is two_layer else found == "grid"


def test_the_seed_alone_decides_and_nothing_is_touched():
    problem = three_latents()
    x = problem.sample(50, seed=0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = recommend(problem.model, problem.guide(inflate=0.7), x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert recommend(problem.model, problem.guide(inflate=0.7), x) == first


def test_what_is_wrong_with_a_pair_is_said():
    problem = three_latents()
    with pytest.raises(PairError, match="no latent site"):
        recommend(problem.model, lambda x: None, problem.sample(3, seed=0))
    with pytest.raises(DataError, match="at least one datapoint"):
        recommend(problem.model, problem.guide(), torch.zeros(0, 4))


# By name


CHEAP = {"is": {"num_particles": 50}, "psis": {"num_particles": 50}, "grid": {}}


@pytest.mark.parametrize("name", CHEAP)
def test_an_estimator_by_its_name_is_that_estimator(name):
    problem, x = linear(), linear().sample(4, seed=0)
    guide = problem.guide(inflate=1.3)
    found = estimate(problem.model, guide, x, estimator=name, seed=5, **CHEAP[name])
    direct = ESTIMATORS[name](problem.model, guide, x, seed=5, **CHEAP[name])
    assert torch.equal(found.value, direct.value)
    assert torch.equal(found.num_evaluations, direct.num_evaluations)
    assert found.side == direct.side


def test_the_names_are_those_of_the_functions():
    assert list(ESTIMATORS.values()) == [importance, psis, ais, smc, quadrature]


@pytest.fixture
def called(monkeypatch):
    """Estimators that only note what they were called with."""
    calls = []
    for name in ESTIMATORS:
        note = lambda *_, name=name, **options: calls.append((name, options))  # noqa: E731
        monkeypatch.setitem(choice.ESTIMATORS, name, note)
    return calls


PASSED_ON = {"seed": 3, "max_bytes": 2**20, "progress": True}


def call(problem, **options):
    def unchecked(function):  # the stand-ins return nothing
        return getattr(function, "__wrapped__", function)

    return unchecked(estimate)(
        problem.model, problem.guide(inflate=1.2), problem.sample(3, seed=0), **PASSED_ON, **options
    )


@pytest.mark.parametrize("name", ESTIMATORS)
def test_options_are_passed_on(called, name):
    call(linear(), estimator=name)
    assert called == [(name, PASSED_ON)]


@pytest.mark.parametrize("name", ["is", "psis"])
def test_the_options_of_importance_sampling(called, name):
    call(linear(), estimator=name, num_particles=7, target_stderr=0.1)
    assert called == [(name, {**PASSED_ON, "num_particles": 7, "target_stderr": 0.1})]


def test_what_is_recommended_takes_the_options_that_it_has(called):
    options = {"num_particles": 7, "target_stderr": 0.1}
    call(linear(), **options)
    call(linear(), estimator=Recommendation("ais", "guide", "because"), **options)
    call(linear(), estimator=Recommendation("psis", "guide", "because"), **options)
    call(three_latents(), **options)
    assert called == [
        ("grid", PASSED_ON),
        ("ais", {**PASSED_ON, "num_particles": 7}),
        ("psis", {**PASSED_ON, **options, "proposal": "guide"}),
        ("is", {**PASSED_ON, **options, "proposal": "guide"}),
    ]


REFUSED = [
    ({"estimator": "grid", "num_particles": 7}, "num_particles=7: the estimator 'grid' has no such option"),
    ({"estimator": "ais", "target_stderr": 0.1}, r"target_stderr=0\.1: the estimator 'ais' has no such option"),
    ({"estimator": "smc", "target_stderr": 0.1}, "the estimator 'smc' has no such option; leave it out"),
    (
        {"estimator": "pis"},
        r"estimator='pis': expected one of 'auto', 'is', 'psis', 'ais', 'smc', 'grid': did you mean 'psis'\?",
    ),
    ({"estimator": "quadrature"}, "estimator='quadrature': expected one of 'auto'"),
    ({"estimator": ""}, "estimator='': expected one of"),
    ({"estimator": Recommendation("best", "guide", "because")}, "estimator='best': expected one of"),
    ({"num_particles": 1}, "num_particles=1: expected at least 2, since one draw has no error bar"),
    ({"num_particles": -5}, "num_particles=-5"),
    ({"target_stderr": 0.0}, r"target_stderr=0\.0"),
    ({"target_stderr": float("nan")}, "target_stderr=nan"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_what_cannot_be_is_refused_before_anything_is_drawn(called, options, message):
    for problem in (linear(), three_latents()):  # whatever would be recommended
        with pytest.raises(ConfigError, match=message) as caught:
            call(problem, **options)
        assert "\n" not in str(caught.value)
    assert called == []


@pytest.mark.parametrize(
    "options", [{"estimator": "psi"}, {"estimator": "ais", "target_stderr": 0.1}, {"num_particles": 1}], ids=str
)
def test_a_mistake_in_an_option_does_not_cost_an_evaluation(monkeypatch, options):
    torch.set_default_dtype(torch.float32)
    vae = pv.presets.mlp_vae(data_shape=(8,), latent_dim=2, hidden=(16,))
    monkeypatch.setattr(evaluation, "elbo", lambda *_, **__: pytest.fail("drawn"))
    with pytest.raises(ConfigError):
        pv.evaluate(vae, pixels(4, 8), **options)


def test_names_are_checked_alone():
    for name in ("auto", *ESTIMATORS):
        require_estimator(name)
    with pytest.raises(ConfigError, match="did you mean 'auto'"):
        require_estimator("autos")


def test_any_array_is_data():
    problem = linear()
    x = problem.sample(3, seed=0)
    assert recommend(problem.model, problem.guide(), x.numpy()) == recommend(problem.model, problem.guide(), x)
    found = estimate(problem.model, problem.guide(), np.asarray(x), estimator="is", num_particles=10)
    torch.testing.assert_close(found.value, problem.log_evidence(x))


def test_the_pilot_does_not_draw_what_the_estimate_draws(monkeypatch):
    """An estimator that is chosen because its draws look well is not to be judged by the same draws."""
    problem, x = three_dimensional()
    found = []

    def spy(*args, **options):
        found.append(importance(*args, **options))
        return found[-1]

    monkeypatch.setattr(choice, "importance", spy)
    recommend(problem.model, problem.guide(inflate=0.7), x, seed=3)
    again = importance(problem.model, problem.guide(inflate=0.7), x, num_particles=2000, seed=3)
    assert found
    assert not torch.equal(found[0].value, again.value)


def three_dimensional():
    problem = pv.problems.linear_gaussian(W=torch.randn(4, 3), scale=0.5)
    return problem, problem.sample(5, seed=0)
