"""The student that sees changed images: whom it learns from, what moves, and its round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from napari_jrss._tests.training.phantoms import (
    LABELLED,
    NAMES,
    SHAPE,
    UNLABELLED,
    AfterSteps,
    Never,
    RecordingArrays,
    assert_same_tensors,
    cpu,
    kinds,
    phantom,
    snapshot,
    tiny_config,
    weights,
    write_parent,
)
from napari_jrss.config import NetworkConfig, TrainingConfig
from napari_jrss.networks.build import build_segmentation_network
from napari_jrss.training.deformation import (
    MOST_FIELDS,
    SETTINGS,
    deformed,
    field_between,
    pairs_to_register,
)
from napari_jrss.training.events import Cancelled, Event, RoundFinished
from napari_jrss.training.perturbed import PerturbedStudentStage
from napari_jrss.training.round import OLD_TEACHER_STAYS, RoundTask, run_round
from napari_jrss.training.screening import PseudoLabel
from napari_jrss.training.stages import TrainingTensors

CPU = torch.device("cpu")
C = len(NAMES)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def perturbed(**changes: object) -> TrainingConfig:
    """Crops of 12x16x12 of the phantoms, a few steps."""
    joint = {
        "student": "perturbed",
        "registration_augmentation": 1.0,
        "minimum_steps": 4,
        "segmentation_epochs": 1,
        "dropout": 0.0,
    }
    segmentation = {"crop_fraction": 0.7, "loss": "dice_ce", "optimizer": "adamw"}
    settings = {
        "joint": joint,
        "segmentation": segmentation,
        "segmentation_network": {"name": "unet"},
        "schedule": "cosine",
    }
    return tiny_config(**{**settings, **changes})


def stage(config: TrainingConfig, passed: tuple[bool, ...] = (True,) * C) -> PerturbedStudentStage:
    arrays = RecordingArrays()
    label = phantom("u")[1]
    pseudo = PseudoLabel(label, label, True, np.ones(C), np.array(passed))
    tensors = TrainingTensors(snapshot(arrays=arrays), {"u": pseudo}, CPU)
    student, teacher = (build_segmentation_network(NetworkConfig(name="unet"), C) for _ in range(2))
    field = torch.zeros(3, *SHAPE)
    return PerturbedStudentStage(
        "student_1",
        student,
        teacher,
        tensors,
        config,
        cpu(),
        {"a": {"u": field}, "b": {"u": field}},
    )


def test_it_reads_labels_of_labelled_cases_only_and_sees_crops_of_both() -> None:
    this = stage(perturbed())
    batch = this._batch(np.random.default_rng(0))
    assert batch.images.shape == batch.perturbed.shape == (2, 1, 16, 16, 16)
    assert batch.labels.shape == (2, 16, 16, 16)
    assert batch.teacher.shape == (2, C, 16, 16, 16)
    arrays = this.tensors.snapshot.arrays
    assert isinstance(arrays, RecordingArrays)
    assert {case for kind, case in arrays.read if kind == "label"} <= set(LABELLED)
    assert {case for kind, case in arrays.read if kind == "image"} <= {*LABELLED, *UNLABELLED}


@pytest.mark.parametrize(("tau", "weight"), [(1.0, 1.0), (1.0, 2.0), (0.0, 1.0)])
def test_registered_labels_have_a_part_where_the_teacher_is_unsure(
    tau: float, weight: float
) -> None:
    this = stage(
        perturbed(
            joint={"propagated_labels": weight, "student": "perturbed"}, screening={"tau": tau}
        )
    )
    this.fields = {"a": this.fields["a"]}  # zero: the label of "a" as it is
    found = torch.randn(C, *SHAPE).softmax(0)
    grid = torch.nn.functional.affine_grid(torch.eye(3, 4)[None], [1, 1, *SHAPE], True)
    target = this._with_vote("u", grid, found)
    if tau == 0:  # sure everywhere
        torch.testing.assert_close(target, found)
        return
    label = torch.from_numpy(this.tensors.snapshot.arrays.label("a")).long()
    vote = torch.nn.functional.one_hot(label, C).movedim(-1, 0)
    torch.testing.assert_close(target, (found + weight * vote) / (1 + weight))


def test_a_scan_to_which_no_label_was_carried_has_the_teacher_alone() -> None:
    this = stage(perturbed(joint={"propagated_labels": 1.0, "student": "perturbed"}))
    this.fields = {"a": {"another": torch.zeros(3, *SHAPE)}}
    found = torch.rand(C, 4, 4, 4)
    assert this._with_vote("u", torch.zeros(1, 4, 4, 4, 3), found) is found


def test_classes_that_passed_in_no_unlabelled_case_do_not_teach() -> None:
    assert stage(perturbed(), (True, True, False)).trusted.tolist() == [True, True, False]


def test_agreement_gets_its_weight_slowly() -> None:
    this = stage(perturbed())
    this.steps = 100
    losses = {step: this.losses(step, np.random.default_rng(0)) for step in (0, 14, 29, 99)}
    weight = {
        step: float(((each["total"] - each["manual"]) / each["agreement"]).detach())
        for step, each in losses.items()
    }
    assert weight == pytest.approx({0: 0.5 / 30, 14: 0.25, 29: 0.5, 99: 0.5}, rel=1e-3)


def test_pairs_are_of_a_labelled_and_an_unlabelled_case() -> None:
    pairs = pairs_to_register(perturbed(), snapshot(), 1)
    assert sorted(pairs) == [(m, f) for m in LABELLED for f in UNLABELLED]
    many = snapshot(unlabelled=[f"u{i}" for i in range(60)])
    some = pairs_to_register(perturbed(), many, 1)
    assert len(set(some)) == MOST_FIELDS
    assert sum(m == "a" for m, _ in some) == MOST_FIELDS / 2
    assert (
        some == pairs_to_register(perturbed(), many, 1) != pairs_to_register(perturbed(), many, 2)
    )
    assert pairs_to_register(perturbed(joint={"student": "registered"}), many, 1) == []


def test_a_field_brings_a_case_closer_to_another() -> None:
    field = field_between(snapshot(), "b", "u", CPU, SETTINGS["deformation"]).float()
    this = stage(perturbed())
    grid = this._grid(1, 0.0, np.random.default_rng(0))
    moved = deformed(grid, ["b"], {"b": {"u": field}}, 1.0, np.random.default_rng(1))
    b, u = (torch.from_numpy(phantom(case)[0])[None, None] for case in "bu")
    warped = torch.nn.functional.grid_sample(b, moved, padding_mode="border", align_corners=True)
    assert float((warped - u).square().mean()) < 0.8 * float((b - u).square().mean())


def run(this: RoundTask, cancel: AfterSteps | Never) -> list[Event]:
    return list(run_round(this, cpu(), cancel))


def test_its_round_registers_pairs_first_and_goes_on_where_it_was_left(tmp_path: Path) -> None:
    config = perturbed(screening={"tau": 0.2})
    parent = write_parent(tmp_path / "0000", config=config)
    straight = RoundTask(1, snapshot(), config, tmp_path / "straight", parent)
    events = run(straight, Never())
    story = [kind for kind in kinds(events) if kind[1] in ("deformation", "student_1")]
    assert story == [
        ("stage_started", "deformation"),
        *[("pair_registered", "deformation")] * 6,
        ("stage_finished", "deformation"),
        ("stage_started", "student_1"),
        ("stage_finished", "student_1"),
    ]
    assert isinstance(events[-1], RoundFinished)
    broken = RoundTask(1, snapshot(), config, tmp_path / "broken", parent)
    for look in (6, 9, 16, 18, 20, 30, 40):
        events = run(broken, AfterSteps(look))
        if isinstance(events[-1], RoundFinished):
            break
        assert isinstance(events[-1], Cancelled)
    assert isinstance(events[-1], RoundFinished)
    assert_same_tensors(weights(tmp_path / "broken"), weights(tmp_path / "straight"))


def test_a_pretraining_deforms_labelled_scans_too_and_goes_on_where_it_was_left(
    tmp_path: Path,
) -> None:
    changes = {"registration_augmentation": 0.7, "strong_intensity": 0.5}
    segmentation = {**perturbed().segmentation.model_dump(), **changes}
    config = perturbed(segmentation=segmentation, screening={"tau": 0.2})
    events = run(RoundTask(0, snapshot(), config, tmp_path / "straight"), Never())
    story = [kind for kind in kinds(events) if kind[1] in ("deformation", "mono_segmentation")]
    assert story == [
        ("stage_started", "deformation"),
        *[("pair_registered", "deformation")] * 6,
        ("stage_finished", "deformation"),
        ("stage_started", "mono_segmentation"),
        ("stage_finished", "mono_segmentation"),
    ]
    broken = RoundTask(0, snapshot(), config, tmp_path / "broken")
    for look in (3, 9, 11, 13):
        assert isinstance(run(broken, AfterSteps(look))[-1], Cancelled)
    assert isinstance(run(broken, Never())[-1], RoundFinished)
    assert_same_tensors(weights(tmp_path / "broken"), weights(tmp_path / "straight"))
    # Each of the two changes has a part in it.
    for name in changes:
        without = perturbed(segmentation={**segmentation, name: 0})
        run(RoundTask(0, snapshot(), without, tmp_path / name), Never())
        other = weights(tmp_path / name)["teacher.safetensors"]
        own = weights(tmp_path / "straight")["teacher.safetensors"]
        assert any(not torch.equal(own[key], other[key]) for key in own)


def test_a_round_that_ends_clearly_worse_keeps_the_teacher_and_says_so(tmp_path: Path) -> None:
    learned = {**perturbed().segmentation.model_dump(), "minimum_steps": 60}
    spoilt = {**perturbed().joint.model_dump(), "learning_rate": 1.0, "ema_decay": 0.0}
    config = perturbed(segmentation=learned, joint=spoilt, screening={"tau": 0.2})
    parent = tmp_path / "0000"
    run(RoundTask(0, snapshot(), config, parent), Never())
    *_, last = run(RoundTask(1, snapshot(), config, tmp_path / "0001", parent), Never())
    assert isinstance(last, RoundFinished)
    assert last.warning.endswith(OLD_TEACHER_STAYS)
    known, own = weights(parent), weights(tmp_path / "0001")
    name = "teacher.safetensors"
    assert_same_tensors({name: known[name]}, {name: own[name]})
