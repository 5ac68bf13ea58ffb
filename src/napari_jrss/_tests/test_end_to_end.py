"""From real scans to a better teacher; experiments/test_methods.py has the gain on phantoms."""

from __future__ import annotations

import csv
import threading
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from napari_jrss._tests.app.series import train
from napari_jrss.app.evaluation import RoundEvaluated, evaluate
from napari_jrss.config import PreprocessingConfig, PresetName, TrainingConfig, preset
from napari_jrss.io.layouts import FoundCase
from napari_jrss.labels import LabelTable
from napari_jrss.project.project import Project

pytestmark = pytest.mark.slow


def short() -> TrainingConfig:
    """The preset smoke with fewer steps, and next to none at the scans' own voxels."""
    base = preset("smoke")
    joint = {"minimum_steps": 40, "segmentation_epochs": 1, "registration_epochs": 1}
    return preset(
        "smoke",
        segmentation=base.segmentation.model_copy(update={"minimum_steps": 100}),
        registration=base.registration.model_copy(update={"minimum_steps": 240}),
        joint=base.joint.model_copy(update=joint),
        fine=base.fine.model_copy(update={"steps": 2}),
    )


def summaries(project: Project, config: TrainingConfig) -> list[RoundEvaluated]:
    """Train one joint round after the pre-training; the figures of both."""
    for _ in train(project, config, 1, threading.Event(), device="cpu"):
        pass
    events = list(evaluate.events(project, device="cpu"))
    return [event for event in events if isinstance(event, RoundEvaluated)]


@pytest.mark.usefixtures("one_thread")  # the figures depend on it a little
def test_on_real_hippocampus_scans_both_networks_learn(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "hippocampus_msd"
    with (folder / "cases.csv").open() as file:
        groups = {
            row["file"].removesuffix(".nii.gz"): row["inferred_subject_group"]
            for row in csv.DictReader(file)
        }
    names = sorted(groups)[:16]
    found = [
        FoundCase(name, folder / "images" / f"{name}.nii.gz", folder / "labels" / f"{name}.nii.gz")
        for name in names
    ]
    table = LabelTable.from_ids([1, 2], {1: "anterior", 2: "posterior"})
    # Half the resolution, so that the test takes seconds.
    config = PreprocessingConfig(spacing_mm=(2, 2, 2), shape=(24, 32, 24))
    with Project.create(tmp_path / "h.jrss", table, config) as project:
        assert all(result.ok for result in project.add_cases(found, workers=1))
        project.split(labelled=5, validation=2, test=5, groups={n: groups[n] for n in names})
        mono, joint = summaries(project, short())
        teacher = project.teacher
        assert teacher is not None
        assert teacher.number == 1
    assert mono.segmentation["dice"]["mean"] > 0.5
    assert joint.segmentation["dice"]["mean"] > mono.segmentation["dice"]["mean"] - 0.03
    learned, registration = mono.registration, joint.registration
    assert learned["dice"]["mean"] > learned["dice_before"]["mean"] + 0.03
    assert registration["dice"]["mean"] > registration["dice_before"]["mean"]
    assert registration["folded_percent"]["mean"] < 5
    assert np.isfinite(registration["std_jacobian"]["mean"])


@pytest.mark.parametrize("name", get_args(PresetName))
def test_presets_are_complete_and_differ(name: str) -> None:
    config = preset(name, seed=3)  # type: ignore[arg-type]
    assert config.preset == name
    assert config.seed == 3
    assert TrainingConfig.model_validate_json(config.model_dump_json()) == config


def test_the_paper_preset_holds_every_number_of_section_4_3() -> None:
    config = preset("paper")
    assert config.gamma == 0.99
    assert config.segmentation.batch_size == config.registration.batch_size == 2
    assert config.segmentation.weight_decay == 1e-4
    assert config.segmentation.learning_rate == 1e-3
    assert (config.joint.lambda_u, config.joint.lambda_d) == (0.5, 1)
    assert config.registration.learning_rate == 4e-4
    assert (config.registration.lambda_d, config.registration.lambda_r) == (0.1, 0.025)
    assert config.registration.warmup_steps == 300
    assert config.registration.lambda_r_warmup > config.registration.lambda_r
    assert config.screening.tau == 0.7
    assert config.joint.dropout == 0.5
    assert config.joint.ema_decay == 0.99
    assert config.joint.registration_epochs == 5 * config.joint.segmentation_epochs
    assert config.segmentation_network.leaky_slope == 0.2
