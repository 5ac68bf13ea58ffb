"""Weights and training state on disk: safetensors with their description, written all or nothing.

Nothing here unpickles. A training state is one file, so that a kill at any moment leaves the
previous state whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from napari_jrss.errors import JRSSError, from_validation
from napari_jrss.io.atomic import write_bytes

StateDict = dict[str, Tensor]
_NUMBER = re.compile("[0-9]{1,9}")


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
                raise ValueError("its description is no object")
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


class _Description(BaseModel):
    """What a training state says beside its tensors."""

    model_config = ConfigDict(strict=True)

    step: int = Field(ge=0, lt=2**53)
    best_validation: float | None
    epoch_losses: list[dict[str, float]] = []
    precision: dict[str, int | float] = {}


@dataclass
class TrainingState:
    """Everything that a stage needs to go on as if it had never stopped.

    Attributes
    ----------
    modules
        Current weights and buffers by module name.
    best
        The same at the best validation so far (empty before the first).
    optimizer
        Adam's moments: ``{index of the parameter: {name: tensor}}``.
    step
        Number of steps done.
    best_validation
        Validation value of `best`.
    epoch_losses
        Losses of the steps of an unfinished epoch, for its mean.
    precision
        What mixed precision keeps from step to step: the scale of the losses.
    """

    modules: dict[str, StateDict]
    best: dict[str, StateDict] = field(default_factory=dict)
    optimizer: dict[int, StateDict] = field(default_factory=dict)
    step: int = 0
    best_validation: float | None = None
    epoch_losses: list[dict[str, float]] = field(default_factory=list)
    precision: dict[str, float] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Save the state in a safetensors file."""
        tensors: StateDict = {}
        for part, states in (("module", self.modules), ("best", self.best)):
            for name, state in states.items():
                tensors |= {f"{part}/{name}/{key}": value for key, value in state.items()}
        for index, moments in self.optimizer.items():
            tensors |= {f"optimizer/{index}/{key}": value for key, value in moments.items()}
        description = {
            "step": self.step,
            "best_validation": self.best_validation,
            "epoch_losses": self.epoch_losses,
            "precision": self.precision,
        }
        save_tensors(path, tensors, description)

    @classmethod
    def read(cls, path: Path) -> TrainingState:
        """Load a state that :meth:`write` saved; :class:`CheckpointError` if it is damaged."""
        tensors, description = load_tensors(path)
        names = [full_name.split("/", 2) for full_name in tensors]
        for parts in names:
            number = len(parts) == 3 and (parts[0] != "optimizer" or _NUMBER.fullmatch(parts[1]))
            if not number or parts[0] not in ("module", "best", "optimizer"):
                raise CheckpointError(f"{path}: not a training state")
        try:
            said = _Description.model_validate(description)
        except ValidationError as error:
            reason = from_validation(error)
            raise CheckpointError(f"{path}: not a training state ({reason})") from None
        state = cls(modules={}, **said.model_dump())
        for (part, name, key), tensor in zip(names, tensors.values(), strict=True):
            if part == "optimizer":
                state.optimizer.setdefault(int(name), {})[key] = tensor
            else:
                group = state.modules if part == "module" else state.best
                group.setdefault(name, {})[key] = tensor
        return state


def optimizer_moments(optimizer: torch.optim.Optimizer) -> dict[int, StateDict]:
    """The optimiser's state as plain tensors, by the index of the parameter."""
    return {index: dict(moments) for index, moments in optimizer.state_dict()["state"].items()}


def restore_moments(
    optimizer: torch.optim.Optimizer, moments: dict[int, StateDict], path: Path
) -> None:
    """Put :func:`optimizer_moments` back; :class:`CheckpointError` if they don't fit."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, tensors in moments.items():
        fits = index < len(parameters) and {"step", "exp_avg", "exp_avg_sq"} <= tensors.keys()
        if not fits or any(
            tensor.shape != (() if name == "step" else parameters[index].shape)
            for name, tensor in tensors.items()
        ):
            raise CheckpointError(f"{path}: a training state of another network")
        finite = all(bool(tensor.isfinite().all()) for tensor in tensors.values())
        if not finite or tensors["step"] < 0 or bool((tensors["exp_avg_sq"] < 0).any()):
            raise CheckpointError(f"{path}: damaged (moments that no optimiser has)")
    state = optimizer.state_dict()
    optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
