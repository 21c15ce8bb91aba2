"""Benchmarks run at a small budget, write their records, and keep the finished part when they are stopped."""

import json
import math
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from benchmarks import bounds
from benchmarks.__main__ import main
from benchmarks.bounds_tables import markdown
from benchmarks.cells import Exam, aa_row, measured, prices
from benchmarks.estimators import ROSTER, Entry, Run, powered
from benchmarks.provenance import origin

RESULTS = Path(bounds.__file__).parent / "results"
SMALL = ["bounds", "--threads", "1", "--images", "4", "--steps", "20", "--budgets", "2", "50", "900"]
AT_900 = {entry.name for entry in ROSTER if entry.make(900)}


def small(folder):
    return main([*SMALL, "--out", str(folder)]), folder / "bounds_digits.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    status, path = small(tmp_path_factory.mktemp("finished"))
    assert status == 0
    return path


def exam(num=40):
    problem = pv.problems.linear_gaussian(W=torch.tensor([[1.0], [2.0]], dtype=torch.float64), scale=0.5)

    class LikeVAE:
        model = staticmethod(problem.model)
        guide = staticmethod(problem.guide(inflate=1.3))

    x = problem.sample(num, seed=0)
    return Exam(LikeVAE, x, problem.log_evidence(x))


def test_the_record_has_everything_a_reader_needs(finished):
    record = json.loads(finished.read_text())
    assert record["finished"]
    assert record["settings"]["images"] == 4
    assert record["provenance"]["command"] == " ".join(["python -m benchmarks", *SMALL, "--out OUT"])
    assert {"seed", "threads", "commit", "versions"} < set(record["provenance"])
    assert [network["objective"] for network in record["networks"]] == list(bounds.OBJECTIVES)
    for network in record["networks"]:
        assert network["unsettled"] == 0
        assert network["seconds"] > 0
        assert {price["estimator"] for price in network["prices"]} == AT_900
        assert network["a_a"]["num_particles"] == 1000


def test_every_cell_stands_beside_the_truth(finished):
    for network in json.loads(finished.read_text())["networks"]:
        cells = network["cells"]
        assert {cell["estimator"] for cell in cells if cell["budget"] == 900} == AT_900
        for cell in cells:
            assert cell["evaluations"] <= cell["budget"]
            assert (cell["num_temperatures"] is not None) == (cell["estimator"] in ("AIS", "SMC"))
            assert cell["difference"] == pytest.approx(cell["value"] - network["log_evidence"], abs=1e-9)
            assert sum(cell[verdict] for verdict in ("ok", "doubtful", "unreliable")) == pytest.approx(1)
            assert (cell["coverage"] is None) == (cell["estimates"] == "a bound")
            assert cell["direction"] in ("lower", "point")
            assert cell["cpu_seconds"] > 0


def test_table_and_figure_are_written(finished):
    table, picture = finished.with_suffix(".md"), finished.with_suffix(".png")
    record = json.loads(finished.read_text())
    num_cells = sum(len(network["cells"]) for network in record["networks"])
    lines = [line for line in table.read_text().split("\n") if line.startswith("|")]
    assert sum("K = " in line or "T = " in line for line in lines) == num_cells
    assert picture.read_bytes().startswith(b"\x89PNG")
    before = picture.read_bytes()
    picture.unlink()
    assert main([*SMALL, "--redraw", "--out", str(finished.parent)]) == 0
    assert picture.read_bytes() == before


def test_an_interrupted_run_keeps_what_is_done_and_goes_on(tmp_path, monkeypatch):
    def stopped(entry, budget, exam, *, seed):
        if len(seen) == 8:  # two cells of the second network are done
            raise KeyboardInterrupt
        seen.append(measured(entry, budget, exam, seed=seed))
        return seen[-1]

    seen = []
    monkeypatch.setattr(bounds, "ROSTER", [entry for entry in ROSTER if entry.name in ("ELBO", "IS")])
    with monkeypatch.context() as patch:
        patch.setattr(bounds, "measured", stopped)
        status, path = small(tmp_path)
    assert status == 130
    record = json.loads(path.read_text())
    assert not record["finished"]
    assert [network["finished"] for network in record["networks"]] == [True, False]
    assert len(record["networks"][1]["cells"]) == 2
    assert "Not finished" in path.with_suffix(".md").read_text()
    assert path.with_suffix(".png").exists()
    status, path = small(tmp_path)
    assert status == 0
    again = json.loads(path.read_text())
    assert again["networks"][0] == record["networks"][0]
    last, before = again["networks"][1]["cells"], record["networks"][1]["cells"]
    assert len(last) == 6
    assert [cell["value"] for cell in last[:2]] == [cell["value"] for cell in before]  # trained anew, to the same


def test_the_power_means_are_those_of_the_same_draws():
    model, guide, x = exam().vae.model, exam().vae.guide, exam().x
    drawn = pv.evidence.importance(model, guide, x, num_particles=200, seed=3)
    same = powered(model, guide, x, alpha=0.0, num_particles=200, seed=3)
    torch.testing.assert_close(same.value, drawn.value)
    torch.testing.assert_close(same.stderr, drawn.stderr)
    torch.testing.assert_close(same.pareto_k, drawn.pareto_k)
    ordered = [powered(model, guide, x, alpha=alpha, num_particles=200, seed=3) for alpha in (1.0 - 1e-6, 0.5, 0, -1)]
    assert all(bool((low.value < high.value).all()) for low, high in pairwise(ordered))
    assert [one.side for one in ordered] == ["lower", "lower", "lower", "point"]


def test_an_error_bar_that_is_too_small_is_found_out():
    def boastful(*args, **options):
        found = pv.evidence.importance(*args, num_particles=1000, **options)
        return found._replace(stderr=found.stderr / 10)

    importance = partial(pv.evidence.importance, num_particles=1000)
    honest = measured(Entry("IS", "log p(x)", lambda budget: Run(importance, None)), 1000, exam(), seed=0)
    wrong = measured(Entry("boastful", "log p(x)", lambda budget: Run(boastful, None)), 1000, exam(), seed=0)
    assert honest["ok"] == wrong["ok"] == 1
    assert honest["ok_within_3"] > 0.97 > 0.5 > wrong["ok_within_3"]
    assert honest["coverage"] > 0.85 > 0.5 > wrong["coverage"]
    assert honest["ok_beyond_3"] == []
    assert len(wrong["ok_beyond_3"]) == round(40 * (1 - wrong["ok_within_3"]))
    assert sum(part["images"] for part in wrong["by_pareto_k"]) == 40


def test_nothing_is_found_where_there_is_no_difference():
    row = aa_row(exam(), num_particles=1000, seed=0)
    assert 0 < abs(row["in_errors"]) < 3
    assert row["images_beyond_3"] < 0.1


def test_the_price_is_that_from_which_on_the_error_is_small():
    def cell(name, budget, rmse):
        return {"estimator": name, "budget": budget, "evaluations": budget, "rmse": rmse, "cpu_seconds": budget / 10}

    cells = [cell("a", 10, 0.05), cell("a", 100, 0.2), cell("a", 1000, 0.1), cell("b", 10, 0.2), cell("b", 100, None)]
    first, second = prices(cells, num_images=5)
    assert (first["budget"], first["cpu_seconds_per_image"]) == (1000, 20)
    assert (second["budget"], second["smallest_rmse"]) == (None, 0.2)


def test_commands_are_listed_and_say_nothing_of_the_machine(capsys):
    assert main([]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {
        path.stem for path in RESULTS.parent.glob("*.py") if "def run(" in path.read_text()
    }
    command = origin(["bounds", "--data-dir", "/home/me/data", "--out=/home/me/results"], seed=0)["command"]
    assert command == "python -m benchmarks bounds --data-dir DATA --out=OUT"


def test_what_cannot_be_used_is_said_in_one_line(tmp_path, capsys):
    assert main(["bounds", "--data-dir", str(tmp_path), "--threads", "1", "--out", str(tmp_path)]) == 2
    assert "mnist: not found" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(RESULTS.glob("bounds_*.json")), ids=lambda path: path.stem)
def test_committed_records_are_whole_and_their_tables_are_theirs(path):
    record = json.loads(path.read_text())
    assert record["finished"]
    assert len(record["provenance"]["commit"]) == 40
    assert path.with_suffix(".md").read_text() == markdown(record, path.with_suffix(".png").name)
    assert path.with_suffix(".png").stat().st_size < 400_000


# --- layers


def test_layers_are_compared_and_go_on_where_they_were(tmp_path, capsys):
    words = ["layers", "--dataset", "digits", "--epochs", "1", "--draws", "20", "--images", "6", "--threads", "1"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "layers.json").read_text())
    assert list(record["networks"]) == ["one layer", "two layers", "one layer, as much time"]
    assert set(record["two layers above"]) == {"one layer", "one layer, as much time"}
    longer = record["networks"]["one layer, as much time"]["config"]["num_epochs"]
    assert longer == round(record["step_ratio"])
    assert str(tmp_path) not in (tmp_path / "layers.json").read_text()
    assert main([*words, "--out", str(tmp_path), "--learning-rate", "1"]) == 2
    assert "trained with other options" in capsys.readouterr().err
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/model.safetensors")}
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert trained.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/model.safetensors")}.items()


def test_inpainting_compares_three_answers(tmp_path, capsys):
    assert main(["inpainting", "--smoke", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "inpainting.json").read_text())
    assert [*found["answers"]] == ["the pair", "the encoder alone", "the mean image"]
    assert all(math.isfinite(answer["log_p"]) for answer in found["answers"].values())


def test_the_record_of_inpainting_says_what_the_readme_does():
    found = json.loads((RESULTS / "inpainting.json").read_text())
    log_p = [answer["log_p"] for answer in found["answers"].values()]
    assert log_p == sorted(log_p, reverse=True)
    assert found["pair_minus_encoder"]["mean"] > 5 * found["pair_minus_encoder"]["stderr"]
    pair, encoder, mean_image = (answer["ink_within_90"] for answer in found["answers"].values())
    assert 0.87 < pair < 0.93  # 360 images: a standard error of 0.016
    assert max(encoder, mean_image) < 0.87


def test_prior_vae_is_held_against_the_exact_process_and_timed_beside_it(tmp_path, capsys):
    assert main(["prior_vae", "--smoke", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "prior_vae.json").read_text())
    assert found["answers"]["exact"]["mean_error"] == 0
    assert found["answers"]["exact"]["exact_probability"] == pytest.approx(0.9, abs=1e-6)
    assert found["decoder_untouched"]
    assert {*found["time"]["gp_over_vae"]} == {"gradient", "effective_draw"}


def test_the_record_of_prior_vae_says_what_the_readme_does():
    found = json.loads((RESULTS / "prior_vae.json").read_text())
    vae, gaussian = found["answers"]["vae"], found["answers"]["one_gaussian"]
    assert vae["mean_error"] < 0.15 < gaussian["mean_error"]
    assert abs(vae["scale_ratio"] - 1) < 0.05
    assert 0.88 < vae["exact_probability"] < 0.92
    assert found["worst_r_hat"] < 1.01
    assert found["decoder_untouched"]
    assert found["time"]["gp_over_vae"]["gradient"] > 100
