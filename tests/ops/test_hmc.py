"""Hamiltonian Monte Carlo: reversible, and leaving its density unchanged; and resampling, right on average."""

import math

import pytest
import torch

from pyro_vae.ops.hmc import Evaluation, State, init, jump, kernel, leapfrog
from pyro_vae.ops.resampling import systematic
from tests.statistics import assert_mean, assert_not_mean

pytestmark = pytest.mark.usefixtures("float64")


def quartic(u):
    """A density with correlations, and no Gaussian: its first coordinate is narrow where the second is large."""
    first, second = u[..., 0], u[..., 1]
    wide = 1 + second.square()
    log_density = -0.5 * first.square() * wide - 0.25 * second**4
    gradient = torch.stack([-first * wide, -second * first.square() - second**3], -1)
    return Evaluation(log_density, gradient, (first.clone(), u.clone()))


def squared(u):
    """Squares, squeezed between 0 and 1 so that no trajectory that runs off makes the mean a number without meaning."""
    return 1 - 1 / (1 + u.square())


def exact_moments():
    """E[squared] under :func:`quartic`, by quadrature."""
    axis = torch.linspace(-8, 8, 801)
    u = torch.cartesian_prod(axis, axis)
    return torch.softmax(quartic(u).log_density, 0) @ squared(u)


def exact_draws(num):
    """Draws from :func:`quartic`, by inverting the distribution function on a grid."""
    second = torch.linspace(-6, 6, 200_001)
    reached = torch.softmax(-0.25 * second**4 - 0.5 * torch.log1p(second.square()), 0).cumsum(0)
    second = second[torch.searchsorted(reached, torch.rand(num)).clamp(max=200_000)]
    return torch.stack([torch.randn(num) / (1 + second.square()).sqrt(), second], -1)


STRIDE = torch.tensor([0.2, 0.3])


@pytest.mark.parametrize("num_steps", [1, 7])
def test_trajectories_lead_back(num_steps):
    state, momentum = init(torch.randn(50, 4, 2), quartic), torch.randn(50, 4, 2)
    there, end = leapfrog(quartic, state, momentum, stride=STRIDE, num_steps=num_steps)
    back, begin = leapfrog(quartic, there, -end, stride=STRIDE, num_steps=num_steps)
    good = there.position.abs().amax(-1) < 50  # far out rounding grows
    assert good.double().mean() > 0.9
    assert (back.position - state.position)[good].abs().max() < 1e-8
    assert (begin + momentum)[good].abs().max() < 1e-8
    assert (there.position - state.position).abs().max() > 0.1


def test_volume_is_kept():
    # Detailed balance with min(1, exp(-change of H)) needs a trajectory that neither stretches nor squeezes.
    def flow(both):
        u, momentum = both.view(2, 1, 1, 2)
        state, end = leapfrog(quartic, init(u, quartic), momentum, stride=STRIDE, num_steps=3)
        return torch.cat([state.position.flatten(), end.flatten()])

    jacobian = torch.autograd.functional.jacobian(flow, torch.randn(4))
    assert torch.linalg.det(jacobian).item() == pytest.approx(1, abs=1e-9)


def step(state, **changed):
    options = {"step_size": torch.tensor(0.8), "scale": torch.tensor([0.8, 1.0]), "num_steps": 3} | changed
    return kernel(quartic)(state, **options)


def moved(transition, num_transitions=6):
    """Where chains are after some transitions from exact draws."""
    state = init(exact_draws(100_000).view(100, 1000, 2), quartic)
    for _ in range(num_transitions):
        state = transition(state)
    return squared(state.position.flatten(0, 1)).nan_to_num(1.0)


def jumped(state, *, from_where=True):
    """Among three draws of a normal of scale 1.5."""
    position = 1.5 * torch.randn(3, *state.position.shape)
    v = torch.cat([state.position[None], position])
    log_w = quartic(v).log_density + v.square().sum(-1) / (2 * 1.5**2)
    if not from_where:
        log_w[0] = log_w[1:].mean()
    return jump(quartic, state, position, log_w)


@pytest.mark.parametrize("transition", [lambda state: step(state)[0], jumped], ids=["trajectory", "jump"])
def test_the_density_stays_what_it_is(transition):
    assert_mean(moved(transition), exact_moments())


def without_the_accept_step(state):
    momentum = torch.randn_like(state.position)
    return leapfrog(quartic, state, momentum, stride=0.8 * torch.tensor([0.8, 1.0]), num_steps=3)[0]


def with_a_step_size_that_looks(state):
    """Chains far out get smaller steps."""
    return step(state, step_size=0.9 / (1 + state.position.square().sum(-1)))[0]


def with_a_second_try(state):
    """Chains that were refused try a smaller step."""
    tried, info = step(state, step_size=torch.tensor(1.2))
    again, _ = step(state, step_size=torch.tensor(0.3))
    pick = info.accepted[..., None]
    position = torch.where(pick, tried.position, again.position)
    return init(position, quartic)


def with_a_jump_that_forgets_from_where(state):
    """What the place it is at weighs is taken to be what the others do on average."""
    return jumped(state, from_where=False)


WRONG = [
    without_the_accept_step,
    with_a_step_size_that_looks,
    with_a_second_try,
    with_a_jump_that_forgets_from_where,
]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_transitions_are_found_out(wrong):
    assert_not_mean(moved(wrong), exact_moments())


def test_the_probability_of_accepting_is_the_share_of_accepted():
    state = init(exact_draws(100_000).view(100, 1000, 2), quartic)
    _, info = step(state, step_size=torch.tensor(0.7))
    assert 0.5 < info.acceptance.mean() < 0.95
    assert_mean(info.accepted.double().flatten() - info.acceptance.flatten(), 0)


def test_each_chain_decides_for_itself_and_keeps_what_it_knows():
    state = init(exact_draws(600).view(20, 30, 2), quartic)
    after, info = step(state, step_size=torch.tensor(1.3))
    assert info.accepted.any()
    assert not info.accepted.all()
    assert torch.equal((after.position == state.position).all(-1), ~info.accepted)
    again = init(after.position, quartic)
    for found, expected in zip(after[:3], again[:3], strict=True):
        torch.testing.assert_close(found, expected)
    for found, expected in zip(after.carried, again.carried, strict=True):
        assert torch.equal(found, expected)


def test_a_transition_makes_as_many_evaluations_as_steps():
    asked = []

    def counted(u):
        asked.append(len(u))
        return quartic(u)

    state = init(torch.zeros(5, 3, 2), counted)
    for _ in range(2):
        state, _ = kernel(counted)(state, step_size=torch.tensor(0.1), scale=torch.ones(2), num_steps=4)
    assert asked == [5] * (1 + 2 * 4)


def test_step_sizes_and_scales_of_a_datapoint_are_its_own():
    state = init(exact_draws(600).view(200, 3, 2), quartic)
    sizes, scale = torch.tensor([1e-4, 0.5, 50.0]), torch.ones(3, 2)
    _, info = step(state, step_size=sizes, scale=scale)
    small, middle, large = info.acceptance.mean(0).tolist()
    assert small > 0.999 > middle > 0.6 > 0.1 > large
    _, info = step(state, step_size=torch.tensor(1.0), scale=sizes[:, None] * scale)
    assert info.acceptance.mean(0).tolist() == pytest.approx([small, middle, large], abs=0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["density", "gradient"])
def test_what_is_not_finite_is_refused(bad, where):
    def cliff(u):
        over = u[..., 0] > 0
        log_density, gradient, _ = Evaluation(-0.5 * u.square().sum(-1), -u)
        if where == "density":
            log_density = torch.where(over, bad, log_density)
        else:
            gradient = torch.where(over[..., None], bad, gradient)
        assert u.isfinite().all()  # nobody is asked about what is no number
        return Evaluation(log_density, gradient)

    state = init(-torch.rand(200, 5, 2), cliff)
    for _ in range(5):
        state, info = kernel(cliff)(state, step_size=torch.tensor(0.9), scale=torch.ones(2), num_steps=3)
        assert all(part.isfinite().all() for part in state[:3])
        assert (state.position[..., 0] <= 0).all()
        assert info.acceptance.isfinite().all()
    assert info.accepted.any()


def test_a_chain_at_an_impossible_place_leaves_it():
    def half_line(u):
        return Evaluation(torch.where(u[..., 0] > 0, -u[..., 0], -torch.inf), -torch.ones_like(u))

    state = init(torch.full((100, 1, 1), -0.1), half_line)
    for _ in range(30):
        state, _ = kernel(half_line)(state, step_size=torch.tensor(0.5), scale=torch.ones(1), num_steps=1)
    assert (state.position > 0).double().mean() > 0.5
    assert isinstance(state, State)


# Resampling


LOG_W = torch.tensor(
    [[0.0, 1.0, -1000.0], [1.0, -torch.inf, -1000.0], [-2.0, 3.0, -1001.0], [0.5, 0.0, -1003.0]]
).double()


def counts(draw, log_w, repeats=20_000):
    found = draw(log_w.repeat(1, repeats))
    number = torch.stack([(found == k).sum(0) for k in range(len(log_w))])
    return number.view(len(log_w), repeats, -1).transpose(0, 1).double()


def test_counts_are_right_on_average_and_never_far_off():
    expected = len(LOG_W) * torch.softmax(LOG_W, 0)
    found = counts(systematic, LOG_W)
    assert (found.sum(1) == len(LOG_W)).all()
    assert ((found - expected).abs() < 1).all()
    assert (found[:, 1, 1] == 0).all()  # a weight of zero is never drawn
    for k in range(len(LOG_W)):
        assert_mean(found[:, k], expected[k], sd=found[:, k].std(0) + 1e-9)
    assert_not_mean(counts(lambda log_w: systematic(log_w / 2), LOG_W), expected)


def test_equal_weights_and_none_keep_everybody():
    everybody = torch.arange(1000)[:, None].expand(1000, 2)
    assert torch.equal(systematic(torch.tensor([[-5.0, -torch.inf]]).expand(1000, 2)), everybody)


def test_the_last_particle_of_no_weight_is_never_drawn():
    log_w = torch.zeros(7, 10_000)
    log_w[-1] = -torch.inf
    assert systematic(log_w.float()).max() == 5
