"""Pictures: every one says what it claims about the values it was given, and touches nothing but its own Axes."""

import math
import subprocess
import sys
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from pyro_vae import plot
from pyro_vae.diagnostics import InferenceGaps
from pyro_vae.errors import ShapeError
from pyro_vae.evidence import LogEvidence
from pyro_vae.ops.verdicts import Judgement


def epochs(train, validation, elbo=None):
    rows = zip(train, validation, elbo or train, [math.nan] * len(train) if elbo else validation, strict=True)
    names = "train_bound", "validation_bound", "train_elbo", "validation_elbo"
    return [SimpleNamespace(epoch=n, **dict(zip(names, row, strict=True))) for n, row in enumerate(rows, 1)]


def estimates(values, errors, verdicts, side="lower"):
    value, stderr = torch.tensor(values).double(), torch.tensor(errors).double()
    counts = torch.full(value.shape, 100)
    judgement = Judgement(np.array(verdicts), np.array([""] * len(values), dtype=object))
    return LogEvidence(value, stderr, side, counts.double(), value * math.nan, judgement, counts, counts)


def many_estimates(num):
    verdicts = ["ok", "doubtful", "unreliable"]
    return estimates((-torch.rand(num)).tolist(), [0.1] * num, [verdicts[place % 3] for place in range(num)])


def gaps_of(amortisation, approximation, error=0.03):
    """Gaps below log p(x) = -1, all with the same Monte-Carlo errors but for the difference, whose is a third."""
    amortisation, approximation = (torch.tensor(part).double() for part in (amortisation, approximation))
    exact, errors = torch.full_like(amortisation, -1.0), torch.full_like(amortisation, error)
    local = exact - approximation
    return InferenceGaps(
        exact, local - amortisation, local, approximation, amortisation, errors * 0, errors, errors, errors, errors / 3,
        family="diagonal",
    )  # fmt: skip


def intervals(container):
    """Ends of the error bars of a container, ``[bars, 2]``, along the axis that they are on."""
    _, _, (bars,) = container
    ends = np.array(bars.get_segments())
    along = 0 if np.ptp(ends[:, :, 1]) == 0 else 1
    return ends[:, :, along]


def levels(*values, height=4, width=4):
    """Images of one brightness each."""
    return torch.tensor(values)[:, None, None].expand(-1, height, width)


def canvas(ax):
    (image,) = ax.images
    return np.asarray(image.get_array())


def ticks(axis):
    names = (text.get_text().replace("−", "-") for text in axis.get_ticklabels())
    return dict(zip(names, axis.get_ticklocs(), strict=True))


def strokes(num):
    """Smooth grey strokes on black, as decoded digits are: noise would not show how well a picture compresses."""
    coarse = 28 * torch.rand(num, 1, 6, 6) - 24
    return torch.nn.functional.interpolate(coarse, size=(28, 28), mode="bicubic")[:, 0].sigmoid()


DRAW = {
    "images": lambda ax=None: plot.images(strokes(100), ax, title="a title"),
    "imputations": lambda ax=None: plot.imputations(
        strokes(12),
        strokes(12),
        strokes(24).reshape(2, 12, *strokes(1).shape[1:]),
        torch.ones(1, 1) > 0,
        ax,
        title="a title",
    ),
    "reconstructions": lambda ax=None: plot.reconstructions(strokes(12), strokes(12), ax, title="a title"),
    "manifold": lambda ax=None: plot.manifold(strokes(400), torch.linspace(-2, 2, 20), ax, title="a title"),
    "latents": lambda ax=None: plot.latents(torch.randn(10_000, 2), torch.arange(10_000) % 10, ax, title="a title"),
    "history": lambda ax=None: plot.history(epochs([-3.0, -2.0, -1.0], [-4.0, -3.0, -2.0]), ax, title="a title"),
}
DRAW |= {
    "latents with ellipses": lambda ax=None: plot.latents(
        torch.randn(1000, 2), torch.arange(1000) % 10, ax, scale=0.1 * torch.rand(1000, 2), title="a title"
    ),
    "images in colours": lambda ax=None: plot.images(torch.rand(10, 3, 8, 8), ax, title="a title"),
    "interpolations in colours": lambda ax=None: plot.interpolations(
        torch.rand(2, 3, 8, 8), torch.rand(2, 5, 3, 8, 8), torch.rand(2, 3, 8, 8), ax, title="a title"
    ),
    "neighbours": lambda ax=None: plot.neighbours(strokes(12), strokes(12), torch.rand(12), ax, title="a title"),
    "interpolations": lambda ax=None: plot.interpolations(
        strokes(8), strokes(80).reshape(8, 10, 28, 28), strokes(8), ax, title="a title"
    ),
    "log_evidence": lambda ax=None: plot.log_evidence(many_estimates(10_000), ax=ax, title="a title"),
    "inference_gaps": lambda ax=None: plot.inference_gaps(
        {"full": gaps_of([0.1, 0.2], [0.3, 0.1])}, ax, title="a title"
    ),
}
DRAW |= {
    "traversals": lambda ax=None: plot.traversals(
        strokes(40).unflatten(0, (5, 8)), ax, levels=torch.linspace(0.05, 0.95, 8), title="a title"
    ),
}
each_picture = pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)


def test_every_picture_is_tested():
    names = {*(name.split()[0] for name in DRAW), "latent_grid", "save", "traversal_grid"}
    assert names == set(plot.__all__)


@each_picture
def test_new_axes_are_in_a_figure_of_their_own(draw):
    first, second = draw(), draw()
    assert isinstance(first, Axes)
    assert first.figure is not second.figure
    assert first.get_title() == "a title"


@each_picture
def test_given_axes_are_drawn_on_and_returned(draw):
    left, right = Figure().subplots(1, 2)
    assert draw(right) is right
    assert right.has_data()
    assert not left.has_data()


@each_picture
def test_settings_stay_as_they_are(draw):
    before = dict(mpl.rcParams)
    draw()
    assert dict(mpl.rcParams) == before


@each_picture
def test_a_picture_is_a_small_png(draw, tmp_path):
    plot.save(draw(), tmp_path / "picture.png")
    content = (tmp_path / "picture.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert 1_000 < len(content) < 400_000


def test_pyplot_is_never_imported(tmp_path):
    # It chooses a backend and keeps every figure alive; whether it came in can only be seen in a process of its own.
    code = f"""
import sys, torch
from pyro_vae import plot
plot.save(plot.manifold(torch.rand(9, 4, 4), [-1.0, 0.0, 1.0]), {str(tmp_path / "picture.png")!r})
plot.latents(torch.randn(9, 2), torch.arange(9))
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# --- Images -------------------------------------------------------------------------------------------------------


def test_images_stand_row_by_row_at_their_brightness():
    found = canvas(plot.images(levels(0.1, 0.2, 0.3, 0.4, 0.5), columns=3))
    assert found.shape == (9, 14)
    assert not found[4].any()  # a white pixel between neighbours
    assert not found[:, [4, 9]].any()
    found = np.pad(found, ((0, 1), (0, 1))).reshape(2, 5, 3, 5)[:, :4, :, :4]
    cells = found.swapaxes(1, 2).reshape(6, 16)
    assert np.ptp(cells, axis=1).max() == 0
    assert cells[:, 0] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.0])  # the cell without an image is empty


def test_images_are_upright():
    image = torch.zeros(1, 5, 3)
    image[0, 0, 2] = 1.0
    ax = plot.images(image)
    assert canvas(ax)[0, 2] == 1.0
    assert ax.images[0].origin == "upper"


@pytest.mark.parametrize(("invert", "paper"), [(True, 1.0), (False, 0.0)])
def test_zero_is_white_unless_inverted(invert, paper):
    (shown,) = plot.images(levels(0.0), invert=invert).images
    assert shown.cmap(shown.norm(0.0))[:3] == pytest.approx((paper,) * 3)
    assert shown.cmap(shown.norm(1.0))[:3] == pytest.approx((1 - paper,) * 3)


def test_brightness_is_not_stretched():
    (shown,) = plot.images(levels(0.4, 0.6)).images
    assert (shown.norm.vmin, shown.norm.vmax) == (0, 1)


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 16), (3, 1, 4, 4)])
def test_flat_and_one_channel_images_are_the_same_picture(shape):
    x = torch.rand(3, 4, 4)
    assert np.array_equal(canvas(plot.images(x.reshape(shape))), canvas(plot.images(x)))
    assert np.array_equal(canvas(plot.images(x.reshape(shape).numpy())), canvas(plot.images(x)))


def test_reconstructions_are_below_their_data():
    ax = plot.reconstructions(levels(0.1, 0.2, 0.3), levels(0.6, 0.7, 0.8))
    found = canvas(ax)
    assert found.shape == (9, 14)
    assert found[0, ::5] == pytest.approx([0.1, 0.2, 0.3])
    assert found[5, ::5] == pytest.approx([0.6, 0.7, 0.8])
    named = ticks(ax.yaxis)
    assert (named["data"], named["reconstruction"]) == (1.5, 6.5)
    assert len(ax.get_xticks()) == 0


def test_neighbours_are_below_their_samples_with_the_distance():
    ax = plot.neighbours(levels(0.1, 0.2, 0.3), levels(0.6, 0.7, 0.8), torch.tensor([1.0, 2.346, 10.0]))
    found = canvas(ax)
    assert found.shape == (9, 14)
    assert found[0, ::5] == pytest.approx([0.1, 0.2, 0.3])
    assert found[5, ::5] == pytest.approx([0.6, 0.7, 0.8])
    named = ticks(ax.yaxis)
    assert (named["sample"], named["nearest in training"]) == (1.5, 6.5)
    assert ticks(ax.xaxis) == {"1.00": 1.5, "2.35": 6.5, "10.00": 11.5}  # each below its pair
    assert ax.get_xlabel() == "distance"


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 3, 1, 4, 6)])
def test_paths_are_between_the_data_that_they_join(shape):
    paths = levels(0.2, 0.3, 0.4, 0.6, 0.7, 0.8, height=4, width=6).reshape(shape)
    ax = plot.interpolations(levels(0.1, 0.5, height=4, width=6), paths, levels(0.45, 0.9, height=4, width=6))
    found = canvas(ax)
    assert found.shape == (2 * 5 - 1, 5 * 7 - 1)
    assert found[0, ::7] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.45])
    assert found[5, ::7] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    names = [text.get_text() for text in ax.get_xticklabels()]
    assert dict(zip(ax.get_xticks(), names, strict=True)) == {2.5: "data", 9.5: "0", 23.5: "1", 30.5: "data"}
    lines = [line.get_xdata()[0] for line in ax.lines]
    assert lines == [6, 27]  # the empty pixels on either side of what is decoded
    assert not found[:, lines].any()


# --- The latent plane ---------------------------------------------------------------------------------------------


def brightness(value):
    return (value + 2) / 4


@pytest.mark.parametrize("side", [3, 5, 6, 20])
@pytest.mark.parametrize("coordinate", [0, 1])
def test_manifold_ticks_name_the_cells_they_stand_at(side, coordinate):
    z = torch.linspace(-2, 2, side)
    # As the docstring asks: row-major, the first row the largest second coordinate.
    grid = [(first, second) for second in z.flip(0).tolist() for first in z.tolist()]
    ax = plot.manifold(levels(*(brightness(point[coordinate]) for point in grid), height=4, width=6), z)
    shown = canvas(ax)
    named = ticks((ax.xaxis, ax.yaxis)[coordinate])
    assert len(named) >= 3
    for label, place in named.items():
        pixel = round(place - 0.1)
        found = shown[0, pixel] if coordinate == 0 else shown[pixel, 0]
        assert brightness(float(label)) == pytest.approx(found, abs=0.05 / 4 + 1e-6)
        size = (6, 4)[coordinate]
        assert place % (size + 1) == pytest.approx((size - 1) / 2)  # the middle of the cell


def test_manifold_has_the_largest_second_coordinate_on_top():
    ax = plot.manifold(levels(*[0.9] * 3, *[0.5] * 3, *[0.1] * 3), [-1.0, 0.0, 1.0])
    assert canvas(ax)[::5, 0] == pytest.approx([0.9, 0.5, 0.1])
    places = ticks(ax.yaxis)
    assert places["1.0"] < places["0.0"] < places["-1.0"]  # pixel rows count downwards
    assert ax.yaxis_inverted()
    places = ticks(ax.xaxis)
    assert places["-1.0"] < places["0.0"] < places["1.0"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$z_1$", "$z_2$")


@pytest.mark.parametrize("coordinate", [0, 1])
def test_the_manifold_of_a_latent_grid_shows_the_quantiles_of_the_prior_where_its_ticks_say(coordinate):
    z, grid = plot.latent_grid(20)
    brightness = torch.special.ndtr(grid[:, coordinate])  # a decoder that shows one coordinate, by the quantile it is
    ax = plot.manifold(brightness[:, None, None].expand(-1, 4, 4), z)
    cells = canvas(ax)[::5, ::5]
    quantiles = (np.arange(20) + 0.5) / 20
    expected = np.tile(quantiles, (20, 1)) if coordinate == 0 else np.tile(quantiles[::-1, None], (1, 20))
    assert np.allclose(cells, expected, atol=1e-5)
    for label, place in ticks((ax.xaxis, ax.yaxis)[coordinate]).items():
        cell = int(place // 5)
        shown = cells[0, cell] if coordinate == 0 else cells[cell, 0]
        assert float(label) == pytest.approx(torch.special.ndtri(torch.tensor(float(shown))).item(), abs=0.051)


def test_latents_are_coloured_by_class_and_named():
    loc, labels = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([7, 2, 7, 2])
    ax = plot.latents(loc, labels)
    points, *legend = ax.collections
    named = {entry.get_label(): tuple(entry.get_facecolor()[0, :3]) for entry in legend}
    assert list(named) == ["2", "7"]
    assert named["2"] != named["7"]
    where = {
        tuple(place): tuple(colour[:3])
        for place, colour in zip(points.get_offsets(), points.get_facecolor(), strict=True)
    }
    assert where == {
        tuple(place): named[str(label)] for place, label in zip(loc.tolist(), labels.tolist(), strict=True)
    }
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["2", "7", "50% of p(z)", "95% of p(z)"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$E_q[z_1]$", "$E_q[z_2]$")
    assert ax.get_aspect() == 1.0  # circles are circles


def test_circles_hold_the_share_of_the_prior_that_they_name():
    ax = plot.latents(torch.zeros(3, 2), torch.arange(3))
    draws = torch.randn(20_000, 2).norm(dim=1)
    for line, share in zip(ax.lines, (0.5, 0.95), strict=True):
        radius = np.linalg.norm(np.stack(line.get_data()), axis=0)
        assert np.ptp(radius) < 1e-9
        assert line.get_label() == f"{share:.0%} of p(z)"
        error = math.sqrt(share * (1 - share) / len(draws))
        assert (draws < radius[0]).double().mean().item() == pytest.approx(share, abs=5 * error)


def drawn_ellipses(ax):
    """Each drawn ellipse's outline ``[n, points, 2]``, and its colour."""
    (found,) = [each for each in ax.collections if isinstance(each, LineCollection)]
    return np.array(found.get_segments()), found.get_colors()


@pytest.mark.parametrize("full", [False, True])
def test_ellipses_are_one_standard_deviation_of_each_posterior(full):
    loc, labels = torch.tensor([[0.0, 1.0], [2.0, -1.0], [1.0, 1.0]]), torch.tensor([4, 7, 4])
    scale = torch.tensor([[0.5, 0.1], [0.2, 0.4], [0.3, 0.3]])
    factor = torch.diag_embed(scale)
    if full:
        scale = factor = factor + torch.tensor([[0.0, 0.0], [0.3, 0.0]]) * torch.tensor([1.0, -1.0, 0.5])[:, None, None]
    ax = plot.latents(loc, labels, Figure(figsize=(7, 4)).subplots(), scale=scale)
    outlines, colours = drawn_ellipses(ax)
    covariance = factor @ factor.mT
    for place, outline in enumerate(torch.from_numpy(outlines).float()):
        away = outline - loc[place]
        squares = (away @ covariance[place].inverse() * away).sum(1)  # the squared radius in standard deviations
        assert squares.numpy() == pytest.approx(1.0, abs=1e-5)
        far = away.abs().amax(0).numpy()  # so that half an outline would not do
        assert far == pytest.approx(covariance[place].diagonal().sqrt().numpy(), rel=0.02)
    named = {entry.get_label(): entry.get_facecolor()[0, :3] for entry in ax.collections[2:-1]}
    for label, colour in zip(labels.tolist(), colours, strict=True):
        assert np.array_equal(colour[:3], named[str(label)])
    assert "one sigma\nof q(z | x)" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_axes_hold_whole_ellipses():
    ax = plot.latents(torch.zeros(1, 2), torch.zeros(1), scale=torch.tensor([[20.0, 10.0]]))
    outline = drawn_ellipses(ax)[0][0]
    assert ax.get_xlim()[0] < outline[:, 0].min() < -19.9 < 19.9 < outline[:, 0].max() < ax.get_xlim()[1]
    assert ax.get_ylim()[0] < outline[:, 1].min() < -9.9 < 9.9 < outline[:, 1].max() < ax.get_ylim()[1]


def test_many_classes_have_no_legend():
    assert plot.latents(torch.randn(50, 2), torch.arange(50)).get_legend() is None


# --- Traversals ---------------------------------------------------------------------------------------------------


def test_traversals_have_a_row_for_each_dimension():
    x = levels(*torch.linspace(0.1, 0.6, 6).tolist(), width=6).unflatten(0, (2, 3))
    ax = plot.traversals(x, names=["first", "second"], levels=[0.05, 0.5, 0.95])
    found = canvas(ax)
    assert found.shape == (9, 20)
    named = ticks(ax.yaxis)
    for row, name in enumerate(["first", "second"]):
        pixel = round(named[name] - 0.1)
        assert found[pixel, ::7] == pytest.approx(x[row, :, 0, 0])
    columns = {name: found[0, round(place - 0.1)] for name, place in ticks(ax.xaxis).items()}
    assert columns == pytest.approx({"5%": 0.1, "50%": 0.2, "95%": 0.3})
    assert "quantile" in ax.get_xlabel()


def test_traversals_without_names_are_those_of_all_dimensions():
    ax = plot.traversals(torch.rand(3, 2, 1, 4, 4))  # with a channel
    assert list(ticks(ax.yaxis)) == ["$z_{1}$", "$z_{2}$", "$z_{3}$"]
    assert len(ax.get_xticks()) == 0
    assert ax.get_xlabel() == ""


def test_a_traversal_leaves_its_start_along_one_dimension_within_the_data():
    loc = torch.stack([torch.randn(1000), torch.rand(1000) + 3, torch.zeros(1000)], 1)
    shares, z = plot.traversal_grid(loc, start := loc[0], columns=5, share=0.8)
    assert shares.tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert z.shape == (3, 5, 3)
    for row in range(3):
        others = [column for column in range(3) if column != row]
        assert torch.equal(z[row][:, others], start[others].expand(5, 2))
        below = (loc[:, None, row] < z[row, :, row]).double().mean(0)
        assert below.tolist() == (pytest.approx(shares.tolist(), abs=0.002) if row < 2 else [0.0] * 5)
    assert torch.equal(loc[0], start)  # not written to
    assert z[1, :, 1].min() > 3  # where the data are, which is not where the prior is


# --- The history --------------------------------------------------------------------------------------------------


def test_history_shows_both_bounds_against_the_epoch():
    ax = plot.history(epochs([-3.0, -2.0, -1.0], [-4.0, -3.5, -2.0]))
    training, validation = ax.lines
    assert np.array_equal(training.get_data(), [[1, 2, 3], [-3, -2, -1]])
    assert np.array_equal(validation.get_data(), [[1, 2, 3], [-4, -3.5, -2]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["training", "validation"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "bound, nats per datapoint")
    low, high = ax.get_ylim()
    assert low <= -4.0 < -1.0 <= high


def test_history_without_validation_shows_one_line():
    ax = plot.history(epochs([-3.0, -2.0], [math.nan, math.nan]), label="IWAE")
    assert len(ax.lines) == 1
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["training"]
    assert ax.get_ylabel() == "IWAE, nats per datapoint"


def test_history_is_not_flattened_by_the_first_epochs():
    train = [-1000.0, -500.0, *np.linspace(-30, -20, 38)]
    ax = plot.history(epochs(train, [math.nan] * 40))
    assert "below the axis" in ax.get_xlabel()
    low, high = ax.get_ylim()
    assert -31 < low <= -30
    assert -20 <= high < 30


def test_history_of_one_epoch_can_be_seen():
    ax = plot.history(epochs([-3.0], [-4.0]))
    assert all(line.get_marker() not in ("None", "", None) for line in ax.lines)  # a line needs two points


def test_history_shows_the_elbo_where_something_else_is_maximised():
    ax = plot.history(epochs([-3.0, -2.0], [-4.0, -3.5], elbo=[-5.0, -4.5]))
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["training", "validation", "ELBO, training"]  # what is all nan is left out
    assert np.array_equal(ax.lines[2].get_ydata(), [-5.0, -4.5])
    assert ax.get_ylim()[0] <= -5.0


# --- Evidence -----------------------------------------------------------------------------------------------------


def test_estimates_stand_in_increasing_order_in_the_colour_of_their_verdict():
    ax = plot.log_evidence(estimates([-3.0, -1.0, -2.0], [0.1, 0.2, 0.3], ["ok", "unreliable", "ok"]))
    ok, doubtful, unreliable = ax.containers
    assert np.array_equal(ok[0].get_data(), [[0, 1], [-3, -2]])
    assert np.array_equal(unreliable[0].get_data(), [[2], [-1]])
    assert len(doubtful[0].get_xdata()) == 0
    assert len({container[0].get_color() for container in ax.containers}) == 3
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["ok (2)", "doubtful (0)", "unreliable (1)"]
    assert ax.get_ylabel() == "lower bound of log p(x), nats"


def test_the_bars_of_estimates_are_95_percent_intervals():
    ax = plot.log_evidence(estimates([-3.0, -2.0], [0.1, 0.2], ["ok", "ok"]))
    assert intervals(ax.containers[0]) == pytest.approx(np.array([[-3.196, -2.804], [-2.392, -1.608]]))


def test_with_the_exact_values_differences_are_shown_in_their_order():
    evidence = estimates([-3.0, -1.0, -2.0], [0.1] * 3, ["ok"] * 3, side="point")
    ax = plot.log_evidence(evidence, torch.tensor([-1.5, -2.5, -2.0]))
    assert np.array_equal(ax.containers[0][0].get_data(), [[2, 0, 1], [-1.5, 1.5, 0.0]])
    assert ax.get_ylabel() == "estimate minus log p(x), nats"
    assert [0, 0] in [list(line.get_ydata()) for line in ax.lines]  # where the truth is


def test_estimates_that_are_not_finite_are_counted_and_not_drawn():
    ax = plot.log_evidence(estimates([-math.inf, -1.0], [math.nan, 0.1], ["unreliable", "ok"]))
    assert len(ax.containers[2][0].get_xdata()) == 0
    assert ax.get_legend().get_texts()[2].get_text() == "unreliable (1)"
    assert np.isfinite(ax.get_ylim()).all()


def test_gaps_are_stacked_from_the_elbo_to_log_p():
    ax = plot.inference_gaps({"one": gaps_of([0.1, 0.3], [0.4, 0.6]), "other": gaps_of([0.2, 0.2], [0.1, 0.3])})
    bars = [(round(bar.get_x(), 6), round(bar.get_width(), 6), round(bar.get_y() + 0.4)) for bar in ax.patches]
    assert bars == [(0.0, 0.2, 0), (0.2, 0.5, 0), (0.0, 0.2, 1), (0.2, 0.2, 1)]
    assert ticks(ax.yaxis) == {"one": 0, "other": 1}
    assert ax.yaxis_inverted()  # the first name on top
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["amortisation", "approximation", "log p(x)", "95%, choice of datapoints", "95%, Monte-Carlo"]
    assert ax.get_xlabel() == "nats per datapoint above the ELBO"


def test_every_part_of_a_gap_has_both_of_its_errors():
    gaps = gaps_of([0.1, 0.3, 0.2, 0.2], [0.4, 0.6, 0.4, 0.8])
    _, _, line, *bars = plot.inference_gaps({"one": gaps}).containers
    assert intervals(line).tolist() == [[-0.4, 0.4]]
    means = [gaps.mean_amortisation, gaps.mean_approximation, gaps.mean_total]
    ends = [means[0].value, means[2].value, means[2].value]
    expected = [
        [end - 1.96 * error, end + 1.96 * error]
        for mean, end in zip(means, ends, strict=True)
        for error in (mean.test_set_error, mean.monte_carlo_error)
    ]
    assert np.concatenate([intervals(bar) for bar in bars]) == pytest.approx(np.array(expected))
    widths = [bar[2][0].get_linewidth()[0] for bar in bars]
    assert widths == [1, 3] * 3  # the choice of datapoints is the thin one


def test_a_gap_of_one_datapoint_and_a_negative_part_can_be_drawn():
    ax = plot.inference_gaps({"poor": gaps_of([-0.2], [0.5])})
    below, above = ax.patches
    assert (below.get_x() + below.get_width(), above.get_x()) == pytest.approx((-0.2, -0.2))
    assert above.get_x() + above.get_width() == pytest.approx(0.3)
    assert below.get_zorder() > above.get_zorder()  # or the second part would hide the first
    assert np.isfinite(ax.get_xlim()).all()


# --- Refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot.images(torch.rand(8)),
        lambda: plot.images(torch.rand(3, 15)),
        lambda: plot.images(torch.rand(3, 2, 4, 4)),
        lambda: plot.images(torch.rand(0, 4, 4)),
        lambda: plot.reconstructions(torch.rand(3, 4, 4), torch.rand(5, 4, 4)),
        lambda: plot.imputations(*torch.rand(2, 3, 4, 4), torch.rand(1, 2, 4, 4), torch.ones(4, 4) > 0),
        lambda: plot.reconstructions(torch.rand(3, 4, 4), torch.rand(3, 5, 5)),
        lambda: plot.manifold(torch.rand(7, 4, 4), [-1.0, 0.0, 1.0]),
        lambda: plot.latents(torch.rand(7, 3), torch.arange(7)),
        lambda: plot.latents(torch.rand(7, 1), torch.arange(7)),
        lambda: plot.latents(torch.rand(7, 2), torch.arange(3)),
        lambda: plot.latents(torch.rand(7, 2), torch.arange(7), scale=torch.rand(7)),
        lambda: plot.latents(torch.rand(7, 2), torch.arange(7), scale=torch.rand(7, 2, 3)),
        lambda: plot.neighbours(torch.rand(3, 4, 4), torch.rand(2, 4, 4), torch.rand(3)),
        lambda: plot.neighbours(torch.rand(3, 4, 4), torch.rand(3, 4, 4), torch.rand(2)),
        lambda: plot.interpolations(torch.rand(3, 4, 4), torch.rand(3, 5, 4, 5), torch.rand(3, 4, 4)),
        lambda: plot.interpolations(torch.rand(3, 4, 4), torch.rand(3, 5, 4, 4), torch.rand(2, 4, 4)),
        lambda: plot.interpolations(torch.rand(3, 4, 4), torch.rand(3, 16), torch.rand(3, 4, 4)),
        lambda: plot.log_evidence(many_estimates(7), torch.zeros(6)),
        lambda: plot.inference_gaps({}),
        lambda: plot.traversals(torch.rand(0, 3, 4, 4)),
        lambda: plot.traversals(torch.rand(2, 3, 2, 4, 4)),
        lambda: plot.traversals(torch.rand(2, 3, 4, 4), names=["one"]),
        lambda: plot.traversals(torch.rand(2, 3, 4, 4), levels=[0.5]),
        lambda: plot.traversal_grid(torch.rand(9, 3), torch.rand(2)),
        lambda: plot.traversal_grid(torch.rand(0, 3), torch.rand(3)),
    ],
    ids=[
        "one dimension",
        "not a square",
        "two channels",
        "no images",
        "more reconstructions than data",
        "imputations of another number",
        "reconstructions of another size",
        "not the grid's number",
        "three latent dimensions",
        "one latent dimension",
        "too few labels",
        "one number for a scale",
        "factors that are not square",
        "too few neighbours",
        "too few distances",
        "paths of another size",
        "too few ends",
        "paths without steps",
        "exact values of others",
        "no families",
        "no traversals",
        "traversals of two channels",
        "too few names",
        "too few levels",
        "a start elsewhere",
        "no means",
    ],
)
def test_wrong_shapes_are_one_line(draw):
    with pytest.raises(ShapeError) as caught:
        draw()
    assert "\n" not in str(caught.value)


def test_colours_are_where_they_were_and_what_is_beyond_white_is_white():
    x = torch.zeros(2, 3, 2, 2)
    x[0, 0], x[1, 2] = 1.0, 7.0  # red, and more than blue
    (canvas,) = (image.get_array() for image in plot.images(x).get_images())
    assert canvas.shape == (2, 5, 3)
    assert canvas[0, 0].tolist() == [1, 0, 0]
    assert canvas[0, 4].tolist() == [0, 0, 1]
    assert canvas[0, 2].tolist() == [1, 1, 1]  # between them, the background
