"""Weights on disk: safetensors with a description in JSON, written all or nothing.

Nothing here unpickles, so a file from a stranger can't run code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from napari_jrss.errors import JRSSError
from napari_jrss.io.atomic import write_bytes

StateDict = dict[str, Tensor]


class CheckpointError(JRSSError):
    """A weights file that is missing, damaged or of another network."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON description into one safetensors file."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(on_cpu, {"description": json.dumps(description)}))


def load_tensors(path: Path) -> tuple[StateDict, dict[str, Any]]:
    """Read what :func:`save_tensors` wrote.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or not one of ours.
    """
    if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
        raise CheckpointError(f"{path}: not a readable weights file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            description = json.loads((file.metadata() or {})["description"])
            if not isinstance(description, dict):
                raise ValueError("its description is not a JSON object")
            return {name: file.get_tensor(name) for name in file.keys()}, description  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such weights file") from None
    except (SafetensorError, KeyError, ValueError, OSError, RecursionError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: not a readable weights file ({reason})") from None


def load_into(network: nn.Module, state: StateDict, path: Path) -> None:
    """Put weights read from `path` into `network`; :class:`CheckpointError` if they don't fit."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{path}: damaged ({name[:100]} holds NaN or infinity)")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: weights of another network ({first})") from None


def load_weights(network: nn.Module, path: Path, channels: int | None = None) -> dict[str, Any]:
    """Put the weights of a file into a network.

    `channels` is the number of images of a case that a segmentation network is to see.

    Returns
    -------
    dict
        The file's description.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, of another network, or trained on another number of
        images of a case.
    """
    state, description = load_tensors(path)
    known = description.get("channels") or ["one image"]
    if channels is not None and len(known) != channels:
        raise CheckpointError(
            f"{path}: sees {len(known)} images of each case ({', '.join(map(str, known))[:200]}), "
            f"not {channels}"
        )
    load_into(network, state, path)
    return description
