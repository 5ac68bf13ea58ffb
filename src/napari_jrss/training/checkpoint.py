"""The training state of a stage on disk: one file, so that a kill leaves the previous one whole."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from napari_jrss.errors import from_validation
from napari_jrss.networks.weights import CheckpointError, StateDict, load_tensors, save_tensors

_NUMBER = re.compile("[0-9]{1,9}")


class _Description(BaseModel):
    """What a training state says beside its tensors."""

    model_config = ConfigDict(strict=True)

    step: int = Field(ge=0, lt=2**53)
    best_validation: float | None
    epoch_losses: list[dict[str, float]] = []
    precision: dict[str, int | float] = {}


@dataclass
class TrainingState:
    """Everything that a stage needs to continue as if it had never stopped.

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
            raise CheckpointError(f"{path}: damaged (impossible moments of the optimiser)")
    state = optimizer.state_dict()
    optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
