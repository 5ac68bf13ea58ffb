"""The engine on a GPU: every precision, held against the same work on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_jrss._tests.training.phantoms import (
    NAMES,
    AfterSteps,
    Never,
    cpu,
    fine_snapshot,
    phantom,
    snapshot,
    tiny_config,
    weights,
)
from napari_jrss.config import NetworkConfig, RefinementConfig
from napari_jrss.inference.device import make_fabric
from napari_jrss.inference.predict import displacement_field, free_memory, predict_case
from napari_jrss.inference.refine import RefinedRegistration
from napari_jrss.networks.build import build_registration_network, build_segmentation_network
from napari_jrss.networks.mirror import Mirrored
from napari_jrss.training.checkpoint import TrainingState
from napari_jrss.training.events import Cancelled, Event, RoundFinished, StepEnd
from napari_jrss.training.round import RoundTask, run_round

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@pytest.fixture(autouse=True)
def whole_float32() -> Iterator[None]:
    """Convolutions in float32, not in TF32, and weights that are the same in every run."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    yield
    torch.backends.cudnn.allow_tf32 = before


def losses(events: list[Event]) -> dict[str, float]:
    """The total loss of each step."""
    steps = (e for e in events if isinstance(e, StepEnd))
    return {f"{step.stage} {step.step}": step.losses["total"] for step in steps}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_pretraining_and_a_round_come_to_their_end(precision: str, tmp_path: Path) -> None:
    config = tiny_config(precision=precision, fine={"steps": 3, "crop": 16})
    folders = tmp_path / "0", tmp_path / "1"
    pretraining = RoundTask(0, fine_snapshot(), config, folders[0])
    joint = RoundTask(1, fine_snapshot(), config, folders[1], folders[0])
    for this in (pretraining, joint):
        events = list(run_round(this, make_fabric("cuda", precision), Never()))
        assert isinstance(events[-1], RoundFinished)
        assert np.isfinite(list(losses(events).values())).all()
    for folder in folders:
        assert "fine.safetensors" in weights(folder)
        for state in weights(folder).values():
            assert all(bool(tensor.isfinite().all()) for tensor in state.values())


def test_the_same_losses_as_on_the_cpu(tmp_path: Path) -> None:
    config = tiny_config(joint={"dropout": 0.0})  # which the GPU draws for itself
    told = {}
    for name, fabric in (("cpu", cpu()), ("gpu", make_fabric("cuda"))):
        folder = tmp_path / name
        pretraining = RoundTask(0, snapshot(), config, folder / "0")
        told[name] = losses(list(run_round(pretraining, fabric, Never())))
    assert told["gpu"] == pytest.approx(told["cpu"], rel=0.01)
    started = tmp_path / "cpu" / "0"
    for name, fabric in (("cpu", cpu()), ("gpu", make_fabric("cuda"))):
        joint = RoundTask(1, snapshot(), config, tmp_path / name / "1", started)
        told[name] = losses(list(run_round(joint, fabric, Never())))
    assert told["gpu"] == pytest.approx(told["cpu"], rel=0.01)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_left_and_resumed_it_goes_on_with_the_same_losses(precision: str, tmp_path: Path) -> None:
    config = tiny_config(precision=precision)

    def run(folder: str, cancel: AfterSteps | Never) -> list[Event]:
        this = RoundTask(0, snapshot(), config, tmp_path / folder)
        return list(run_round(this, make_fabric("cuda", precision), cancel))

    straight = losses(run("straight", Never()))
    first = run("left", AfterSteps(3))
    assert isinstance(first[-1], Cancelled)
    [path] = (tmp_path / "left").glob("*.state.safetensors")
    kept = TrainingState.read(path)
    assert 0 < kept.step == first[-1].step
    assert bool(kept.precision) == (precision == "16-mixed")  # the scale of the losses
    together = losses(first) | losses(run("left", Never()))
    assert together.keys() == straight.keys()
    # sums of a GPU come in no certain order
    assert together == pytest.approx(straight, rel=0.02)


@pytest.mark.parametrize("mirrored", [False, True])
def test_predictions_and_fields_are_those_of_the_cpu(mirrored: bool) -> None:
    teacher, student = (build_segmentation_network(NetworkConfig(), len(NAMES)) for _ in range(2))
    if mirrored:
        teacher, student = Mirrored(teacher, (0, 2, 1)), Mirrored(student, (0, 2, 1))
    network = build_registration_network(NetworkConfig())
    torch.nn.init.normal_(network.backbone.head.weight, std=0.2)
    refined = RefinedRegistration(
        network, teacher, RefinementConfig(control_spacings=(2,), steps=(5,))
    )
    moving, fixed = phantom("a")[0], phantom("u")[0]
    told, fields = {}, {}
    for device in (torch.device("cpu"), GPU):
        for module in (teacher, student, refined):
            module.to(device)
        told[device.type] = predict_case(teacher, fixed, device, student)
        fields[device.type] = [
            displacement_field(each, moving, fixed, device) for each in (network, refined)
        ]
    ours, theirs = told["cuda"], told["cpu"]
    assert np.mean(ours.label == theirs.label) > 0.999
    np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=5e-3)
    assert ours.uncertainty is not None
    np.testing.assert_allclose(ours.uncertainty, theirs.uncertainty, atol=5e-3)
    for on_gpu, on_cpu in zip(fields["cuda"], fields["cpu"], strict=True):
        assert np.abs(on_cpu).max() > 0.1
        np.testing.assert_allclose(on_gpu, on_cpu, atol=0.02)


def test_tiles_are_computed_on_the_gpu_as_on_the_cpu() -> None:
    network = build_segmentation_network(NetworkConfig(), len(NAMES))
    image = np.random.default_rng(0).normal(size=(24, 40, 33)).astype(np.float32)
    labels = [
        predict_case(network.to(device), image, device, tile=(16, 24, 16)).label
        for device in (torch.device("cpu"), GPU)
    ]
    assert np.mean(labels[0] == labels[1]) > 0.99


def test_memory_that_pytorch_has_kept_counts_as_free() -> None:
    torch.cuda.empty_cache()
    before = free_memory(GPU)
    kept = torch.empty(2**30, dtype=torch.uint8, device=GPU)
    assert free_memory(GPU) == pytest.approx(before - 2**30, abs=2**27)
    del kept
    assert torch.cuda.memory_reserved(GPU) >= 2**30
    assert free_memory(GPU) == pytest.approx(before, abs=2**27)
    torch.cuda.empty_cache()
