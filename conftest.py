"""Settings of all tests: one torch thread per worker, shapes checked at run time, and one failure rate."""

import os

# Before torch is imported: xdist runs a worker per core, and two thread pools on one core slow each other tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401  (the hook looks it up by name)

install_import_hook("pyro_vae", "tests.typechecker.checked")

import importlib

import pyro
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_param_store():
    """Each test gets an empty parameter store and leaves the global one as it found it."""
    with pyro.get_param_store().scope():
        yield


@pytest.fixture(autouse=True)
def _own_seed(request):
    """Each test draws from its own reproducible stream, which depends on its file's name and not on its folder."""
    path, _, test = request.node.nodeid.partition("::")
    folder, _, file = path.rpartition("/")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash_of(f"{folder.split('/')[0]}/{file}::{test}"))
        yield


@pytest.fixture
def float64():
    """Exact answers are met in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def first_opinion(monkeypatch):
    """Estimators do not ask for a second one, whose draws would be counted with their own."""
    for name in ("from_weights", "ais", "smc"):
        module = importlib.import_module(f"pyro_vae.evidence.{name}")
        monkeypatch.setattr(module, "prior_check", lambda found, *_, **__: found)


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
    import pyro_vae

    doctest_namespace.update(torch=torch, pv=pyro_vae)


def hash_of(text: str) -> int:
    import hashlib

    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
