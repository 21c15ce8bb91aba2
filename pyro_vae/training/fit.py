"""Training: a plain loop around an objective, with one fused Adam."""

from __future__ import annotations

__all__ = ["fit"]

import math
import operator
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.arrays import find_device
from ..data.batches import batch_of, fingerprint, presented
from ..errors import ConfigError, NonFiniteLossError, require_count, require_one_of
from ..objectives import ELBO, Objective
from ..objectives.module import ObjectiveModule
from ..ops.choices import Schedule
from ..ops.seeds import seeded
from ..pairs.handlers import evaluating
from ..pairs.pair import Pair, programs_of, takes_missing
from ..pairs.progress import progress_bar
from ..pairs.running import Vectorized
from ..pairs.sites import draw_sites
from .schedules import SCHEDULES
from .state import Epoch, History, TrainingState


def fit(
    pair: Any,
    x: Any,
    *,
    objective: Objective | None = None,
    num_epochs: int = 100,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    schedule: Schedule = "constant",
    adam_eps: float = 1e-8,
    max_grad_norm: float | None = None,
    validation: Any = None,
    patience: int | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    checkpoint: str | Path | None = None,
) -> History:
    r"""Train a pair on minibatches with one fused Adam, so as to maximise the mean bound per datapoint.

    .. math:: \max_{\theta, \phi} \frac1N \sum_{n=1}^N s_n\, \mathcal L_{\theta, \phi}(x_n)

    with :math:`\mathcal L` the objective's bound in nats and :math:`s` the scale of the pair's plates, usually 1.
    The history also has the ELBO of the same draws, whatever the objective is.

    Pyro's global parameter store and settings are not touched, and torch's generators are left as they were. The same
    seed, data and starting weights give the same weights bit for bit, on one kind of machine and number of threads.

    The pair is called on minibatches, so all data of a datapoint have to be in ``x``. During training its modules are
    in training mode, except for parts frozen in evaluation mode; afterwards they are back in their previous modes.

    Ctrl-C lets the step finish, saves the checkpoint and returns the history so far; a second one raises.

    Arguments:
        pair: A :class:`~pyro_vae.VAE`, anything else with ``.model`` and ``.guide``, or a tuple ``(model, guide)``.
        x: Training data ``[n, ...]``: any array, or an object like :class:`~pyro_vae.data.Pixels` that has a length
            and returns a float batch for an index tensor.
        objective: The objective to maximise, :class:`~pyro_vae.objectives.ELBO` by default.
        num_epochs, batch_size: The length of training and of a minibatch, which is clipped to the data.
        learning_rate, adam_eps: Adam's learning rate, and the constant in its denominator.
        schedule: ``"constant"``, ``"cosine"`` or ``"burda"``, see :data:`~pyro_vae.schedules.SCHEDULES`.
        max_grad_norm: Clip the gradient of the mean loss to this norm.
        validation: Held-out data; their bound is in the history.
        patience: Stop after this many epochs without a better validation bound, or ELBO if the objective is not a
            bound. With it, the weights of the best epoch are kept at the end, unless training is interrupted.
        seed: The seed of the order of the data and of all draws.
        device: ``"auto"`` (CUDA if there is one), or a device's name. The pair's modules are moved there.
        progress: Show a progress bar; it is quiet where there is no terminal.
        checkpoint: A file that holds the state after every epoch. If it exists, training goes on from it; if it is
            damaged, from the one before, with a warning. A file of another training is refused.

    Returns:
        The history, with one row per epoch.

    Errors:
        DataError: for empty or non-finite data.
        ConfigError: for arguments that do not go together.
        NonFiniteLossError: before the step that would spoil the weights, naming the site.
        DeviceError: for a device that is not there.
        CheckpointError: for a checkpoint of another network or training, or one that cannot be written.

    References:
        | Adam: A Method for Stochastic Optimization (Kingma & Ba, 2015)  https://arxiv.org/abs/1412.6980
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)  https://arxiv.org/abs/1312.6114

    Example:
        >>> x = torch.bernoulli(torch.full((100, 6), 0.3), generator=torch.Generator().manual_seed(0))
        >>> vae = pv.presets.mlp_vae(data_shape=(6,), latent_dim=1, hidden=(8,))
        >>> history = fit(vae, x, num_epochs=20, batch_size=20, learning_rate=1e-2, progress=False)
        >>> history.epochs[-1].train_bound > history.epochs[0].train_bound
        True
    """
    model, guide = programs_of(pair)
    missing = takes_missing(model, guide)
    data = presented(x, missing=missing)
    held_out = None if validation is None else presented(validation, "validation", missing=missing)
    settings = Settings(
        operator.index(seed), num_epochs, batch_size, learning_rate, schedule, adam_eps, max_grad_norm, patience
    ).checked(len(data), validated=held_out is not None)
    target = find_device(device)
    if objective is not None and not isinstance(objective, Objective):
        raise ConfigError(
            f"objective={objective!r}: expected an instance such as pv.objectives.IWAE(num_particles=5); for Pyro's "
            "use pyro.infer.SVI"
        )
    module = (objective or ELBO())(model, guide).to(target)
    optimiser = torch.optim.Adam(module.parameters(), lr=learning_rate, eps=adam_eps, fused=True)
    with_buffers = [part for part in module.modules() if next(part.buffers(recurse=False), None) is not None]
    training = Training(module, optimiser, settings, data, held_out, target, with_buffers)
    state, identity = TrainingState(module, optimiser), training.identity()
    file = None if checkpoint is None else Path(checkpoint)
    if file is not None:
        _require_named(module.objective)
        state.resume(file, identity)
    with (
        _in_training(module, optimiser),
        _interruptible() as interrupted,
        progress_bar(training.num_steps, progress, "step", initial=state.step) as bar,
    ):
        while not training.finished(state):
            if not training.epoch(state, interrupted, bar.update):
                break
            bar.set_postfix_str(_postfix(state.epochs[-1], num_epochs))
            if file is not None:
                state.save(file, identity)
        stopped = interrupted()
        if stopped and file is not None:
            state.save(file, identity)
    if patience is not None and not stopped:
        state.restore_best()
    return History(state.epochs, state.best_epoch, stopped)


class Settings(NamedTuple):
    """The settings of a training."""

    seed: int
    num_epochs: int
    batch_size: int
    learning_rate: float
    schedule: str
    adam_eps: float
    max_grad_norm: float | None
    patience: int | None

    def checked(self, num_datapoints: int, *, validated: bool) -> Settings:
        """Return the settings for this many datapoints, or raise :class:`~pyro_vae.errors.ConfigError`."""
        require_one_of("schedule", self.schedule, SCHEDULES)
        if self.patience is not None and not validated:
            raise ConfigError(f"patience={self.patience}: expected validation data, found none: pass validation=")
        for name in ("num_epochs", "batch_size", "patience"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name))
        for name in ("learning_rate", "max_grad_norm"):
            size = getattr(self, name)
            if size is not None and not 0 < size < math.inf:
                raise ConfigError(f"{name}={size}: expected a positive number")
        if self.batch_size > num_datapoints:
            text = f"batch_size={self.batch_size} clipped to the {num_datapoints} datapoints there are"
            warnings.warn(text, stacklevel=3)
        return self._replace(batch_size=min(self.batch_size, num_datapoints))


class Training(NamedTuple):
    """A module with its optimiser, settings and data."""

    module: ObjectiveModule
    optimiser: torch.optim.Optimizer
    settings: Settings
    data: Any
    held_out: Any
    device: torch.device
    with_buffers: Sequence[torch.nn.Module]
    """The modules that have buffers of their own."""

    @property
    def num_steps(self) -> int:
        """The number of steps of all epochs."""
        return self.settings.num_epochs * math.ceil(len(self.data) / self.settings.batch_size)

    def finished(self, state: TrainingState) -> bool:
        """Return whether all epochs are complete, or the last ``patience`` ones brought no improvement."""
        patience = self.settings.patience
        waited = patience is not None and state.epoch - state.best_epoch >= patience
        return state.epoch >= self.settings.num_epochs or waited

    def epoch(self, state: TrainingState, interrupted: Callable[[], bool], on_step: Callable[[], Any]) -> bool:
        """Train to the end of an epoch and evaluate it; return whether it was completed before an interruption."""
        with seeded(self.settings.seed, "epoch", state.epoch):
            order = torch.randperm(len(self.data))
            state.restore_generators()
            while state.offset < len(self.data) and not interrupted():
                self._step(state, order[state.offset : state.offset + self.settings.batch_size])
                on_step()
            if state.offset < len(self.data):
                state.keep_generators()
                return False
        bounds = (math.nan, math.nan) if self.held_out is None else self._validation()
        state.finish_epoch(
            self.optimiser.param_groups[0]["lr"],
            *bounds,
            by_elbo=self.module.objective.side == "not a bound",
            keep_best=self.settings.patience is not None,
        )
        return True

    def identity(self) -> dict[str, Any]:
        """Return the settings, data and objective that identify this training in its checkpoints."""
        settings = self.settings._asdict()
        return {
            "seed": settings.pop("seed"),
            "num_datapoints": len(self.data),
            **fingerprint(self.data, "data"),
            **fingerprint(self.held_out, "validation"),
            **settings,
            "objective": _described(self.module.objective),
        }

    def _step(self, state: TrainingState, index: Tensor) -> None:
        """Take one step on these rows of the data."""
        rate = self.settings.learning_rate * SCHEDULES[self.settings.schedule](state.step / self.num_steps)
        batch = batch_of(self.module, self.data, index, self.device)
        with _buffers_restored_on_failure(self.with_buffers):
            sums = _step(self.module, self.optimiser, batch, rate, self.settings.max_grad_norm, state.step)
        state.advance(*sums, len(index))

    @torch.no_grad()
    def _validation(self) -> tuple[float, float]:
        """Return the mean bound and ELBO over the held-out data, with the same draws at every epoch."""
        with seeded(self.settings.seed, "validation"), evaluating(self.module):
            parts = torch.arange(len(self.held_out)).split(self.settings.batch_size)
            found = [self.module.estimate(batch_of(self.module, self.held_out, part, self.device)) for part in parts]
        bound, elbo = (torch.cat(list(each)) for each in zip(*((one.bound, one.elbo) for one in found), strict=True))
        return bound.double().mean().item(), elbo.double().mean().item()


def _require_named(objective: Objective) -> None:
    """Raise :class:`~pyro_vae.errors.ConfigError` for an option that a checkpoint cannot name."""
    for name, value in vars(objective).items():
        if callable(value) and not is_dataclass(value):
            raise ConfigError(f"objective.{name} is a function, which a checkpoint cannot name: use a dataclass")


@contextmanager
def _in_training(module: ObjectiveModule, optimiser: torch.optim.Optimizer) -> Iterator[None]:
    """Put the pair into training mode, and afterwards back into the mode that it was in, without gradients.

    A part in evaluation mode inside a part in training mode, such as a frozen batch normalisation, stays in it.
    """
    modes = {part: part.training for part in module.owned.modules()}
    for owner in module.owned:
        if not owner.training:
            owner.train()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        optimiser.zero_grad()


@contextmanager
def _buffers_restored_on_failure(parts: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Restore buffers, such as the statistics of a batch normalisation, if a step fails."""
    buffers = [(part, *named) for part in parts for named in part.named_buffers(recurse=False)]
    before = [buffer.clone() for _, _, buffer in buffers]
    try:
        yield
    except NonFiniteLossError:
        for (part, name, buffer), value in zip(buffers, before, strict=True):
            setattr(part, name, buffer.copy_(value))
        raise


def _described(objective: Objective) -> dict[str, Any]:
    """Return the name of an objective and those of its options that JSON can hold."""
    options = {name: value for name, value in vars(objective).items() if isinstance(value, (bool, int, float, str))}
    options |= {name: repr(value) for name, value in vars(objective).items() if is_dataclass(value)}
    options.pop("step", None)
    return {"name": type(objective).__name__, **options}


def _step(
    module: ObjectiveModule,
    optimiser: torch.optim.Optimizer,
    batch: Tensor,
    learning_rate: float,
    max_grad_norm: float | None,
    steps_done: int,
) -> tuple[float, float]:
    """Take one step up the mean bound, unless something is not finite; return the sums of bound and ELBO."""
    module.objective.step = steps_done  # counted over the whole training, also across interruptions
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
    optimiser.zero_grad()
    try:
        found = module.estimate(batch)
    except ValueError as error:  # torch's message for a nan parameter, followed by the whole tensor
        if "to satisfy the constraint" not in str(error):
            raise
        raise NonFiniteLossError(
            steps_done + 1, f"a distribution's parameter ({str(error).split(' of shape')[0]})"
        ) from error
    (found.loss / len(batch)).backward()
    parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    means = [found.bound.detach().mean(), found.elbo.mean(), norm.to(found.bound)]
    bound, elbo, size = torch.stack(means).tolist()  # one synchronisation with the device
    if not (math.isfinite(bound) and math.isfinite(size)):
        raise NonFiniteLossError(steps_done + 1, _culprit(module, batch))
    if max_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    optimiser.step()
    module.objective.step = steps_done + 1
    return bound * len(batch), elbo * len(batch)


def _culprit(module: ObjectiveModule, batch: Tensor) -> str:
    """Return the name of the quantity that is not finite: a site's log-density, or a parameter's gradient."""
    with torch.no_grad():
        pair = Pair(*module.pair, (batch,), {})
        sites = draw_sites(pair, num_particles=1, vectorized=Vectorized(model=True, guide=True))
    for name, log_prob in {**sites.log_q, **sites.log_prior, **sites.log_likelihood}.items():
        if not torch.isfinite(log_prob).all():
            return f"the log-density of site {name!r}"
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"the gradient of {name.removeprefix('owned.0.')}"
    return "the loss"


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C was pressed; a second one raises :class:`KeyboardInterrupt`."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield lambda: False
        return
    hits: list[int] = []

    def on_interrupt(signum: int, frame: Any) -> None:
        if hits:
            raise KeyboardInterrupt
        hits.append(signum)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: bool(hits)
    finally:
        signal.signal(signal.SIGINT, before)


def _postfix(epoch: Epoch, num_epochs: int) -> str:
    text = f"epoch {epoch.epoch}/{num_epochs}, bound {epoch.train_bound:.2f}"
    return text if math.isnan(epoch.validation_bound) else f"{text}, validation {epoch.validation_bound:.2f}"
