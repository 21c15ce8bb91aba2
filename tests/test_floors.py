"""Imports go down only: the house as a table, and a checker that holds it."""

import ast
from pathlib import Path

import pytest

import pyro_vae

# From the ground up; a room may import from lower rows only. The rooms of a family are its base, its members, its door;
# a star stands for the files that no other entry names.
FLOORS = """
errors
arrays files hmc labels lattices moments pareto randomness reliability resampling schedules
gaussian_fields weights
nn
modules
data embedding inspection likelihoods.base missing tables pairwise reporting posteriors
ppca priors likelihoods.*
likelihoods
batches named_parts pair problems
hierarchical vae
field_prior presets
traces
pathwise
sites
probing
density particles
local.families nodes simulation weighted
local.gaussians predictive
local.optimum
local
export imputation
diagnostics.base diagnostics.mixtures evidence.base evidence.boxes objectives.gradients objectives.module
diagnostics.predictability evidence.annealing evidence.proposals objectives.surrogates
evidence.refinement evidence.second_opinion
diagnostics.* evidence.blocks evidence.drawing evidence.tuning objectives.base
evidence.sampling
evidence.* objectives.*
evidence.choice
diagnostics evidence objectives
refining.base refining.mixing
refining.chains
refining.*
refining.refine
refining
checkpoint
comparison evaluation plot.base training_state
plot.pictures
plot.*
plot
training
config
assembly
views
runs
filling
parsing
cli
__main__
"""
GROUND = {*FLOORS.partition("weights")[0].split(), "weights"}  # plain tensors, no pyro
# What only one room, or one family, may import.
OWNERS = {
    "matplotlib": {"plot"},
    "safetensors": {"checkpoint"},
    "sklearn": {"data", "diagnostics.predictability"},
    "torchvision": {"data"},
    "arviz": {"export"},
    "xarray": {"export", "labels"},
    "tqdm": {"inspection", "training"},
    "tyro": {"cli", "config", "parsing"},
}
FAMILIES = {"diagnostics", "evidence", "objectives"}  # mutually blind
RANK = {room: rank for rank, row in enumerate(FLOORS.split("\n")) for room in row.split()}


def imports(tree, package):
    """The dotted names that a module imports, relative ones resolved to ``pyro_vae...``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join([*base, *(node.module or "").split("."), alias.name]) for alias in node.names)


def rank_of(room):
    """The row of a room, None for one that has no place."""
    return RANK.get(room, RANK.get(f"{room.split('.')[0]}.*") if room.count(".") == 1 else None)


def room_of(name, root):
    """``evidence.importance.importance`` -> ``evidence.importance``; the longest prefix that is a file in the table."""
    parts = name.split(".")
    rooms = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next(
        (r for r in rooms if r in RANK or (rank_of(r) and root.joinpath(*r.split(".")).with_suffix(".py").exists())),
        name,
    )


def violations(root):
    """What is wrong with a package, one line each."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        package = ["pyro_vae", *parts[:-1]]
        room = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not room:  # the package itself, which imports lazily
            continue
        if rank_of(room) is None:
            yield f"{room}: not in the table of floors"
            continue
        tree = ast.parse(path.read_text())
        for name in imports(tree, package):
            first, _, rest = name.replace("..", ".").partition(".")
            other, family = room_of(rest, root), rest.split(".")[0]
            if rest == "__version__":
                continue
            if first == "pyro_vae":
                sideways = {family, parts[0]} <= FAMILIES and family != parts[0]
                if sideways or (rank_of(other) or len(RANK)) >= (rank_of(room) or 0):
                    yield f"{room}: imports {other}, which is not below it"
            elif not {room, parts[0]} & OWNERS.get(first, {room}) or (first == "pyro" and room in GROUND):
                yield f"{room}: imports {first}, which it does not own"
        if room != "cli" and any(isinstance(node, ast.Name) and node.id == "print" for node in ast.walk(tree)):
            yield f"{room}: prints"


def test_the_house_stands():
    assert list(violations(Path(pyro_vae.__file__).parent)) == []


def test_the_table_names_no_room_that_is_gone():
    root = Path(pyro_vae.__file__).parent
    paths = [root.joinpath(*room.removesuffix(".*").split(".")) for room in RANK]
    assert [str(path) for path in paths if not (path.with_suffix(".py").exists() or path.is_dir())] == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("traces.py", "from .particles import Particles", "traces: imports particles"),
        ("weights.py", "from .vae import VAE", "weights: imports vae"),
        ("nn.py", "from .likelihoods import Gaussian", "nn: imports likelihoods"),
        ("nn.py", "from . import priors", "nn: imports priors"),
        ("nn.py", "import pyro_vae.vae", "nn: imports vae"),
        ("nn.py", "from pyro_vae.vae import VAE", "nn: imports vae"),
        ("nn.py", "def f():\n    from .vae import VAE", "nn: imports vae"),
        ("vae.py", "from .objectives.base import Objective", "vae: imports objectives.base"),
        ("objectives/elbo.py", "from ..evidence import elbo", "objectives.elbo: imports evidence"),
        ("objectives/elbo.py", "from ..evidence.base import summarise", "objectives.elbo: imports evidence.base"),
        ("objectives/iwae.py", "from .elbo import ELBO", "objectives.iwae: imports objectives.elbo"),
        ("evidence/base.py", "from .importance import importance", "evidence.base: imports evidence"),
        ("evidence/__init__.py", "from ..objectives import IWAE", "evidence: imports objectives"),
        ("weights.py", "import pyro", "weights: imports pyro"),
        ("arrays.py", "from pyro.distributions import Normal", "arrays: imports pyro"),
        ("runs.py", "from matplotlib import pyplot", "runs: imports matplotlib"),
        ("vae.py", "import torchvision.datasets", "vae: imports torchvision"),
        ("presets.py", "from sklearn.datasets import load_digits", "presets: imports sklearn"),
        ("runs.py", "import tyro", "runs: imports tyro"),
        ("evidence/importance.py", "from tqdm import tqdm", "evidence.importance: imports tqdm"),
        ("training_state.py", "from safetensors.torch import save", "training_state: imports safetensors"),
        ("runs.py", "print(1)", "runs: prints"),
        ("attic.py", "", "attic: not in the table"),
        ("local/attic.py", "", "local.attic: not in the table"),
        ("objectives/attic.py", "from .elbo import ELBO", "objectives.attic: imports objectives.elbo"),
        ("nn.py", "from .attic import box", "nn: imports attic"),
    ],
)
def test_the_checker_catches_a_planted_violation(tmp_path, file, line, complaint):
    for name in ("cli.py", "vae.py", "objectives/elbo.py"):  # a tree that stands
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("import torch\nfrom pyro_vae import errors\n")
    (tmp_path / "cli.py").write_text("import tyro\nfrom . import runs\nprint(1)\n")
    (tmp_path / "objectives/elbo.py").write_text("from ..particles import Sites\nfrom .base import Objective\n")
    assert list(violations(tmp_path)) == []
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(line)
    (found,) = violations(tmp_path)
    assert found.startswith(complaint)
