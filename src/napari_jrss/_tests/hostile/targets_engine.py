"""What training reads back: weights, training states, a round's metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from hypothesis import strategies as st
from lightning_fabric import Fabric
from torch import nn

from napari_jrss.io.round_files import RoundFiles
from napari_jrss.networks.weights import CheckpointError, load_into, load_tensors, save_tensors
from napari_jrss.training.checkpoint import TrainingState, optimizer_moments
from napari_jrss.training.events import EpochEnd, MetricsFile, StageStarted
from napari_jrss.training.loop import _restore
from napari_jrss.training.trainable import RoundError

from .mutations import of_bytes, of_json, of_replacement
from .targets import Target

_WEIGHTS, _STATE, _METRICS = "teacher.safetensors", "stage.state.safetensors", "metrics.jsonl"
_HEADER = 8  # bytes of the length before the JSON of a safetensors file


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 3, 3), nn.BatchNorm3d(3))


def _optimizer(network: nn.Module) -> torch.optim.Adam:
    adam = torch.optim.Adam(network.parameters())
    network(torch.ones(2, 1, 4, 4, 4)).sum().backward()
    adam.step()
    return adam


@dataclass
class _Stage:
    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = _optimizer(self.modules["network"])


def _write_weights(folder: Path) -> None:
    description = {"stage": "mono_segmentation", "classes": ["a", "b"], "best": 0.5}
    save_tensors(folder / _WEIGHTS, _network().state_dict(), description)


def _read_weights(folder: Path) -> None:
    path = folder / _WEIGHTS
    network = _network()
    load_into(network, load_tensors(path)[0], path)
    assert all(bool(value.isfinite().all()) for value in network.state_dict().values())


def _write_state(folder: Path) -> None:
    network = _network()
    weights = network.state_dict()
    TrainingState(
        modules={"network": weights},
        best={"network": {name: value.clone() for name, value in weights.items()}},
        optimizer=optimizer_moments(_optimizer(network)),
        step=3,
        best_validation=0.5,
        epoch_losses=[{"total": 1.0}],
    ).write(folder / _STATE)


def _go_on(folder: Path) -> None:
    stage = _Stage({"network": _network()})
    fabric = Fabric(accelerator="cpu", devices=1)
    state = _restore(stage, fabric, folder / _STATE)  # type: ignore[arg-type]
    assert state.step >= 0
    if state.best:
        stage.modules["network"].load_state_dict(state.best["network"])
    stage.optimizer.step()


_STARTED = StageStarted(stage="student_1", steps=9, first_step=3, best=None)
_EPOCH = EpochEnd(
    stage="student_1", step=6, epoch=2, losses={"total": 1.0}, best=None, validation=None
)


def _write_metrics(folder: Path) -> None:
    for event in (_STARTED, _EPOCH):
        MetricsFile(folder / _METRICS).add(event)


def _append_metrics(folder: Path) -> None:
    RoundFiles(folder).sweep()
    for event in (_STARTED, _EPOCH, _EPOCH):
        MetricsFile(folder / _METRICS).add(event)
    assert "epoch_end" in (folder / _METRICS).read_text()


ENGINE_READERS: tuple[Target, ...] = (
    Target(
        "weights",
        _write_weights,
        _read_weights,
        st.one_of(of_json(_WEIGHTS, start=_HEADER), of_bytes(_WEIGHTS), of_replacement(_WEIGHTS)),
        (CheckpointError,),
    ),
    Target(
        "training state",
        _write_state,
        _go_on,
        st.one_of(of_json(_STATE, start=_HEADER), of_bytes(_STATE), of_replacement(_STATE)),
        (CheckpointError,),
    ),
    Target(
        "metrics of a round",
        _write_metrics,
        _append_metrics,
        st.one_of(of_bytes(_METRICS), of_replacement(_METRICS)),
        (RoundError,),
    ),
)
