"""Which arrays are data: every dense numeric kind works and is left untouched, everything else is one line."""

import copy
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
import xarray as xr

import pyro_vae as pv
from pyro_vae.data.arrays import as_batch, as_tensor, require_finite
from pyro_vae.errors import DataError
from tests.looks import LOOKS, every_look, tensors_of

BINARY = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [1, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0]])


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def spread(x):
    """The same numbers in every second row and column of a larger array."""
    larger = np.full((2 * x.shape[0], 2 * x.shape[1]), 7, x.dtype)
    larger[::2, ::2] = x
    return larger[::2, ::2]


FLOATS = BINARY.astype(np.float32)

KINDS = {
    **{
        dtype: BINARY.astype(dtype)
        for dtype in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    },
    **{dtype: BINARY.astype(dtype) for dtype in ("bool", "float16", "float32", "float64", "longdouble")},
    "big-endian float": BINARY.astype(">f8"),
    "big-endian int": BINARY.astype(">i4"),
    "big-endian uint16": BINARY.astype(">u2"),
    "non-contiguous": spread(FLOATS),
    "Fortran order": np.asfortranarray(FLOATS),
    "negative strides": FLOATS[::-1, ::-1].copy()[::-1, ::-1],
    "read-only": read_only(FLOATS),
    "read-only uint8": read_only(BINARY.astype(np.uint8)),
    "broadcast": np.broadcast_to(FLOATS[:1], FLOATS.shape),
    "masked array without a mask": np.ma.masked_array(FLOATS),
    "list": BINARY.tolist(),
    "list of arrays": list(FLOATS),
    "list of tensors": list(torch.from_numpy(FLOATS.copy())),
    "pandas DataFrame": pd.DataFrame(BINARY),
    "pandas DataFrame of mixed types": pd.DataFrame(FLOATS).astype({0: "int8", 1: "float64"}),
    "xarray DataArray": xr.DataArray(FLOATS, dims=("image", "pixel")),
    **{
        str(dtype): torch.from_numpy(BINARY).to(dtype)
        for dtype in (torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    },
    "non-contiguous tensor": torch.from_numpy(spread(FLOATS)),
    "transposed tensor": torch.from_numpy(FLOATS.T.copy()).T,
    "tensor that requires a gradient": torch.from_numpy(FLOATS.copy()).requires_grad_(),
}


def numbers(x):
    """The numbers of any kind of array, as plain Python."""
    if isinstance(x, list):
        return [numbers(row) for row in x] if hasattr(x[0], "__len__") else list(x)
    return x.to_numpy().tolist() if hasattr(x, "to_numpy") else x.tolist()


@contextmanager
def kept(kind):
    """An array of this kind; afterwards it must be what it was."""
    x = KINDS[kind]
    before = copy.deepcopy(numbers(x))
    flags = (x.dtype, x.strides, x.flags.writeable) if isinstance(x, np.ndarray) else None
    yield x
    assert numbers(x) == before
    if flags:
        assert (x.dtype, x.strides, x.flags.writeable) == flags


@pytest.fixture(params=KINDS)
def untouched(request):
    """An array of each kind, that is kept."""
    with kept(request.param) as x:
        yield x


def test_every_kind_becomes_a_tensor_with_the_same_numbers(untouched):
    found = as_tensor(untouched)
    assert type(found) is torch.Tensor
    assert found.double().tolist() == [[float(value) for value in row] for row in numbers(untouched)]


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return pv.presets.mlp_vae(data_shape=(4,), latent_dim=2, hidden=(8,))


def reference(untouched):
    """The same numbers as an ordinary float32 tensor."""
    return torch.tensor([[float(value) for value in row] for row in numbers(untouched)])


def test_every_kind_trains(untouched, vae):
    weights = []
    for x in (untouched, reference(untouched)):
        fresh = copy.deepcopy(vae)
        pv.fit(fresh, x, validation=x, num_epochs=2, batch_size=4, progress=False)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in fresh.parameters()]))
    assert torch.equal(*weights)


EVALUATIONS = {
    "importance": lambda vae, x: pv.evidence.importance(vae.model, vae.guide, x, num_particles=5).value,
    "elbo": lambda vae, x: pv.evidence.elbo(vae.model, vae.guide, x, num_particles=5).value,
    "evaluate": lambda vae, x: pv.evaluate(vae, x, num_particles=5).log_evidence.value,
    "latent_summary": lambda vae, x: pv.diagnostics.latent_summary(vae.model, vae.guide, x)["z"].kl,
    "encode": lambda vae, x: vae.encode(x).mean,
    "reconstruct": lambda vae, x: vae.reconstruct(x),
    "model": lambda vae, x: vae.model(x),
    "guide": lambda vae, x: vae.guide(x),
    "draw_particles": lambda vae, x: pv.draw_particles(vae.model, vae.guide, x, num_particles=3).log_w,
}


def test_every_kind_gives_the_same_numbers_everywhere(untouched, vae):
    for name, evaluation in EVALUATIONS.items():
        found = []
        for x in (untouched, reference(untouched)):
            torch.manual_seed(0)
            found.append(evaluation(vae, x))
        # Close, not equal: the order of a sum in a matrix product, in single precision, depends on the strides.
        single = {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(*found, **single, msg=lambda text, name=name: f"{name}: {text}")


# One for each way to become a tensor: what as_tensor makes of the others cannot be told from these.
DIFFERENT = ["uint8", "negative strides", "pandas DataFrame", "transposed tensor", "tensor that requires a gradient"]


@every_look
def test_different_kinds_give_every_look_the_same_numbers(look, vae):
    expected = tensors_of(look(vae.model, vae.guide, torch.tensor(FLOATS)))
    for kind in DIFFERENT:
        with kept(kind) as x:
            found = tensors_of(look(vae.model, vae.guide, x))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)
        assert not any(part.requires_grad for part in found)


@pytest.mark.parametrize("mode", pv.data.BINARISATIONS)
def test_every_kind_is_presented_as_pixels(untouched, mode):
    torch.manual_seed(0)
    shown = pv.data.Pixels(untouched, mode, max_value=1)[:]
    assert torch.equal(shown, reference(untouched))  # black and white stay so in every mode
    assert shown.dtype == torch.float32


def test_an_array_of_no_or_one_dimension_keeps_its_shape():
    assert as_tensor(np.float64(3.5)).shape == ()
    assert as_tensor(np.arange(3)[::-1]).tolist() == [2, 1, 0]


def test_a_tensor_is_not_copied():
    x = torch.zeros(3)
    assert as_tensor(x).data_ptr() == x.data_ptr()


def test_large_unsigned_numbers_survive():
    assert as_tensor(np.array([2**32 - 1], dtype=np.uint32)).tolist() == [2**32 - 1]


REFUSED = {
    "masked array": (np.ma.masked_equal(FLOATS, 1), f"{BINARY.sum()} masked entries", "filled"),
    "scipy matrix": (scipy.sparse.csr_matrix(FLOATS), "sparse", "toarray()"),
    "scipy array": (scipy.sparse.coo_array(FLOATS), "sparse", "toarray()"),
    "torch sparse": (torch.from_numpy(FLOATS).to_sparse(), "sparse", "to_dense()"),
    "strings": (np.array([["a", "b"]]), "<U1", "numbers"),
    "objects": (np.array([[None, 1.0]]), "object", "numbers"),
    "complex": (FLOATS.astype(complex), "complex", "numbers"),
    "complex tensor": (torch.from_numpy(FLOATS).to(torch.complex64), "complex", "numbers"),
    "dates": (np.array([["2020-01-01"]], dtype="datetime64[D]"), "datetime64", "numbers"),
    "table with text": (pd.DataFrame({"pixel": [1.0, 2.0], "name": ["a", "b"]}), "object", "numbers"),
    "ragged list": ([[1.0], [1.0, 2.0]], "x:"),
    "several variables": (xr.Dataset({"a": ("row", [1.0]), "b": ("row", [2.0])}), "Dataset"),
    "nothing": (None, "object", "numbers"),
    "dictionary": ({"image": 1}, "object", "numbers"),
}

ENTRANCES = {
    "as_tensor": lambda vae, x: as_tensor(x),
    "fit": lambda vae, x: pv.fit(vae, x, num_epochs=1, batch_size=2, progress=False),
    "validation": lambda vae, x: pv.fit(vae, FLOATS, validation=x, num_epochs=1, batch_size=2, progress=False),
    "encode": lambda vae, x: vae.encode(x),
    "Pixels": lambda vae, x: pv.data.Pixels(x),
    **{name: lambda vae, x, look=look: look(vae.model, vae.guide, x) for name, look in LOOKS.items()},
}


@pytest.mark.parametrize(
    ("kind", "entrance"),
    # validation=None is no mistake: it means that there is none
    [(kind, entrance) for kind in REFUSED for entrance in ENTRANCES if (kind, entrance) != ("nothing", "validation")],
)
def test_what_is_no_dense_numeric_array_is_refused_in_one_line(vae, kind, entrance):
    x, *words = REFUSED[kind]
    with pytest.raises(DataError) as caught:
        ENTRANCES[entrance](vae, x)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value).replace("validation:", "x:") for word in words)


def test_require_finite_counts_and_names_the_first():
    x = torch.zeros(4, 3)
    require_finite(x)
    require_finite(torch.zeros(4, 3, dtype=torch.uint8))
    x[2, 1] = float("nan")
    x[3, 0] = float("-inf")
    with pytest.raises(DataError, match=r"pixels: found 2 non-finite .* \(2, 1\)"):
        require_finite(x, name="pixels")


def test_a_tensor_keeps_its_gradient_until_it_is_data():
    x = torch.ones(2, 3, requires_grad=True)
    assert as_tensor(x).requires_grad
    assert not as_batch(x).requires_grad
