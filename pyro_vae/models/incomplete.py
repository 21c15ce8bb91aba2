r"""Data of which some entries are missing."""

from __future__ import annotations

__all__ = ["Incomplete"]

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..data.arrays import as_tensor
from ..errors import PairError
from ..pairs.inputs import TakesMissing, programs_of
from ..pairs.modules import modules_behind


class Incomplete(TakesMissing):
    r"""A pair for incomplete data: NaN means that an entry is missing, and the model is that of the others.

    .. math:: p(x^{\mathrm{obs}}) = \int p(z) \prod_{d\ \mathrm{observed}} p(x_d \mid z) \, dz

    Entries are independent given z, so those that are missing integrate to one. Everything takes this pair in place of
    the other: :class:`~pyro_vae.objectives.IWAE` of it is the MIWAE bound, a lower bound on the logarithm above in nats
    per datapoint; :mod:`pyro_vae.evidence` estimates that logarithm; and with nothing missing each is what it is for
    the pair itself, bit for bit. That entries are missing must not depend on their values given the others.

    Arguments:
        pair: A VAE, anything else with ``.model`` and ``.guide``, or a tuple ``(model, guide)``, whose programs take
            ``mask=``, true where x is observed. Of an incomplete pair it is the same again.

    Errors:
        PairError: for something that is no pair, and for programs that take no ``mask=``.

    References:
        | MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei & Frellsen, 2019)
        | https://arxiv.org/abs/1812.02633

    Example:
        >>> import pyro_vae as pv
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
                    f"pair: the {name} takes no mask=, expected one that is true where x is observed: give it "
                    "mask=None, and let only observed entries count"
                )
        self.parts = nn.ModuleList(modules_behind(self._model, self._guide))  # whose parameters are this module's

    def model(self, x: Any = None, num: int | None = None) -> Any:
        """The pair's model of the entries of x that are not NaN; ``x=None`` generates ``num`` whole datapoints."""
        if x is None:
            return self._model(None, num)
        x, mask = _split(x)
        return self._model(x, mask=mask)

    def guide(self, x: Any) -> Any:
        """The pair's guide of the entries of x that are not NaN."""
        x, mask = _split(x)
        return self._guide(x, mask=mask)


def _takes_mask(program: Any) -> bool:
    try:
        parameters = inspect.signature(program).parameters.values()
    except (TypeError, ValueError):  # it will be seen when it is called
        return True
    return any(each.name == "mask" or each.kind is each.VAR_KEYWORD for each in parameters)


def _split(x: Any) -> tuple[Tensor, Tensor]:
    """x with zeros in place of NaN, and which entries are observed."""
    x = as_tensor(x)
    return x.nan_to_num(0.0, torch.inf, -torch.inf), ~x.isnan()
