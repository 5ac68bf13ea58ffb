"""Where left and right are alike, mirror images are segmented, too; nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_jrss._tests.training.phantoms import (
    AfterSteps,
    AlikePhantoms,
    Never,
    assert_same_tensors,
    cpu,
    fine_snapshot,
    tiny_config,
    weights,
)
from napari_jrss.config import TrainingConfig, preset
from napari_jrss.inference.load import load_predictor, load_teacher
from napari_jrss.io.round_files import RoundFiles
from napari_jrss.networks.mirror import Mirrored
from napari_jrss.networks.weights import CheckpointError, load_tensors, save_tensors
from napari_jrss.snapshot import CohortSnapshot, Image, Label
from napari_jrss.training.events import Cancelled
from napari_jrss.training.round import RoundTask, run_round
from napari_jrss.training.symmetry import mirror_classes, mirror_plane, segmentation_network

CPU = torch.device("cpu")


class Changed(AlikePhantoms):
    """Phantoms that a function changes."""

    def __init__(self, change: Callable[[Image, Label], tuple[Image, Label]]) -> None:
        super().__init__()
        self.change = change

    def image(self, case_id: str) -> Image:
        return self.change(super().image(case_id), super().label(case_id))[0]

    def label(self, case_id: str) -> Label:
        return self.change(super().image(case_id), super().label(case_id))[1]


def cohort(
    change: Callable[[Image, Label], tuple[Image, Label]] = lambda image, label: (image, label),
    names: tuple[str, ...] = ("background", "block", "horn"),
) -> CohortSnapshot:
    arrays = Changed(change)
    return replace(fine_snapshot(), arrays=arrays, scans=None, class_names=names)


def on_one_side(image: Image, label: Label) -> tuple[Image, Label]:
    kept = label.copy()
    kept[..., label.shape[-1] // 2 :][kept[..., label.shape[-1] // 2 :] == 2] = 0
    return image, kept


def by_sides(image: Image, label: Label) -> tuple[Image, Label]:
    """Class 1 has what lies on the left of all, class 2 what lies on the right."""
    sides = np.where(np.arange(label.shape[-1]) < label.shape[-1] // 2, 1, 2)
    return image, ((label > 0) * sides).astype(np.uint8)


def unlike(image: Image, label: Label) -> tuple[Image, Label]:
    changed = image.copy()
    changed[..., : label.shape[-1] // 2] *= -1
    return changed, label


def shifted(image: Image, label: Label) -> tuple[Image, Label]:
    return np.roll(image, 2, axis=-1), np.roll(label, 2, axis=-1)


SIDES = ("background", "Left-Block", "Right-Block")


def test_alike_but_for_noise() -> None:
    assert mirror_classes(cohort()) == (0, 1, 2)
    assert mirror_classes(cohort(shifted)) == (0, 1, 2)


def test_sides_change_places() -> None:
    assert mirror_classes(cohort(by_sides, SIDES)) == (0, 2, 1)


@pytest.mark.parametrize(
    "snapshot",
    [
        pytest.param(cohort(unlike), id="the images aren't alike"),
        pytest.param(cohort(on_one_side), id="a structure on one side alone"),
        pytest.param(cohort(by_sides), id="sides without names"),
        pytest.param(cohort(names=SIDES), id="names without sides"),
        pytest.param(
            cohort(by_sides, ("background", "Left-Block", "Block")), id="a name without its other"
        ),
        pytest.param(replace(cohort(), labelled=()), id="nothing is labelled"),
    ],
)
def test_not_alike(snapshot: CohortSnapshot) -> None:
    assert mirror_classes(snapshot) is None


def test_the_plane_is_found_off_the_middle() -> None:
    image = np.random.default_rng(0).normal(size=(9, 11, 24)).astype(np.float32)
    image[..., 3:24] = (image[..., 3:24] + image[..., 3:24][..., ::-1]) / 2
    correlation, middle = mirror_plane(image)
    assert correlation == pytest.approx(1, abs=1e-5)
    assert middle == 13
    assert mirror_plane(np.zeros((8, 8, 8), np.float32))[0] == 0


def test_large_scans_are_compared_coarsely() -> None:
    line = np.abs(np.arange(200) - 90.0)
    image = np.broadcast_to(line, (100, 80, 200)).astype(np.float32)
    correlation, middle = mirror_plane(image)
    assert correlation > 0.99
    assert abs(middle - 90) <= 2


def test_the_presets() -> None:
    assert preset("fast").mirror_image
    assert not preset("paper").mirror_image
    plain = segmentation_network(tiny_config(), cohort())
    assert not isinstance(plain, Mirrored)


def mirroring() -> TrainingConfig:
    return tiny_config(
        mirror_image=True,
        segmentation_network={"name": "unet"},
        segmentation={"crop_fraction": 0.7, "loss": "dice_ce"},
        joint={"student": "perturbed", "minimum_steps": 4, "dropout": 0.0},
    )


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_pretraining_and_a_round(tmp_path: Path) -> None:
    snapshot = cohort()
    for number, parent in ((0, None), (1, tmp_path / "0")):
        task = RoundTask(number, snapshot, mirroring(), tmp_path / str(number), parent)
        list(run_round(task, cpu(), Never()))
        teacher = load_teacher(task.files, CPU)
        assert isinstance(teacher, Mirrored)
        assert teacher.classes == (0, 1, 2)
        image = snapshot.arrays.image("u")
        written = task.files.prediction("u")
        assert written is not None
        predict = load_predictor(task.files, "cpu", with_student=number > 0)
        assert np.array_equal(written.label, predict(image).label)
        turned = predict(image[..., ::-1]).label[..., ::-1]
        assert np.array_equal(turned, written.label)
    # Stopped within a stage and resumed, it ends with the same weights.
    for number, parent in ((0, None), (1, tmp_path / "again0")):
        task = RoundTask(number, snapshot, mirroring(), tmp_path / f"again{number}", parent)
        assert isinstance(list(run_round(task, cpu(), AfterSteps(8)))[-1], Cancelled)
        list(run_round(task, cpu(), Never()))
        assert_same_tensors(weights(task.folder), weights(tmp_path / str(number)))


def test_a_damaged_description_is_refused(tmp_path: Path) -> None:
    snapshot = cohort(by_sides, SIDES)
    files = RoundFiles(tmp_path)
    task = RoundTask(0, snapshot, mirroring(), tmp_path)
    list(run_round(task, cpu(), AfterSteps(0)))  # writes the round's description
    network = segmentation_network(mirroring(), snapshot)
    wrong = [0, 1], [0, 1, 1], [0, 1, 1, 2], "left", [0, 1, 5], [[0], 1, 2], ["0", "2", "1"]
    for mirror in wrong:
        save_tensors(files.teacher, network.state_dict(), {"mirror": mirror})
        with pytest.raises(CheckpointError, match="in the mirror"):
            load_teacher(files, CPU)
    save_tensors(files.teacher, network.state_dict(), {"mirror": [0, 2, 1]})
    assert load_tensors(files.teacher)[1]["mirror"] == [0, 2, 1]
    assert isinstance(load_teacher(files, CPU), Mirrored)
