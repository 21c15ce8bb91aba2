r"""The sharpness of images: their power by spatial frequency."""

from __future__ import annotations

__all__ = ["Spectrum", "power_spectrum"]

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.arrays import as_batch
from ..errors import ShapeError


class Spectrum(NamedTuple):
    """The power per pixel of images by spatial frequency, float64."""

    frequency: Float[Tensor, " bands"]
    """The middle of each band, in cycles per pixel, up to 1/2."""
    power: Float[Tensor, "batch bands"]
    """The power in each band, in the squared units of the data."""


def power_spectrum(x: Any) -> Spectrum:
    r"""Return the power of images by spatial frequency, averaged over directions and channels.

    .. math:: P(f) = \frac{1}{|A_f|} \sum_{k \in A_f} \frac{|\hat x_k|^2}{H W}, \qquad
        A_f = \{k : f - \tfrac{\delta}{2} \le |k| < f + \tfrac{\delta}{2}\}, \quad \delta = \frac{1}{\min(H, W)}

    with :math:`\hat x` the Fourier transform of an image from which its mean has been taken. The power of
    white noise is its variance at every frequency; blur takes power from the highest frequencies. A mean image E[x | z]
    is smoother than any x: where its power falls below that of the data, the decoder does not know the detail, which a
    draw of x replaces by the noise of the likelihood.

    Arguments:
        x: Images ``[n, ..., height, width]`` of at least 4 x 4 pixels, any array type.

    Errors:
        DataError: for empty or non-finite data.
        ShapeError: for data that are not images of at least 4 x 4 pixels.

    References:
        | Watch Your Up-Convolution: CNN Based Generative Deep Neural Networks are Failing to Reproduce Spectral
        | Distributions (Durall et al., 2020)  https://arxiv.org/abs/2003.01826

    Example:
        >>> waves = torch.cos(torch.pi * torch.arange(8.0)).expand(1, 8, 8)  # black, white, black, ...
        >>> found = power_spectrum(waves)
        >>> found.frequency
        tensor([0.1250, 0.2500, 0.3750, 0.5000], dtype=torch.float64)
        >>> found.power.argmax(1)
        tensor([3])
    """
    x = as_batch(x).double()
    if x.ndim < 3 or min(x.shape[-2:]) < 4:
        raise ShapeError(f"expected images (n, height, width) of at least 4 x 4 pixels, got {tuple(x.shape)}")
    height, width = x.shape[-2:]
    x = x.reshape(len(x), -1, height, width)
    power = torch.fft.fft2(x - x.mean((-2, -1), keepdim=True)).abs().square().mean(1) / (height * width)
    rows, columns = (torch.fft.fftfreq(size, dtype=x.dtype, device=x.device) for size in (height, width))
    bands = min(height, width) // 2
    band = (torch.hypot(rows[:, None], columns) * min(height, width)).round().long()
    inside = (band >= 1) & (band <= bands)  # the corners contain diagonal waves only
    index = band[inside] - 1
    total = power.new_zeros(len(x), bands).index_add_(1, index, power[:, inside])
    frequency = torch.arange(1, bands + 1, dtype=x.dtype, device=x.device) / min(height, width)
    return Spectrum(frequency, total / torch.bincount(index, minlength=bands))
