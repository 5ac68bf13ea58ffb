"""What each stage draws and trains, and what it must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from napari_jrss._tests.training.phantoms import (
    CASES,
    LABELLED,
    NAMES,
    SHAPE,
    UNLABELLED,
    Never,
    RecordingArrays,
    cpu,
    phantom,
    snapshot,
    tiny_config,
)
from napari_jrss.config import NetworkConfig, TrainingConfig
from napari_jrss.losses import class_weights, screened_cross_entropy
from napari_jrss.networks.build import build_registration_network, build_segmentation_network
from napari_jrss.training.loop import Validation, fit, run_validation
from napari_jrss.training.screening import IGNORED, PseudoLabel
from napari_jrss.training.stages import (
    MonoSegmentationStage,
    RegistrationStage,
    StudentStage,
    TrainingTensors,
    epoch_steps,
    registration_validation,
    segmentation_validation,
)

CPU = torch.device("cpu")
C = len(NAMES)


pytestmark = pytest.mark.usefixtures("one_thread")


def pseudo(case: str, accepted: bool) -> PseudoLabel:
    """The truth as a pseudo-label, its upper half screened out."""
    label = phantom(case)[1]
    target = label.astype(np.uint8)
    target[8:] = IGNORED
    return PseudoLabel(label, target, accepted, np.ones(C), np.ones(C, bool))


PSEUDO = {"u": pseudo("u", True), "v": pseudo("v", False), "w": pseudo("w", False)}


def tensors(arrays: RecordingArrays | None = None) -> TrainingTensors:
    return TrainingTensors(snapshot(arrays=arrays), PSEUDO, CPU)


def registration_stage(
    config: TrainingConfig, arrays: RecordingArrays | None = None, epochs: int | None = 1
) -> RegistrationStage:
    network = build_registration_network(NetworkConfig())
    return RegistrationStage("r", network, tensors(arrays), config, cpu(), epochs)


def student_stage(config: TrainingConfig, arrays: RecordingArrays | None = None) -> StudentStage:
    student = build_segmentation_network(NetworkConfig(), C, config.joint.dropout)
    teacher = build_segmentation_network(NetworkConfig(), C)
    registration = build_registration_network(NetworkConfig())
    return StudentStage("s", student, teacher, registration, tensors(arrays), config, cpu())


def test_a_persons_label_comes_before_a_pseudo_label_and_nothing_is_ignored() -> None:
    held = tensors()
    assert held.supervised == ("a", "b", "u")
    labels, targets = held.labels(["a", "u"]), held.targets(["a", "u"])
    assert torch.equal(labels[0], torch.from_numpy(phantom("a")[1].astype(np.int64)))
    assert torch.equal(targets[0], labels[0])
    assert torch.equal(targets[1][:8], labels[1][:8])
    assert (targets[1][8:] == IGNORED).all()
    before = TrainingTensors(snapshot(), {}, CPU)
    assert (before.labels(["u"]) == IGNORED).all()
    assert before.supervised == LABELLED


def test_mono_segmentation_reads_labelled_cases_only() -> None:
    arrays = RecordingArrays()
    stage = MonoSegmentationStage(
        build_segmentation_network(NetworkConfig(), C), tensors(arrays), tiny_config(), cpu()
    )
    for step in range(4):
        stage.losses(step, np.random.default_rng(step))
    assert {case for _, case in arrays.read} == set(LABELLED)


@pytest.mark.slow
def test_registration_pairs_all_training_cases_and_no_other() -> None:
    arrays = RecordingArrays()
    stage = registration_stage(tiny_config(), arrays)
    for step in range(12):
        stage.losses(step, np.random.default_rng(step))
    assert {case for kind, case in arrays.read if kind == "image"} == {*LABELLED, *UNLABELLED}
    assert {case for kind, case in arrays.read if kind == "label"} <= set(LABELLED)


def test_smoothness_weighs_more_at_first_and_falls_linearly() -> None:
    warmup = {"lambda_r": 0.1, "lambda_r_warmup": 0.5, "warmup_steps": 4}
    config = tiny_config(registration=warmup)
    stage = registration_stage(config, epochs=None)
    seen = [stage._lambda_r(step) for step in range(6)]
    assert seen == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.1])
    constant = registration_stage(config)  # a joint round
    assert [constant._lambda_r(step) for step in (0, 1)] == [0.1, 0.1]


@pytest.mark.slow
def test_a_student_sees_labelled_and_unlabelled_cases_in_every_step() -> None:
    arrays = RecordingArrays()
    stage = student_stage(tiny_config(), arrays)
    for step in range(8):
        arrays.read.clear()
        batch = stage._batch(np.random.default_rng(step))
        seen = {case for kind, case in arrays.read if kind == "image"}
        assert len(seen & set(LABELLED)) == len(seen & set(UNLABELLED)) == 1
        assert batch.manual.sum() == 1
        assert batch.images.shape == (2, 1, *SHAPE)
        # Half a pseudo-label was screened out, and stays so wherever it is moved.
        assert (batch.labels[~batch.manual] == IGNORED).any()
        assert batch.labels[batch.labels != IGNORED].max() < C


def test_classes_weigh_by_their_rarity_in_the_manual_labels() -> None:
    labels = torch.from_numpy(np.stack([phantom(case)[1] for case in LABELLED])).flatten()
    weights = tensors().class_weights()
    torch.testing.assert_close(weights, class_weights(labels.bincount(minlength=C)))

    stage = student_stage(tiny_config(joint={"class_weighting": "inverse_sqrt", "dropout": 0}))
    batch = stage._batch(np.random.default_rng(0))
    with torch.no_grad():
        logits = stage.network.train()(batch.images)
    manual = batch.manual
    expected = screened_cross_entropy(
        logits[manual],
        batch.labels[manual],
        batch.labels[manual] != IGNORED,
        class_weight=weights,
    )
    losses = stage.losses(0, np.random.default_rng(0))
    assert losses["ce_manual"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_nothing_but_the_student_learns_and_the_teacher_follows_in_evaluation_mode() -> None:
    stage = student_stage(tiny_config())
    registration, teacher = stage.registration, stage.modules["teacher"]
    before = {name: value.clone() for name, value in registration.state_dict().items()}
    stage.losses(0, np.random.default_rng(0))["total"].backward()
    for network in (registration, teacher):
        assert all(p.grad is None for p in network.parameters())
        assert not any(module.training for module in network.modules())
    assert all(p.grad is not None for p in stage.modules["student"].parameters())
    assert stage.modules["student"].training
    start = {name: value.clone() for name, value in teacher.state_dict().items()}
    stage.optimizer.step()
    stage.after_step(0)
    stage.validate()
    assert not any(module.training for module in teacher.modules())
    assert any(not torch.equal(v, start[k]) for k, v in teacher.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in registration.state_dict().items())


@pytest.mark.slow
def test_the_teacher_stays_in_evaluation_mode_through_a_whole_stage(tmp_path) -> None:
    stage = student_stage(tiny_config())
    for event in fit(stage, cpu(), tmp_path / "state", tiny_config(), Never()):
        assert not any(module.training for module in stage.modules["teacher"].modules()), event
    assert stage.steps == 4


def test_the_students_images_and_targets_are_moved_together() -> None:
    """Labels sit on their structures after the registration's and the affine warp."""
    stage = student_stage(tiny_config(augmentation={"affine_std": 0.1}))
    with torch.no_grad():
        head = stage.registration.backbone.head  # type: ignore[union-attr]
        assert isinstance(head, nn.Conv3d)
        assert head.bias is not None
        head.bias.copy_(torch.tensor([2.0, 0.0, -1.0]))
    for step in range(4):
        batch = stage._batch(np.random.default_rng(step))
        image, label = batch.images[:, 0], batch.labels
        means = [float(image[label == c].mean()) for c in range(C)]
        assert means[0] < means[1] - 0.7 < means[2] - 1.0


def test_without_registration_warp_the_moving_image_stays() -> None:
    config = tiny_config(augmentation={"affine_std": 0.0}, joint={"registration_warp": False})
    stage = student_stage(config)
    with torch.no_grad():
        head = stage.registration.backbone.head  # type: ignore[union-attr]
        assert isinstance(head, nn.Conv3d)
        assert head.bias is not None
        head.bias.fill_(3.0)
    batch = stage._batch(np.random.default_rng(0))
    originals = [torch.from_numpy(phantom(case)[0]) for case in CASES]
    for image in batch.images[:, 0]:
        assert min(float((image - other).abs().max()) for other in originals) < 1e-3


@pytest.mark.parametrize(("cases", "batch", "steps"), [(5, 2, 2), (6, 2, 3), (2, 4, 1), (1, 8, 1)])
def test_an_epoch_is_as_many_samples_as_training_cases(cases: int, batch: int, steps: int) -> None:
    cohort = snapshot(labelled=("a",), unlabelled=tuple(f"u{i}" for i in range(cases - 1)))
    assert epoch_steps(cohort, batch) == steps


@pytest.mark.parametrize(
    ("minimum", "per_structure", "steps"), [(50, 0, 50), (50, 30, 60), (1, 1, 4)]
)
def test_pretraining_has_its_minimum_of_steps(minimum: int, per_structure: int, steps: int) -> None:
    settings = {"epochs": 2, "minimum_steps": minimum, "steps_per_structure": per_structure}
    network = build_segmentation_network(NetworkConfig(), C)
    stage = MonoSegmentationStage(network, tensors(), tiny_config(segmentation=settings), cpu())
    assert stage.steps == steps


def validated(validation: Validation) -> float | None:
    ended, value, _ = run_validation(validation, cpu(), Never())
    assert ended
    return value


def test_validation_is_none_without_cases_and_leaves_the_mode_alone() -> None:
    segmenter = build_segmentation_network(NetworkConfig(), C).train()
    registration = build_registration_network(NetworkConfig()).train()
    nobody, one = snapshot(validation=()), snapshot(validation=("x",))
    assert validated(segmentation_validation(segmenter, nobody, CPU)) is None
    assert validated(registration_validation(registration, one, CPU)) is None
    value = validated(segmentation_validation(segmenter, one, CPU))
    assert value is not None
    assert 0 <= value <= 1
    assert segmenter.training
    # Untrained, registration is the identity: Dice of the labels as they lie.
    first, second = phantom("x")[1], phantom("y")[1]
    dice = [
        2 * ((first == c) & (second == c)).sum() / ((first == c).sum() + (second == c).sum())
        for c in (1, 2)
    ]
    value = validated(registration_validation(registration, snapshot(), CPU))
    assert value == pytest.approx(np.mean(dice), abs=1e-6)
