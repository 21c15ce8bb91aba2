"""Training: what the history says, which weights come out, and that a stopped run ends where an unstopped one does."""

import csv
import errno
import io
import math
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.cli.config import TrainConfig
from pyro_vae.data.datasets import Pixels
from pyro_vae.errors import CheckpointError, ConfigError, DataError, DeviceError, NonFiniteLossError
from pyro_vae.ops.choices import Schedule
from pyro_vae.ops.seeds import seeded
from pyro_vae.training.schedules import SCHEDULES, LinearWarmup
from pyro_vae.training.state import Epoch, read_epochs

SIZE = 6
NUM, BATCH, EPOCHS = 40, 16, 4
STEPS = EPOCHS * math.ceil(NUM / BATCH)
RUN = {"num_epochs": EPOCHS, "batch_size": BATCH, "learning_rate": 0.02, "schedule": "cosine", "seed": 3}


def small_vae(start=0, **options):
    with seeded(start, "start"):
        return pv.presets.mlp_vae(data_shape=(SIZE,), latent_dim=2, hidden=(8,), **options)


def weights(vae):
    return {name: value.clone() for name, value in vae.state_dict().items()}


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def without_seconds(history):
    return [epoch._replace(seconds=0.0) for epoch in history.epochs]


def toy(num, stream):
    """Two classes of binary vectors, one the complement of the other, with a few pixels flipped."""
    with seeded(stream, "toy"):
        flipped = torch.rand(num, SIZE) < 0.1
        return (torch.rand(num, 1) < 0.5).logical_xor(flipped).float()


@pytest.fixture(scope="module")
def x():
    return toy(NUM, 0)


@pytest.fixture(scope="module")
def held_out():
    return toy(BATCH + 4, 1)  # the last batch is a small one: a mean of batch means would be another number


class Source:
    """Data that act when the n-th batch is asked for, which is how a test gets into the middle of a run."""

    def __init__(self, data, at, act):
        self.data, self.at, self.act, self.asked = data, at, act, 0

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.asked += 1
        if self.asked == self.at:
            self.act()
        return self.data[index]


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def crash():
    raise RuntimeError("the machine stops here")


# --- The history --------------------------------------------------------------------------------------------------


def test_training_raises_the_bound_on_both_sets(x, held_out):
    history = pv.fit(small_vae(), x, validation=held_out, num_epochs=40, batch_size=BATCH, learning_rate=0.02)
    first, last = history.epochs[0], history.epochs[-1]
    # A fair coin per pixel is -4.16 nats, and two noisy classes have an entropy of about 2.6 nats.
    assert first.train_bound < -4.0
    assert last.train_bound > first.train_bound + 0.5
    assert last.validation_bound > first.validation_bound + 0.5
    assert not history.interrupted


def test_history_counts_epochs_steps_and_seconds(x, held_out):
    history = pv.fit(small_vae(), x, validation=held_out, **RUN)
    assert [epoch.epoch for epoch in history.epochs] == [1, 2, 3, 4]
    assert [epoch.step for epoch in history.epochs] == [3, 6, 9, 12]
    seconds = [epoch.seconds for epoch in history.epochs]
    assert seconds == sorted(seconds)
    assert 0 < seconds[-1] < 60
    best = max(history.epochs, key=lambda epoch: epoch.validation_bound)
    assert history.best_epoch == best.epoch


def test_train_bound_is_the_mean_over_datapoints(x):
    vae = small_vae()
    history = pv.fit(vae, x, num_epochs=1, batch_size=BATCH, learning_rate=1e-30, seed=5)  # too small to move a weight
    with seeded(5, "epoch", 0), torch.no_grad():
        order = torch.randperm(NUM)
        bounds = [pv.draw_particles(vae.model, vae.guide, x[part]).log_w[0] for part in order.split(BATCH)]
    assert [len(part) for part in bounds] == [16, 16, 8]
    assert history.epochs[0].train_bound == pytest.approx(torch.cat(bounds).double().mean().item(), rel=1e-6)


@pytest.mark.parametrize("num_particles", [1, 8])
def test_validation_bound_is_the_objective_at_the_final_weights(x, held_out, num_particles):
    vae = small_vae()
    objective = pv.objectives.IWAE(num_particles=num_particles)
    history = pv.fit(vae, x, objective=objective, validation=held_out, **RUN)
    with seeded(RUN["seed"], "validation"), torch.no_grad():
        log_w = [
            pv.draw_particles(vae.model, vae.guide, part, num_particles=num_particles).log_w
            for part in held_out.split(BATCH)
        ]
    by_hand = torch.cat([w.double().logsumexp(0) - math.log(num_particles) for w in log_w]).mean().item()
    assert history.epochs[-1].validation_bound == pytest.approx(by_hand, rel=1e-6)


def test_validation_does_not_change_the_weights(x, held_out):
    with_it, without = small_vae(), small_vae()
    pv.fit(with_it, x, validation=held_out, **RUN)
    history = pv.fit(without, x, **RUN)
    assert_same_weights(weights(with_it), weights(without))
    assert all(math.isnan(epoch.validation_bound) for epoch in history.epochs)


def test_iwae_trains_a_tighter_bound_than_the_elbo(x):
    run = {"num_epochs": 30, "batch_size": BATCH, "learning_rate": 0.02}
    elbo = pv.fit(small_vae(), x, **run)
    iwae = pv.fit(small_vae(), x, objective=pv.objectives.IWAE(num_particles=16), **run)
    assert iwae.epochs[-1].train_bound > iwae.epochs[0].train_bound + 0.5
    assert sum(e.train_bound for e in iwae.epochs[-5:]) > sum(e.train_bound for e in elbo.epochs[-5:])


def test_csv_has_one_row_per_epoch(x, tmp_path):
    history = pv.fit(small_vae(), x, **RUN)
    history.to_csv(tmp_path / "history.csv")
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert list(rows[0]) == list(Epoch._fields)
    assert [float(row["train_bound"]) for row in rows] == [epoch.train_bound for epoch in history.epochs]


# What is maximised, and the ELBO beside it


@pytest.mark.parametrize(
    "objective",
    [
        pv.objectives.ELBO(num_particles=3),
        pv.objectives.IWAE(num_particles=3),
        pv.objectives.BetaVAE(beta=5.0),
        pv.objectives.ReweightedWakeSleep(num_particles=3, insomnia=0.5),
        pv.objectives.InfoVAE(mmd_weight=10.0),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_the_plain_elbo_is_noted_whatever_is_maximised(x, held_out, objective):
    vae = small_vae()
    history = pv.fit(vae, x, objective=objective, validation=held_out, **RUN)
    with torch.no_grad():
        exact = pv.evidence.elbo(vae.model, vae.guide, held_out, num_particles=2000).mean
    last = history.epochs[-1]
    assert last.validation_elbo == pytest.approx(exact, abs=0.3)
    assert last.train_elbo == pytest.approx(exact, abs=1.0)
    same = last.validation_bound == pytest.approx(last.validation_elbo, abs=1e-3)
    assert same == isinstance(objective, pv.objectives.ELBO)


def test_what_is_no_objective_of_ours_is_refused_in_one_line():
    # In a process of its own: here the annotations are checked first.
    program = """
import pyro, torch, pyro_vae as pv
vae = pv.presets.mlp_vae(data_shape=(4,), latent_dim=1, hidden=(4,))
for objective in (pv.objectives.IWAE, "iwae", pyro.infer.Trace_ELBO()):
    try:
        pv.fit(vae, torch.zeros(4, 4), objective=objective, progress=False)
    except pv.errors.ConfigError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.count("expected an instance such as pv.objectives.IWAE(num_particles=5)") == 3
    assert len(done.stdout.splitlines()) == 3


def test_patience_watches_the_elbo_of_what_is_not_a_bound(x, held_out):
    # As the KL term of this warm-up gets heavier what is maximised falls, while the ELBO may well rise.
    objective = pv.objectives.BetaVAE(beta=LinearWarmup(num_steps=12, end=50.0))
    history = pv.fit(small_vae(), x, objective=objective, validation=held_out, patience=50, **RUN)
    by_bound = max(history.epochs, key=lambda epoch: epoch.validation_bound).epoch
    by_elbo = max(history.epochs, key=lambda epoch: epoch.validation_elbo).epoch
    assert history.best_epoch == by_elbo != by_bound


def test_a_warm_up_goes_on_where_it_was_interrupted(x, tmp_path):
    def warm_up():
        return pv.objectives.BetaVAE(beta=LinearWarmup(num_steps=12))

    whole, parts, other = small_vae(), small_vae(), small_vae()
    pv.fit(whole, x, objective=warm_up(), **RUN)
    file = tmp_path / "state"
    assert pv.fit(parts, Source(x, 5, press_ctrl_c), objective=warm_up(), checkpoint=file, **RUN).interrupted
    pv.fit(parts, x, objective=warm_up(), checkpoint=file, **RUN)
    assert_same_weights(weights(whole), weights(parts))
    longer = pv.objectives.BetaVAE(beta=LinearWarmup(num_steps=13))
    with pytest.raises(CheckpointError, match="objective"):
        pv.fit(other, x, objective=longer, checkpoint=file, **RUN)


def test_a_history_from_before_the_elbo_was_noted_can_be_read(x, tmp_path):
    history = pv.fit(small_vae(), x, **RUN)
    file = tmp_path / "history.csv"
    history.to_csv(file)
    assert [epoch[:4] for epoch in read_epochs(file)] == [epoch[:4] for epoch in history.epochs]
    file.write_text("\n".join(",".join(line.split(",")[:6]) for line in file.read_text().splitlines()))
    old = read_epochs(file)
    assert [epoch.train_bound for epoch in old] == [epoch.train_bound for epoch in history.epochs]
    assert all(math.isnan(epoch.train_elbo) for epoch in old)


# --- The optimiser ------------------------------------------------------------------------------------------------


def test_burda_stage_i_lasts_3_to_the_i_passes():
    # The boundaries are exact for any number of steps per pass: no step too early, none too late.
    for steps_per_epoch in (*range(1, 60), 500, 2500, 3000):
        total, start = 3280 * steps_per_epoch, 0
        for stage in range(8):
            end = start + 3**stage * steps_per_epoch
            for step in (start, end - 1):
                assert SCHEDULES["burda"](step / total) == pytest.approx(10 ** (-stage / 7), rel=1e-12)
            start = end
        assert start == total


def test_schedules_end_where_they_say():
    assert SCHEDULES["constant"](0.0) == SCHEDULES["constant"](0.999) == 1.0
    assert SCHEDULES["cosine"](0.0) == 1.0
    assert SCHEDULES["cosine"](0.5) == pytest.approx(0.5)
    assert SCHEDULES["cosine"](1.0) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "burda"])
def test_learning_rate_column_follows_the_schedule(x, schedule):
    history = pv.fit(small_vae(), x, num_epochs=20, batch_size=NUM, learning_rate=0.01, schedule=schedule)
    expected = [0.01 * SCHEDULES[schedule](step / 20) for step in range(20)]
    assert [epoch.learning_rate for epoch in history.epochs] == pytest.approx(expected)
    assert (len(set(expected)) == 1) == (schedule == "constant")


def test_learning_rate_that_is_reported_is_the_one_that_is_used(x):
    # With a large epsilon Adam's step is proportional to rate * gradient, here the same gradient twice.
    moved = []
    for rate in (1e-3, 2e-3):
        vae = small_vae().double()
        before = weights(vae)
        pv.fit(vae, x, num_epochs=1, batch_size=NUM, learning_rate=rate, adam_eps=1e3)
        moved.append(sum((weights(vae)[name] - before[name]).square().sum() for name in before).sqrt())
    assert moved[1] / moved[0] == pytest.approx(2.0, rel=1e-6)


def test_max_grad_norm_is_the_norm_of_the_mean_losss_gradient(x):
    def length_of_step(max_grad_norm):
        vae = small_vae().double()
        before = weights(vae)
        # Adam with an epsilon far above the gradient takes the step rate / epsilon * gradient: here the gradient.
        pv.fit(vae, x, num_epochs=1, batch_size=NUM, learning_rate=1e6, adam_eps=1e6, max_grad_norm=max_grad_norm)
        return math.sqrt(sum((weights(vae)[name] - before[name]).square().sum().item() for name in before))

    free = length_of_step(None)
    assert length_of_step(free / 3) == pytest.approx(free / 3, rel=1e-4)
    assert length_of_step(3 * free) == pytest.approx(free, rel=1e-6)


def test_batch_larger_than_the_data_is_clipped_with_a_warning(x):
    clipped, exact = small_vae(), small_vae()
    with pytest.warns(UserWarning, match="clipped to the 5 datapoints"):
        history = pv.fit(clipped, x[:5], num_epochs=3, batch_size=128)
    pv.fit(exact, x[:5], num_epochs=3, batch_size=5)
    assert history.epochs[-1].step == 3
    assert_same_weights(weights(clipped), weights(exact))


@pytest.mark.parametrize("num", [1, 3])
def test_batch_of_one_works(x, num):
    history = pv.fit(small_vae(), x[:num], num_epochs=2, batch_size=1)
    assert history.epochs[-1].step == 2 * num
    assert math.isfinite(history.epochs[-1].train_bound)


# --- Early stopping -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opposite():
    """Training data of ones, validation data of zeros: every epoch makes the validation bound worse."""
    return torch.ones(NUM, SIZE), torch.zeros(BATCH, SIZE)


@pytest.mark.parametrize(("num_epochs", "stops_after"), [(50, 4), (2, 2)])
def test_patience_stops_and_keeps_the_best_weights(opposite, num_epochs, stops_after):
    train, validation = opposite
    patient, best = small_vae(), small_vae()
    run = {"batch_size": BATCH, "learning_rate": 0.02}
    history = pv.fit(patient, train, validation=validation, patience=3, num_epochs=num_epochs, **run)
    pv.fit(best, train, num_epochs=1, **run)
    assert len(history.epochs) == stops_after
    assert history.best_epoch == 1
    assert_same_weights(weights(patient), weights(best))


def test_best_weights_survive_an_interruption(opposite, tmp_path):
    train, validation = opposite
    run = {"batch_size": BATCH, "learning_rate": 0.02, "num_epochs": 50, "validation": validation, "patience": 3}
    best, resumed = small_vae(), small_vae(1)
    pv.fit(best, train, num_epochs=1, batch_size=BATCH, learning_rate=0.02)
    file = tmp_path / "last.safetensors"
    assert pv.fit(small_vae(), Source(train, 8, press_ctrl_c), checkpoint=file, **run).interrupted
    history = pv.fit(resumed, train, checkpoint=file, **run)
    assert len(history.epochs) == 4
    assert_same_weights(weights(resumed), weights(best))


# --- Pairs and data -----------------------------------------------------------------------------------------------


class Owner:
    """Not a module: it only has one."""

    def __init__(self, vae):
        self.vae = vae

    def model(self, x=None):
        return self.vae.model(x)

    def guide(self, x):
        return self.vae.guide(x)


@pytest.mark.parametrize(
    "present",
    [
        lambda vae: (vae.model, vae.guide),
        lambda vae: SimpleNamespace(model=vae.model, guide=vae.guide),
        lambda vae: (lambda x: vae.model(x), lambda x: vae.guide(x)),
        Owner,
    ],
    ids=["tuple", "namespace", "closures", "object that owns the module"],
)
def test_a_pair_in_any_form_is_trained_alike(x, present):
    expected, found = small_vae(), small_vae()
    pv.fit(expected, x, **RUN)
    pv.fit(present(found), x, **RUN)
    assert_same_weights(weights(found), weights(expected))


def test_a_pair_that_is_not_a_vae_is_trained(x):
    encoder, decoder = nn.Linear(SIZE, 2), nn.Linear(2, SIZE)

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("code", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
            pyro.sample("pixels", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("code", dist.Normal(encoder(x), 0.3 * torch.ones(2)).to_event(1))

    before = encoder.weight.clone(), decoder.weight.clone()
    history = pv.fit((model, guide), x, num_epochs=30, batch_size=BATCH, learning_rate=0.02)
    assert history.epochs[-1].train_bound > history.epochs[0].train_bound + 0.3
    assert not torch.equal(encoder.weight, before[0])
    assert not torch.equal(decoder.weight, before[1])


def test_a_float64_module_stays_float64(x):
    vae, other = small_vae().double(), small_vae().double()
    history = pv.fit(vae, x, validation=x, max_grad_norm=1.0, **RUN)
    pv.fit(other, x.double(), validation=x.double(), max_grad_norm=1.0, **RUN)
    assert all(value.dtype == torch.float64 for value in vae.state_dict().values())
    assert math.isfinite(history.epochs[-1].train_bound)
    assert_same_weights(weights(vae), weights(other))


def test_any_array_is_data(x):
    from_tensor, from_array = small_vae(), small_vae()
    pv.fit(from_tensor, x, **RUN)
    pv.fit(from_array, x.numpy().astype(bool), **RUN)
    assert_same_weights(weights(from_array), weights(from_tensor))


def test_dynamic_pixels_are_drawn_from_the_seed_alone():
    found = []
    for caller, seed in ((1, 3), (2, 3), (1, 4)):
        vae = small_vae()
        torch.manual_seed(caller)
        pv.fit(vae, Pixels(torch.full((NUM, SIZE), 100), "dynamic", max_value=255), **{**RUN, "seed": seed})
        found.append(weights(vae))
    assert_same_weights(found[0], found[1])
    assert not torch.equal(found[0]["decoder.layers.2.bias"], found[2]["decoder.layers.2.bias"])


def test_nothing_global_is_touched(x):
    torch.manual_seed(11)
    before, handler = torch.get_rng_state(), signal.getsignal(signal.SIGINT)
    pv.fit(small_vae(), x, validation=x, **RUN)
    assert torch.equal(torch.get_rng_state(), before)
    assert not list(pyro.get_param_store().keys())
    assert signal.getsignal(signal.SIGINT) is handler


def test_quiet_where_there_is_no_terminal(x, capsys):
    pv.fit(small_vae(), x, validation=x, **RUN)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("progress", [True, False])
def test_a_terminal_gets_a_bar_if_it_is_asked_for(x, monkeypatch, capsys, progress):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    pv.fit(small_vae(), x, validation=x, progress=progress, **RUN)
    assert (f"epoch {EPOCHS}/{EPOCHS}, bound -" in terminal.getvalue()) == progress
    assert capsys.readouterr().out == ""


# --- Refusals -----------------------------------------------------------------------------------------------------


def test_non_finite_loss_leaves_the_weights_of_the_last_good_step(x):
    spoiled, good = small_vae(), small_vae()
    run = {"batch_size": NUM, "learning_rate": 1e38}  # the second step's logits overflow
    with pytest.raises(NonFiniteLossError, match=r"step 2: the log-density of site '[xz]'") as caught:
        pv.fit(spoiled, x, num_epochs=5, **run)
    assert caught.value.step == 2
    pv.fit(good, x, num_epochs=1, **run)
    assert_same_weights(weights(spoiled), weights(good))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"x": torch.zeros(0, SIZE)}, DataError, "x: expected at least one datapoint"),
        ({"x": torch.full((3, SIZE), math.nan)}, DataError, "18 non-finite"),
        ({"validation": torch.zeros(0, SIZE)}, DataError, "validation: expected at least one datapoint"),
        ({"validation": torch.full((3, SIZE), math.inf)}, DataError, "validation: found 18 non-finite"),
        ({"patience": 3}, ConfigError, "validation="),
        ({"device": "cuda:99"}, DeviceError, "cuda:99"),
        ({"batch_size": 0}, ConfigError, "batch_size"),
        ({"batch_size": -1}, ConfigError, "batch_size"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(x, options, error, message):
    vae = small_vae()
    before = weights(vae)
    with pytest.raises(error, match=message):
        pv.fit(vae, **{"x": x, "num_epochs": 1, "batch_size": 2, **options})
    assert_same_weights(weights(vae), before)


def test_sparse_data_are_refused_with_a_way_out(x):
    sparse = pytest.importorskip("scipy.sparse").csr_matrix(x.numpy())
    with pytest.raises(DataError, match="sparse"):
        pv.fit(small_vae(), sparse, num_epochs=1, batch_size=4)


def test_an_error_from_inside_a_pyro_program_stays_one_line(x):
    with pytest.raises(DataError, match="Bernoulli") as caught:
        pv.fit(small_vae(), 0.5 * x, num_epochs=1, batch_size=4)
    assert "\n" not in str(caught.value)  # Pyro appends a table of shapes to a ValueError


# --- Stopping and going on ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["tensor", "pixels"])
def run_data(request, x):
    """Data whose order alone is random, and data that are drawn anew in every step."""
    return x if request.param == "tensor" else Pixels(40 + 150 * x, "dynamic", max_value=255)


@pytest.fixture(scope="module")
def unstopped(run_data, held_out):
    vae = small_vae()
    history = pv.fit(vae, run_data, validation=held_out, **RUN)
    return weights(vae), without_seconds(history)


# In the first step, in the last one of an epoch, in the first one of the next, in the middle, and in the very last.
@pytest.mark.parametrize("step", [1, 3, 4, 8, STEPS])
def test_interrupted_and_resumed_is_bit_for_bit_the_unstopped_run(run_data, held_out, unstopped, tmp_path, step):
    file = tmp_path / "last.safetensors"
    run = {"validation": held_out, "checkpoint": file, **RUN}
    first = pv.fit(small_vae(), Source(run_data, step, press_ctrl_c), **run)
    assert first.interrupted
    assert len(first.epochs) == step // 3
    assert file.exists()
    vae = small_vae(start=1)  # whatever it starts from, the checkpoint replaces it
    second = pv.fit(vae, run_data, **run)
    assert not second.interrupted
    assert_same_weights(weights(vae), unstopped[0])
    assert without_seconds(second) == unstopped[1]


def test_interrupted_in_every_step_is_still_the_unstopped_run(run_data, held_out, unstopped, tmp_path):
    run = {"validation": held_out, "checkpoint": tmp_path / "last.safetensors", **RUN}
    for _ in range(STEPS):
        vae = small_vae()
        history = pv.fit(vae, Source(run_data, 1, press_ctrl_c), **run)
        assert history.interrupted
    assert_same_weights(weights(vae), unstopped[0])
    assert without_seconds(history) == unstopped[1]


def test_interrupted_during_validation(run_data, held_out, unstopped, tmp_path):
    run = {"checkpoint": tmp_path / "last.safetensors", **RUN}
    first = pv.fit(small_vae(), run_data, validation=Source(held_out, 3, press_ctrl_c), **run)
    assert first.interrupted
    assert len(first.epochs) == 2
    vae = small_vae()
    pv.fit(vae, run_data, validation=held_out, **run)
    assert_same_weights(weights(vae), unstopped[0])


def test_interruption_without_a_checkpoint_returns_the_history_so_far(x):
    vae, two_epochs = small_vae(), small_vae()
    history = pv.fit(vae, Source(x, 6, press_ctrl_c), **{**RUN, "schedule": "constant"})
    pv.fit(two_epochs, x, **{**RUN, "schedule": "constant", "num_epochs": 2})
    assert history.interrupted
    assert [epoch.step for epoch in history.epochs] == [3, 6]
    assert_same_weights(weights(vae), weights(two_epochs))


# In the first step after an epoch's end, and two steps later: what is not in a checkpoint is done again.
@pytest.mark.parametrize("step", [7, 9])
def test_crash_and_resume_is_the_unstopped_run(run_data, held_out, unstopped, tmp_path, step):
    run = {"validation": held_out, "checkpoint": tmp_path / "last.safetensors", **RUN}
    with pytest.raises(RuntimeError, match="the machine stops"):
        pv.fit(small_vae(), Source(run_data, step, crash), **run)
    vae = small_vae(start=1)
    history = pv.fit(vae, run_data, **run)
    assert_same_weights(weights(vae), unstopped[0])
    assert without_seconds(history) == unstopped[1]


@pytest.fixture
def crashed(x, held_out, tmp_path):
    """The checkpoint of a run that crashed in its third epoch, and how to go on with it."""
    file = tmp_path / "last.safetensors"
    run = {"validation": held_out, "checkpoint": file, **RUN}
    with pytest.raises(RuntimeError, match="the machine stops"):
        pv.fit(small_vae(), Source(x, 7, crash), **run)
    return file, run


@pytest.fixture(scope="module")
def unstopped_weights(x, held_out):
    vae = small_vae()
    pv.fit(vae, x, validation=held_out, **RUN)
    return weights(vae)


@pytest.mark.parametrize("damage", [lambda old: b"", lambda old: old[: len(old) // 2], lambda old: old[:-1] + b"\xff"])
def test_damaged_checkpoint_falls_back_to_the_previous_one(x, crashed, unstopped_weights, damage):
    file, run = crashed
    file.write_bytes(damage(file.read_bytes()))
    vae = small_vae(start=1)
    with pytest.warns(UserWarning, match="last.safetensors: is .*; going on from .*previous-last.safetensors"):
        pv.fit(vae, x, **run)
    assert_same_weights(weights(vae), unstopped_weights)


def test_killed_between_moving_the_old_checkpoint_and_writing_the_new_one(x, crashed, unstopped_weights):
    file, run = crashed
    file.unlink()  # the previous one is there
    vae = small_vae(start=1)
    pv.fit(vae, x, **run)
    assert_same_weights(weights(vae), unstopped_weights)


def test_no_checkpoint_that_loads_is_an_error(x, crashed):
    file, run = crashed
    for damaged in (file, file.with_name("previous-last.safetensors")):
        damaged.write_bytes(damaged.read_bytes()[:100])
    before = weights(vae := small_vae())
    with pytest.warns(UserWarning, match="going on from"), pytest.raises(CheckpointError, match="previous-last"):
        pv.fit(vae, x, **run)
    assert_same_weights(weights(vae), before)


@pytest.fixture
def full_disk(monkeypatch):
    """A switch: what is written after it does not reach the disk."""

    def no_space(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        yield lambda: patch.setattr(os, "fsync", no_space), patch.undo


def test_full_disk_leaves_the_last_checkpoint_as_it_was(x, crashed, unstopped_weights, full_disk):
    file, run = crashed
    fill, clear = full_disk
    before = file.read_bytes()
    fill()
    with pytest.raises(CheckpointError, match=r"last\.safetensors.*No space left"):
        pv.fit(small_vae(), x, **run)
    clear()
    assert file.read_bytes() == before
    vae = small_vae(start=1)
    pv.fit(vae, x, **run)
    assert_same_weights(weights(vae), unstopped_weights)


@pytest.mark.filterwarnings("ignore:.*going on from")
def test_a_damaged_checkpoint_never_takes_the_place_of_the_good_one(x, crashed, unstopped_weights, full_disk):
    file, run = crashed
    fill, clear = full_disk
    file.write_bytes(file.read_bytes()[:100])
    fill()  # the first save after the fallback fails: both files were there, and one of them must still load
    with pytest.raises(CheckpointError, match="No space left"):
        pv.fit(small_vae(), x, **run)
    clear()
    vae = small_vae(start=1)
    pv.fit(vae, x, **run)
    assert_same_weights(weights(vae), unstopped_weights)


def test_checkpoint_of_another_network_is_refused(x, crashed):
    file, run = crashed
    before = file.read_bytes()
    other = pv.presets.mlp_vae(data_shape=(SIZE,), latent_dim=2, hidden=(9,))
    with pytest.raises(CheckpointError, match="weights of another network"):
        pv.fit(other, x, **run)
    assert file.read_bytes() == before


def test_a_saved_model_is_not_taken_for_a_checkpoint(x, tmp_path):
    pv.save(small_vae(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="no training state"):
        pv.fit(small_vae(), x, checkpoint=tmp_path / "model.safetensors", **RUN)


def test_a_finished_run_is_not_trained_further(x, held_out, tmp_path):
    run = {"validation": held_out, "checkpoint": tmp_path / "last.safetensors", **RUN}
    vae, again = small_vae(), small_vae(start=1)
    pv.fit(vae, x, **run)
    history = pv.fit(again, Source(x, 1, crash), **run)
    assert len(history.epochs) == EPOCHS
    assert_same_weights(weights(again), weights(vae))


def test_the_second_ctrl_c_strikes(x, tmp_path):
    handler = signal.getsignal(signal.SIGINT)

    def twice():
        press_ctrl_c()
        press_ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        pv.fit(small_vae(), Source(x, 5, twice), checkpoint=tmp_path / "last.safetensors", **RUN)
    assert signal.getsignal(signal.SIGINT) is handler
    history = pv.fit(small_vae(), x, checkpoint=tmp_path / "last.safetensors", **RUN)
    assert len(history.epochs) == EPOCHS


def test_off_the_main_thread_the_weights_are_the_same(x, tmp_path):
    here, there = small_vae(), small_vae()
    found = []

    def work():
        found.append(pv.fit(there, x, checkpoint=tmp_path / "last.safetensors", **RUN))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    pv.fit(here, x, **RUN)
    assert len(found[0].epochs) == EPOCHS
    assert_same_weights(weights(there), weights(here))


# --- Scales and identities ----------------------------------------------------------------------------------------


class Mean(torch.nn.Module):
    """x ~ N(z, 1) around a learned mean; the guide is the exact posterior, so that only the mean is learned."""

    def __init__(self, weight=None, subsample_size=None):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(1))
        self.weight, self.subsample_size = weight, subsample_size

    def rows(self, x):
        scale = torch.ones(len(x)) if self.weight is None else self.weight(x)
        plate = pyro.plate("data", len(x), subsample_size=self.subsample_size)
        return pyro.poutine.scale(scale=scale if self.subsample_size is None else 1.0), plate

    def model(self, x):
        scale, plate = self.rows(x)
        with scale, plate as index:
            z = pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[index])

    def guide(self, x):
        scale, plate = self.rows(x)
        with scale, plate as index:
            pyro.sample("z", dist.Normal((x[index] + self.loc) / 2, 0.5**0.5).to_event(1))


def test_weights_of_datapoints_count_in_training():
    x = torch.cat([torch.zeros(20, 1), torch.full((20, 1), 10.0)])
    pair = Mean(weight=lambda x: torch.where(x[:, 0] < 5, 1.0, 1e-3))
    pv.fit(pair, x, num_epochs=200, batch_size=40, learning_rate=0.05, progress=False)
    assert abs(pair.loc.item()) < 1  # the far half hardly counts; unweighted it would be 5


def test_a_plate_that_subsamples_is_trained_and_reported_per_datapoint():
    x = torch.randn(50, 1)
    whole, part = Mean(), Mean(subsample_size=5)
    run = {"num_epochs": 1, "batch_size": 50, "validation": x, "learning_rate": 1e-6, "progress": False}
    expected = pv.fit(whole, x, **run).epochs[0]
    found = pv.fit(part, x, **run).epochs[0]
    assert found.train_bound == pytest.approx(expected.train_bound, abs=2)  # a sum over 5 divided by 50 would be -0.2
    assert found.validation_bound == pytest.approx(expected.validation_bound, abs=2)


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"batch_size": 4},
        {"adam_eps": 1e-4},
        {"max_grad_norm": 1.0},
        {"objective": pv.objectives.IWAE(num_particles=2)},
        {"objective": pv.objectives.ELBO(analytic_kl=True)},
        {"x": torch.ones(10, 1)},
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, changed):
    run = {"x": torch.zeros(10, 1), "num_epochs": 1, "batch_size": 5, "progress": False}
    run["checkpoint"] = tmp_path / "last.safetensors"
    pv.fit(Mean(), **run)
    with pytest.raises(CheckpointError, match="another training"):
        pv.fit(Mean(), **{**run, **changed})


def test_the_schedules_are_the_same_for_fit_and_on_the_command_line():
    assert set(SCHEDULES) == set(get_args(Schedule)) == set(get_args(get_type_hints(TrainConfig)["schedule"]))
