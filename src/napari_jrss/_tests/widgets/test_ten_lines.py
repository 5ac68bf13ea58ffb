"""The lines of Python in the README run as they are written there."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path
from typing import Any

import napari
import nibabel as nib
import numpy as np
import pytest
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication

from napari_jrss.project.project import Project
from napari_jrss.sample_data import make_cohort
from napari_jrss.widgets.contributions import dock_of

# A smaller cohort and less training than a reader has; nothing else is changed.
LITERALS = {
    "labelled=5": "labelled=2",
    "validation=4": "validation=2",
    "test=10": "test=2",
    '"fast"': '"smoke"',
    "rounds=3": "rounds=0",
}


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight labelled scans, of which two are named as in the README, and one more scan."""
    folder = make_cohort(tmp_path / "made", cases=9, shape=(16, 16, 16), structures=2)
    for ours, theirs in (("images", "scans"), ("labels", "labels")):
        (tmp_path / theirs).mkdir()
        files = sorted((folder / ours).iterdir())
        names = ["case_a", "case_b", *(f"case_{number}" for number in range(6))]
        for file, name in zip(files, names, strict=False):
            file.rename(tmp_path / theirs / f"{name}.nii.gz")
    (folder / "images" / "case_009.nii.gz").rename(tmp_path / "new.nii.gz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ten_lines(pytestconfig: pytest.Config) -> str:
    """The block of the README, with smaller numbers."""
    readme = pytestconfig.rootpath / "README.md"
    if not readme.exists():
        pytest.skip(f"no README at {readme}")
    (block,) = re.findall(r"```python\n(import napari_jrss.*?)```", readme.read_text(), re.S)
    for theirs, ours in LITERALS.items():
        assert block.count(theirs) == 1, f"{theirs} isn't in the README any more"
        block = block.replace(theirs, ours)
    return block


def close_when_shown(case_id: str, seen: list[str]) -> QTimer:
    """Close the viewer once a case is on its canvas, or after a minute."""
    timer = QTimer()
    looks = count()

    def look() -> None:
        viewer = napari.current_viewer()
        if viewer is None:
            return
        case = dock_of(viewer).session.review.case
        shown = case is not None and case.case_id == case_id
        if shown:
            seen.append(viewer.title)
        if shown or next(looks) > 600:
            timer.stop()
            viewer.close()

    timer.timeout.connect(look)
    timer.start(100)
    return timer


@pytest.mark.slow
def test_the_lines_of_the_readme_run(
    scans: Path, pytestconfig: pytest.Config, qapp: QApplication, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    names: dict[str, Any] = {}
    timer = close_when_shown("case_a", seen)
    try:
        exec(compile(ten_lines(pytestconfig), "README.md", "exec"), names)
    finally:
        timer.stop()
    p, label, pair = names["p"], names["label"], names["pair"]
    assert isinstance(p, Project)
    with p:  # it is still open after the window was closed
        assert p.teacher.number == 0
    assert seen == ["study.jrss"]
    assert "Mono-Nets" in capsys.readouterr().out

    new = nib.load("new.nii.gz")
    assert label.shape == new.shape[::-1]
    assert set(np.unique(label.array)) <= {0, 1, 2}
    fixed = nib.load("scans/case_b.nii.gz")
    assert pair.warped.shape == fixed.shape[::-1]
    assert pair.field.shape == (3, *pair.warped.shape)
    assert pair.figures.refined
    labelled = [path.name for path in Path("out/labels").glob("*.nii.gz")]
    assert len(labelled) == 6  # 2 labelled, 2 for validation, 2 for tests
