"""Imports go down only: the house as a table of eight rows, and a checker that holds it."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pyro_vae

# From the top down. A room imports from lower rows only; rooms of one row are blind to each other.
FLOORS = """
cli
workflows plot
evidence diagnostics training
models objectives samplers
pairs
data
ops
errors
"""
READS = {"plot": "workflows"}  # results, as values
# The rooms and files that may import a package; all others do without it.
OWNERS = {
    "PIL": {"data.datasets"},
    "arviz": {"workflows.export"},
    "matplotlib": {"plot"},
    "pandas": {"workflows.comparison"},
    "safetensors": {"training.checkpoint"},
    "sklearn": {"data.datasets", "diagnostics.disentanglement"},
    "torchvision": {"data.datasets"},
    "tqdm": {"pairs.progress"},
    "xarray": {"workflows.export", "workflows.labels"},
}
NOT_PYRO = {"errors", "ops", "data"}
FLOOR = {room: -row for row, rooms in enumerate(FLOORS.split("\n")) for room in rooms.split()}


def imports(tree, package):
    """The dotted names that a module imports, relative ones resolved to ``pyro_vae...``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = node.module.split(".") if node.module else []
            yield from (".".join([*base, *module, alias.name]) for alias in node.names)


def files(root):
    """The package's files by dotted name; an ``__init__`` bears the name of its folder."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def violations(root):
    """What is wrong with a package, one line each."""
    known = dict(files(root))
    within = {}  # file -> the files of its own room that it imports
    for name, path in known.items():
        if name in ("", "__main__"):  # the package itself, which imports lazily, and its door
            continue
        room = name.split(".")[0]
        if room not in FLOOR:
            yield f"{name}: not in the table of floors"
            continue
        tree = ast.parse(path.read_text())
        package = ["pyro_vae", *path.relative_to(root).parts[:-1]]
        within[name] = set()
        for imported in imports(tree, package):
            first, _, rest = imported.partition(".")
            other = rest.split(".")[0]
            if first != "pyro_vae":
                if not {name, room} & OWNERS.get(first, {name}) or (first == "pyro" and room in NOT_PYRO):
                    yield f"{name}: imports {first}, which it does not own"
            elif other == room:
                parts = rest.split(".")
                longest = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
                within[name].add(next(file for file in longest if file in known))
            elif other != "__version__" and READS.get(room) != other and FLOOR.get(other, 0) >= FLOOR[room]:
                yield f"{name}: imports {rest}, which is not below it"
        if room != "cli" and any(isinstance(node, ast.Name) and node.id == "print" for node in ast.walk(tree)):
            yield f"{name}: prints"
    try:
        TopologicalSorter(within).prepare()
    except CycleError as error:
        yield f"{error.args[1][0]}: in a circle of imports, {' -> '.join(error.args[1])}"


def test_the_house_stands():
    assert list(violations(Path(pyro_vae.__file__).parent)) == []


def test_every_room_of_the_table_is_there():
    root = Path(pyro_vae.__file__).parent
    rooms = {name.split(".")[0] for name, _ in files(root)} - {"", "__main__"}
    assert rooms == FLOOR.keys()


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("pairs/traces.py", "from ..models.vae import VAE", "pairs.traces: imports models.vae.VAE"),
        ("ops/weights.py", "from ..data.arrays import as_tensor", "ops.weights: imports data.arrays"),
        ("ops/weights.py", "import pyro_vae.models.vae", "ops.weights: imports models.vae"),
        ("ops/weights.py", "from pyro_vae.models.vae import VAE", "ops.weights: imports models.vae"),
        ("ops/weights.py", "def f():\n    from ..models.vae import VAE", "ops.weights: imports models.vae"),
        ("ops/weights.py", "from pyro_vae import fit", "ops.weights: imports fit"),
        ("models/vae.py", "from ..objectives.base import Objective", "models.vae: imports objectives.base"),
        ("objectives/elbo.py", "from ..samplers import tempering", "objectives.elbo: imports samplers"),
        ("evidence/ais.py", "from ..diagnostics import calibration", "evidence.ais: imports diagnostics"),
        ("workflows/evaluation.py", "from .. import plot", "workflows.evaluation: imports plot"),
        ("training/fit.py", "from ..workflows import evaluation", "training.fit: imports workflows"),
        ("models/likelihoods/base.py", "from ...evidence import elbo", "models.likelihoods.base: imports evidence"),
        ("ops/weights.py", "import pyro", "ops.weights: imports pyro"),
        ("data/arrays.py", "from pyro.distributions import Normal", "data.arrays: imports pyro"),
        ("cli/runs.py", "from matplotlib import pyplot", "cli.runs: imports matplotlib"),
        ("models/vae.py", "import torchvision.datasets", "models.vae: imports torchvision"),
        ("training/state.py", "from safetensors.torch import save", "training.state: imports safetensors"),
        ("evidence/ais.py", "from tqdm import tqdm", "evidence.ais: imports tqdm"),
        ("evidence/ais.py", "print(1)", "evidence.ais: prints"),
        ("attic/box.py", "", "attic.box: not in the table"),
        ("box.py", "", "box: not in the table"),
        ("objectives/iwae.py", "from .elbo import ELBO", "objectives.elbo: in a circle"),
    ],
)
def test_the_checker_catches_a_planted_violation(tmp_path, file, line, complaint):
    stands = {
        "__init__.py": "",
        "cli/main.py": "import argparse\nfrom ..models import vae\nprint(1)\n",
        "models/vae.py": "import torch\nfrom pyro_vae import errors\n",
        "objectives/elbo.py": "from ..pairs.particles import Sites\nfrom . import iwae\n",
        "objectives/iwae.py": "import pyro\n",
        "plot/base.py": "import matplotlib\nfrom ..workflows.comparison import Row\n",
    }
    for name, text in stands.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(violations(tmp_path)) == []
    (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / file).write_text(line)
    (found,) = violations(tmp_path)
    assert found.startswith(complaint)
