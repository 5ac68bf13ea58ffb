"""The synthetic cohort: its labels and deformations are what they are said to be."""

import csv
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from napari_jrss import sample_data
from napari_jrss.sample_data import STRUCTURES

SHAPE = (32, 32, 32)


def mean_dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(
        np.mean(
            [
                2 * np.sum((one == k) & (other == k)) / (np.sum(one == k) + np.sum(other == k))
                for k in range(1, len(STRUCTURES) + 1)
            ]
        )
    )


def test_a_case_is_decided_by_index_and_seed() -> None:
    one, again = (sample_data.make_case(3, SHAPE, seed=5) for _ in range(2))
    np.testing.assert_array_equal(one.image, again.image)
    np.testing.assert_array_equal(one.labels, again.labels)
    assert one.case_id == "case_004"
    for other in (sample_data.make_case(4, SHAPE, seed=5), sample_data.make_case(3, SHAPE, seed=6)):
        assert np.any(other.labels != one.labels)


@pytest.mark.slow
@pytest.mark.parametrize("structures", [1, 3, len(STRUCTURES)])
def test_the_first_structures_are_labelled_in_every_case(structures: int) -> None:
    for index in range(4):
        labels = sample_data.make_case(index, SHAPE, structures=structures).labels
        assert labels.dtype == np.uint8
        counts = np.bincount(labels.ravel())
        assert len(counts) == structures + 1
        assert counts.min() >= 40


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(index=st.integers(0, 10_000), seed=st.integers(0, 10_000))
def test_a_deformation_is_inverted_by_its_inverse(index: int, seed: int) -> None:
    deformation = sample_data.deformation(index, seed)
    points = sample_data.grid_points((10, 10, 10)) * 0.8
    there_and_back = deformation.from_template(deformation.to_template(points))
    voxel = 2 / 48
    assert np.abs(there_and_back - points).max() < 0.25 * voxel


@pytest.mark.slow
def test_the_true_displacement_registers_the_labels_without_folding() -> None:
    shape = (48, 48, 48)
    cases = [sample_data.make_case(index, shape).labels for index in range(3)]
    grid = np.indices(shape)
    for fixed, moving in [(0, 1), (1, 0), (2, 0)]:
        displacement = sample_data.true_displacement(fixed, moving, shape)
        warped = ndimage.map_coordinates(cases[moving], grid + displacement, order=0)
        before, after = mean_dice(cases[fixed], cases[moving]), mean_dice(cases[fixed], warped)
        # Before: work to do for a registration. After: all but the rounding to voxels.
        assert 0.3 < before < 0.75
        assert after > 0.85
        jacobian = np.moveaxis(
            np.array([np.gradient(axis) for axis in displacement]), (0, 1), (3, 4)
        )
        assert np.linalg.det(jacobian + np.eye(3)).min() > 0


@pytest.mark.slow
def test_a_case_registers_to_itself_by_the_identity() -> None:
    assert np.abs(sample_data.true_displacement(1, 1, SHAPE)).max() < 0.1


@pytest.mark.slow
def test_intensities_differ_from_case_to_case_and_tissues_within_one() -> None:
    cases = [sample_data.make_case(index, SHAPE) for index in range(6)]
    brain = [case.image[case.labels > 0].mean() for case in cases]
    assert max(brain) > 1.5 * min(brain)
    for case in cases:
        background = case.image[0].mean()
        assert case.image[case.labels == 10].mean() > 3 * background


def test_left_and_right_differ() -> None:
    """The marker capsule is to the right, and the left occipital lobe lies further back."""
    tissue, labels = sample_data.template(sample_data.grid_points((48, 48, 48)))
    outside = ndimage.label(tissue > 0)[0]
    marker = np.argwhere((outside > 0) & (outside != outside[24, 24, 28]))
    assert len(marker) > 10
    assert marker[:, 2].max() < 12, "x grows to the left: the marker is at the right side"
    occipital = np.argwhere(labels == STRUCTURES.index("occipital") + 1)
    left, right = occipital[occipital[:, 2] > 24], occipital[occipital[:, 2] < 23]
    assert left[:, 1].mean() > right[:, 1].mean() + 1


@pytest.mark.slow
def test_the_files_hold_the_cases_in_mixed_orientations(tmp_path: Path) -> None:
    folder = sample_data.make_cohort(tmp_path / "cohort", cases=5, shape=(24, 28, 20), seed=2)
    names = [f"case_{number:03d}.nii.gz" for number in range(1, 6)]
    assert sorted(path.name for path in (folder / "images").iterdir()) == names
    assert sorted(path.name for path in (folder / "labels").iterdir()) == names
    seen = set()
    for index, name in enumerate(names):
        case = sample_data.make_case(index, (24, 28, 20), seed=2)
        image, labels = (
            nib.Nifti1Image.from_filename(folder / kind / name) for kind in ("images", "labels")
        )
        np.testing.assert_array_equal(image.affine, labels.affine)
        assert image.shape == labels.shape
        assert image.header.get_xyzt_units()[0] == "mm"
        seen.add("".join(nib.aff2axcodes(image.affine)))
        # RAS as nibabel gives it is (x, y, z) growing to Right and Anterior: flip both, transpose.
        for file, expected in ((image, np.rint(case.image)), (labels, case.labels)):
            canonical = nib.as_closest_canonical(file)
            np.testing.assert_allclose(np.diag(canonical.affine)[:3], 4.0)
            lps = np.asanyarray(canonical.dataobj)[::-1, ::-1].transpose(2, 1, 0)
            np.testing.assert_array_equal(lps, expected)
    assert seen == set(sample_data.ORIENTATIONS)


def test_the_table_names_the_labels(tmp_path: Path) -> None:
    folder = sample_data.make_cohort(tmp_path, cases=1, shape=(16, 16, 16), structures=3)
    with (folder / "groups.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [(int(row["label"]), row["name"]) for row in rows] == list(
        enumerate(("frontal", "parietal", "occipital"), start=1)
    )
    assert all(row["class_id"] == row["label"] for row in rows)


@pytest.mark.slow
def test_twelve_cases_take_seconds(tmp_path: Path) -> None:
    start = time.process_time()
    sample_data.make_cohort(tmp_path, cases=12)
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    "wrong", [{"cases": 0}, {"structures": 0}, {"structures": 11}, {"shape": (4, 48, 48)}]
)
def test_a_wrong_number_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        sample_data.make_cohort(tmp_path, **wrong)
