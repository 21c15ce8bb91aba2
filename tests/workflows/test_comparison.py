"""Estimators side by side: the table holds the numbers of the answers, and what it cannot know it leaves out."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch

from pyro_vae.errors import ConfigError, DataError
from pyro_vae.evidence import elbo, importance, psis, quadrature
from pyro_vae.workflows.comparison import Comparison, Row, compare
from tests.test_exams import E2_GAP, linear

pytestmark = pytest.mark.usefixtures("float64")

ESTIMATORS = {
    "ELBO": partial(elbo, num_particles=200),
    "importance sampling": partial(importance, num_particles=200),
    "psis": partial(psis, num_particles=200),
    "grid": quadrature,
}
NUM, REPEATS = 30, 4


@pytest.fixture(scope="module")
def problem():
    with_double = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield linear()
    torch.set_default_dtype(with_double)


@pytest.fixture(scope="module")
def x(problem):
    return problem.sample(NUM, seed=0)


@pytest.fixture(scope="module")
def guide(problem):
    return problem.guide(mean_field=True)


@pytest.fixture(scope="module")
def found(problem, guide, x):
    exact = problem.log_evidence(x)
    return compare(ESTIMATORS, problem.model, guide, x, exact=exact, repeats=REPEATS, seed=7)


@pytest.fixture(scope="module")
def blind(problem, guide, x):
    """Once, and without the truth."""
    return compare(ESTIMATORS, problem.model, guide, x, seed=7)


def row(found, name):
    return next(one for one in found.rows if one.estimator == name)


def test_rows_are_the_estimators_in_their_order(found):
    assert isinstance(found, Comparison)
    assert [one.estimator for one in found.rows] == list(ESTIMATORS) == list(found.evidence)
    assert [one.side for one in found.rows] == ["lower", "lower", "point", "point"]
    assert (found.num_datapoints, found.num_repeats) == (NUM, REPEATS)


def test_repeats_have_seeds_of_their_own(problem, guide, x, found):
    answers = found.evidence["importance sampling"]
    assert len(answers) == REPEATS
    for r, answer in enumerate(answers):
        direct = importance(problem.model, guide, x, num_particles=200, seed=7 + r)
        assert torch.equal(answer.value, direct.value)
    assert not torch.equal(answers[0].value, answers[1].value)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_numbers_by_their_definitions(problem, x, found, name):
    one, answers, truth = row(found, name), found.evidence[name], problem.log_evidence(x)
    value = torch.stack([answer.value for answer in answers])
    stderr = torch.stack([answer.stderr for answer in answers])
    assert one.value == pytest.approx(value.mean().item())
    assert one.bias == pytest.approx((value - truth).mean().item(), abs=1e-12)
    assert one.rmse == pytest.approx((value - truth).square().mean().sqrt().item(), abs=1e-12)
    assert one.coverage == pytest.approx(((value - truth).abs() <= 1.96 * stderr).double().mean().item())
    assert one.sd == pytest.approx(value.var(0).mean().sqrt().item(), abs=1e-12)
    assert one.test_set_error == pytest.approx(value.mean(0).std().item() / math.sqrt(NUM))
    # The mean of R independent repeats over N independent datapoints.
    error = stderr.square().sum().sqrt().item() / (NUM * REPEATS)
    assert one.monte_carlo_error == pytest.approx(error)
    assert one.ok == pytest.approx(np.mean([answer.share("ok") for answer in answers]))
    assert one.num_particles == pytest.approx(np.mean([answer.num_particles.double().mean() for answer in answers]))
    assert one.evaluations == pytest.approx(np.mean([answer.num_evaluations.double().mean() for answer in answers]))
    assert one.seconds > 0


def test_the_numbers_mean_what_they_say(found):
    assert found.truth == pytest.approx(row(found, "grid").value, abs=1e-5)
    assert row(found, "grid").rmse < 1e-5
    assert row(found, "grid").sd < 1e-5
    elbo_row, sampled = row(found, "ELBO"), row(found, "importance sampling")
    assert elbo_row.bias == pytest.approx(-E2_GAP, abs=0.03)
    assert elbo_row.coverage < 0.5 < 0.7 < sampled.coverage  # an error bar of a bound is not one of log p(x)
    assert sampled.rmse < 0.6 * elbo_row.rmse
    assert math.isnan(elbo_row.pareto_k_above)
    assert math.isnan(row(found, "grid").pareto_k_above)
    assert 0 < sampled.pareto_k_above < 1
    assert sampled.sd == pytest.approx(sampled.rmse, rel=0.3)


def test_without_a_truth_and_repeats_the_rest_is_known(found, blind):
    assert math.isnan(blind.truth)
    for one in blind.rows:
        assert all(math.isnan(getattr(one, name)) for name in ("bias", "rmse", "coverage", "sd"))
        known = set(Row._fields) - {"bias", "rmse", "coverage", "sd", "pareto_k_above"}
        assert not any(math.isnan(getattr(one, name)) for name in known - {"estimator", "side"})
    assert torch.equal(blind.evidence["psis"][0].value, found.evidence["psis"][0].value)


# What it says


def test_results_are_ready_for_json(found, blind):
    for table, repeats in ((found, REPEATS), (blind, 1)):
        read = json.loads(json.dumps(table.to_dict(), allow_nan=False))
        assert (read["num_datapoints"], read["num_repeats"]) == (NUM, repeats)
        assert [one["estimator"] for one in read["rows"]] == list(ESTIMATORS)
        assert set(read["rows"][0]) == set(Row._fields)
    assert read["truth"] is None
    assert read["rows"][0]["bias"] is None
    assert found.to_dict()["truth"] == found.truth
    assert found.to_dict()["rows"][1]["bias"] == found.rows[1].bias


def test_a_table_for_pandas(found):
    table = found.to_dataframe()
    assert list(table.index) == list(ESTIMATORS)
    assert list(table.columns) == [name for name in Row._fields if name != "estimator"]
    assert table.loc["ELBO", "bias"] == row(found, "ELBO").bias


TRUTH_TITLES = ("bias", "RMSE", "in 95%")


def test_the_table_is_aligned_and_holds_the_numbers(found, blind):
    for table, known in ((found, True), (blind, False)):
        header, *lines = str(table).splitlines()
        assert all((title in header) == known for title in TRUTH_TITLES)
        assert len(lines) == len(ESTIMATORS) + known
        assert {len(line) for line in lines[: len(ESTIMATORS)]} == {len(header)}
        assert len(header) <= len("importance sampling") + 110
        for line, one in zip(lines, table.rows, strict=False):
            assert line.startswith(one.estimator.ljust(len("importance sampling")))
            cells = line[len("importance sampling") :].replace("± ", "").split()
            assert cells[:4] == [
                one.side,
                f"{one.num_particles:.0f}",
                f"{one.value:.3f}",
                f"{one.monte_carlo_error:.3f}",
            ]
            assert cells[-1] == f"{one.evaluations:.0f}"
            if known:
                assert cells[5:7] == [f"{one.bias:+.3f}", f"{one.rmse:.3f}"]
    last = str(found).splitlines()[-1]
    assert last.split() == ["truth", f"{found.truth:.3f}"]
    column = str(found).splitlines()[0].index("nats") + len("nats")
    assert last[:column].endswith(f"{found.truth:.3f}")  # below the other values


def test_what_is_not_known_is_a_dash(found):
    line = next(line for line in str(found).splitlines() if line.startswith("ELBO"))
    assert "-" in line.split()  # its k-hat
    alone = Comparison(found.rows[:1], 1, 1, math.nan, {})
    assert "ELBO" in str(alone)


# Input


def test_one_datapoint(problem, guide, x):
    found = compare({"is": partial(importance, num_particles=20)}, problem.model, guide, x[:1], exact=[0.0])
    assert math.isnan(found.rows[0].test_set_error)
    assert found.rows[0].bias == pytest.approx(found.rows[0].value)
    assert "-" in str(found)


@pytest.mark.parametrize("kind", [list, np.asarray, lambda values: values.float()], ids=["list", "numpy", "float32"])
def test_data_and_truth_may_be_any_array(problem, guide, x, kind):
    exact = problem.log_evidence(x)
    found = compare({"is": partial(importance, num_particles=20)}, problem.model, guide, x.numpy(), exact=kind(exact))
    assert found.truth == pytest.approx(exact.mean().item(), abs=1e-5)


def test_the_caller_is_left_alone(problem, guide, x, capsys):
    before, exact = torch.get_rng_state(), problem.log_evidence(x).requires_grad_()
    compare({"is": partial(importance, num_particles=20)}, problem.model, guide, x, exact=exact, progress=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert exact.grad is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"estimators": {}}, ConfigError, "no estimators to compare"),
        ({"exact": torch.zeros(4)}, ConfigError, r"exact: expected one value for each of 30 datapoints, got \(4,\)"),
        ({"exact": torch.zeros(30, 1)}, ConfigError, r"got \(30, 1\)"),
        ({"exact": "truth"}, DataError, "exact: found str"),
        ({"repeats": 0}, ConfigError, "repeats=0: expected at least 1"),
        ({"x": torch.zeros(0, 5)}, DataError, "at least one datapoint"),
        ({"x": torch.tensor(1.0)}, DataError, "at least one datapoint"),
        ({"x": torch.full((3, 5), math.nan)}, DataError, "15 non-finite"),
    ],
    ids=["none", "too few", "a column", "text", "no repeats", "empty", "a number", "nan"],
)
def test_what_cannot_be_is_refused(problem, guide, x, options, error, message):
    given = {"estimators": ESTIMATORS, "x": x, **options}
    estimators, data = given.pop("estimators"), given.pop("x")
    with pytest.raises(error, match=message) as caught:
        compare(estimators, problem.model, guide, data, **given)
    assert "\n" not in str(caught.value)
