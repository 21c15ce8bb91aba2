"""Training: a plain loop around an objective, with one fused Adam."""

from __future__ import annotations

__all__ = ["fit"]

import math
import operator
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

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
from ..pairs.inputs import programs_of, takes_missing
from ..pairs.progress import progress_bar
from ..pairs.sites import Vectorized, draw_sites
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
    r"""Train a pair: minibatches, one fused Adam, the mean bound per datapoint as what is maximised.

    .. math:: \max_{\theta, \phi} \frac1N \sum_{n=1}^N s_n\, \mathcal L_{\theta, \phi}(x_n)

    with :math:`\mathcal L` the objective's bound in nats and :math:`s` the scale that the pair asks for, usually 1.
    Whatever is maximised, the history has the plain ELBO of the same draws beside it.

    Pyro's global parameter store and settings are not touched, and torch's generators are left as they were. The same
    seed, data and starting weights give the same weights bit for bit, on one kind of machine and number of threads.

    The pair is called on minibatches, so whatever belongs to a datapoint has to come with it in ``x``. Meanwhile its
    modules are in training mode, but for parts frozen in evaluation mode; afterwards they are in the mode they were in.

    Ctrl-C lets the step finish, saves the checkpoint and returns the history so far; a second one raises.

    Arguments:
        pair: A :class:`~pyro_vae.VAE`, anything else with ``.model`` and ``.guide``, or a tuple ``(model, guide)``.
        x: Training data ``[n, ...]``: any array, or an object like :class:`~pyro_vae.data.Pixels` that has a length
            and returns a float batch for an index tensor.
        objective: What is maximised; :class:`~pyro_vae.objectives.ELBO` by default.
        num_epochs, batch_size, learning_rate, adam_eps: As usual. A batch larger than the data is clipped.
        schedule: ``"constant"``, ``"cosine"`` or ``"burda"``, see :data:`~pyro_vae.schedules.SCHEDULES`.
        max_grad_norm: Clip the gradient of the mean loss to this norm.
        validation: Held-out data; their bound is in the history.
        patience: Stop after this many epochs without a better validation bound, or ELBO if what is maximised is not a
            bound. If it is given, the weights of the best epoch are the ones kept, unless training is interrupted.
        seed: Of the order of the data and of all draws.
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
        >>> import pyro_vae as pv
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
    require_one_of("schedule", schedule, SCHEDULES)
    if patience is not None and held_out is None:
        raise ConfigError("patience needs validation data: pass validation=")
    num_epochs, batch_size = require_count("num_epochs", num_epochs), require_count("batch_size", batch_size)
    patience = None if patience is None else require_count("patience", patience)
    for name, size in {"learning_rate": learning_rate, "max_grad_norm": max_grad_norm}.items():
        if size is not None and not 0 < size < math.inf:
            raise ConfigError(f"{name}={size}: expected a positive number")
    if batch_size > len(data):
        warnings.warn(f"batch_size={batch_size} clipped to the {len(data)} datapoints there are", stacklevel=2)
        batch_size = len(data)
    if objective is not None and not isinstance(objective, Objective):
        raise ConfigError(
            f"objective={objective!r}: expected an instance such as pv.objectives.IWAE(num_particles=5); for Pyro's "
            "use pyro.infer.SVI"
        )
    place = find_device(device)
    module = (objective or ELBO())(model, guide).to(place)
    optimiser = torch.optim.Adam(module.parameters(), lr=learning_rate, eps=adam_eps, fused=True)
    state = TrainingState(module, optimiser)
    identity = {
        "seed": operator.index(seed),
        "num_datapoints": len(data),
        **fingerprint(data, "data"),
        **fingerprint(held_out, "validation"),
        "batch_size": batch_size,
        "num_epochs": num_epochs,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "adam_eps": adam_eps,
        "max_grad_norm": max_grad_norm,
        "patience": patience,
        "objective": _described(module.objective),
    }
    if checkpoint is not None:
        for name, value in vars(module.objective).items():
            if callable(value) and not is_dataclass(value):
                raise ConfigError(f"objective.{name} is a function, which a checkpoint cannot name: use a dataclass")
        state.resume(Path(checkpoint), identity)

    with_buffers = [part for part in module.modules() if next(part.buffers(recurse=False), None) is not None]
    steps_per_epoch = math.ceil(len(data) / batch_size)
    total = num_epochs * steps_per_epoch
    with (
        _in_training(module, optimiser),
        _interruptible() as interrupted,
        progress_bar(total, progress, "step", initial=state.step) as bar,
    ):
        while state.epoch < num_epochs and not (patience is not None and state.epoch - state.best_epoch >= patience):
            with seeded(seed, "epoch", state.epoch):
                order = torch.randperm(len(data))
                state.restore_generators()
                while state.offset < len(data) and not interrupted():
                    index = order[state.offset : state.offset + batch_size]
                    rate = learning_rate * SCHEDULES[schedule](state.step / total)
                    batch = batch_of(module, data, index, place)
                    with _kept_if_it_fails(with_buffers):
                        sums = _step(module, optimiser, batch, rate, max_grad_norm, state.step)
                    state.advance(*sums, len(index))
                    bar.update()
                if state.offset < len(data):
                    state.keep_generators()
                    break
            found = (math.nan, math.nan) if held_out is None else _means(module, held_out, batch_size, seed, place)
            by_elbo = module.objective.side == "not a bound"
            state.finish_epoch(optimiser.param_groups[0]["lr"], *found, by_elbo=by_elbo, keep_best=patience is not None)
            bar.set_postfix_str(_postfix(state.epochs[-1], num_epochs))
            if checkpoint is not None:
                state.save(Path(checkpoint), identity)
        if interrupted() and checkpoint is not None:
            state.save(Path(checkpoint), identity)
        stopped = interrupted()
    if patience is not None and not stopped:
        state.restore_best()
    return History(state.epochs, state.best_epoch, stopped)


@contextmanager
def _in_training(module: ObjectiveModule, optimiser: torch.optim.Optimizer) -> Iterator[None]:
    """The pair in training mode, and afterwards in the mode that it was in, without the last step's gradients.

    A part that is in evaluation mode inside of one that is not, such as a frozen batch normalisation, stays in it.
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
def _kept_if_it_fails(parts: list[torch.nn.Module]) -> Iterator[None]:
    """Put buffers back, such as a batch normalisation's statistics, that a step has moved before it failed."""
    buffers = [(part, *named) for part in parts for named in part.named_buffers(recurse=False)]
    before = [buffer.clone() for _, _, buffer in buffers]
    try:
        yield
    except NonFiniteLossError:
        for (part, name, buffer), value in zip(buffers, before, strict=True):
            setattr(part, name, buffer.copy_(value))
        raise


def _described(objective: Objective) -> dict[str, Any]:
    """What tells one objective from another, as far as it can be written down."""
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
    """One step up the mean bound; the sums of bound and ELBO. The weights stay if anything is not finite."""
    module.objective.step = steps_done  # of this training, also after it was interrupted
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
    optimiser.zero_grad()
    try:
        found = module.estimate(batch)
    except ValueError as error:  # how torch says that a distribution was given nan, with the whole tensor behind it
        if "to satisfy the constraint" not in str(error):
            raise
        raise NonFiniteLossError(
            steps_done + 1, f"a distribution's parameter ({str(error).split(' of shape')[0]})"
        ) from error
    (found.loss / len(batch)).backward()
    parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    means = [found.bound.detach().mean(), found.elbo.mean(), norm.to(found.bound)]
    bound, elbo, size = torch.stack(means).tolist()  # one wait for the device
    if not (math.isfinite(bound) and math.isfinite(size)):
        raise NonFiniteLossError(steps_done + 1, _culprit(module, batch))
    if max_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    optimiser.step()
    module.objective.step = steps_done + 1
    return bound * len(batch), elbo * len(batch)


def _culprit(module: ObjectiveModule, batch: Tensor) -> str:
    """What is not finite: a site's log-density, or a parameter's gradient."""
    with torch.no_grad():
        sites = draw_sites(*module.pair, (batch,), {}, num_particles=1, vectorized=Vectorized(model=True, guide=True))
    for name, log_prob in {**sites.log_q, **sites.log_prior, **sites.log_likelihood}.items():
        if not torch.isfinite(log_prob).all():
            return f"the log-density of site {name!r}"
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"the gradient of {name.removeprefix('owned.0.')}"
    return "the loss"


@torch.no_grad()
def _means(module: ObjectiveModule, data: Any, batch_size: int, seed: int, device: torch.device) -> tuple[float, float]:
    """Mean bound and ELBO over all of the data, with the same draws every time they are asked for."""
    with seeded(seed, "validation"), evaluating(module):
        parts = torch.arange(len(data)).split(batch_size)
        found = [module.estimate(batch_of(module, data, part, device)) for part in parts]
    bound, elbo = (torch.cat(list(each)) for each in zip(*((one.bound, one.elbo) for one in found), strict=True))
    return bound.double().mean().item(), elbo.double().mean().item()


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C be asked for instead of striking in the middle of a step; the second one strikes."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield lambda: False
        return
    hits: list[int] = []

    def note(signum: int, frame: Any) -> None:
        if hits:
            raise KeyboardInterrupt
        hits.append(signum)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(hits)
    finally:
        signal.signal(signal.SIGINT, before)


def _postfix(epoch: Epoch, num_epochs: int) -> str:
    text = f"epoch {epoch.epoch}/{num_epochs}, bound {epoch.train_bound:.2f}"
    return text if math.isnan(epoch.validation_bound) else f"{text}, validation {epoch.validation_bound:.2f}"
