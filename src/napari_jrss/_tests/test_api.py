"""The public names: loaded late, quick to import, described, and each long call in two ways."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import napari_jrss as jrss
from napari_jrss.app.exporting import LabelWritten
from napari_jrss.app.rounds.train import leave_series
from napari_jrss.errors import ProjectError, ScanError
from napari_jrss.io.read import read_volume
from napari_jrss.progress_bar import counted, counting, finish, shown
from napari_jrss.project.importing import Found, ScanRead
from napari_jrss.training.events import Cancelled, StepEnd

pytestmark = pytest.mark.slow

TINY = jrss.preset("smoke").model_copy(
    update={
        "segmentation": jrss.preset("smoke").segmentation.model_copy(update={"minimum_steps": 4}),
        "registration": jrss.preset("smoke").registration.model_copy(update={"minimum_steps": 4}),
    }
)
HEAVY = {"torch", "napari", "qtpy", "SimpleITK", "monai", "zarr", "rich"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "cohort"
    return jrss.make_cohort(folder, cases=6, shape=(16, 16, 16), structures=2)


@pytest.fixture(scope="module")
def project(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> jrss.Project:
    """A project that was trained for a few steps."""
    path = tmp_path_factory.mktemp("api") / "brain.jrss"
    made = jrss.Project.from_folders(path, cohort / "images", cohort / "labels", workers=1)
    made.split(labelled=2, validation=1, test=2)
    entry = jrss.train(made, TINY, rounds=0, device="cpu")
    assert entry is not None
    assert entry.number == 0
    return made


def test_the_public_names_are_loaded_late_and_all_are_there() -> None:
    probe = (
        "import sys, napari_jrss as jrss\n"
        "print(*sorted(set(sys.modules)))\n"
        "for name in jrss.__all__: assert name in dir(jrss) and getattr(jrss, name)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    assert HEAVY & set(result.stdout.split()) == set()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jrss.nothing  # noqa: B018


def test_the_import_takes_less_than_0_3_s() -> None:
    def spent(code: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True)
        after = os.times()
        return (
            after.children_user
            + after.children_system
            - (before.children_user + before.children_system)
        )

    # Computing time beyond that of a bare interpreter, whatever else the machine is busy with.
    bare = min(spent("pass") for _ in range(2))
    assert min(spent("import napari_jrss") for _ in range(2)) - bare < 0.3


def test_every_public_name_is_described() -> None:
    validate = pytest.importorskip("numpydoc.validate").validate
    # A docstring with a summary; no parameter wrong, in another order or without a description.
    always = {"GL08", "SS01", "PR02", "PR03", "PR07", "RT03"}
    in_full = always | {"PR01", "RT01"}  # all parameters, and the result
    functions = [name for name in jrss.__all__ if not isinstance(getattr(jrss, name), type)]
    functions += [f"Project.{name}" for name in ("from_folders", "create", "open", "split")]
    others = {"JRSSError", "Project", "TrainingConfig", "Volume"}
    others |= {f"Project.{name}" for name in dir(jrss.Project) if name[0] != "_"}
    for wanted, names in ((in_full, functions), (always, others)):
        for name in names:
            errors = validate(f"napari_jrss.{name}")["errors"]
            assert [text for code, text in errors if code in wanted] == [], name


def test_an_import_can_be_followed_scan_by_scan(cohort: Path, tmp_path: Path) -> None:
    path = tmp_path / "brain.jrss"
    events = jrss.Project.from_folders.events(
        path, cohort / "images", cohort / "labels", groups=cohort / "groups.csv", workers=1
    )
    seen: list[object] = []
    with finish(events, seen.append) as made:
        assert made.table.names[1:] == ("frontal", "parietal")
        assert len(made.cases()) == 6
    found, *read = seen
    assert isinstance(found, Found)
    assert found.labelled == 6
    assert [event.done for event in read if isinstance(event, ScanRead)] == list(range(1, 7))


def test_nothing_is_left_of_a_project_that_no_scan_came_into(cohort: Path, tmp_path: Path) -> None:
    scans, path = tmp_path / "scans", tmp_path / "brain.jrss"
    scans.mkdir()
    for name in ("a", "b"):
        nib.save(nib.Nifti1Image(np.zeros((8, 8, 8)), np.eye(4)), scans / f"{name}.nii.gz")
    with pytest.raises(ScanError, match="no scan has a label"):
        jrss.Project.from_folders(path, scans)
    groups = cohort / "groups.csv"
    with pytest.raises(ProjectError, match=r"none of 2 scans could be used.*the first reason"):
        jrss.Project.from_folders(path, scans, groups=groups, workers=1)
    assert not path.exists()
    with pytest.raises(ProjectError, match="only scans from DICOM have a map"):
        jrss.Project.from_folders(path, scans, groups=groups, keep_map=tmp_path / "map.csv")


def test_training_stops_when_it_is_cancelled_and_goes_on(project: jrss.Project) -> None:
    cancel = threading.Event()
    last: object = None
    for event in jrss.train.events(
        project, TINY, rounds=1, pretrain=True, device="cpu", cancel=cancel
    ):
        last = event
        if isinstance(event, StepEnd):
            cancel.set()
    assert isinstance(last, Cancelled)
    assert project.teacher is not None
    assert project.teacher.number == 0
    leave_series(project)


def test_a_label_has_the_grid_and_the_numbers_of_the_files(
    project: jrss.Project, cohort: Path, tmp_path: Path
) -> None:
    scan = cohort / "images" / "case_003.nii.gz"
    label = jrss.segment(project, scan)
    again = jrss.segment(project, read_volume(scan))
    np.testing.assert_array_equal(label.array, again.array)
    (result,) = jrss.segment_scans(project, [scan], tmp_path)
    assert result.label is not None
    written = read_volume(result.label)
    np.testing.assert_array_equal(label.array, written.array)
    np.testing.assert_allclose(label.affine, written.affine)


def test_a_pair_is_registered_in_memory_and_saved(
    project: jrss.Project, cohort: Path, tmp_path: Path
) -> None:
    moving, fixed = (c.case_id for c in project.cases() if c.labelled)
    pair = jrss.register(project, moving, fixed, device="cpu")
    scan = read_volume(cohort / "images" / f"{fixed}.nii.gz")
    assert pair.warped.shape == scan.shape
    np.testing.assert_allclose(pair.warped.affine, scan.affine)
    assert pair.field.shape == (3, *scan.shape)
    assert pair.warped_label is not None
    assert len(pair.figures.dice) == 2
    assert not list(tmp_path.iterdir())
    files = pair.save(tmp_path)
    assert all(path.exists() for path in files)
    np.testing.assert_array_equal(
        read_volume(tmp_path / "warped_label.nii.gz").array, pair.warped_label.array
    )
    in_memory = jrss.register(project, scan, fixed, device="cpu")
    assert (in_memory.figures.moving, in_memory.figures.fixed) == ("moving", fixed)


def test_evaluation_and_export_are_told_or_shown(
    project: jrss.Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = jrss.evaluate(project, device="cpu").summary()
    assert "Mono-Nets" in summary
    assert "2 test cases and 2 pairs" in summary
    assert max(map(len, summary.splitlines())) <= 100
    assert "ECE" in summary
    assert "forecast" not in summary
    assert "evaluating" not in capsys.readouterr().out  # bars are for the standard error
    files = jrss.export_labels(project, tmp_path / "one")
    assert "exporting" in capsys.readouterr().err
    events = list(jrss.export_labels.events(project, tmp_path / "two"))
    assert capsys.readouterr().err == ""
    assert all(isinstance(event, LabelWritten) for event in events)
    assert [e.path.relative_to(tmp_path / "two") for e in events] == [
        path.relative_to(tmp_path / "one") for path in files
    ]
    assert events[-1].done == events[-1].total


def test_an_evaluation_tells_what_the_forecast_was(project: jrss.Project) -> None:
    short = {"minimum_steps": 2, "steps_per_structure": 0, "epochs": 1}
    settings = jrss.preset("smoke")
    settings = jrss.TrainingConfig.model_validate(
        settings.model_dump() | {"segmentation": settings.segmentation.model_dump() | short}
    )
    forecast = jrss.forecast(project, settings, device="cpu")
    evaluation = jrss.evaluate(project, device="cpu")
    assert evaluation.forecast == forecast.mean()[0]
    assert f"forecast: a Dice of {evaluation.forecast:.3f}" in evaluation.summary()


def test_a_case_that_is_mistyped_gets_a_suggestion(project: jrss.Project) -> None:
    with pytest.raises(ProjectError, match=r"no case 'case_0001'; did you mean 'case_001'\?"):
        project.case("case_0001")
    with pytest.raises(ProjectError, match="did you mean 'case_001'"):
        jrss.register(project, "case_0001", "case_002")


def test_where_no_bar_can_be_drawn_some_lines_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(counted(range(20), "counting", 20)) == list(range(20))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "counting 20/20"
    assert len(lines) == 10
    closed: list[bool] = []

    def work() -> object:
        try:
            yield from range(3)
        finally:
            closed.append(True)

    events = shown(work(), counting("working"))  # type: ignore[arg-type]
    next(events)
    events.close()
    assert closed == [True]
