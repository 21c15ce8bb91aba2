r"""Systematic resampling of particles by their weights."""

from __future__ import annotations

__all__ = ["systematic"]

import torch
from jaxtyping import Float, Int
from torch import Tensor


def systematic(log_w: Float[Tensor, "particles batch"], num: int | None = None) -> Int[Tensor, "chosen batch"]:
    r"""Return the indices of K particles of each datapoint, chosen by one uniform number U and K equal steps.

    .. math:: i_k = \min \{ i : C_i > (k - 1 + U) / K \}, \qquad C_i = \sum_{j \le i} \tilde w_j

    K is ``num``, by default the number of particles. A particle of normalised weight :math:`\tilde w` is chosen
    :math:`K \tilde w` times on average, and its count differs from that by less than one. Each datapoint has its own U;
    one with all weights zero keeps its particles.

    References:
        | Comparison of Resampling Schemes for Particle Filtering (Douc et al., 2005)
        | https://arxiv.org/abs/cs/0507025

    Example:
        >>> systematic(torch.tensor([[0.0, 1.0], [0.0, -torch.inf]]))
        tensor([[0, 0],
                [1, 0]])
    """
    num = len(log_w) if num is None else num
    offset = torch.rand(1, log_w.shape[1], dtype=torch.float64, device=log_w.device)
    log_w = torch.where((log_w == -torch.inf).all(0), 0.0, log_w.double())
    cumulative = torch.softmax(log_w, 0).cumsum(0)
    cumulative = cumulative / cumulative[-1:]  # ends at exactly 1, so that every level below 1 is reached
    levels = (torch.arange(num, dtype=torch.float64, device=log_w.device)[:, None] + offset) / num
    levels = levels.clamp(max=1 - 2**-53)
    return torch.searchsorted(cumulative.T.contiguous(), levels.T.contiguous(), right=True).T
