r"""A Pyro program inside another one."""

from __future__ import annotations

__all__ = ["embed"]

from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ..errors import ConfigError


def embed(program: Callable, *args: Any, name: str, **kwargs: Any) -> dict[str, Tensor]:
    r"""Run a pair's ``model`` or ``guide`` inside a program of your own; its sites and plates are called ``name/...``.

    The joint density of the whole is the product of the parts:

    .. math:: p(x, z, y, w) = p(z) \, p(x \mid z) \; p(w) \, p(y \mid z, w)

    Embed the model in your model and the guide in your guide under one name. With a name for each, several pairs, or
    one pair several times, live in one program. Parameters keep their names, so that networks are trained where they
    are. What Pyro does to sites from outside (``condition``, ``do``, ``block``, an autoguide) knows the new names.

    Arguments:
        program: A Pyro program.
        args, kwargs: What it is called with.
        name: The prefix of its sites and plates.

    Returns:
        The values of its sites, by the names that they have in the program: ``{"z": [n, latent_dim], "x": [n, ...]}``.

    Errors:
        ConfigError: if the name is empty.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> vae = pv.presets.mlp_vae(data_shape=(4,), latent_dim=2, hidden=(8,), likelihood="gaussian")
        >>> def model(x, y):
        ...     z = pv.embed(vae.model, x, name="table")["z"]
        ...     slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     with pyro.plate("rows", len(x)):
        ...         pyro.sample("y", dist.Normal(z @ slope, 1.0), obs=y)
        >>> list(pyro.poutine.trace(model).get_trace(torch.zeros(3, 4), torch.zeros(3)).stochastic_nodes)
        ['table/data', 'table/z', 'slope', 'rows']
    """
    if not name:
        raise ConfigError("name='': expected a name for what is embedded, to tell its sites from others")
    with _Prefix(name) as prefix:
        program(*args, **kwargs)
    return prefix.values


class _Prefix(Messenger):
    """Put a name before those of all sites and plates inside, and note the sites' values."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.values: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: dict) -> None:
        known = msg.setdefault("embedded", {})
        if self in known:  # `do` sends a copy of the site through all handlers once more
            return
        known[self] = msg["name"]
        msg["name"] = f"{self.name}/{msg['name']}"
        # Handlers are asked from the inside out: the plates that are known by now are those of the program itself.
        inside = msg["cond_indep_stack"]
        msg["cond_indep_stack"] = tuple(frame._replace(name=f"{self.name}/{frame.name}") for frame in inside)

    def _pyro_post_sample(self, msg: dict) -> None:
        if not isinstance(msg["fn"], _Subsample):
            self.values[msg["embedded"][self]] = msg["value"]
