"""Every example runs under --smoke, is short, and says in words what it shows. A new one is found by itself."""

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
    """In this process, whose warnings are errors: to import torch and Pyro anew takes longer than the examples do."""
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
def test_example_is_short_and_documented(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 90
    assert len((ast.get_docstring(ast.parse(text)) or "").split()) >= 30
