"""Every comparator learns on phantoms and has as many parameters as was published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from napari_jrss._tests.engine.phantoms import (
    LABELLED,
    NAMES,
    UNLABELLED,
    RecordingArrays,
    cpu,
    snapshot,
)
from napari_jrss.config import TrainingConfig, preset
from napari_jrss.engine.evaluate import evaluate_registration, evaluate_segmentation
from napari_jrss.experiments.methods import METHODS
from napari_jrss.experiments.recipe import Task, Trained, parameters

UNSEEN = ("p", "q", "r")
PAIRS = (("p", "q"), ("q", "r"), ("r", "p"))
CPU = torch.device("cpu")


def settings(**registration: object) -> TrainingConfig:
    """Some dozens of steps; tau low enough for barely trained teachers."""
    values = preset("smoke").model_dump() | {"validation_interval": 100}
    values["segmentation"] |= {"minimum_steps": 80}
    values["registration"] |= {"minimum_steps": 60} | registration
    values["joint"] |= {"segmentation_epochs": 3, "registration_epochs": 6}
    values["screening"] |= {"tau": 0.3}
    return TrainingConfig.model_validate(values)


def task_of(name: str, folder: Path, start: Path | None = None, **registration: object) -> Task:
    """The phantoms as a method may see them."""
    blind = METHODS[name].labels == "none"
    cases = snapshot((), (*LABELLED, *UNLABELLED)) if blind else snapshot()
    config = settings(**registration)
    return Task(cases, config, folder / name, cpu(), joint_rounds=1, start=start)


def dice_of_segmentation(network: nn.Module | None) -> float:
    """On phantoms that nobody trained on."""
    assert network is not None
    rows = evaluate_segmentation(network, RecordingArrays(), UNSEEN, len(NAMES), (1, 1, 1), CPU)
    return float(np.mean([row.dice for row in rows]))


def dice_of_registration(
    network: nn.Module | None, pairs: Sequence[tuple[str, str]] = PAIRS
) -> tuple[float, float]:
    """Before and after, on pairs that nobody trained on."""
    assert network is not None
    rows = list(
        evaluate_registration(network, RecordingArrays(), pairs, len(NAMES), (1, 1, 1), CPU)
    )
    before, after = ([getattr(row, name) for row in rows] for name in ("dice_before", "dice"))
    return float(np.mean(before)), float(np.mean(after))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def mono(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trained]:
    """Mono-Net's run, which others start from."""
    torch.set_num_threads(1)
    task = task_of("mono", tmp_path_factory.mktemp("mono"))
    return task.folder, METHODS["mono"].train(task)


def test_mono_net_learns_both_tasks(mono: tuple[Path, Trained]) -> None:
    trained = mono[1]
    assert dice_of_segmentation(trained.segmentation) > 0.5
    before, after = dice_of_registration(trained.registration)
    assert after > before + 0.02


def test_jrss_goes_on_from_mono_net(mono: tuple[Path, Trained], tmp_path: Path) -> None:
    trained = METHODS["jrss"].train(task_of("jrss", tmp_path, mono[0]))
    assert trained.note == ""
    assert dice_of_segmentation(trained.segmentation) > dice_of_segmentation(mono[1].segmentation)


def test_propagated_labels_vote(mono: tuple[Path, Trained], tmp_path: Path) -> None:
    trained = METHODS["propagation"].train(task_of("propagation", tmp_path, mono[0]))
    before, _ = dice_of_registration(
        mono[1].registration, [(a, u) for a in LABELLED for u in UNSEEN]
    )
    assert dice_of_segmentation(trained.segmentation) > before
