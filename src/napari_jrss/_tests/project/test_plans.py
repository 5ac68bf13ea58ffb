"""A changed plan brings the cases to another grid, and nothing that a person made changes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from napari_jrss.app.planning import change_plan, propose
from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ProjectError, ScanError
from napari_jrss.io.layouts import FoundCohort
from napari_jrss.preprocess.plan import Plan
from napari_jrss.project.corrections import Corrections
from napari_jrss.project.export.labels import export_label_files
from napari_jrss.project.project import Project
from napari_jrss.project.records import Event, RoundOutcome

from .conftest import TABLE
from .faults import of_an_older_version

pytestmark = pytest.mark.slow

COARSE = PreprocessingConfig(spacing_mm=(2.5, 2.5, 2.5))


def coarse(project: Project, **wishes: object) -> Plan:
    return propose(project, "2h", COARSE.model_copy(update=wishes))["balanced"]


def files(project: Project, folder: Path) -> dict[str, bytes]:
    """What an export of all labels writes."""
    written = list(export_label_files(project, folder))
    assert written
    return {
        path.name: np.asarray(nib.load(path).dataobj).tobytes() + nib.load(path).affine.tobytes()
        for path in written
    }


def finished_round(project: Project) -> int:
    entry = project.start_round(None, "{}", project.snapshot().label_versions)
    project.finish_round(entry.number, RoundOutcome.FINISHED, {"dice": 0.5}, promote=True)
    return entry.number


def test_labels_and_history_stay_and_the_grid_changes(project: Project, tmp_path: Path) -> None:
    painted = project.scan_label("case1").copy()
    painted[0, :3, :3] = 1
    project.add_label_version("case1", painted, "Ada", draft="version:v0001", on_scan=True)
    before, history = files(project, tmp_path / "before"), project.history()
    scans = {case.case_id: project.scan_label(case.case_id) for case in project.cases()}
    images = {case.case_id: project.scan_image(case.case_id) for case in project.cases()}
    change_plan(project, coarse(project), "Ada", workers=2)

    assert project.grid.spacing_mm == (2.5, 2.5, 2.5)
    assert project.plan is not None
    assert project.plan.shape == project.grid.shape
    for case, label in scans.items():
        assert np.array_equal(project.scan_label(case), label)
        assert np.array_equal(project.scan_image(case), images[case])
        assert project.image(case).shape == project.label(case).shape == project.grid.shape
        assert set(np.unique(project.label(case))) <= set(np.unique(label))
    assert files(project, tmp_path / "after") == before
    assert project.history()[: len(history)] == history
    assert [entry.kind for entry in project.history()[len(history) :]] == [Event.PLAN_CHANGED]
    assert [v.version for v in project.label_versions("case1")] == ["v0001", "v0002"]
    assert [path.name for path in project.path.glob("cases*")] == ["cases-2"]

    # What was labelled before can be put in force again, and what comes now is kept.
    assert project.restore("case1", "v0001", "Ada") == "v0003"
    assert np.array_equal(project.scan_label("case1"), project.scan_label("case1", "v0001"))
    assert np.array_equal(project.label("case1"), project.label("case1", "v0001"))
    project.close()
    with Project.open(project.path) as again:
        assert again.plan == project.plan
        assert files(again, tmp_path / "again")["case0.nii.gz"] == before["case0.nii.gz"]
        change_plan(again, coarse(again, spacing_mm=(3, 3, 3)))
        assert [path.name for path in again.path.glob("cases*")] == ["cases-3"]
        assert np.array_equal(again.scan_label("case1", "v0002"), painted)


def test_a_teacher_of_another_grid_is_not_in_force(project: Project) -> None:
    number = finished_round(project)
    assert project.teacher is not None
    change_plan(project, coarse(project), workers=1)
    assert project.teacher is None
    with pytest.raises(ProjectError, match="round 0 was trained on the grid of another plan"):
        project.promote(number)
    assert [entry.number for entry in project.rounds()] == [number]
    later = finished_round(project)
    assert project.require_teacher().number == later


def test_an_interrupted_round_of_another_grid_is_not_resumed(project: Project) -> None:
    project.start_round(None, "{}", project.snapshot().label_versions)
    assert project.unfinished_round() is not None
    change_plan(project, coarse(project), workers=1)
    assert project.unfinished_round() is None


def test_scans_in_one_frame_keep_it(cohort: FoundCohort, tmp_path: Path) -> None:
    config = PreprocessingConfig(prealign="center_of_mass", shape=(16, 16, 16))
    with Project.create(tmp_path / "p.jrss", TABLE, config) as project:
        assert all(result.ok for result in project.add_cases(cohort.cases, workers=2))
        before = project.attributes("case2").transform
        old = project.grid
        change_plan(project, coarse(project, shape=None), workers=1)
        after = project.attributes("case2").transform
        centre = [(np.array(g.shape[::-1]) - 1) / 2 for g in (old, project.grid)]
        middles = [t.grid_affine @ [*c, 1] for t, c in zip((before, after), centre, strict=True)]
        assert np.allclose(*middles, atol=1e-3)  # mm
        assert project.grid.reference is not None
        assert project.grid.reference.is_file()
        with pytest.raises(ProjectError, match="alignment and crop are chosen when"):
            change_plan(project, coarse(project, prealign="none"), workers=1)


@pytest.mark.parametrize("spoil", ["corrections", "damaged", "read-only"])
def test_a_change_that_can_not_be_leaves_the_former_plan(
    project: Project, tmp_path: Path, spoil: str
) -> None:
    plan, grid = coarse(project), project.grid
    before = files(project, tmp_path / "before")
    reason = "corrections of case0 are neither accepted nor discarded"
    if spoil == "corrections":
        label = project.scan_label("case0")
        corrections = Corrections(project, "case0", "version:v0001", label, "Ada")
        changed = label.copy()
        changed[0, 0, 0] = 1
        corrections.save({0: changed[0]}, seconds=1)
    elif spoil == "damaged":
        reason = r"case3\.ome\.zarr.*damaged"
        stored = project.case_path("case3") / "scan" / "image" / "0" / "c"
        (chunk,) = (file for file in stored.rglob("*") if file.is_file())
        chunk.write_bytes(chunk.read_bytes()[:-20])
    else:
        project.close()
        project = Project.open(project.path, read_only=True)
        reason = "read-only"
    with pytest.raises((ProjectError, ScanError), match=reason):
        change_plan(project, plan, workers=1)
    assert project.grid == grid
    assert [path.name for path in project.path.glob("cases*")] == ["cases"]
    if spoil != "damaged":
        assert files(project, tmp_path / "after") == before
    project.close()


KILLED = """
    import os, signal, sys
    from napari_jrss.app.planning import change_plan, propose
    from napari_jrss.config import PreprocessingConfig
    from napari_jrss.project.project import Project

    if __name__ == "__main__":
        project = Project.open(sys.argv[1])
        plan = propose(project, "2h", PreprocessingConfig(spacing_mm=(2.5, 2.5, 2.5)))["balanced"]
        for event in change_plan.events(project, plan, workers=1):
            if event.done == 3:
                os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_in_the_middle_the_former_plan_holds(project_path: Path, tmp_path: Path) -> None:
    with Project.open(project_path) as project:
        before, grid = files(project, tmp_path / "before"), project.grid
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    ended = subprocess.run([sys.executable, script, project_path], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (project_path / "cases-2").is_dir()
    with Project.open(project_path) as project:
        assert not (project_path / "cases-2").exists()
        assert project.grid == grid
        assert files(project, tmp_path / "after") == before
        change_plan(project, coarse(project), workers=1)
        assert files(project, tmp_path / "changed") == before


def test_an_older_project_without_its_files_keeps_what_it_has(
    project_path: Path, tmp_path: Path
) -> None:
    with Project.open(project_path) as project:
        sources = [project.attributes(case.case_id) for case in project.cases()]
    of_an_older_version(project_path)
    hidden: dict[str, Path] = {}
    for about in sources[:2]:
        for name in (about.source, about.label_source or ""):
            hidden[name] = Path(shutil.move(name, tmp_path / f"away-{len(hidden)}"))
    try:
        with Project.open(project_path) as project:
            before = files(project, tmp_path / "before")
            change_plan(project, coarse(project), workers=1)
            assert files(project, tmp_path / "after") == before
            assert project.labels_without_source() == []
    finally:
        for name, away in hidden.items():
            shutil.move(away, name)
