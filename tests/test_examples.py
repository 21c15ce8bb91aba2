"""Every example runs with --smoke, uses public names only, and says in words what it shows. New examples are found."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_in_smoke_mode(path, tmp_path, monkeypatch, capsys):
    """The example runs in this process, in which warnings are errors: to import torch and Pyro anew takes longer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), "--smoke"])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_an_example_runs_by_itself(tmp_path):
    command = [sys.executable, "-W", "error", str(EXAMPLES[0]), "--smoke"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_documented(path):
    assert len((ast.get_docstring(ast.parse(path.read_text())) or "").split()) >= 30


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_imports_public_names_only(path):
    """An example imports ``pyro_vae as pv``, and nothing of a module of the package by its dotted path."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(str(node.module))
    assert [name for name in names if name.startswith("pyro_vae")] == ["pyro_vae"]
