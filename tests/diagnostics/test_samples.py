"""Two samples compared: the nearest neighbour is the nearest, the energy distance is the closed form."""

import math

import pytest
import torch

from pyro_vae.diagnostics import energy_distance, nearest_neighbours
from pyro_vae.errors import ConfigError, DataError, ShapeError
from tests.statistics import assert_mean, assert_not_mean

# --- Neighbours ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_bytes", [1, 1000, 2**26])
@pytest.mark.parametrize("shape", [(3,), (2, 4)])
def test_the_nearest_is_the_nearest(shape, max_bytes):
    x, others = torch.randn(20, *shape), torch.randn(31, *shape)
    expected = (x[:, None] - others).double().flatten(2).norm(dim=2).min(1)
    found = nearest_neighbours(x, others, max_bytes=max_bytes)
    assert torch.equal(found.place, expected.indices)
    torch.testing.assert_close(found.distance, expected.values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_copies_are_found_at_no_distance(offset):
    others = torch.randn(50, 8, 8) + offset
    found = nearest_neighbours(others[[7, 40]], others)
    assert found.place.tolist() == [7, 40]
    assert found.distance.tolist() == [0.0, 0.0]


def test_bytes_are_numbers():
    # A difference of unsigned bytes would wrap around: 3 - 5 = 254.
    found = nearest_neighbours(torch.tensor([[3], [200]], dtype=torch.uint8), torch.tensor([[5], [90]]).byte())
    assert found.place.tolist() == [0, 1]
    assert found.distance.tolist() == [2.0, 110.0]


def test_of_zeros_and_ones_the_square_is_how_many_differ():
    x = torch.zeros(1, 3, 3)
    other = x.clone()
    other[0, 0] = 1.0
    assert nearest_neighbours(x, other).distance.square().item() == pytest.approx(3.0)


# --- Energy distance ----------------------------------------------------------------------------------------------


def between_normals(shift):
    r"""2 E|x - y| - 2 E|x - x'| for unit normals so far apart: means of folded normals of scale sqrt(2)."""
    folded = 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    return 2 * folded - 4 / math.sqrt(math.pi)


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_normals_have_the_closed_form_without_bias(shift):
    found = torch.stack([energy_distance(torch.randn(8, 1), shift + torch.randn(5, 1)) for _ in range(400)])
    assert_mean(found, between_normals(shift))
    assert (found < 0).any() or shift == 2.0


def test_with_every_point_at_no_distance_from_itself_it_would_be_biased():
    def biased(x, y):
        within = torch.cdist(x, x).mean() + torch.cdist(y, y).mean()
        return 2 * torch.cdist(x, y).mean() - within

    assert_not_mean(torch.stack([biased(torch.randn(8, 1), torch.randn(5, 1)) for _ in range(400)]), 0.0)


def test_it_sees_more_than_means_and_variances():
    normal, signs = torch.randn(1000, 1), torch.randint(2, (1000, 1)) * 2.0 - 1
    assert energy_distance(normal, signs) > 0.05
    assert energy_distance(normal, torch.randn(1000, 1)).abs() < 0.01


@pytest.mark.parametrize("max_bytes", [1, 1000, 2**26])
def test_blocks_and_the_order_change_nothing(max_bytes):
    x, y = torch.randn(20, 3, 2) + 1e4, torch.randn(31, 3, 2) + 1e4
    expected = energy_distance(y - 1e4, x - 1e4)
    torch.testing.assert_close(energy_distance(x, y, max_bytes=max_bytes), expected, rtol=0, atol=1e-5)


# --- Refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compare", [nearest_neighbours, energy_distance])
def test_unusable_input_is_refused(compare):
    x = torch.zeros(3, 4)
    with pytest.raises(ShapeError, match=r"one shape, got \(4,\) and \(2, 2\)"):
        compare(x, torch.zeros(3, 2, 2))
    with pytest.raises(DataError, match="x: found 1 non-finite"):
        compare(torch.tensor([[0.0], [math.nan]]), torch.zeros(3, 1))
    with pytest.raises(DataError, match="expected at least one datapoint"):
        compare(x, torch.zeros(0, 4))
    with pytest.raises(ConfigError, match="max_bytes=0"):
        compare(x, x, max_bytes=0)


def test_a_single_datapoint_has_no_energy_distance():
    for pair, name in (((1, 3), "x"), ((3, 1), "y")):
        with pytest.raises(DataError, match=f"{name}: found one datapoint"):
            energy_distance(*(torch.zeros(num, 2) for num in pair))
