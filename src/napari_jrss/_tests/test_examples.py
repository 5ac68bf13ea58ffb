"""The scripts without a window in examples/ run, on volumes as small as they allow."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.slow

SMALL = ["--size", "16"]


@pytest.fixture
def example(pytestconfig: pytest.Config) -> Callable[..., Any]:
    """Calls an example's ``main``; the package may be installed without them."""
    folder = pytestconfig.rootpath / "examples"

    def run(name: str, *arguments: object) -> Any:
        path = folder / name
        if not path.exists():
            pytest.skip(f"no examples at {folder}")
        return runpy.run_path(str(path))["main"](list(map(str, arguments)))

    return run


def test_register_two_scans(example: Callable[..., Any], tmp_path: Path) -> None:
    report = example("register_two_scans.py", "--out", tmp_path, "--steps", 2, *SMALL)
    assert (report.folded_percent, report.residual_before > 0) == (0, True)
    ours = nib.load(tmp_path / "warped_image.nii.gz").get_fdata()
    sitks = nib.load(tmp_path / "warped_by_simpleitk.nii.gz").get_fdata()
    inside = (slice(2, -2),) * 3
    np.testing.assert_allclose(ours[inside], sitks[inside], atol=0.01 * ours.max())


def test_export_nnunet(example: Callable[..., Any], tmp_path: Path) -> None:
    folder = example("export_nnunet.py", "--out", tmp_path / "raw" / "Dataset001_S", *SMALL)
    description = json.loads((folder / "dataset.json").read_text())
    assert description["numTraining"] == 3
    assert len(list((folder / "imagesTr").glob("*_0000.nii.gz"))) == 3
    assert len(list((folder / "imagesTs").iterdir())) == 2


def test_joint_round(example: Callable[..., Any], tmp_path: Path) -> None:
    figures = example("joint_round.py", "--out", tmp_path, "--epochs", 4, *SMALL)
    mono, joint = figures.rounds
    assert (mono.name, joint.name) == ("Mono-Nets", "JRSS round 1")
    assert joint.segmentation["dice"]["mean"] > 0.1
