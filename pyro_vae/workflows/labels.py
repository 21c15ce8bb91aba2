"""The names of the data's dimensions and their labels, which pandas or xarray hold, for an export."""

from __future__ import annotations

__all__ = ["Labels", "labels_of", "numbered", "renamed"]

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from torch import Tensor

from ..errors import ConfigError, PairError


class Labels(NamedTuple):
    """The names of the data's dimensions, and the coordinates that are known, with their dimensions."""

    first: str
    rest: list[str]
    known: dict[str, tuple[tuple[str, ...], np.ndarray]]

    def over(self, name: str, value: Tensor, x: Tensor) -> list[str]:
        """Return the dimensions of an observed site after the first: those of the data, if it has them."""
        return self.rest if value.shape[1:] == x.shape[1:] else numbered(name, value, 1)

    def coords(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the coordinates of the variables' dimensions, numbers where no labels are known."""
        sizes = _sizes(variables)
        known = {name: coord for name, coord in self.known.items() if {*coord[0]} <= sizes.keys()}
        return {dim: np.arange(size) for dim, size in sizes.items()} | known

    def checked(
        self, latent: set[str], observed: set[str], groups: dict[str, dict[str, Any]], wanted: Mapping[str, Any]
    ) -> Labels:
        """Return the labels with the wanted ones added.

        Errors:
            ConfigError: for names in the data that are taken, and labels of no dimension or of another length.
            PairError: for sites whose names are taken.
        """
        if clash := sorted((latent | observed) & {"chain", "draw"} | observed & {"marginal"}):
            raise PairError(f"found sites called {clash}, which are the export's own names: rename them in the pair")
        dims = [self.first, *self.rest]
        names = [*dims, *(name for name in self.known if name not in dims)]
        sizes = {dim: size for variables in groups.values() for dim, size in _sizes(variables).items()}
        sizes = {dim: size for dim, size in sizes.items() if dim not in ("chain", "draw")}
        taken = {name for variables in groups.values() for name in variables} | {"chain", "draw"}
        taken |= {dim for name in latent for dim in groups["posterior"][name][0] if dim.startswith(f"{name}_dim_")}
        if clash := sorted({name for name in names if name in taken or names.count(name) > 1}):
            raise ConfigError(
                f"x: found dimensions or coordinates called {clash}, which are used twice, or the draws', a site's or "
                "a statistic's own here: rename them"
            )
        if not isinstance(wanted, Mapping):
            raise ConfigError(
                f"coords: found {type(wanted).__name__}, expected a dictionary from a dimension, some of {[*sizes]}, "
                "to its labels"
            )
        for dim, labels in wanted.items():
            if dim not in sizes:
                raise ConfigError(f"coords: found a dimension {dim!r}, expected some of {[*sizes]}")
            if np.shape(labels) != (sizes[dim],):
                raise ConfigError(f"coords: found {np.size(labels)} labels of {dim!r}, expected a list of {sizes[dim]}")
        return self._replace(known=self.known | {dim: ((dim,), _kept(labels)) for dim, labels in wanted.items()})


def labels_of(data: Any, x: Tensor) -> Labels:
    """Return the labels of data: those of pandas and xarray, numbers for anything else; ``x`` is the data as a tensor.

    Example:
        >>> import torch
        >>> labels_of(None, torch.zeros(3, 8, 8))[:2]
        ('observation', ['x_dim_0', 'x_dim_1'])
    """
    if isinstance(data, xr.DataArray):
        levelled = [dim for dim, index in data.indexes.items() if index.nlevels > 1 and dim in data.dims]
        data = data.reset_index(levelled)
        dims = [str(dim) for dim in data.dims]
        known = {
            str(name): (tuple(map(str, coord.dims)), _kept(data.indexes.get(name, coord)))
            for name, coord in data.coords.items()
        }
    elif hasattr(data, "to_xarray"):  # of pandas
        named = zip(data.axes, ("observation", "feature"), strict=False)
        dims = [str(default if axis.name is None else axis.name) for axis, default in named]
        known = {name: coord for dim, axis in zip(dims, data.axes, strict=True) for name, coord in _levels(dim, axis)}
    else:
        dims, known = ["observation", *(f"x_dim_{index}" for index in range(x.ndim - 1))], {}
    dims = [_plain(dim) for dim in dims]
    known = {_plain(name): (tuple(map(_plain, over)), values) for name, (over, values) in known.items()}
    return Labels(dims[0], dims[1:], known)


def renamed(sites: dict[str, Any]) -> dict[str, Any]:
    """Return the sites by names that xarray takes: a ``/``, which would be a group, becomes a ``.``.

    Errors:
        PairError: for two sites that would be called the same.

    Example:
        >>> renamed({"table/z": 1, "slope": 2})
        {'table.z': 1, 'slope': 2}
    """
    found = {_plain(name): value for name, value in sites.items()}
    if len(found) < len(sites):
        raise PairError(f"found sites {sorted(sites)}, of which two have one name with '.' in place of '/': rename one")
    return found


def _plain(name: str) -> str:
    return name.replace("/", ".")


def _levels(dim: str, index: Any) -> list[tuple[str, tuple[tuple[str, ...], np.ndarray]]]:
    """Return the coordinates of a dimension with a pandas index: one for each level of the index."""
    if index.nlevels == 1:
        return [(dim, ((dim,), _kept(index)))]
    names = [f"{dim}_level_{place}" if name is None else str(name) for place, name in enumerate(index.names)]
    return [(name, ((dim,), _kept(index.get_level_values(place)))) for place, name in enumerate(names)]


def _kept(labels: Any) -> np.ndarray:
    """Return labels, as strings if netCDF has no type for them."""
    array = np.asarray(labels)
    if array.dtype.kind != "O" or all(isinstance(label, str) for label in array.flat):
        return array
    texts = [label.decode(errors="replace") if isinstance(label, bytes) else str(label) for label in array.flat]
    return np.array(texts).reshape(array.shape)


def _sizes(variables: dict[str, Any]) -> dict[str, int]:
    return {dim: size for dims, values in variables.values() for dim, size in zip(dims, values.shape, strict=True)}


def numbered(name: str, value: Tensor, leading: int) -> list[str]:
    """Return ArviZ's names for the dimensions of a variable after the leading ones.

    Example:
        >>> import torch
        >>> numbered("z", torch.zeros(5, 3, 2), 2)
        ['z_dim_0']
    """
    return [f"{name}_dim_{place}" for place in range(value.ndim - leading)]
