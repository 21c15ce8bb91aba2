"""Arrays of any library as tensors; anything else is refused in one line that says why."""

from __future__ import annotations

__all__ = ["as_batch", "as_mask", "as_tensor", "find_device", "require_finite"]

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, DeviceError, ShapeError


def as_tensor(x: Any, *, name: str = "x") -> Tensor:
    """Return ``x`` as a dense torch tensor; the user's array is never written to, and a tensor keeps its gradient.

    ``x`` is from torch, NumPy, pandas or xarray, or a nested list, with any strides and byte order and of boolean,
    integer or floating type. Read-only arrays are copied.

    Errors:
        DataError: for masked arrays with masked entries, sparse arrays, and entries that are not numbers.

    Example:
        >>> as_tensor(np.arange(6.0)[::-1].reshape(2, 3))[0]
        tensor([5., 4., 3.], dtype=torch.float64)
    """
    if isinstance(x, Tensor):
        if x.layout is not torch.strided:
            raise DataError(f"{name}: found a sparse tensor, expected a dense one: use {name}.to_dense()")
        if x.is_complex():
            raise DataError(f"{name}: found entries of type {x.dtype}, expected numbers: convert with {name}.real")
        return x
    if hasattr(x, "tocsr"):  # scipy.sparse, which np.asarray would wrap into an object array
        raise DataError(f"{name}: found a sparse matrix, expected a dense array: use {name}.toarray()")
    if isinstance(x, np.ma.MaskedArray):
        if np.ma.is_masked(x):
            raise DataError(
                f"{name}: found a masked array with {int(np.ma.count_masked(x))} masked entries, expected none, since "
                f"the mask would be lost: fill them with {name}.filled(value)"
            )
        x = x.data
    try:
        array = np.asarray(x)
    except (TypeError, ValueError) as error:  # rows of different lengths, or several variables
        raise DataError(f"{name}: expected an array of numbers, found {type(x).__name__} ({error})") from None
    if array.dtype.kind not in "buif":
        raise DataError(
            f"{name}: found {type(x).__name__} with entries of type {array.dtype}, expected an array of numbers: "
            "convert with astype(float)"
        )
    return torch.from_numpy(_for_torch(array))


def as_batch(x: Any, *, name: str = "x", missing: bool = False) -> Tensor:
    """Return ``x`` as a tensor ``[n, ...]`` of at least one datapoint, after checking that all its values are finite.

    ``missing`` allows NaN.

    Errors:
        DataError: for empty data, a single number, and non-finite values, with their number and the first index.

    Example:
        >>> as_batch([[1, 2], [3, 4]]).shape
        torch.Size([2, 2])
    """
    x = as_tensor(x, name=name).detach()
    if not x.ndim or not x.numel():
        raise DataError(f"{name}: expected at least one datapoint, shape (n, ...), got shape {tuple(x.shape)}")
    require_finite(x.nan_to_num(0.0, torch.inf, -torch.inf) if missing else x, name=name)
    return x


def as_mask(mask: Any, x: Tensor) -> Tensor | None:
    """Return the mask in the shape of ``x``, true where ``x`` is observed, or None if all of it is.

    Errors:
        DataError: for a mask that is not boolean.
        ShapeError: for a mask in another shape than that of ``x``, or of one datapoint if it is the same for all.

    Example:
        >>> as_mask([True, False], torch.zeros(2, 2))
        tensor([[ True, False],
                [ True, False]])
    """
    mask = as_tensor(mask, name="mask").to(x.device)
    if mask.dtype is not torch.bool:
        raise DataError(f"mask: found entries of type {mask.dtype}, expected booleans, true where x is observed")
    if mask.shape not in (x.shape, x.shape[1:]):
        raise ShapeError(f"mask: expected the shape of x, {tuple(x.shape)}, got {tuple(mask.shape)}")
    return None if bool(mask.all()) else mask.expand(x.shape)


def require_finite(x: Tensor, *, name: str = "x") -> None:
    """Raise :class:`~pyro_vae.errors.DataError` unless all of ``x`` is finite.

    Example:
        >>> require_finite(torch.tensor([0.0, 1.0]))
    """
    if not x.is_floating_point():
        return
    finite = torch.isfinite(x)
    if not finite.all():
        first = tuple((~finite).nonzero()[0].tolist())
        raise DataError(
            f"{name}: found {int((~finite).sum())} non-finite values, the first at index {first}: remove them, "
            "or, if NaN marks missing values, use pyro_vae.Incomplete"
        )


def find_device(device: str = "auto") -> torch.device:
    """Return the device of this name; ``"auto"`` is CUDA if available, else the CPU.

    Errors:
        DeviceError: for a device that does not exist here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.ones((), device=found).item()  # a tensor on "meta" has no value
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise DeviceError(f"device {device!r} cannot be used here ({reason}): use auto") from None
    return found


def _for_torch(array: np.ndarray) -> np.ndarray:
    """Return the array in a layout and type that torch takes without a warning."""
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(array.shape)
    return array if array.flags.writeable else array.copy()
