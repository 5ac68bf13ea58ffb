"""Structures that a teacher misses in the scans that teach it, and rounds that leave them out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from napari_jrss._tests.training.phantoms import (
    LABELLED,
    NAMES,
    SHAPE,
    UNLABELLED,
    AfterSteps,
    Never,
    cpu,
    snapshot,
    tiny_config,
)
from napari_jrss.config import NetworkConfig
from napari_jrss.io.round_files import RoundFiles
from napari_jrss.networks.build import build_registration_network
from napari_jrss.networks.weights import save_tensors
from napari_jrss.snapshot import Image, Label
from napari_jrss.training.events import (
    Cancelled,
    CaseJudged,
    CaseScreened,
    Event,
    RoundFinished,
    StageStarted,
)
from napari_jrss.training.quality import LOOKED_AT, judge, warning
from napari_jrss.training.round import RoundTask, run_round
from napari_jrss.training.trainable import RoundError


class FindsOne(nn.Module):
    """Finds class 1 and no other in images that are their labels."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = (image[:, 0] == 1).float()
        return 20 * torch.stack([1 - found, found, torch.zeros_like(found)], 1)


class LabelsOnly:
    """Cases whose image is their label: "a" has both structures, any other only the first."""

    def label(self, case_id: str) -> Label:
        label = np.zeros(SHAPE, np.uint8)
        label[:4], label[-4:] = 1, 2 * (case_id == "a")
        return label

    def image(self, case_id: str) -> Image:
        return self.label(case_id).astype(np.float32)

    def channels(self, case_id: str) -> Image:
        return self.image(case_id)[None]


def brightness(config: NetworkConfig, channels: int, classes: int, dropout: float) -> nn.Module:
    """Takes what is bright for class 1, both blocks of a phantom, and nothing for class 2."""
    network = nn.Conv3d(channels, classes, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([-9.0, 9.0, 0.0]).reshape(3, 1, 1, 1, 1))
        network.bias.copy_(torch.tensor([4.0, -4.0, -20.0]))
    return network


def judged(labelled: tuple[str, ...], cancel: Never | AfterSteps) -> tuple[list[Event], object]:
    """Events, and what the judge returns."""
    cohort = replace(snapshot(labelled), arrays=LabelsOnly())
    work = judge("prediction", FindsOne(), cohort, cpu(), cancel)
    events = []
    while True:
        try:
            events.append(next(work))
        except StopIteration as end:
            return events, end.value


def test_a_structure_that_is_missed_in_the_scans_that_teach_it_is_told() -> None:
    events, unlearned = judged(("a", "b"), Never())
    assert unlearned == (2,)
    assert events == [
        CaseJudged(stage="prediction", case_id="a", dice=[1.0, 0.0]),
        CaseJudged(stage="prediction", case_id="b", dice=[1.0, None]),
    ]
    # What nobody has drawn is not missed.
    assert judged(("b", "c"), Never())[1] == ()


def test_a_few_scans_are_looked_at_and_a_cancel_is_heeded_before_each() -> None:
    many = tuple(f"b{i}" for i in range(LOOKED_AT + 3))
    assert len(judged(many, Never())[0]) == LOOKED_AT
    events, unlearned = judged(many, AfterSteps(2))
    assert unlearned is None
    assert events[-1] == Cancelled(stage="prediction", step=2)
    assert len(events) == 3


def test_the_warning_names_the_structures_and_says_what_follows() -> None:
    assert warning([], True) == ""
    assert warning(["insula", "caudate"], False).startswith("Not learned yet: insula, caudate. ")
    assert "the next round doesn't learn from them" in warning(["insula"], True)
    assert "the next round" not in warning(["insula"], False)


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A round whose teacher knows one structure of two."""
    folder = tmp_path / "0000"
    folder.mkdir()
    network = NetworkConfig(name=f"{__name__}:brightness")
    save_tensors(RoundFiles(folder).teacher, brightness(network, 1, 3, 0.0).state_dict(), {})
    registration = build_registration_network(NetworkConfig())
    save_tensors(RoundFiles(folder).registration, registration.state_dict(), {})
    return folder


def round_from(parent: Path, **screening: object) -> RoundTask:
    config = tiny_config(
        segmentation_network={"name": f"{__name__}:brightness"}, screening=screening
    )
    return RoundTask(1, snapshot(), config, parent.parent / "0001", parent)


@pytest.mark.slow
@pytest.mark.parametrize("gate", [True, False])
def test_a_round_does_not_ask_for_what_its_parent_has_not_learned(gate: bool, parent: Path) -> None:
    this = round_from(parent, learned_gate=gate, class_gate="none", accept_fraction=1.0)
    events = list(run_round(this, cpu(), Never()))
    looked = [e.case_id for e in events if isinstance(e, CaseJudged) and e.stage == "screening"]
    assert looked == (list(LABELLED) if gate else [])
    started = next(e for e in events if isinstance(e, StageStarted))
    assert started.steps == len(looked) + len(UNLABELLED)
    screened = [e for e in events if isinstance(e, CaseScreened) and e.stage == "screening"]
    # Class 2, which the teacher never finds, isn't asked for: all the others pass.
    assert [e.accepted for e in screened] == [gate] * len(UNLABELLED)
    assert [e.classes_passed for e in screened] == [[True, True, False]] * len(UNLABELLED)
    last = events[-1]
    assert isinstance(last, RoundFinished)
    assert last.unlearned == [2]
    assert last.warning.startswith(f"Not learned yet: {NAMES[2]}.")


def test_a_teacher_that_has_learned_nothing_stops_the_round_and_says_why(parent: Path) -> None:
    this = round_from(parent, learned_gate=True)
    everywhere = brightness(this.config.segmentation_network, 1, 3, 0.0)
    with torch.no_grad():
        everywhere.bias[1] = 100.0  # sure of class 1 in every voxel
    save_tensors(RoundFiles(parent).teacher, everywhere.state_dict(), {})
    with pytest.raises(RoundError, match=r"finds no structure even in the labelled scans"):
        list(run_round(this, cpu(), Never()))
