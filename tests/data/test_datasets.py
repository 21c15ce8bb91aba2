"""Data sets, and how pixels are presented; nothing here may touch the network."""

import hashlib
import socket
import struct
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

import pyro_vae as pv
from pyro_vae import data
from pyro_vae.data.datasets import BINARISATIONS, DATASETS, Pixels
from pyro_vae.errors import ConfigError, DataError
from tests.statistics import assert_mean, assert_not_mean

RAW = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}


@pytest.fixture(autouse=True)
def network(monkeypatch):
    """No network: whoever tries gets an error, and the test fails unless it expected the attempt."""
    attempts = []

    def refuse(*address, **_):
        attempts.append(address)
        raise URLError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("PYRO_VAE_DATA", raising=False)
    yield attempts
    assert not attempts


def message(caught):
    """The text of an error, which is one line."""
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- digits


def test_digits_are_split_in_two_without_loss():
    found = data.load("digits")
    assert found.name == "digits"
    assert found.x_train.shape == (1437, 8, 8)
    assert found.x_test.shape == (360, 8, 8)
    assert found.x_train.dtype == found.x_test.dtype == torch.uint8
    assert found.max_value == max(found.x_train.max(), found.x_test.max()) == 16

    def rows(x, y):
        return sorted([*image, label] for image, label in zip(x.reshape(-1, 64).tolist(), y.tolist(), strict=True))

    original = load_digits()
    ours = rows(torch.cat([found.x_train, found.x_test]), torch.cat([found.y_train, found.y_test]))
    assert ours == rows(original.images, original.target)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_split_of_digits_is_the_published_one_whatever_the_seed(seed):
    torch.manual_seed(seed)
    digest = hashlib.sha256()
    for part in data.load("digits")[1:5]:
        digest.update(part.numpy().tobytes())
    # Numbers for log p(x) on digits refer to this split: a new hash makes all older ones incomparable.
    assert digest.hexdigest() == "f0c63d3c02a8474219009fdc94d58da7f45801d00a24be5251cf3806b56a2ae5"


def test_loading_digits_leaves_torchs_generator_alone():
    before = torch.get_rng_state()
    data.load("digits")
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_data_set_is_one_line_that_lists_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        data.load("imagenet")
    assert all(name in message(caught) for name in ("imagenet", *DATASETS))


# --- pixels

GREYS = torch.tensor([0, 40, 128, 230, 255], dtype=torch.uint8)


def grey_images(num=4000):
    return GREYS.expand(num, 5).clone()


def test_static_pixels_are_drawn_once_from_their_own_seed():
    torch.manual_seed(0)
    first = Pixels(grey_images(50), "static", seed=3)
    torch.manual_seed(1)
    again = Pixels(grey_images(50), "static", seed=3)
    assert torch.equal(first[:], first[:])
    assert torch.equal(first[:], again[:])
    assert torch.equal(first[torch.tensor([4, 2])], first[:][[4, 2]])
    assert not torch.equal(first[:], Pixels(grey_images(50), "static", seed=4)[:])


def test_static_pixels_leave_torchs_generator_alone():
    before = torch.get_rng_state()
    Pixels(grey_images(50), "static")[:]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_random_pixels_are_binary_with_the_grey_level_as_their_mean(mode):
    x = Pixels(grey_images(), mode)[:]
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert_mean(x, GREYS / 255)
    assert_not_mean(x, GREYS / 256 + 0.05)


def test_dynamic_pixels_are_drawn_anew_at_each_presentation():
    pixels = Pixels(grey_images(3), "dynamic")
    index = torch.zeros(4000, dtype=torch.long)  # one image, presented 4,000 times
    assert_mean(pixels[index], GREYS / 255)
    torch.manual_seed(0)
    first, second = pixels[index], pixels[index]
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(pixels[index], first)


def test_threshold_cuts_at_one_half():
    images = torch.arange(256).reshape(1, 256)
    assert torch.equal(Pixels(images, "threshold", max_value=255)[:], (images >= 127.5).float())


@pytest.mark.parametrize("max_value", [255, 16, 1])
def test_unbinarised_pixels_are_grey_levels_in_0_1(max_value):
    images = torch.linspace(0, max_value, 12).round().reshape(3, 4)
    x = Pixels(images.clone(), "none", max_value=max_value)[:]
    torch.testing.assert_close(x, images / max_value)
    assert (x.min(), x.max()) == (0, 1)


def test_the_white_of_floats_is_one_and_of_bytes_255():
    # Divided by 255, greys in [0, 1] would be almost blank images, and nothing would say so.
    grey = torch.tensor([[0.0, 0.5, 1.0]])
    assert torch.equal(Pixels(grey, "none")[:], grey)
    assert torch.equal(Pixels(grey > 0.7, "none")[:], torch.tensor([[0.0, 0.0, 1.0]]))
    assert torch.equal(Pixels((grey * 255).byte(), "none")[:], torch.tensor([[0.0, 127 / 255, 1.0]]))


@pytest.mark.parametrize("mode", BINARISATIONS)
def test_pixels_are_kept_as_bytes_and_presented_as_floats(mode):
    images = torch.randint(0, 256, (500, 28, 28), dtype=torch.uint8)
    pixels = Pixels(images, mode)
    kept = [value for value in vars(pixels).values() if isinstance(value, torch.Tensor)]
    assert sum(value.nbytes for value in kept) <= images.nbytes + 4 * 28 * 28  # and the mean image
    batch = pixels[torch.tensor([3, 1, 2])]
    assert batch.dtype == torch.float32
    assert batch.shape == (3, 28, 28)
    assert len(pixels) == 500
    assert pixels.shape == (28, 28)
    torch.testing.assert_close(pixels.mean, images.float().mean(0) / 255)


@pytest.mark.parametrize("mode", BINARISATIONS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("index", [slice(None), slice(1, 3), torch.tensor([2, 0]), 1], ids=str)
def test_presenting_pixels_does_not_write_into_the_users_images(mode, dtype, index):
    images = torch.tensor([[0, 255], [128, 3], [90, 200]]).to(dtype)
    before = images.clone()
    pixels = Pixels(images, mode, max_value=255)
    shown = pixels[index]
    assert torch.equal(images, before)
    shown += 5  # what the caller does with a batch is no business of the data either
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("images", "options", "words"),
    [
        (torch.zeros(0, 4), {}, ("at least one datapoint", "(0, 4)")),
        (torch.zeros(4), {}, ("(n, ...)", "(4,)")),
        (torch.tensor([[0.0, float("nan")]]), {}, ("1 non-finite", "(0, 1)")),
        (torch.tensor([[0.0, 256.0]]), {"max_value": 255}, ("[0, 255]", "[0, 256]", "max_value")),
        (torch.tensor([[0.0, 255.0]]), {}, ("[0, 1]", "[0, 255]", "max_value")),
        (torch.tensor([[-1.0, 1.0]]), {}, ("[0, 1]", "[-1, 1]", "shift and scale")),
        (torch.tensor([[0, 255]]), {}, ("int64", "max_value")),
        (torch.tensor([[0, 17]], dtype=torch.uint8), {"max_value": 16}, ("[0, 16]", "[0, 17]")),
    ],
)
def test_pixels_that_are_no_images_are_refused_in_one_line(images, options, words):
    with pytest.raises(DataError) as caught:
        Pixels(images, **options)
    assert all(word in message(caught) for word in words)


def test_binarise_draws_from_its_seed_or_cuts():
    grey = (GREYS / 255).expand(4000, 5)
    torch.manual_seed(0)
    first = data.binarise(grey, seed=1)
    torch.manual_seed(1)
    assert torch.equal(data.binarise(grey, seed=1), first)
    assert not torch.equal(data.binarise(grey, seed=2), first)
    assert_mean(first, GREYS / 255)
    assert data.binarise(GREYS / 255, "threshold").tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(DataError) as caught:
        data.binarise(GREYS)
    assert "[0, 255]" in message(caught)


# --- torchvision's data sets


def idx(array):
    """An array of bytes in MNIST's file format."""
    return struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.numpy().tobytes()


def write_raw(root, name, numbers=(3, 2), start=0):
    """Tiny files in torchvision's layout; returns the arrays that are in them."""
    folder = root / RAW[name] / "raw"
    folder.mkdir(parents=True)
    arrays = []
    for part, num in zip(("train", "t10k"), numbers, strict=True):
        images = (torch.arange(num * 784).reshape(num, 28, 28) + start).to(torch.uint8)
        labels = (torch.arange(num) + start).to(torch.uint8) % 10
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
        arrays += [images, labels]
    return arrays


@pytest.mark.parametrize("name", RAW)
def test_raw_files_are_read_as_they_are(tmp_path, name):
    arrays = write_raw(tmp_path, name)
    found = data.load(name, data_dir=tmp_path)
    assert found.name == name
    assert found.max_value == 255
    assert found.x_train.dtype == torch.uint8
    for read, written in zip(found[1:5], arrays, strict=True):
        assert torch.equal(read, written.to(read.dtype))


def test_data_dir_goes_before_the_environment_and_that_before_the_working_folder(tmp_path, monkeypatch):
    for number, folder in enumerate(("asked", "environment", "data")):
        write_raw(tmp_path / folder, "mnist", start=10 * number)
    monkeypatch.chdir(tmp_path)

    def first_pixel(**options):
        return data.load("mnist", **options).x_train[0, 0, 0].item()

    assert first_pixel() == 20
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path / "environment"))
    assert first_pixel() == 10
    assert first_pixel(data_dir=tmp_path / "asked") == 0
    assert first_pixel(data_dir=str(tmp_path / "asked")) == 0
    monkeypatch.setenv("PYRO_VAE_DATA", "")
    assert first_pixel() == 20


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", "MNIST/raw"),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("kmnist", "KMNIST/raw"),
        ("omniglot", "omniglot-py"),
    ],
)
def test_missing_data_are_one_line_with_every_way_to_get_them(tmp_path, name, place):
    with pytest.raises(DataError) as caught:
        data.load(name, data_dir=tmp_path)
    for word in (name, str(tmp_path / place), "--data-dir", "data_dir=", "PYRO_VAE_DATA", "--download"):
        assert word in message(caught)


def test_one_missing_file_of_four_is_missing_data(tmp_path):
    write_raw(tmp_path, "mnist")
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError) as caught:
        data.load("mnist", data_dir=tmp_path)
    assert "not found" in message(caught)


DAMAGES = {
    "truncated pixels": lambda content: content[:500],
    "truncated header": lambda content: content[:10],
    "truncated magic number": lambda content: content[:3],
    "no pixels": lambda content: content[:16],
    "empty": lambda content: b"",
    "not an idx file": lambda content: b"<!DOCTYPE html>" + content,
    "another number type": lambda content: b"\0\0\x0d" + content[3:],
    "a number type that is none": lambda content: b"\0\0\x0a" + content[3:],
}


@pytest.mark.parametrize("part", ["train", "t10k"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_line_that_says_to_delete_it(tmp_path, damage, part):
    write_raw(tmp_path, "mnist")
    path = tmp_path / f"MNIST/raw/{part}-images-idx3-ubyte"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(DataError) as caught:
        data.load("mnist", data_dir=tmp_path)
    assert "delete" in message(caught)
    assert str(tmp_path / "MNIST") in message(caught)


def test_truncated_labels_are_damage_too(tmp_path):
    write_raw(tmp_path, "mnist")
    path = tmp_path / "MNIST/raw/train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError) as caught:
        data.load("mnist", data_dir=tmp_path)
    assert "delete" in message(caught)


def test_download_is_tried_when_asked_for_and_its_failure_is_one_line(tmp_path, network):
    with pytest.raises(DataError) as caught:
        data.load("mnist", data_dir=tmp_path, download=True)
    assert "download" in message(caught)
    assert network
    network.clear()


class Drawings:
    """Stands in for torchvision's Omniglot: black strokes on white, 105 x 105, in two parts."""

    def __init__(self, root, *, download, background):
        self.num = 3 if background else 2

    def __iter__(self):
        for label in range(self.num):
            image = Image.new("L", (105, 105), 255)
            image.paste(0, (0, 0, 40, 105))  # a black bar on the left
            yield image, label


def test_omniglot_is_inverted_and_reduced_to_28_by_28(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "Omniglot", Drawings)
    found = data.load("omniglot", data_dir=tmp_path)
    assert found.x_train.shape == (3, 28, 28)
    assert found.x_test.shape == (2, 28, 28)
    assert found.x_train.dtype == torch.uint8
    assert (found.y_train.tolist(), found.y_test.tolist()) == ([0, 1, 2], [0, 1])
    assert found.max_value == 255
    assert (found.x_train[:, :, :9] > 250).all()  # strokes are bright, as in MNIST
    assert (found.x_train[:, :, 13:] < 5).all()


def no_such_image(*_, **__):
    raise OSError("cannot identify image file")


@pytest.mark.parametrize("moment", ["__init__", "__iter__"])
def test_damaged_omniglot_is_one_line(tmp_path, monkeypatch, moment):
    monkeypatch.setattr(torchvision.datasets, "Omniglot", Drawings)
    monkeypatch.setattr(Drawings, moment, no_such_image)
    with pytest.raises(DataError) as caught:
        data.load("omniglot", data_dir=tmp_path)
    for word in ("cannot identify image file", str(tmp_path / "omniglot-py"), "delete"):
        assert word in message(caught)


# --- pictures in a folder


@pytest.fixture
def folder(tmp_path):
    """A wide picture, red on the left third and blue on the right one, in a folder of the folder."""
    from PIL import Image

    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20, 0], pixels[:, 20:40], pixels[:, 40:, 2] = 255, 100, 255
    (tmp_path / "inner").mkdir()
    Image.fromarray(pixels).save(tmp_path / "inner" / "b.PNG")
    Image.fromarray(pixels[:, 20:40]).save(tmp_path / "a.jpg", quality=100)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_pictures_are_cut_around_their_middle_and_scaled(folder):
    x = pv.data.read_images(folder, size=(10, 8))
    assert (x.shape, x.dtype) == ((2, 3, 10, 8), torch.uint8)
    assert ((x.int() - 100).abs() <= 2).all()  # the colours at the sides are cut off
    assert pv.data.read_images(folder, size=(20, 60), most=1).shape == (1, 3, 20, 60)
    whole = pv.data.read_images(folder / "inner", size=(20, 60))
    assert whole[0, :, 10, 3].tolist() == [255, 0, 0]
    assert whole[0, :, 10, 56].tolist() == [0, 0, 255]
    assert pv.data.read_images(folder, size=(5, 5), grey=True).shape == (2, 5, 5)


def test_a_folder_without_pictures_is_one_line(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="no pictures found"):
            pv.data.read_images(place)


def test_a_file_that_is_no_picture_is_named(folder):
    (folder / "c.png").write_bytes(b"not one")
    with pytest.raises(DataError, match=r"c\.png cannot be read"):
        pv.data.read_images(folder)
