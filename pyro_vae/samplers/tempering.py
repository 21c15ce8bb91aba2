r"""The tempered path from q0 to the posterior: densities in between, temperatures, and the weights of chains."""

from __future__ import annotations

__all__ = [
    "Schedule",
    "Start",
    "TemperedPath",
    "Transition",
    "anneal",
    "reheated",
    "temperatures",
]

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import require_one_of
from ..ops.hmc import Evaluation, LogDensity, State, init
from ..pairs.density import Density
from ..pairs.handlers import unvalidated

Start = Literal["guide", "prior"]
Schedule = Literal["sigmoid", "linear"]
Transition = Callable[[int, State], State]
Regroup = Callable[[Tensor, State], tuple[Tensor, State]]


def temperatures(num: int, schedule: str) -> Float[Tensor, " levels"]:
    r"""Return inverse temperatures :math:`0 = \beta_0 < \dots < \beta_T = 1` in float64, T = ``num``.

    ``"linear"``: :math:`\beta_t = t / T`. ``"sigmoid"``: :math:`\beta_t = (s_t - s_0) / (s_T - s_0)` with
    :math:`s_t = \mathrm{sigmoid}(\delta (2 t / T - 1))` and :math:`\delta = 4`, slow at both ends.

    References:
        | On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2017)
        | https://arxiv.org/abs/1611.04273

    Example:
        >>> temperatures(4, "sigmoid")
        tensor([0.0000, 0.1050, 0.5000, 0.8950, 1.0000], dtype=torch.float64)
    """
    require_one_of("schedule", schedule, ("sigmoid", "linear"))
    even = torch.linspace(0, 1, num + 1, dtype=torch.float64)
    if schedule == "linear":
        return even
    raised = torch.sigmoid(4 * (2 * even - 1))
    return (raised - raised[0]) / (raised[-1] - raised[0])


class TemperedPath:
    r"""The geometric path between q0, which is the guide or the prior, and :math:`p(x, u)`, on some rows of data.

    .. math:: \log \pi_\beta(u) = (1 - \beta) \log q_0(u) + \beta \log p(x, u)

    An evaluation finds both ends and both gradients and carries them, so that the same position under another
    :math:`\beta` costs nothing.
    """

    def __init__(self, density: Density, start: Start, on_progress: Callable[[int], object] | None = None) -> None:
        self.density, self.start, self._on_progress = density, start, on_progress
        self.num_evaluations = 0
        """The number of evaluations of each datapoint so far."""

    def draw(self, num: int) -> Float[Tensor, "particles batch latent"]:
        """Return draws from q0."""
        return self.density.draw(num) if self.start == "guide" else self.density.draw_prior(num)

    def begin(self, u: Float[Tensor, "particles batch latent"], beta: float) -> State:
        """Return chains at ``u``."""
        return init(u, self.at(beta))

    def at(self, beta: float) -> LogDensity:
        r"""Return :math:`\log \pi_\beta` and its gradient, as a function."""
        return lambda u: _mixed(self._ends(u), beta)

    def log_weights(self, u: Float[Tensor, "particles batch latent"]) -> Float[Tensor, "particles batch"]:
        r"""Return :math:`\log p(x, u) - \log q_0(u)`, without gradients."""
        self.count(len(u))
        terms = self.density.terms(u, q=self.start == "guide")
        return (terms.log_w if self.start == "guide" else terms.log_likelihood).double()

    def _ends(self, u: Tensor) -> tuple[Tensor, ...]:
        """Return ``log q0``, ``log p`` and their gradients."""
        self.count(len(u))
        with torch.enable_grad(), unvalidated():
            u = u.detach().requires_grad_()
            terms = self.density.terms(u, q=self.start == "guide")
            if self.start == "guide":
                first, second = terms.log_q, terms.log_p
            else:
                first, second = terms.log_prior, terms.log_likelihood
            up, on = _gradient(first, u, keep=True), _gradient(second, u)
        first, second = first.detach(), second.detach()
        return (first, second, up, on) if self.start == "guide" else (first, first + second, up, up + on)

    def count(self, num: int) -> None:
        """Count ``num`` further evaluations of each datapoint."""
        self.num_evaluations += num
        if self._on_progress is not None:
            self._on_progress(num * len(self.density))


def reheated(state: State, beta: float) -> State:
    """Return the same positions at another temperature."""
    return State(state.position, *_mixed(state.carried, beta))


def anneal(
    state: State,
    betas: Float[Tensor, " levels"],
    transition: Transition,
    *,
    reverse: bool = False,
    regroup: Regroup | None = None,
) -> Float[Tensor, "particles batch"]:
    r"""Return the log-weights of chains that go from :math:`\beta = 0` to 1, or back if ``reverse``.

    .. math:: \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1})\, [\log p(x, u_{t-1}) - \log q_0(u_{t-1})]

    Going forward :math:`u_t` comes from :math:`u_{t-1}` by a transition that leaves :math:`\pi_{\beta_t}` unchanged; in
    reverse :math:`u_{t-1}` comes from :math:`u_t` by the same one, and a chain starts at a draw :math:`u_{T-1}` of the
    posterior. With exact starts :math:`E[w] = p(x)` forward and :math:`E[1/w] = 1/p(x)` in reverse. A last transition
    would not change a weight and is left out, so there are T - 1.

    Arguments:
        state: Chains at draws from q0, or of the posterior, whose ``carried`` holds the ends of the path.
        betas: The temperatures, ascending.
        transition: From the number t of a temperature and a state to a new state.
        regroup: After each weighing, from log-weights and state to new ones (resampling).
    """
    log_w = torch.zeros_like(state.log_density, dtype=torch.float64)
    last = len(betas) - 1
    for t in range(last, 0, -1) if reverse else range(1, last + 1):
        first, second, *_ = state.carried
        log_w = log_w + (betas[t] - betas[t - 1]).item() * (second.double() - first.double())
        if regroup is not None:
            log_w, state = regroup(log_w, state)
        if reverse and t > 1:
            state = transition(t - 1, state)
        elif not reverse and t < last:
            state = transition(t, state)
    return log_w


def _mixed(ends: tuple[Tensor, ...], beta: float) -> Evaluation:
    first, second, up, on = ends
    if beta in (0, 1):  # no zero times infinity
        return Evaluation(second if beta else first, on if beta else up, ends)
    return Evaluation((1 - beta) * first + beta * second, (1 - beta) * up + beta * on, ends)


def _gradient(log_density: Tensor, u: Tensor, *, keep: bool = False) -> Tensor:
    if not log_density.requires_grad:
        return torch.zeros_like(u)
    (found,) = torch.autograd.grad(log_density.sum(), u, retain_graph=keep, materialize_grads=True)
    return found
