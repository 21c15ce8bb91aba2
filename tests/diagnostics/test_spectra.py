"""Power by spatial frequency: of waves, of noise and of what is blurred, in closed form."""

import math

import pytest
import torch

from pyro_vae.diagnostics import power_spectrum
from pyro_vae.errors import ShapeError
from tests.statistics import assert_mean, assert_not_mean


@pytest.mark.parametrize("cycles", [1, 3, 8])
@pytest.mark.parametrize("shape", [(16, 16), (16, 24)])
def test_a_wave_has_all_of_its_power_at_its_frequency(cycles, shape):
    rows = torch.arange(16, dtype=torch.float64)[:, None]
    wave = 5 + 2 * torch.cos(2 * math.pi * cycles * rows / 16).expand(1, *shape)
    found = power_spectrum(wave)
    assert torch.allclose(found.frequency, torch.arange(1, 9).double() / 16)
    others = torch.arange(8) != cycles - 1
    assert found.power[0, others].max() < 1e-20
    assert found.power[0, cycles - 1] > 1


def test_noise_has_its_variance_at_every_frequency_and_channels_are_averaged():
    torch.manual_seed(0)
    x = 3 + 0.5 * torch.randn(4000, 2, 8, 8, dtype=torch.float64)
    assert_mean(power_spectrum(x).power, 0.25)
    assert_not_mean(power_spectrum(x).power, 0.26)
    single = torch.cat([power_spectrum(x[:10, channel]).power[None] for channel in (0, 1)]).mean(0)
    torch.testing.assert_close(power_spectrum(x[:10]).power, single)


def test_blur_takes_what_its_kernel_says():
    x = torch.randn(50, 12, 12, dtype=torch.float64)
    blurred = (x + x.roll(1, 2)) / 2  # a kernel along rows, on a circle
    ratio = power_spectrum(blurred).power.sum(0) / power_spectrum(x).power.sum(0)
    assert (ratio.diff() < 0).all()
    assert 0.85 < ratio[0] < 1
    assert ratio[-1] < 0.7


@pytest.mark.parametrize("shape", [(5, 8), (5, 3, 8), (5, 8, 3)])
def test_what_is_no_image_is_one_line(shape):
    with pytest.raises(ShapeError, match="at least 4 x 4 pixels"):
        power_spectrum(torch.zeros(*shape))
