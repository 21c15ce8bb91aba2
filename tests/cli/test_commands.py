"""The command line and what it leaves behind: run folders, exit codes, and which stream says what."""

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, get_args, get_type_hints

import numpy as np
import pytest

import pyro_vae as pv
from pyro_vae.cli.build import objective_of
from pyro_vae.cli.commands import COMMANDS, main
from pyro_vae.cli.config import _OWNERS, TrainConfig
from pyro_vae.errors import ConfigError
from pyro_vae.training.schedules import LinearWarmup
from pyro_vae.training.state import Epoch

TINY = ("train", "digits", "--num-epochs", "2", "--eval-particles", "10", "--hidden", "16", "--device", "cpu")
PICTURES = {"history.png", "reconstructions.png", "samples.png"}
OF_TWO_LATENTS = {"manifold.png", "latents.png"}
RESULTS = {"config.json", "model.safetensors", "history.csv", "evaluation.json"}


class Answer(NamedTuple):
    status: int
    out: str
    err: str


def cli(*args, folder=None):
    """Run a command in this process, in the folder if one is given; a fixture of a whole module cannot use capsys."""
    out, err = io.StringIO(), io.StringIO()
    place = contextlib.nullcontext() if folder is None else contextlib.chdir(folder)
    with place, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        main(list(map(str, args)))
    return Answer(end.value.code, out.getvalue(), err.getvalue())


def succeed(*args, folder=None):
    answer = cli(*args, folder=folder)
    assert answer.status == 0, answer.err
    assert answer.err == ""  # no bars and no notes where there is no terminal and nothing to note
    return answer


def assert_one_line(answer, pattern=""):
    """Refused: exit 2, one line on stderr, nothing on stdout."""
    assert answer.status == 2, answer.err
    assert answer.out == ""
    assert answer.err.startswith("pyro-vae: ")
    assert answer.err.count("\n") == 1
    assert re.search(pattern, answer.err), answer.err


def names(folder):
    return {path.name for path in folder.iterdir()}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def evaluation(folder, *without):
    """Return the results of a run, without those that may differ between two runs."""
    found = json.loads((folder / "evaluation.json").read_text())
    found["training"].pop("seconds")
    for key in without:
        found["config"].pop(key)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run with two latents, and what its training said. Read only."""
    folder = tmp_path_factory.mktemp("shared") / "run"
    return folder, succeed(*TINY, "--out", folder, "--json")


@pytest.fixture
def copy(run, tmp_path):
    """The same run, to be changed."""
    return Path(shutil.copytree(run[0], tmp_path / "run"))


# --- Training -----------------------------------------------------------------------------------------------------


def test_two_latents_leave_results_and_five_pictures(run):
    folder, _ = run
    assert names(folder) == RESULTS | PICTURES | OF_TWO_LATENTS
    for name in PICTURES | OF_TWO_LATENTS:
        picture = (folder / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert 1_000 < len(picture) < 400_000


def test_stdout_is_the_result_as_json(run):
    folder, answer = run
    result = json.loads(answer.out)
    assert answer.out.count("\n") == 1
    assert result["run"] == str(folder)
    assert {Path(path).name for path in result["pictures"]} == PICTURES | OF_TWO_LATENTS
    assert [row["estimate"] for row in result["estimates"]] == ["ELBO", "IWAE", "log p(x)"]
    assert result["protocol"] == (
        "digits test set: 360 images of 8 x 8, binarised once (seed 0; training: dynamic); likelihood: Bernoulli"
    )
    saved = json.loads((folder / "evaluation.json").read_text())
    assert result["estimates"] == saved["estimates"]
    assert result["latents"] == saved["latents"]


def test_evaluation_says_what_it_belongs_to(run):
    folder, _ = run
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["config"] == json.loads((folder / "config.json").read_text())
    assert found["config"]["hidden"] == [16]
    assert (found["config"]["latent_dim"], found["config"]["binarise"]) == (2, "dynamic")  # the defaults, written out
    assert found["training"]["epochs"] == 2
    assert found["training"]["seconds"] > 0
    assert found["clamped_scales"] == {"z": 0, "x": 0}
    assert found["versions"]["pyro-vae"] == pv.__version__
    nats = [row["nats"] for row in found["estimates"]]
    assert all(-64 * math.log(2) < value < -15 for value in nats)  # better than fair coins, worse than a trained model


def test_history_has_a_row_per_epoch(run):
    rows = list(csv.DictReader((run[0] / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    steps = math.ceil(round(0.9 * 1437) / 64)
    assert [row["step"] for row in rows] == [str(steps), str(2 * steps)]
    assert all(math.isfinite(float(row["validation_bound"])) for row in rows)
    assert float(rows[1]["train_bound"]) > float(rows[0]["train_bound"])


def reevaluated(folder, seed):
    """A run's model on the test images as they are binarised from the stored seed 0, whatever the run's seed is."""
    digits = pv.data.load("digits")
    x_test = pv.data.Pixels(digits.x_test, "static", max_value=digits.max_value, seed=0)[:]
    vae = pv.load(folder / "model.safetensors")
    return pv.evaluate(vae, x_test, estimator="is", num_particles=10, seed=seed).rows()


def test_the_saved_model_is_the_one_that_was_evaluated(run):
    assert reevaluated(run[0], seed=0) == json.loads((run[0] / "evaluation.json").read_text())["estimates"]


@pytest.fixture(scope="module")
def four_latents(tmp_path_factory):
    """An IWAE with four latents, in the default folder and in words. Read only."""
    place = tmp_path_factory.mktemp("default")
    iwae = ("--latent-dim", "4", "--objective", "iwae", "--num-particles", "5", "--validation", "0")
    return place, succeed(*TINY, *iwae, folder=place)


def test_four_latents_leave_three_pictures_in_the_default_folder(four_latents):
    place, _ = four_latents
    assert names(place) == {"runs"}
    assert names(place / "runs") == {"digits-1"}
    assert names(place / "runs" / "digits-1") == RESULTS | PICTURES


TO_RELY_ON = "log p(x) to rely on: pyro-vae evaluate runs/digits-1"


def test_in_words_stdout_is_a_table_with_what_it_refers_to(four_latents):
    lines = four_latents[1].out.splitlines()
    assert lines[0].startswith("digits test set: 360 images")
    assert "lower bounds" in lines[1]
    assert [line.split("  ")[0] for line in lines[4:7]] == ["ELBO", "IWAE", "log p(x)"]
    assert any(re.fullmatch(r"active units of z: \d of 4, KL \d+\.\d\d nats.*", line) for line in lines)
    assert "run: runs/digits-1" in lines
    assert any(line.startswith("log p(x) is ") for line in lines) == (lines.count(TO_RELY_ON) == 1)
    pictures = next(line for line in lines if line.startswith("pictures: ")).split()[1:]
    assert {Path(path).name for path in pictures} == PICTURES


def test_iwae_is_what_was_trained(four_latents):
    config = json.loads((four_latents[0] / "runs" / "digits-1" / "config.json").read_text())
    assert (config["objective"], config["num_particles"]) == ("iwae", 5)


def test_the_same_seed_gives_the_same_run_and_the_next_free_folder(run, four_latents):
    place, _ = four_latents
    succeed(*TINY, folder=place)
    assert names(place / "runs") == {"digits-1", "digits-2"}
    again = place / "runs" / "digits-2"
    assert evaluation(again, "out") == evaluation(run[0], "out")
    assert (again / "model.safetensors").read_bytes() == (run[0] / "model.safetensors").read_bytes()


def test_another_seed_gives_another_run_on_the_same_test_set(run, tmp_path):
    succeed(*TINY, "--seed", "1", "--out", tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() != (run[0] / "model.safetensors").read_bytes()
    found = evaluation(tmp_path / "run")
    assert found["estimates"] != evaluation(run[0])["estimates"]
    assert found["estimates"] == reevaluated(tmp_path / "run", seed=1)
    assert (found["seed"], found["config"]["binarise_seed"]) == (1, 0)


@pytest.mark.parametrize("scale", ["decoder", "learned", "0.25"])
def test_gaussian_likelihood_in_every_scale_mode(tmp_path, scale):
    options = ("--likelihood", "gaussian", "--likelihood-scale", scale, "--latent-dim", "3")
    answer = succeed(*TINY, *options, "--out", tmp_path / "run", "--json")
    result = json.loads(answer.out)
    kept = 0.25 if scale == "0.25" else scale
    assert f"grey levels in [0, 1]; likelihood: Gaussian ({kept} scale; a density" in result["protocol"]
    assert pv.load(tmp_path / "run" / "model.safetensors").recipe["likelihood_scale"] == kept
    assert all(math.isfinite(row["nats"]) for row in result["estimates"])
    answer = succeed("evaluate", tmp_path / "run", "--estimator", "is", "--num-particles", "10", "--json")
    assert json.loads(answer.out)["estimates"] == result["estimates"]


@pytest.mark.parametrize(
    ("options", "refers_to"),
    [
        (["--preset", "conv", "--channels", "2", "--prior", "mixture"], "dynamic"),
        (["--preset", "burda_two_layer", "--latent-dim", "3"], "dynamic"),
        (["--prior", "vamp", "--likelihood", "continuous_bernoulli"], "Continuous Bernoulli (a density"),
        (
            ["--posterior", "full", "--likelihood", "discretised_logistic"],
            "Discretised logistic (decoder scale; a prob",
        ),
    ],
)
def test_every_part_makes_a_run(tmp_path, options, refers_to):
    common = ("--num-epochs", "1", "--eval-particles", "2", "--out", "run")
    assert refers_to in succeed("train", *options, *common, folder=tmp_path).out
    assert names(tmp_path / "run") >= RESULTS | PICTURES
    succeed("sample", "run", "--num", "3", folder=tmp_path)
    succeed("evaluate", "run", "--num-images", "3", "--estimator", "is", folder=tmp_path)
    recorded = evaluation(tmp_path / "run")
    assert all(math.isfinite(row["nats"]) for row in recorded["estimates"])


def test_grey_levels_under_a_bernoulli_are_refused_and_cost_nothing(tmp_path):
    answer = cli(*TINY, "--binarise", "none", "--out", tmp_path / "run")
    assert_one_line(answer, r"\{0, 1\}.*relaxed")
    assert not (tmp_path / "run").exists()  # the same command with the mended option must not be refused


def test_grey_levels_are_accepted_when_relaxed_and_called_no_density(tmp_path):
    options = ("--binarise", "none", "--relaxed", "--latent-dim", "3", "--out", tmp_path / "run", "--json")
    assert "not a log-density" in json.loads(succeed(*TINY, *options).out)["protocol"]


@pytest.mark.parametrize("preset", ["mlp", "burda"])
def test_relaxed_alone_means_grey_levels(tmp_path, preset):
    train = [argument for argument in TINY if argument not in ("--hidden", "16")]
    answer = cli(*train, "--preset", preset, "--latent-dim", "3", "--relaxed", "--out", tmp_path / "run", "--json")
    if answer.status:  # a preset that has no relaxed likelihood says so, and does not ask for what was given
        assert_one_line(answer, f"preset='{preset}'")
    else:
        assert "not a log-density" in json.loads(answer.out)["protocol"]


def test_burda_preset_with_its_schedule(tmp_path):
    train = [argument for argument in TINY if argument not in ("--hidden", "16")]
    paper = ("--preset", "burda", "--schedule", "burda", "--adam-eps", "1e-4", "--patience", "5")
    succeed(*train, *paper, "--out", tmp_path / "run")
    vae = pv.load(tmp_path / "run" / "model.safetensors")
    assert vae.recipe["preset"] == "burda_vae"
    assert vae.latent_dim == 50
    assert [layer.out_features for layer in vae.encoder.layers[::2]] == [200, 200, 100]
    assert names(tmp_path / "run") == RESULTS | PICTURES


# --- The other verbs ----------------------------------------------------------------------------------------------


def test_evaluate_again_finds_the_same_and_notes_it(copy):
    answer = succeed("evaluate", copy, "--estimator", "is", "--num-particles", "10", "--json")
    result = json.loads(answer.out)
    assert result["estimates"] == json.loads((copy / "evaluation.json").read_text())["estimates"]
    assert (
        json.loads((copy / "evaluation-is-num_particles-10-seed-0.json").read_text())["estimates"]
        == result["estimates"]
    )
    assert "log p(x)" in succeed("evaluate", copy, "--estimator", "is", "--num-particles", "60").out


def added(folder, before):
    """The one file that was added to a run, as a name and its content."""
    (name,) = names(folder) - before
    return name, json.loads((folder / name).read_text())


def test_two_latents_are_evaluated_on_a_grid(copy):
    before = names(copy)
    result = json.loads(succeed("evaluate", copy, "--num-images", "20", "--json").out)
    name, record = added(copy, before)
    assert name == "evaluation-grid-num_images-20-seed-0.json"
    assert (result["estimator"], result["num_datapoints"]) == ("grid", 20)
    assert [row["side"] for row in result["estimates"]] == ["lower", "lower", "point"]
    assert record["estimates"] == result["estimates"]
    assert (record["num_images"], record["num_particles"], record["target_stderr"]) == (20, None, None)
    assert result["protocol"].startswith("digits test set: 20 images")
    elbo, iwae, log_p = (row["nats"] for row in result["estimates"])
    assert elbo < log_p
    assert iwae < log_p + 0.1
    assert result["estimates"][2]["median_ess"] is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--estimator", "is", "--num-particles", "60"], "is-num_particles-60"),
        (["--estimator", "psis", "--target-stderr", "0.05"], "psis-target_stderr-0.05"),
        (["--estimator", "is", "--target-stderr", "0.5"], "is-target_stderr-0.5"),
        (["--estimator", "ais", "--num-particles", "2"], "ais-num_particles-2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_estimator_and_its_options(copy, options, expected):
    before = names(copy)
    result = json.loads(succeed("evaluate", copy, *options, "--num-images", "3", "--seed", "4", "--json").out)
    name, record = added(copy, before)
    assert name == f"evaluation-{expected}-num_images-3-seed-4.json"
    assert result["estimator"] == record["estimator"] == options[1]
    assert record["seed"] == 4
    last = result["estimates"][2]
    if "--target-stderr" in options:
        assert last["monte_carlo_error"] <= float(options[3])
        assert last["num_particles"] >= 256
        assert record["target_stderr"] == float(options[3])
    else:
        assert last["num_particles"] == int(options[3]) == record["num_particles"]
    assert last["num_evaluations"] >= last["num_particles"]


def test_in_words_an_evaluation_says_what_its_estimates_are(copy):
    lower = succeed("evaluate", copy, "--estimator", "is", "--num-particles", "60", "--num-images", "5").out
    point = succeed("evaluate", copy, "--estimator", "psis", "--num-particles", "60", "--num-images", "5").out
    assert "; lower bounds; the first error bar is Monte-Carlo" in lower.splitlines()[1]
    assert "; bounds from below, and a point estimate of log p(x); the first" in point.splitlines()[1]
    for said in (lower, point):
        assert [line.split("  ")[0] for line in said.splitlines()[5:7]] == ["IWAE", "log p(x)"]


def test_estimators_side_by_side(copy):
    before = names(copy)
    options = ("--estimators", "is", "psis", "--num-images", "6", "--repeats", "2", "--seed", "3")
    answer = succeed("compare", copy, *options)
    name, record = added(copy, before)
    assert name == "comparison.json"
    assert (record["num_datapoints"], record["num_repeats"], record["seed"]) == (6, 2, 3)
    assert [row["estimator"] for row in record["rows"]] == ["is", "psis"]
    assert record["config"] == json.loads((copy / "config.json").read_text())
    for row in record["rows"]:  # with two latents the grid is the truth
        assert row["rmse"] < 0.5
        assert row["value"] == pytest.approx(record["truth"] + row["bias"])
        assert row["num_particles"] == row["evaluations"] == 5000
    lines = answer.out.splitlines()
    assert lines[0].startswith("digits test set: 6 images")
    assert "in 95%" in lines[1]
    assert lines[3].startswith("estimator")
    assert [line.split()[0] for line in lines[4:]] == ["is", "psis", "truth"]
    result = json.loads(succeed("compare", copy, *options, "--json").out)
    assert (result["run"], result["protocol"]) == (str(copy), lines[0])
    assert [row["value"] for row in result["rows"]] == [row["value"] for row in record["rows"]]


def test_more_than_two_latents_have_no_truth_to_compare_with(four_latents):
    run = four_latents[0] / "runs" / "digits-1"
    before = content(run)
    try:
        result = json.loads(succeed("compare", run, "--estimators", "is", "--num-images", "3", "--json").out)
        assert result["truth"] is None
        assert result["rows"][0]["rmse"] is None
        assert result["rows"][0]["sd"] is None
    finally:
        (run / "comparison.json").unlink(missing_ok=True)
    for verb in (["evaluate", run, "--estimator", "grid"], ["compare", run, "--estimators", "grid"]):
        assert_one_line(cli(*verb, "--num-images", "3"), "the pair has 4 latent dimensions, expected 1 or 2")
    assert content(run) == before


def test_by_default_all_estimators_but_the_grid_are_compared(run, monkeypatch):
    asked = []

    def noted(estimators, *_, **options):
        asked.append((list(estimators), options["repeats"], len(options["exact"])))
        raise pv.errors.ConfigError("enough")

    monkeypatch.setattr("pyro_vae.cli.runs.compare", noted)
    assert_one_line(cli("compare", run[0]), "enough")
    assert asked == [(["is", "psis", "ais", "smc"], 1, 100)]


@pytest.mark.parametrize(
    ("args", "pattern"),
    [
        (["evaluate", "--estimator", "psi"], "psis"),
        (["evaluate", "--estimator", "grid", "--num-particles", "5"], "'grid' has no such option; leave it out"),
        (["evaluate", "--estimator", "ais", "--target-stderr", "0.1"], "'ais' has no such option; leave it out"),
        (["evaluate", "--target-stderr", "0"], r"target_stderr=0\.0"),
        (["evaluate", "--target-stderr", "nan"], "target_stderr=nan"),
        (["evaluate", "--proposal", "inflated"], "proposal='inflated' was removed: use 'refined'"),
        (["evaluate", "--proposal", "refine"], "did you mean 'refined'"),
        (["evaluate", "--num-particles", "1"], "num_particles=1: expected at least 2"),
        (["evaluate", "--num-images", "0"], "num_images=0: expected at least 1"),
        (["compare", "--estimators", "is", "psi"], "psis"),
        (["compare", "--num-images", "1"], "num_images=1: expected at least 2"),
        (["compare", "--repeats", "0"], "repeats=0: expected at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_looking_at_a_run_in_a_way_that_cannot_be_is_one_line_and_leaves_nothing(run, args, pattern):
    before = content(run[0])
    verb, *options = args
    assert_one_line(cli(verb, run[0], *options), pattern)
    assert content(run[0]) == before


def arrays_in(path):
    """An open archive would be closed whenever it is collected, in the midst of another test."""
    with np.load(path) as archive:
        return dict(archive)


def test_sample_draws_z_x_and_its_mean(copy):
    answer = succeed("sample", copy, "--num", "7", "--seed", "3", "--json")
    arrays, picture = map(Path, json.loads(answer.out))
    drawn = arrays_in(arrays)
    assert {name: drawn[name].shape for name in drawn} == {"z": (7, 2), "x": (7, 8, 8), "mean": (7, 8, 8)}
    assert set(np.unique(drawn["x"])) == {0.0, 1.0}
    assert ((drawn["mean"] > 0) & (drawn["mean"] < 1)).all()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert succeed("sample", copy, "--num", "7", "--seed", "3").out.split() == [str(arrays), str(picture)]
    assert np.array_equal(arrays_in(arrays)["x"], drawn["x"])
    succeed("sample", copy, "--num", "7", "--seed", "4")
    assert not np.array_equal(arrays_in(arrays)["x"], drawn["x"])


def test_impute_fills_what_is_missing_in_a_file(copy, tmp_path):
    x = np.zeros((3, 64))
    x[0, 5] = x[2, 60:] = np.nan
    np.save(tmp_path / "some.npy", x)
    np.savetxt(tmp_path / "other.csv", x, delimiter=",")
    np.save(tmp_path / "images.npy", x.reshape(3, 8, 8))
    for file, shape in (("some.npy", (64,)), ("other.csv", (64,)), ("images.npy", (8, 8))):
        answer = succeed("impute", copy, tmp_path / file, "--num-particles", "40", "--num-imputations", "3")
        found = arrays_in(answer.out.strip())
        assert found["draws"].shape == (3, 3, *shape)
        assert found["lower"].shape == found["mean"].shape == (3, *shape)
        assert np.isfinite(found["mean"]).all()
        assert (found["mean"].reshape(3, 64)[~np.isnan(x)] == 0).all()
        assert found["mean"].reshape(3, 64)[0, 5] > 0
        assert found["verdict"].shape == (3,)


def test_impute_overwrites_nothing(copy, tmp_path):
    x = np.zeros((2, 64))
    x[0, 5] = np.nan
    np.save(tmp_path / "some.npy", x)
    path = Path(succeed("impute", copy, tmp_path / "some.npy", "--num-particles", "40").out.strip())
    assert path == tmp_path / "some-imputed.npz"
    before = path.read_bytes()
    assert_one_line(
        cli("impute", copy, tmp_path / "some.npy", "--seed", "1"), "is there already and is not overwritten"
    )
    assert path.read_bytes() == before


def test_impute_takes_an_empty_cell_as_missing(copy, tmp_path):
    rows = [["0"] * 64, ["0"] * 63 + [""]]
    (tmp_path / "some.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    answer = succeed("impute", copy, tmp_path / "some.csv", "--num-particles", "40")
    found = arrays_in(answer.out.strip())
    assert (found["mean"][0] == 0).all()
    assert found["mean"][1, 63] > 0


def test_impute_scores_hidden_halves_of_the_test_images(copy):
    answer = succeed("impute", copy, "--num-particles", "100", "--num-images", "20", "--json")
    found = json.loads(answer.out)
    assert found["nats"] < 0 < found["monte_carlo_error"]
    assert 0 < found["rmse"] < 1
    assert Path(found["pictures"][0]).read_bytes().startswith(b"\x89PNG")
    assert "log p(hidden | seen)" in succeed("impute", copy, "--num-particles", "100", "--num-images", "20").out


@pytest.mark.parametrize(
    ("file", "content", "pattern"),
    [
        ("none.npy", None, "does not exist"),
        ("some.txt", "1", "expected a file .npy or .csv"),
        ("some.npy", "1", "cannot be read as an array of numbers"),
        ("some.csv", "", "it has no rows"),
        ("some.csv", "a,b\n3,4\n", "cannot be read as an array of numbers"),  # a header is no row of gaps
        ("some.csv", "1,2\n3,oops\n", "cannot be read as an array of numbers"),
        ("some.csv", "1,2\n3,4\n", r"expected shape \('n', 8, 8\), got \(2, 2\)"),
    ],
)
def test_impute_says_in_one_line_what_is_wrong_with_a_file(run, tmp_path, file, content, pattern):
    if content is not None:
        (tmp_path / file).write_text(content)
    assert_one_line(cli("impute", run[0], tmp_path / file), pattern)


@pytest.mark.parametrize(
    ("array", "pattern"),
    [
        (np.zeros((0, 64)), r"expected at least one datapoint, .* got shape \(0, 64\)"),
        (np.full((2, 64), "1"), "entries of type <U1, expected an array of numbers"),
        (np.zeros((2, 64), complex), "entries of type complex128, expected an array of numbers"),
        (np.float64(1), "expected at least one datapoint"),
        (np.full((2, 64), np.inf), "non-finite values"),
    ],
)
def test_impute_says_in_one_line_what_is_wrong_with_an_array(run, tmp_path, array, pattern):
    np.save(tmp_path / "some.npy", array)
    assert_one_line(cli("impute", run[0], tmp_path / "some.npy"), pattern)
    assert not (tmp_path / "some-imputed.npz").exists()


def test_plot_draws_the_same_pictures_again(copy):
    before = content(copy)
    for name in PICTURES | OF_TWO_LATENTS:
        (copy / name).unlink()
    answer = succeed("plot", copy)
    assert {Path(path).name for path in answer.out.split()} == PICTURES | OF_TWO_LATENTS
    assert content(copy) == before


@pytest.mark.parametrize("view", ["interpolations", "neighbours", "traversals"])
def test_views_that_are_drawn_when_asked_for(copy, view):
    before = content(copy)
    answer = succeed("plot", copy, view)
    assert answer.out.split() == [str(copy / f"{view}.png")]
    picture = (copy / f"{view}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 1_000 < len(picture) < 400_000
    (copy / f"{view}.png").unlink()
    assert content(copy) == before


def test_a_plane_is_measured_in_a_standard_normal(tmp_path):
    words = ("train", "--prior", "mixture", "--num-epochs", "1", "--eval-particles", "2", "--out", "run")
    succeed(*words, folder=tmp_path)
    assert not names(tmp_path / "run") & OF_TWO_LATENTS
    assert_one_line(cli("plot", "run", "manifold", folder=tmp_path), r"under N\(0, 1\), found 2, GaussianMixture")


def test_verbs_need_a_run(tmp_path):
    for verb in ("evaluate", "compare", "sample", "plot", "resume"):
        assert_one_line(cli(verb, tmp_path / "nothing"), "is not a run")
    assert not names(tmp_path)


def test_verbs_refuse_a_damaged_model(copy):
    model = copy / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    for verb in ("evaluate", "compare", "sample", "plot"):
        assert_one_line(cli(verb, copy), r"model\.safetensors: is truncated")


def test_a_complete_run_is_not_resumed(run):
    before = content(run[0])
    assert_one_line(cli("resume", run[0]), "is complete")
    assert content(run[0]) == before


# --- Refusals -----------------------------------------------------------------------------------------------------


def test_an_existing_run_is_refused_and_stays_as_it_is(run):
    before = content(run[0])
    assert_one_line(cli(*TINY, "--seed", "5", "--out", run[0]), "already holds a run")
    assert content(run[0]) == before


def refused(*args):
    """The parser's message for words that it does not understand."""
    answer = cli(*args)
    assert_one_line(answer)
    return answer.err


@pytest.mark.parametrize(
    ("flag", "meant"), [("--latent-dims", "--latent-dim"), ("--batchsize", "--batch-size"), ("--sed", "--seed")]
)
def test_unknown_flag_gets_the_nearest_spelling(flag, meant):
    text = refused("train", flag, "3")
    assert f"unknown option '{flag}'" in text
    assert text.endswith(f": did you mean '{meant}'?\n")


def test_an_option_may_be_written_with_underscores_and_stand_anywhere(copy):
    answer = succeed("plot", "--data_dir=data", copy, "--no-json", "samples", "--json", "history")
    assert [Path(path).name for path in json.loads(answer.out)] == ["samples.png", "history.png"]


@pytest.mark.parametrize(
    ("args", "pattern"),
    [
        (["tran"], r"unknown command 'tran': did you mean 'train'\?"),
        (["elephant"], "'elephant': see `pyro-vae --help`"),
        (["evaluate", "run", "--eval-particles", "3"], r"'--eval-particles': did you mean '--num-particles'\?"),
        (["resume", "run", "--sed", "3"], "option '--sed': see `pyro-vae resume --help`"),
        (["resume", "run", "3"], "unrecognized arguments: 3: see `pyro-vae resume --help`"),
        (["train", "mnsit"], r"did you mean 'mnist'\?"),
        (["train", "--likelihood", "gausian"], r"did you mean 'gaussian'\?"),
        (["train", "--likelihood-scale", "decode"], "'decode', expected a number or 'learned' or 'decoder'"),
        (["train", "--num-epochs", "x"], "--num-epochs: found 'x', expected a whole number"),
        (["train", "--num-epochs"], "--num-epochs: expected one argument: see `pyro-vae train --help`"),
        (["evaluate", "run", "--target-stderr", "x"], "--target-stderr: found 'x', expected a number"),
        (["plot", "run", "histor"], r"did you mean 'history'\?"),
        ([], "train"),
        (["-x"], "see `pyro-vae --help`"),
        (["train", "imagenet"], "fashion_mnist"),
        (["train", "--objective", "vae"], "elbo.*iwae"),
        (["train", "--seed", "one"], "--seed"),
        (["sample"], "required: RUN"),
    ],
)
def test_words_that_the_parser_does_not_know_exit_2(args, pattern):
    assert re.search(pattern, refused(*args))


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--patience", "0"], "patience=0: expected at least 1"),
        (["--num-epochs", "0"], "num_epochs=0"),
        (["--batch-size", "0"], "batch_size=0"),
        (["--eval-particles", "1"], "eval_particles=1: expected at least 2"),
        (["--validation", "1"], r"validation=1\.0"),
        (["--validation", "nan"], "validation=nan"),
        (["--validation", "0", "--patience", "3"], "patience=3 needs"),
        (["--learning-rate", "-1"], r"learning_rate=-1\.0"),
        (["--learning-rate", "inf"], "learning_rate=inf"),
        (["--objective", "iwae", "--gradient", "rloo"], "gradient='rloo': expected one of"),
        (["--objective", "iwae", "--gradient", "vimco"], "num_particles of at least 2"),
        (["--gradient", "dreg", "--analytic-kl"], "analytic_kl"),
        (["--objective", "beta_vae", "--gradient", "dreg"], "beta_vae"),
        (["--objective", "wake_sleep"], "num_particles of at least 2"),
        (["--alpha", "0.3"], "alpha=0.3 belongs to objective='renyi'"),
        (["--objective", "iwae", "--beta", "2"], r"beta=2\.0 belongs to objective='beta_vae'"),
        (["--warmup-steps", "10"], "warmup_steps=10 belongs to"),
        (["--objective", "beta_vae", "--warmup-steps", "0"], "warmup_steps"),
        (["--objective", "iwae", "--analytic-kl"], "analytic_kl"),
        (["--preset", "burda", "--hidden", "32"], "preset='burda'"),
        (["--preset", "burda_two_layer", "--prior", "vamp"], "prior='vamp' .* found preset='burda_two_layer'"),
        (["--preset", "conv", "--hidden", "32"], "preset='conv'"),
        (["--channels", "8"], "channels=.8,. .* found preset='mlp'"),
        (["--preset", "conv", "--channels", "0"], "channels"),
        (["--preset", "conv", "--channels", "2", "2", "2", "2"], "at least 9 pixels"),
        (["--num-components", "4"], "num_components=4 .* found prior='standard'"),
        (["--prior", "mixture", "--num-components", "0"], "num_components=0"),
        (["--prior", "vamp", "--analytic-kl"], "no closed form"),
        (["--likelihood", "discretised_logistic", "--binarise", "static"], "discretised_logistic"),
        (["--likelihood", "continuous_bernoulli", "--likelihood-scale", "2"], r"likelihood_scale=2\.0 belongs to"),
        (["--hidden", "0"], "hidden"),
        (["--hidden", "16", "-1"], "hidden"),
        (["--likelihood", "gaussian", "--likelihood-scale", "-1"], "scale"),
        (["--likelihood", "gaussian", "--likelihood-scale", "nan"], "scale"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--device", "abacus"], "abacus"),
        (["--device", "meta"], "meta"),
        (["--validation", "0.9999"], "validation=0.9999 leaves none"),
        (["--data-dir", "nowhere", "mnist"], "mnist: not found.*nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_values_are_one_line_and_cost_nothing(tmp_path, options, pattern):
    # The digits are the default data set, so that a positional one can be among the options.
    assert_one_line(cli("train", "--num-epochs", "1", *options, "--out", "run", folder=tmp_path), pattern)
    assert not names(tmp_path)


@pytest.mark.parametrize("option", [["--num-particles", "1"], ["--num", "0"]])
def test_bad_values_of_other_verbs_are_one_line(run, option):
    before = content(run[0])
    verb = "sample" if "--num" in option else "evaluate"
    assert_one_line(cli(verb, run[0], *option), "expected at least")
    assert content(run[0]) == before


def test_a_file_in_place_of_the_run_folder_is_one_line(tmp_path):
    (tmp_path / "run").write_text("mine")
    assert_one_line(cli(*TINY, "--out", tmp_path / "run"), "run/config.json: cannot be written")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "samples.png").write_text("mine")
    assert_one_line(cli(*TINY, "--out", tmp_path), "is not empty")
    assert content(tmp_path) == {"samples.png": b"mine"}


def test_a_failed_start_is_not_in_the_way_of_the_next_one(tmp_path):
    failed = cli(*TINY, "--learning-rate", "1e38", "--out", tmp_path / "run")
    assert failed.status == 1
    assert failed.err.count("\n") == 1
    succeed(*TINY, "--out", tmp_path / "run")


def test_ctrl_c_while_evaluating_says_how_to_go_on(tmp_path, monkeypatch):
    def strike(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pyro_vae.cli.runs.evaluate", strike)
        answer = cli(*TINY, "--out", tmp_path / "run")
    assert answer.status == 130
    assert f"pyro-vae resume {tmp_path / 'run'}" in answer.err
    succeed("resume", tmp_path / "run")
    assert {*RESULTS} <= names(tmp_path / "run")


@pytest.mark.parametrize("text", [None, "", "nothing\n", ",".join(Epoch._fields) + "\n"])
def test_a_history_that_is_none_is_one_line(copy, text):
    (copy / "history.csv").unlink()
    if text is not None:
        (copy / "history.csv").write_text(text)
    assert_one_line(cli("plot", copy), "history.csv")


def test_a_config_may_leave_out_what_is_the_default(copy):
    (copy / "config.json").write_text(json.dumps({"latent_dim": 2, "hidden": [16]}))
    succeed("evaluate", copy, "--num-particles", "5")


def test_another_data_split_is_not_resumed(stopped, tmp_path):
    folder = Path(shutil.copytree(stopped[0] / "run", tmp_path / "run"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "binarise_seed": 7}))
    assert_one_line(cli("resume", folder), "is of another training")


def test_more_memory_than_there_is_is_one_line(tmp_path):
    answer = cli("train", "--hidden", "9999999", "9999999", "--num-epochs", "1", "--out", tmp_path / "run")
    assert (answer.status, answer.err.count("\n")) == (1, 1)
    assert "out of memory" in answer.err
    assert not (tmp_path / "run").exists()


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"{pv.__version__}\n"


def test_an_output_that_cannot_be_written_is_one_line():
    line = [sys.executable, "-m", "pyro_vae", "--help"]
    with open("/dev/full", "w") as full:
        answer = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)


# --- The configuration --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        TrainConfig().resolved(),
        TrainConfig(dataset="mnist", preset="burda", schedule="burda", objective="iwae", num_particles=50).resolved(),
        TrainConfig(hidden=(), likelihood="gaussian", likelihood_scale="learned", max_grad_norm=1.5, validation=0.0),
        TrainConfig(preset="conv", channels=(4, 8), prior="vamp", num_components=3, posterior="full"),
        TrainConfig(hidden=(1, 2, 3), likelihood="gaussian", likelihood_scale=0.3, patience=4, device="cpu", out="x y"),
    ],
)
def test_config_survives_json(config):
    again = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False)))
    assert again == config
    assert type(again.hidden) is tuple
    assert again.resolved().resolved() == again.resolved()


def test_defaults_depend_on_the_data_and_the_preset():
    digits, mnist = TrainConfig().resolved(), TrainConfig(dataset="mnist", preset="burda").resolved()
    assert (digits.latent_dim, digits.num_epochs, digits.binarise) == (2, 200, "dynamic")
    assert (mnist.latent_dim, mnist.num_epochs, mnist.binarise) == (50, 20, "dynamic")
    assert TrainConfig(likelihood="gaussian").resolved().binarise == "none"
    assert TrainConfig(relaxed=True).resolved().binarise == "none"


def test_options_belong_to_values_that_other_options_have():
    hints = get_type_hints(TrainConfig)
    for name, owner, values in _OWNERS:
        assert name in hints
        assert set(values) < set(get_args(hints[owner]))
        other = next(value for value in get_args(hints[owner]) if value not in values)
        with pytest.raises(ConfigError, match=f"{name}=.* belongs to {owner}="):
            TrainConfig(**{owner: other, name: SET[name]})


SET = {
    "hidden": (3,),
    "channels": (3,),
    "likelihood": "gaussian",
    "relaxed": True,
    "prior": "vamp",
    "posterior": "full",
    "num_components": 3,
    "likelihood_scale": "learned",
    "alpha": 0.1,
    "beta": 2.0,
    "warmup_steps": 3,
    "analytic_kl": True,
}


def test_every_option_is_a_flag():
    answer = succeed("train", "--help")
    for field in dataclasses.fields(TrainConfig):
        if field.name == "dataset":
            assert "{digits,mnist,fashion_mnist,kmnist,omniglot}" in answer.out
        else:
            assert re.search(rf"--{field.name.replace('_', '-')}[ ,]", answer.out), field.name


def test_every_command_has_help():
    overview = succeed("--help").out
    for name in COMMANDS:
        assert re.search(rf"^    {name} +[A-Z]", overview, flags=re.MULTILINE)
        assert f"usage: pyro-vae {name}" in succeed(name, "--help").out


def test_unknown_key_gets_the_nearest_spelling():
    with pytest.raises(ConfigError, match="unknown option 'batchsize': did you mean 'batch_size'"):
        TrainConfig.from_dict({"batchsize": 3})
    with pytest.raises(ConfigError, match="unknown option 'qqq': expected one of dataset, preset"):
        TrainConfig.from_dict({"qqq": 3})


def test_unknown_key_in_a_run_is_one_line(copy):
    path = copy / "config.json"
    path.write_text(path.read_text().replace('"latent_dim"', '"latent_dims"'))
    for verb in ("evaluate", "plot", "sample", "resume"):
        assert_one_line(cli(verb, copy), "unknown option 'latent_dims': did you mean 'latent_dim'")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "3", "null"])
def test_a_config_that_is_not_one_is_one_line(copy, text):
    (copy / "config.json").write_text(text)
    assert_one_line(cli("plot", copy), r"config\.json|expected")


BAD_VALUES = [
    {"objective": "vae"},
    {"preset": "resnet"},
    {"likelihood": "poisson"},
    {"schedule": "linear"},
    {"binarise": "sometimes"},
    {"dataset": "imagenet"},
    {"latent_dim": "two"},
    {"num_epochs": 2.5},
    {"validation": "a tenth"},
    {"hidden": 16},
    {"hidden": [0]},
    {"hidden": ["16"]},
    {"relaxed": "no"},
    {"seed": "one"},
    {"likelihood": "gaussian", "likelihood_scale": -1.0},
]


def test_values_that_no_flag_would_take_are_refused_from_json_too():
    # In a process of its own: here the tests' own type checks would refuse most of them first.
    code = """
import json, sys
from pyro_vae.cli.config import _OWNERS, TrainConfig
from pyro_vae.errors import ConfigError
for options in json.loads(sys.argv[1]):
    try:
        print("accepted", TrainConfig.from_dict(options) and options)
    except ConfigError as error:
        if str(error).count("\\n"):
            print("lines", options)
    except Exception as error:
        print(type(error).__name__, options)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(BAD_VALUES)], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("", "")


# --- Processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["-m", "pyro_vae", "--help"], ["-m", "pyro_vae.cli.commands", "train", "--help"]])
def test_help_answers_at_once_and_without_torch(command):
    # `-X importtime` lists on stderr every module that is imported. The console script calls the same main().
    if command[1] == "pyro_vae.cli.commands":
        command = ["-c", f"from pyro_vae.cli.commands import COMMANDS, main; main({command[2:]})"]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, timeout=60
        )
        seconds.append(time.perf_counter() - start)
    assert done.returncode == 0
    assert "usage: pyro-vae" in done.stdout
    imported = set(re.findall(r"\| +(\w+)$", done.stderr, flags=re.MULTILINE))
    assert "argparse" in imported
    assert not imported & {"torch", "pyro", "numpy", "matplotlib", "sklearn", "torchvision"}
    assert min(seconds) < 1.5  # the best of three: others share the machine


LONG = ("train", "digits", "--num-epochs", "20", "--eval-particles", "10", "--hidden", "16", "--latent-dim", "3")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run in a process of its own that got Ctrl-C after its first epoch: its place and what it said."""
    place = tmp_path_factory.mktemp("stopped")
    process = subprocess.Popen(
        [sys.executable, "-m", "pyro_vae", *LONG, "--device", "cpu", "--out", "run"],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (place / "run" / "training.safetensors").exists() and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    return place, Answer(process.returncode, out, err)


def test_ctrl_c_exits_130_and_says_how_to_go_on(stopped):
    place, answer = stopped
    assert answer.status == 130
    assert answer.out == ""
    assert re.fullmatch(r"interrupted after \d+ epochs: go on with `pyro-vae resume run`\n", answer.err)
    epochs = (place / "run" / "history.csv").read_text().splitlines()[1:]
    assert 1 <= len(epochs) < 20
    assert not (place / "run" / "model.safetensors").exists()


def test_an_interrupted_run_resumes_to_the_very_same_files(stopped, tmp_path):
    place, _ = stopped
    run = Path(shutil.copytree(place / "run", tmp_path / "resumed" / "run"))
    assert_one_line(cli("evaluate", run), "not complete.*pyro-vae resume")
    result = json.loads(succeed("resume", "run", "--json", folder=run.parent).out)
    assert result["run"] == "run"
    (tmp_path / "unstopped").mkdir()
    succeed(*LONG, "--device", "cpu", "--out", "run", folder=tmp_path / "unstopped")
    unstopped = tmp_path / "unstopped" / "run"
    assert names(run) == names(unstopped) == RESULTS | PICTURES
    assert (run / "model.safetensors").read_bytes() == (unstopped / "model.safetensors").read_bytes()
    assert (run / "config.json").read_bytes() == (unstopped / "config.json").read_bytes()
    assert evaluation(run) == evaluation(unstopped)


@pytest.mark.filterwarnings("default")
def test_a_damaged_checkpoint_of_a_run_is_a_note_on_stderr(stopped, tmp_path):
    run = Path(shutil.copytree(stopped[0] / "run", tmp_path / "run"))
    last = run / "training.safetensors"
    last.write_bytes(last.read_bytes()[:-10])
    shutil.copyfile(stopped[0] / "run" / "training.safetensors", run / "previous-training.safetensors")
    answer = cli("resume", "run", "--json", folder=tmp_path)
    assert answer.status == 0
    assert re.fullmatch(r"pyro-vae: note: .*is truncated.*; going on from .*previous-.*\n", answer.err)
    assert json.loads(answer.out)["run"] == "run"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, pv.objectives.ELBO()),
        ({"gradient": "rloo", "num_particles": 3}, pv.objectives.ELBO(gradient="rloo", num_particles=3)),
        ({"analytic_kl": True}, pv.objectives.ELBO(analytic_kl=True)),
        ({"objective": "iwae", "gradient": "dreg"}, pv.objectives.IWAE(gradient="dreg")),
        ({"objective": "renyi", "alpha": 0.3}, pv.objectives.Renyi(alpha=0.3, num_particles=1)),
        ({"objective": "wake_sleep", "num_particles": 5}, pv.objectives.ReweightedWakeSleep()),
        ({"objective": "beta_vae", "beta": 2.0}, pv.objectives.BetaVAE(beta=2.0)),
        (
            {"objective": "beta_vae", "warmup_steps": 9, "analytic_kl": True},
            pv.objectives.BetaVAE(beta=LinearWarmup(9, end=4.0), analytic_kl=True),
        ),
    ],
    ids=lambda part: str(part) if isinstance(part, dict) else "",
)
def test_options_make_the_objective_they_name(options, expected):
    found = objective_of(TrainConfig(**options).resolved())
    assert type(found) is type(expected)

    def described(objective):
        return {name: value for name, value in vars(objective).items() if not name.startswith("_")}

    assert described(found) == described(expected)
