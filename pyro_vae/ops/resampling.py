r"""Resampling: which particles go on, so that their numbers are right on average."""

from __future__ import annotations

__all__ = ["stratified", "systematic"]

import torch
from jaxtyping import Float, Int
from torch import Tensor


def systematic(log_w: Float[Tensor, "particles batch"], num: int | None = None) -> Int[Tensor, "chosen batch"]:
    r"""Indices of K draws from each datapoint's particles, by one uniform number and K equal steps.

    K is ``num``, by default the number of particles.

    .. math:: i_k = \min \{ i : C_i > (k - 1 + U) / K \}, \qquad C_i = \sum_{j \le i} \tilde w_j

    A particle of normalised weight :math:`\tilde w` is drawn :math:`K \tilde w` times on average, and never a whole
    time more or less. Datapoints draw separately; one whose weights are all zero keeps its particles.

    References:
        | Comparison of Resampling Schemes for Particle Filtering (Douc et al., 2005)
        | https://arxiv.org/abs/cs/0507025

    Example:
        >>> systematic(torch.tensor([[0.0, 1.0], [0.0, -torch.inf]]))
        tensor([[0, 0],
                [1, 0]])
    """
    offset = torch.rand(1, log_w.shape[1], dtype=torch.float64, device=log_w.device)
    return _indices(log_w, offset, len(log_w) if num is None else num)


def stratified(log_w: Float[Tensor, "particles batch"]) -> Int[Tensor, "particles batch"]:
    r"""As :func:`systematic`, with a uniform number for every step: counts within 2 of :math:`K \tilde w`.

    Example:
        >>> stratified(torch.tensor([[0.0, 1.0], [0.0, -torch.inf]]))
        tensor([[0, 0],
                [1, 0]])
    """
    offsets = torch.rand(log_w.shape, dtype=torch.float64, device=log_w.device)
    return _indices(log_w, offsets, len(log_w))


def _indices(log_w: Tensor, offsets: Tensor, num: int) -> Tensor:
    log_w = torch.where((log_w == -torch.inf).all(0), 0.0, log_w.double())
    reached = torch.softmax(log_w, 0).cumsum(0)
    reached = reached / reached[-1:]  # ends at 1 to the last digit, so that every place below 1 is inside
    places = (torch.arange(num, dtype=torch.float64, device=log_w.device)[:, None] + offsets) / num
    places = places.clamp(max=1 - 2**-53)
    return torch.searchsorted(reached.T.contiguous(), places.T.contiguous(), right=True).T
