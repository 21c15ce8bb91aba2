"""Files: what is saved comes back, what is damaged or foreign is refused, and no failure costs the old file."""

import errno
import itertools
import json
import os
import pickle
import random
import resource
import subprocess
import sys

import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import CheckpointError, DeviceError
from pyro_vae.models.presets import PRESETS
from pyro_vae.ops.seeds import seeded
from pyro_vae.training import checkpoint
from pyro_vae.training.checkpoint import read, write

mlp_vae, burda_vae = pv.presets.mlp_vae, pv.presets.burda_vae

VAES = {
    "bernoulli": lambda: mlp_vae(data_shape=(6,), latent_dim=2, hidden=(8,)),
    "relaxed": lambda: mlp_vae(data_shape=(6,), latent_dim=2, hidden=(8,), relaxed=True),
    "gaussian, scale by the decoder": lambda: mlp_vae(
        data_shape=(6,), latent_dim=2, hidden=(8,), likelihood="gaussian"
    ),
    "gaussian, learned scale": lambda: mlp_vae(
        data_shape=(6,), latent_dim=2, hidden=(8,), likelihood="gaussian", likelihood_scale="learned"
    ),
    "gaussian, fixed scale": lambda: mlp_vae(
        data_shape=(6,), latent_dim=2, hidden=(8,), likelihood="gaussian", likelihood_scale=0.3
    ),
    "images, three layers": lambda: mlp_vae(data_shape=(3, 4), latent_dim=5, hidden=(8, 7, 6), name="deep"),
    "no hidden layer": lambda: mlp_vae(data_shape=[6], latent_dim=1, hidden=[]),
    "started at the data's mean": lambda: mlp_vae(
        data_shape=(6,), latent_dim=2, hidden=(8,), data_mean=torch.linspace(0.1, 0.9, 6)
    ),
    "burda": lambda: burda_vae(data_shape=(3, 3), latent_dim=4, data_mean=torch.full((3, 3), 0.2)),
    "two layers": lambda: pv.presets.burda_two_layer_vae(data_shape=(3, 3), latent_dims=(4, 2)),
    "convolutions, mixture prior": lambda: pv.presets.conv_vae(
        data_shape=(2, 5, 4), latent_dim=2, channels=(3, 4), prior="mixture", num_components=3
    ),
    "vamp prior, full posterior, discretised logistic": lambda: mlp_vae(
        data_shape=(6,),
        latent_dim=2,
        hidden=(8,),
        prior="vamp",
        posterior="full",
        likelihood="discretised_logistic",
        num_levels=17,
        likelihood_scale="learned",
    ),
    "started as probabilistic PCA": lambda: pv.presets.ppca_vae(
        data_shape=(2, 2), latent_dim=3, hidden=(8,), data_mean=torch.arange(4.0), data_covariance=torch.eye(4) + 1
    ),
    "started as probabilistic PCA, a scale mixture": lambda: pv.presets.ppca_vae(
        data_shape=(3,), latent_dim=2, hidden=(8,), likelihood_scale=0.1, scale_mixture=True
    ),
    "a table": lambda: pv.presets.table_vae(kinds=["normal", "count", ["categorical", 3]], latent_dim=2, hidden=(8,)),
    "continuous bernoulli": lambda: mlp_vae(
        data_shape=(6,), latent_dim=2, hidden=(8,), likelihood="continuous_bernoulli"
    ),
}


@pytest.fixture
def vae():
    return VAES["bernoulli"]()


@pytest.fixture
def file(vae, tmp_path):
    path = tmp_path / "model.safetensors"
    pv.save(vae, path)
    return path


def assert_same_state(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def assert_refused(path, match=None, **options):
    """A CheckpointError of one line that names the file."""
    with pytest.raises(CheckpointError, match=match) as caught:
        pv.load(path, **options)
    assert caught.value.path == path
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# --- Round trips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", VAES.values(), ids=VAES)
def test_what_is_saved_comes_back(build, tmp_path):
    vae = build()
    with torch.no_grad():
        for parameter in vae.parameters():  # away from where a fresh model starts
            parameter.add_(torch.randn_like(parameter))
    pv.save(vae, tmp_path / "model.safetensors")
    again = pv.load(tmp_path / "model.safetensors")
    assert_same_state(again, vae)
    assert json.dumps(again.recipe) == json.dumps(vae.recipe)
    assert (again.name, again.data_shape, again.latent_dims) == (vae.name, vae.data_shape, vae.latent_dims)
    assert again.sample(5).shape == (5, *vae.data_shape)
    with seeded(0):
        expected = vae.sample(5)
    with seeded(0):
        assert torch.equal(again.sample(5), expected)
    if isinstance(vae.likelihood, pv.likelihoods.Bernoulli):
        assert again.likelihood.relaxed == vae.likelihood.relaxed


def test_every_preset_is_among_the_round_trips():
    assert {build().recipe["preset"] for build in VAES.values()} == set(PRESETS)


def test_a_file_that_is_loaded_and_saved_again_is_the_same_file(file, tmp_path):
    pv.save(pv.load(str(file)), str(tmp_path / "again.safetensors"))
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 19280])
def test_a_header_length_that_looks_like_a_pickle_is_read(tmp_path, length):
    # A file starts with its header's length: 1152 is b"\x80\x04", the start of a pickle, and 19280 is b"PK", of a zip.
    path = tmp_path / "any.safetensors"
    write(path, {"weight": torch.ones(3)}, {"text": ""})
    shortest = int.from_bytes(path.read_bytes()[:8], "little")
    write(path, {"weight": torch.ones(3)}, {"text": "x" * (length - shortest)})
    assert path.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    assert torch.equal(read(path)[0]["weight"], torch.ones(3))


def test_loading_draws_nothing_from_the_callers_generator(file):
    before = torch.get_rng_state()
    pv.load(file)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_float64_model_comes_back_in_float64(tmp_path):
    vae = VAES["bernoulli"]().double()
    with torch.no_grad():
        vae.decoder.output_bias.fill_(0.1)  # which float32 cannot hold
    pv.save(vae, tmp_path / "model.safetensors")
    assert_same_state(pv.load(tmp_path / "model.safetensors"), vae)


def hand_made(hidden=8):
    encoder, decoder = pv.nn.MLP(6, (hidden,), (2, 2)), pv.nn.MLP(2, (hidden,), 6)
    decoder.layers[0].bias = encoder.layers[0].bias  # one parameter under two names
    return pv.VAE(
        encoder=encoder,
        decoder=decoder,
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.likelihoods.Bernoulli((6,)),
    )


def test_a_hand_made_vae_with_tied_weights_comes_back_into_one_like_it(tmp_path):
    path, vae, again = tmp_path / "model.safetensors", hand_made(), hand_made()
    nn.init.normal_(vae.encoder.layers[0].bias)
    pv.save(vae, path)
    assert pv.load(path, vae=again) is again
    assert_same_state(again, vae)
    assert again.decoder.layers[0].bias is again.encoder.layers[0].bias
    assert_refused(path, match="vae=vae")
    assert_refused(path, match="another network", vae=hand_made(hidden=9))


def test_tensors_of_any_layout_and_type_come_back(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "base": base,
        "tied": base,
        "view": base[1:],
        "transposed": base.t(),
        "strided": base[:, ::2],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "attached": nn.Parameter(base.clone()),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "bits": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "whole": torch.tensor(2**53 + 1),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "double": torch.tensor([0.1], dtype=torch.float64),
    }
    metadata = {"numbers": [1, 2.5, -float("inf")], "text": 'é "quoted"\n', "nothing": None}
    write(tmp_path / "any.safetensors", tensors, metadata)
    found, found_metadata = read(tmp_path / "any.safetensors")
    assert found_metadata == metadata
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_saving_makes_the_folders_on_the_way(vae, tmp_path):
    pv.save(vae, tmp_path / "a" / "b" / "model.safetensors")
    assert_same_state(pv.load(tmp_path / "a" / "b" / "model.safetensors"), vae)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_file_mode_follows_the_umask(vae, tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        pv.save(vae, tmp_path / "model.safetensors")
        assert os.umask(mask) == mask  # saving reads the mask, which needs setting it
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == mode


# --- Refusals -----------------------------------------------------------------------------------------------------


def test_missing_file_is_refused(tmp_path):
    assert_refused(tmp_path / "nothing.safetensors", match="No such file")


def test_folder_is_refused(vae, tmp_path):
    assert_refused(tmp_path, match="directory")
    with pytest.raises(CheckpointError, match="directory"):
        pv.save(vae, tmp_path)
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}*"))


def test_empty_file_is_refused(file):
    file.write_bytes(b"")
    assert_refused(file, match="is empty")


@pytest.mark.parametrize("length", [1, 7, 8, 9, 100, 500, -1000, -8, -1])
def test_truncated_file_is_refused(file, length):
    file.write_bytes(file.read_bytes()[:length])
    assert_refused(file, match="truncated, damaged")


@pytest.mark.parametrize(
    "content", [b"x", b"PNG" * 100, bytes(1000), b"\xff" * 1000, b"[" * 100_000, b'{"a": 1}', b"\n\n\n"]
)
def test_any_other_file_is_refused(tmp_path, content):
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    assert_refused(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"pyro_vae": "text"}, {"pyro_vae": "[]"}])
def test_safetensors_of_another_program_are_refused(tmp_path, metadata):
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(3)}, tmp_path / "other.safetensors", metadata=metadata)
    assert_refused(tmp_path / "other.safetensors")


def test_a_byte_too_many_is_refused(file):
    file.write_bytes(file.read_bytes() + b"\0")
    assert_refused(file)


def test_a_flipped_bit_is_never_silent(file, vae):
    content, chance = file.read_bytes(), random.Random(0)
    start = 8 + int.from_bytes(content[:8], "little")
    header = [8 * 8 + chance.randrange(8 * (start - 8)) for _ in range(150)]
    body = [8 * start + chance.randrange(8 * (len(content) - start)) for _ in range(60)]
    refused = 0
    for bit in itertools.chain(range(64), header, body):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            found = pv.load(file)
        except CheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017  (not every flip has to be refused)
            refused += 1
        else:  # such as the padding, or the format number becoming an older one
            assert_same_state(found, vae)
            assert json.dumps(found.recipe) == json.dumps(vae.recipe)
    assert refused > 250


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_of_torch_save_is_refused_as_a_pickle(vae, tmp_path, zipped):
    torch.save(vae.state_dict(), tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    assert_refused(tmp_path / "model.pt", match="is a pickle")


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_bomb_does_not_go_off(tmp_path, protocol):
    path, target = tmp_path / "bomb.safetensors", tmp_path / "exploded"
    path.write_bytes(pickle.dumps(Bomb(str(target)), protocol=protocol))
    assert_refused(path)
    assert_refused(path, vae=hand_made())
    with pytest.raises(CheckpointError):
        pv.fit(hand_made(), torch.ones(2, 6), num_epochs=1, batch_size=2, checkpoint=path)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()  # it is a live one


def test_a_newer_format_asks_for_an_upgrade(vae, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
        pv.save(vae, tmp_path / "newer.safetensors")
        assert_same_state(pv.load(tmp_path / "newer.safetensors"), vae)
    assert_refused(tmp_path / "newer.safetensors", match="upgrade pyro_vae")


@pytest.mark.parametrize(
    "recipe",
    [
        {"preset": "nonsense_vae"},
        {"preset": "mlp_vae", "data_shape": [6], "an_option_of_the_future": 1},
        {"preset": "mlp_vae"},
        {},
    ],
)
def test_a_recipe_that_this_version_cannot_follow_is_refused(vae, tmp_path, recipe):
    write(tmp_path / "model.safetensors", vae.state_dict(), {"recipe": recipe})
    assert_refused(tmp_path / "model.safetensors")


def test_weights_of_another_network_are_refused(vae, file):
    wider = mlp_vae(data_shape=(6,), latent_dim=2, hidden=(9,))
    deeper = mlp_vae(data_shape=(6,), latent_dim=2, hidden=(8, 8))
    for other in (wider, deeper):
        before = {name: value.clone() for name, value in other.state_dict().items()}
        assert_refused(file, match="another network", vae=other)
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
        write(file.with_name("mixed.safetensors"), other.state_dict(), {"recipe": vae.recipe})
        assert_refused(file.with_name("mixed.safetensors"), match="another network")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_one_line(file):
    with pytest.raises(DeviceError, match="cuda") as caught:
        pv.load(file, device="cuda")
    assert "\n" not in str(caught.value)


# --- Nothing is lost ----------------------------------------------------------------------------------------------


def assert_untouched(file, content):
    assert file.read_bytes() == content
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # and no temporary file is left


@pytest.mark.parametrize("step", ["replace", "fsync", "chmod"])
def test_a_failing_write_leaves_the_old_file(file, monkeypatch, step):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    content, other = file.read_bytes(), VAES["burda"]()
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be written \(No space left") as caught:
        pv.save(other, file)
    assert "\n" not in str(caught.value)
    assert_untouched(file, content)


def test_a_file_that_does_not_fit_leaves_the_old_file(file):
    content = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content), limits[1]))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            pv.save(VAES["burda"](), file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_untouched(file, content)


def test_ctrl_c_while_writing_leaves_the_old_file(file, monkeypatch):
    def strike(*_):
        raise KeyboardInterrupt

    content = file.read_bytes()
    monkeypatch.setattr(os, "fsync", strike)
    with pytest.raises(KeyboardInterrupt):
        pv.save(VAES["burda"](), file)
    assert_untouched(file, content)


def test_read_only_folder_leaves_the_old_file(vae, file):
    content = file.read_bytes()
    file.parent.chmod(0o500)
    try:
        if os.access(file.parent, os.W_OK):
            pytest.skip("this user writes everywhere")
        with pytest.raises(CheckpointError, match=r"cannot be written \(Permission denied"):
            pv.save(vae, file)
    finally:
        file.parent.chmod(0o700)
    assert_untouched(file, content)


KILL_WHILE_SAVING = """
import itertools, os, random, signal, sys, time
import torch, pyro_vae as pv

path, versions = sys.argv[1], set()
vae = pv.presets.mlp_vae(data_shape=(784,), latent_dim=2, hidden=(300,))
pv.save(vae, path)
for round in range(6):
    child = os.fork()
    if not child:
        for version in itertools.count(1):
            with torch.no_grad():
                for parameter in vae.parameters():
                    parameter.fill_(round + version / 1000)
            pv.save(vae, path)
    time.sleep(random.Random(round).uniform(0.05, 0.3))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = {value for parameter in pv.load(path).parameters() for value in (parameter.min(), parameter.max())}
    assert round == 0 or len({value.item() for value in found}) == 1, "weights of two versions in one file"
    versions.add(max(found).item())
assert len(versions) > 3, "the children hardly saved anything"
"""


def test_killed_at_any_moment_the_file_loads(tmp_path):
    # In a process of its own: only what is forked early and small can be killed every 200 ms.
    done = subprocess.run(
        [sys.executable, "-c", KILL_WHILE_SAVING, str(tmp_path / "model.safetensors")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
