r"""Pairs for data with missing entries."""

from __future__ import annotations

__all__ = ["Incomplete"]

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..data.arrays import as_tensor
from ..errors import PairError
from ..pairs.modules import modules_behind
from ..pairs.pair import TakesMissing, programs_of


class Incomplete(TakesMissing):
    r"""A pair for incomplete data: NaN marks a missing entry, and the model is that of the observed entries.

    .. math:: p(x^{\mathrm{obs}}) = \int p(z) \prod_{d\ \mathrm{observed}} p(x_d \mid z) \, dz

    Entries are independent given z, so the missing ones integrate to one. This pair can be used wherever the original
    one can: its :class:`~pyro_vae.objectives.IWAE` is the MIWAE bound, a lower bound on
    :math:`\log p(x^{\mathrm{obs}})` in nats per datapoint, which :mod:`pyro_vae.evidence` estimates. Without missing
    entries all results equal those of the original pair, bit for bit. Entries have to be missing at random: given the
    observed entries, whether one is missing must not depend on its value.

    Arguments:
        pair: A VAE, another object with ``.model`` and ``.guide``, or a tuple ``(model, guide)``. Both programs take
            ``mask=``, true where x is observed. An incomplete pair stays as it is.

    Errors:
        PairError: for anything other than a pair, and for programs that take no ``mask=``.

    References:
        | MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei & Frellsen, 2019)
        | https://arxiv.org/abs/1812.02633

    Example:
        >>> vae = pv.presets.mlp_vae(data_shape=(3,), latent_dim=2, hidden=(8,), likelihood="gaussian")
        >>> incomplete = pv.Incomplete(vae)
        >>> x = torch.tensor([[0.5, torch.nan, -1.0], [torch.nan, torch.nan, 0.2]])
        >>> miwae = pv.objectives.IWAE(num_particles=5)(incomplete.model, incomplete.guide)
        >>> miwae.bound(x).shape
        torch.Size([2])
    """

    def __init__(self, pair: Any) -> None:
        super().__init__()
        self._model, self._guide = (pair._model, pair._guide) if isinstance(pair, Incomplete) else programs_of(pair)
        for name, program in {"model": self._model, "guide": self._guide}.items():
            if not _takes_mask(program):
                raise PairError(
                    f"pair: the {name} takes no mask=, expected one that is true where x is observed: give it an "
                    "argument mask=None, and let only observed entries count"
                )
        self.parts = nn.ModuleList(modules_behind(self._model, self._guide))  # their parameters are this module's

    def model(self, x: Any = None, num: int | None = None) -> Any:
        """Run the pair's model on the entries that are not NaN; ``x=None`` generates ``num`` complete datapoints."""
        if x is None:
            return self._model(None, num)
        x, mask = _split(x)
        return self._model(x, mask=mask)

    def guide(self, x: Any) -> Any:
        """Run the pair's guide on the entries of x that are not NaN."""
        x, mask = _split(x)
        return self._guide(x, mask=mask)


def _takes_mask(program: Any) -> bool:
    try:
        parameters = inspect.signature(program).parameters.values()
    except (TypeError, ValueError):  # without a signature only a call can tell
        return True
    return any(parameter.name == "mask" or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _split(x: Any) -> tuple[Tensor, Tensor]:
    """Return x with zeros in place of NaN, and the mask of observed entries."""
    x = as_tensor(x)
    return x.nan_to_num(0.0, torch.inf, -torch.inf), ~x.isnan()
