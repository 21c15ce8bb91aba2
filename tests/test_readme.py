"""The README says what is so: its code runs, its links lead somewhere, its set-up lines are those that CI runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 2
    names = {}
    # The budget is cut, nothing else.
    exec(blocks[0].replace("num_epochs=50", "num_epochs=1").replace("max_value)[:]", "max_value)[:60]"), names)
    for block in blocks[1:]:
        exec(block, names)
    assert names["svi"].step(names["x_test"]) > 0


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("[be]*/README.md")), ids=str)
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_two_set_up_lines_each_with_its_own_environment():
    lines = re.findall(r"^python3 -m venv (\S+) && .*$", README, flags=re.MULTILINE)
    assert lines == [".venv", ".venv-test"]


def test_every_objective_has_a_row():
    from pyro_vae import objectives

    members = set(objectives.__all__) - {"Objective"}
    assert members == set(re.findall(r"^\| `(\w+)\(", README, flags=re.MULTILINE))


def test_pictures_are_small():
    for picture in ROOT.glob("examples/figures/*.png"):
        assert picture.stat().st_size < 400_000, picture


def test_every_part_is_named():
    from pyro_vae.models import likelihoods, posteriors, presets, priors

    for module in (likelihoods, posteriors, presets, priors):
        for name in set(module.__all__) - {"PRESETS"}:
            assert f"`{name}`" in README, name


def test_every_example_is_in_the_gallery():
    gallery = (ROOT / "examples/README.md").read_text()
    for script in ROOT.glob("examples/*.py"):
        assert f"{script.name}" in gallery, script.name
        picture = ROOT / "examples/figures" / f"{script.stem}.png"
        assert not picture.exists() or f"(figures/{picture.name})" in gallery
    for picture in ROOT.glob("examples/figures/*.png"):
        assert (ROOT / "examples" / f"{picture.stem}.py").exists(), picture
