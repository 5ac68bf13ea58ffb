"""Cases of two images, T1 and FLAIR, from import to export; only FLAIR shows the lesion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import napari_jrss as jrss
from napari_jrss.config import TrainingConfig
from napari_jrss.sample_data import make_cohort

pytestmark = pytest.mark.slow

LESION = 2  # index of its class
SHAPE = (20, 24, 20)


def config(steps: int, joint: int = 2) -> TrainingConfig:
    settings = jrss.preset("smoke").model_dump()
    settings["segmentation"] |= {"minimum_steps": steps, "crop_fraction": 1.0}
    settings["joint"] |= {"minimum_steps": joint}
    return TrainingConfig.model_validate(settings)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("channels") / "cohort"
    return make_cohort(folder, 10, SHAPE, structures=1, spacing_mm=8.0, flair=True)


def imported(cohort: Path, path: Path, *channels: str) -> jrss.Project:
    project = jrss.Project.from_folders(
        path,
        cohort / "images",
        cohort / "labels",
        groups=cohort / "groups.csv",
        channels=channels,
        workers=1,
    )
    project.split(labelled=5, validation=1, test=3)
    return project


@pytest.fixture(scope="module")
def project(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> jrss.Project:
    """Trained on both images of its cases, as they are named by default."""
    made = imported(cohort, tmp_path_factory.mktemp("channels") / "two.jrss", "T1", "FLAIR")
    jrss.train(made, config(150), rounds=0, device="cpu")
    return made


def lesion_dice(project: jrss.Project) -> float:
    rows = jrss.evaluate(project, device="cpu").segmentation["dice"]["per_class"]
    return float(rows["lesion"]["mean"])


def test_a_structure_that_one_image_shows_is_found_by_a_teacher_that_sees_it(
    cohort: Path, project: jrss.Project, tmp_path: Path
) -> None:
    assert project.channels == ("T1", "FLAIR")
    with imported(cohort, tmp_path / "one.jrss", "T1") as alone:
        assert alone.channels == ()
        jrss.train(alone, config(150), rounds=0, device="cpu")
        both, one = lesion_dice(project), lesion_dice(alone)
    print(both, one)
    assert both > 0.6
    assert one < both - 0.3


def test_the_images_of_a_case_lie_on_each_other_though_their_voxels_differ(
    project: jrss.Project,
) -> None:
    images = project.channel_images("case_002")  # its T1 is stored in another orientation
    assert images.shape == (2, *project.grid.shape)
    np.testing.assert_array_equal(images[0], project.image("case_002"))
    label = project.label("case_002")
    seen = [float(np.median(image[label == LESION])) for image in images]
    white = [float(np.median(image[label == 0])) for image in images]
    assert seen[1] > white[1] + 1  # bright in FLAIR where the label, drawn on T1, says
    flair = project.channel_scan("case_002", 1)
    assert flair.name == "FLAIR"
    assert flair.array.shape[0] < SHAPE[0]  # on its own, thicker slices
    for image in images:
        assert abs(float(image.mean())) < 0.2
