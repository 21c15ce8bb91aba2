"""Disentanglement: codes whose answer is known, exact information, and what chance makes of codes that know nothing."""

import math

import numpy as np
import pytest
import torch

from pyro_vae.diagnostics import dci, mig, sap
from pyro_vae.errors import ConfigError, DataError, ShapeError

N = 400
CONTINUOUS, DISCRETE = "continuous factors", "discrete factors"
EIGHTH_TURN = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)


def factors_of(kind, num=N, columns=2):
    """Independent factors: uniform, or of three classes."""
    u = torch.rand(num, columns, dtype=torch.float64)
    return u if kind == CONTINUOUS else (3 * u).floor()


def quick_dci(codes, factors, **options):
    return dci(codes, factors, num_trees=20, **options)


def scores(codes, factors):
    found = quick_dci(codes, factors)
    return {
        "mig": mig(codes, factors).score,
        "sap": sap(codes, factors).score,
        "disentanglement": found.disentanglement,
        "completeness": found.completeness,
    }


both_kinds = pytest.mark.parametrize("kind", [CONTINUOUS, DISCRETE])


# --- Codes of which the answer is known ---------------------------------------------------------------------------

PERFECT = {
    "the factors themselves": lambda v: v,
    "in another order": lambda v: v.flip(1),
    "with flipped ratios": lambda v: v * torch.tensor([-1.0, 1.0]),
    "on other scales": lambda v: 1e3 + v * torch.tensor([1e-3, 50.0]),
    "curved": lambda v: torch.stack([v[:, 0].exp(), (1 + v[:, 1]).log()], 1),
    "beside noise": lambda v: torch.cat([torch.randn_like(v), v, torch.randn_like(v)], 1),
    "beside a constant": lambda v: torch.cat([v, torch.ones(len(v), 1)], 1),
}


@both_kinds
@pytest.mark.parametrize("code", PERFECT.values(), ids=list(PERFECT))
def test_a_dimension_for_each_factor_is_disentangled(kind, code):
    v = factors_of(kind)
    for name, score in scores(code(v), v).items():
        assert 0.9 < score <= 1 + 1e-9, name  # of 400 datapoints, noise tells a few hundredths
    assert quick_dci(code(v), v).informativeness > 0.97


@both_kinds
def test_factors_turned_by_45_degrees_are_entangled(kind):
    v = factors_of(kind, num=2000)
    for name, score in scores(v @ EIGHTH_TURN, v).items():
        assert 0 <= score < 0.05, name
    assert quick_dci(v @ EIGHTH_TURN, v).informativeness > 0.5  # not because nothing is known


@both_kinds
def test_codes_that_know_nothing_score_nothing(kind):
    v = factors_of(kind)
    codes = torch.randn(N, 6, dtype=torch.float64)
    for name, score in scores(codes, v).items():
        assert 0 <= score < 0.05, name
    assert quick_dci(codes, v).informativeness < 0.05


def test_a_sum_modulo_two_is_known_to_no_dimension_but_to_the_forest():
    v = torch.randint(2, (1000, 1)).double()
    key = torch.randint(2, (1000, 1)).double()
    codes = torch.cat([key, (v + key) % 2], 1)
    assert mig(codes, v).table.max() < 0.02
    assert sap(codes, v).table.max() < 0.1
    found = quick_dci(codes, torch.cat([v, key], 1))
    assert found.prediction.tolist() == [1.0, 1.0]
    assert found.importance[:, 0].min() > 0.25  # both are needed for the sum
    assert found.importance[:, 1].tolist() == [1.0, 0.0]


# --- Exact answers ------------------------------------------------------------------------------------------------


def test_mutual_information_gap_by_hand():
    # A factor of four classes, two bits: one dimension has both, another has one, a third has none.
    v = torch.arange(4).repeat(10)[:, None]
    none = torch.arange(40)[:, None] // 4 % 2
    found = mig(torch.cat([v // 2, none, 3 - v], 1), v, num_bins=4, corrected=False)
    assert found.table[:, 0].tolist() == pytest.approx([0.5, 0.0, 1.0], abs=1e-12)
    assert found.gaps.tolist() == pytest.approx([0.5])
    assert found.score == pytest.approx(0.5)


def test_mutual_information_of_a_noisy_bit_by_hand():
    # The bit comes through in 3 of 4 cases: I = log 2 - H(1/4), of log 2.
    v = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1] * 5)
    z = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0] * 5)
    known = 1 + (0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    found = mig(torch.stack([z, torch.zeros_like(z)], 1), v[:, None], num_bins=2, corrected=False)
    assert found.table[:, 0].tolist() == pytest.approx([known, 0.0], abs=1e-12)


def test_what_chance_tells_by_hand():
    # Two classes of 4 beside two of 4: of the 70 ways to lay them, 2 agree in full, 32 in 6 of 8, and 36 not at all.
    v = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    codes = torch.stack([torch.tensor([0, 0, 0, 1, 1, 1, 1, 0]), 1 - v, torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])], 1)
    full = math.log(2)
    three_quarters = full + 0.25 * math.log(0.25) + 0.75 * math.log(0.75)
    chance = (2 * full + 32 * three_quarters) / 70
    found = mig(codes, v[:, None], num_bins=2)
    expected = [(three_quarters - chance) / (full - chance), 1.0, 0.0]  # less than chance is nothing
    assert found.table[:, 0].tolist() == pytest.approx(expected, abs=1e-12)


def test_predictability_by_hand():
    v = torch.arange(400)[:, None]
    codes = torch.cat([v.remainder(2), 5 - 3 * v, torch.zeros_like(v)], 1)
    line, parity = np.arange(400), np.arange(400) % 2
    expected = [np.corrcoef(line, parity)[0, 1] ** 2, 1.0, 0.0]
    assert sap(codes, v).table[:, 0].tolist() == pytest.approx(expected)
    classes = v // 100
    assert sap(codes, classes).table[:, 0].tolist() == pytest.approx([0.0, 1.0, 0.0], abs=0.1)
    halves = sap((v // 200).expand(-1, 2), classes).table[:, 0]  # 2 of 4 classes right, where 1 would be by chance
    assert halves.tolist() == pytest.approx([1 / 3] * 2, abs=0.1)
    assert halves[0] == halves[1]


def test_concentrations_by_hand():
    # Both dimensions tell both factors; exactly the same ones, so that a forest cannot prefer one by its merit.
    bit = torch.arange(400) % 2
    other = torch.arange(400) // 2 % 2
    one_in_two = quick_dci(torch.stack([bit, bit, other], 1), torch.stack([bit, other], 1))
    assert one_in_two.importance[2].tolist() == [0.0, 1.0]
    share = one_in_two.importance[0, 0].item()
    entropy = -(share * math.log(share) + (1 - share) * math.log(1 - share)) / math.log(3)
    assert one_in_two.disentanglement == pytest.approx(1.0)
    assert one_in_two.completeness == pytest.approx(1 - entropy / 2)


# --- Axes ---------------------------------------------------------------------------------------------------------


def test_rows_are_dimensions_and_columns_are_factors():
    v = factors_of(DISCRETE, columns=2)
    codes = torch.cat([torch.randn(N, 2, dtype=torch.float64), v.flip(1)], 1)
    for table in (mig(codes, v).table, sap(codes, v).table, quick_dci(codes, v).importance):
        assert table.shape == (4, 2)
        assert table.argmax(0).tolist() == [3, 2]


def test_codes_and_factors_are_not_interchangeable():
    v = factors_of(CONTINUOUS)
    spare = torch.cat([v, torch.randn_like(v)], 1)
    for score in (mig, sap):
        assert score(spare, v).score > 0.9
        assert score(v, spare).score < 0.6  # two of the four factors are not in the code


def test_disentanglement_is_of_dimensions_and_completeness_of_factors():
    v = factors_of(CONTINUOUS, columns=4)
    two_for_one = torch.cat([v, v], 1)
    found = quick_dci(two_for_one, v)
    assert found.disentanglement > 0.95
    assert found.completeness < 0.8
    # One dimension holds two factors of ten steps each, another one two more, and the others nothing.
    steps = (10 * v).floor()
    one_for_two = torch.cat([steps[:, ::2] + steps[:, 1::2] / 10, torch.randn_like(v)[:, :2]], 1)
    found = quick_dci(one_for_two, steps)
    assert found.completeness > found.disentanglement + 0.1


def test_a_dimension_without_use_has_no_weight_in_disentanglement():
    v = factors_of(DISCRETE)
    unused = torch.ones(N, 3)
    assert quick_dci(torch.cat([v, unused], 1), v).disentanglement == pytest.approx(1.0)


def test_a_forest_without_a_split_credits_all_dimensions_alike():
    found = quick_dci(torch.ones(N, 3), factors_of(DISCRETE))
    assert found.importance.flatten().tolist() == pytest.approx([1 / 3] * 6)
    assert (found.disentanglement, found.completeness) == pytest.approx((0.0, 0.0))


# --- Chance and bias ----------------------------------------------------------------------------------------------


def test_the_correction_takes_the_bias_of_small_samples_away():
    small, large = factors_of(CONTINUOUS, num=200), factors_of(CONTINUOUS, num=20_000)
    for v in (small, large):
        noise = torch.randn_like(v)
        plain, corrected = (mig(torch.cat([v, noise], 1), v, corrected=on).score for on in (False, True))
        assert corrected > 0.95
        assert (plain > 0.95) == (v is large)  # what chance tells to the second best is half of all


@pytest.mark.parametrize("num", [100, 400, 1600])
def test_the_corrected_information_of_independent_columns_is_zero_on_average(num):
    ratios = []
    for _ in range(8):
        found = mig(torch.randn(num, 2), torch.rand(num, 2), corrected=False).table
        bias = (19**2 / (2 * num)) / math.log(20)
        ratios.append(found.mean() / bias)
        assert mig(torch.randn(num, 4), torch.rand(num, 2)).score < 2 * 20 / num / math.log(20)
    assert 0.5 < np.mean(ratios) < 1.5  # the order of magnitude that the docstring names


def test_bins_do_not_care_for_monotone_transformations():
    v = factors_of(CONTINUOUS)
    codes = v @ EIGHTH_TURN + 0.3 * v
    exact = mig(codes, v).table
    assert torch.equal(mig(codes.exp(), v.log()).table, exact)
    torch.testing.assert_close(mig(-codes, 1 - v).table, exact)


def test_equal_values_share_a_bin():
    v = torch.arange(100)[:, None]
    codes = torch.cat([v.clamp(max=60), v], 1)  # 40 datapoints at one value
    known = mig(codes, v, num_bins=10, corrected=False).table[:, 0]
    assert known[1] == pytest.approx(1.0)
    assert known[0] == pytest.approx(1 - 0.4 * math.log(4) / math.log(10), abs=0.03)


def test_dimensions_that_hardly_move_count_as_much_as_others():
    v = factors_of(CONTINUOUS)
    assert torch.equal(mig(v * 1e-9, v).table, mig(v, v).table)  # the warning of the module's docstring


# --- Reproducible, and any array -----------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [sap, quick_dci])
def test_the_seed_decides(score):
    v = factors_of(DISCRETE)
    codes = v + torch.randn_like(v)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (score(codes, v, seed=seed)[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])


@pytest.mark.parametrize("kind", [np.float32, np.int64, list, torch.float16])
def test_arrays_of_any_kind_are_taken_and_left_as_they_are(kind):
    v = torch.randint(4, (100, 2))
    given = v.tolist() if kind is list else v.to(kind) if isinstance(kind, torch.dtype) else v.numpy().astype(kind)
    for score in (mig, sap, quick_dci):
        assert torch.equal(score(given, given)[0], score(v, v)[0])
    assert np.array_equal(np.asarray(given), v.numpy())


# --- Bad input ----------------------------------------------------------------------------------------------------


def ones_at(place, value, shape=(N, 2)):
    x = torch.rand(shape)
    x[place] = value
    return x


BAD = {
    "codes not finite": (ones_at((3, 1), math.nan), torch.rand(N, 2), DataError, r"codes: found 1 non-finite"),
    "factors not finite": (torch.rand(N, 2), ones_at((3, 1), math.inf), DataError, r"factors: found 1 non-finite"),
    "empty": (torch.rand(0, 2), torch.rand(0, 2), DataError, r"codes: expected at least one"),
    "too few": (torch.rand(30, 2), torch.rand(30, 2), DataError, r"found 30 datapoints, expected at least 40"),
    "a vector of factors": (torch.rand(N, 2), torch.rand(N), ShapeError, r"got \(400, 2\) and \(400,\)"),
    "transposed": (torch.rand(2, N), torch.rand(N, 2), ShapeError, r"of the same n datapoints, got \(2, 400\)"),
    "images": (torch.rand(N, 2, 2), torch.rand(N, 2), ShapeError, r"got \(400, 2, 2\)"),
    "one dimension": (torch.rand(N, 1), torch.rand(N, 2), ShapeError, r"found one latent dimension"),
    "a constant factor": (
        torch.rand(N, 2), ones_at((slice(None), 1), 7.0), DataError, r"column 1 is 7 throughout.*leave it out"
    ),
    "words": (torch.rand(N, 2), np.full((N, 2), "oval"), DataError, r"factors: found ndarray"),
}  # fmt: skip


@pytest.mark.parametrize("score", [mig, sap, quick_dci], ids=["mig", "sap", "dci"])
@pytest.mark.parametrize(("codes", "factors", "kind", "words"), BAD.values(), ids=list(BAD))
def test_bad_input_is_one_line(score, codes, factors, kind, words):
    with pytest.raises(kind, match=words) as caught:
        score(codes, factors)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda v: mig(v, v, num_bins=1),
        lambda v: sap(v, v, max_classes=1),
        lambda v: dci(v, v, num_trees=3),
        lambda v: dci(v, v, max_classes=0),
    ],
    ids=["one bin", "one class", "few trees", "no classes"],
)
def test_bad_options_are_one_line(call):
    with pytest.raises(ConfigError) as caught:
        call(torch.rand(N, 2))
    assert "\n" not in str(caught.value)


def test_one_factor_is_too_few_for_dci_alone():
    v = torch.rand(N, 2)
    assert mig(v, v[:, :1]).gaps.shape == sap(v, v[:, :1]).gaps.shape == (1,)
    with pytest.raises(ShapeError, match="found one, expected at least 2"):
        dci(v, v[:, :1])
