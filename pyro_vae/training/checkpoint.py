"""Checkpoints: safetensors with a checksum, written beside the old file and then moved over it.

A file holds tensors and, as JSON in its metadata, the facts to interpret them. No pickle is read or written.
"""

from __future__ import annotations

__all__ = ["load", "read", "save", "write"]

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as _from_bytes
from safetensors.torch import save as _to_bytes
from torch import Tensor

from ..data.arrays import find_device
from ..data.files import replace_file
from ..errors import CheckpointError, ConfigError
from ..models.base import BaseVAE
from ..models.presets import PRESETS

FORMAT = 1
_KEY = "pyro_vae"


def save(vae: BaseVAE, path: str | Path) -> None:
    """Write a VAE's weights and, if a preset made it, the recipe to build it again.

    The file at ``path`` is replaced in one move once the new one is whole; on any failure the old one survives.

    Errors:
        CheckpointError: if the file cannot be written, with the reason.
        ConfigError: for anything but a VAE.

    Example:
        >>> import tempfile
        >>> vae = pv.presets.mlp_vae(data_shape=(4,), latent_dim=2, hidden=(8,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pv.save(vae, f"{folder}/model.safetensors")
        ...     again = pv.load(f"{folder}/model.safetensors")
        >>> torch.equal(again.decoder.output_bias, vae.decoder.output_bias)
        True
    """
    if not isinstance(vae, BaseVAE):
        raise ConfigError(f"found {type(vae).__name__}, expected a VAE: save the one inside an Incomplete pair")
    write(path, vae.state_dict(), {"recipe": vae.recipe})


def load(path: str | Path, *, vae: BaseVAE | None = None, device: str | torch.device = "cpu") -> BaseVAE:
    """Read a VAE that :func:`save` wrote; nothing in the file is executed.

    Arguments:
        path: The file.
        vae: If no preset made the VAE, one assembled in the same way, to receive the weights.
        device: The device of the weights.

    Errors:
        CheckpointError: for a file that is missing, empty, truncated, damaged, a pickle, or from a newer version.
    """
    tensors, metadata = read(path)
    target = find_device(str(device))
    if vae is None:
        vae = _rebuilt(metadata.get("recipe"), path)
        for dtype in {value.dtype for value in tensors.values() if value.is_floating_point()}:
            vae.to(dtype)
    restore(vae, tensors, path)
    return vae.to(target)


def _rebuilt(recipe: dict[str, Any] | None, path: str | Path) -> BaseVAE:
    """Return the VAE of a recipe; its random weights are about to be replaced."""
    if recipe is None:
        raise CheckpointError(path, "no preset made this VAE: assemble it again and pass it, load(path, vae=vae)")
    arguments = dict(recipe)
    preset = arguments.pop("preset", None)
    if preset not in PRESETS:
        raise CheckpointError(path, f"unknown preset {preset!r}: expected one of {', '.join(map(repr, PRESETS))}")
    try:
        with torch.random.fork_rng(devices=[]):
            return PRESETS[preset](**arguments)
    except (TypeError, ValueError) as error:
        reason = f"its recipe for {preset} cannot be followed ({str(error).splitlines()[0]}): upgrade pyro_vae"
        raise CheckpointError(path, reason) from error


def restore(module: torch.nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Put saved weights into a module; raise :class:`CheckpointError` for other names, types or shapes."""
    own = {name: (str(value.dtype), tuple(value.shape)) for name, value in module.state_dict().items()}
    saved = {name: (str(value.dtype), tuple(value.shape)) for name, value in tensors.items()}
    if own != saved:
        name = min(dict(own.items() ^ saved.items()))
        raise CheckpointError(
            path, f"weights of another network: {name!r} is {saved.get(name)} in the file, {own.get(name)} expected"
        )
    module.load_state_dict(dict(tensors))


def write(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], *, previous: Path | None = None
) -> None:
    """Write tensors and JSON metadata to ``path``: whole, or not at all. The old file is kept as ``previous``."""
    path = Path(path)
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = json.loads(json.dumps(metadata, default=lambda number: number.item()))  # as it will be read: plain
    text = json.dumps({"format": FORMAT, **metadata, "sha256": _digest(plain, metadata)})
    replace_file(path, _to_bytes(plain, metadata={_KEY: text}), previous=previous)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and metadata of a file that :func:`write` wrote, after verifying its checksum."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror or error})") from error
    if not content:
        raise CheckpointError(path, "is empty")
    try:
        tensors = _from_bytes(content)  # first: it checks the header's length and form
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = dict(json.loads(header["__metadata__"][_KEY]).items())
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        # Only now: the length of a good header may look like the start of a pickle.
        if content[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            reason = "is a pickle, which could run code: only files written by pyro_vae.save are read"
            raise CheckpointError(path, reason) from None
        raise CheckpointError(path, "is truncated, damaged or not a checkpoint of pyro_vae") from None
    version = metadata.pop("format", None)
    if not isinstance(version, int) or version > FORMAT:
        raise CheckpointError(path, f"has format {version}, this version reads up to {FORMAT}: upgrade pyro_vae")
    if metadata.pop("sha256", None) != _digest(tensors, metadata):
        raise CheckpointError(path, "is damaged: its checksum does not match its content")
    return tensors, metadata


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Return the SHA-256 of names, types, shapes, bytes and metadata: a flipped bit anywhere changes it."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
