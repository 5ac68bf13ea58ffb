"""A project on disk: cases, label versions that never change, rounds, and kill -9."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ProjectError
from napari_jrss.io.layouts import FoundCase, FoundCohort, discover
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess import case_store as store
from napari_jrss.project.project import Project, check_case_id
from napari_jrss.project.records import Event, RoundOutcome, Split, Status

from .conftest import CASES, TABLE, write_scan


def run(tmp_path: Path, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script as a program of its own, and leave no worker of a killed one behind."""
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(script))
    command = [sys.executable, str(path), *map(str, arguments)]
    # Files, since a pipe stays open as long as a worker lives.
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, start_new_session=True)
        code = process.wait(timeout=120)
    if code == -signal.SIGKILL:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


# -- create and open


def test_create_refuses_what_exists_and_open_what_is_none(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jrss"
    path.parent.mkdir()
    with Project.create(path, TABLE, PreprocessingConfig(clip_percentiles=(1, 99))) as project:
        assert project.cases() == []
        assert project.table == TABLE
    with pytest.raises(ProjectError, match="exists already"):
        Project.create(path, TABLE, PreprocessingConfig())
    with Project.open(path) as project:
        assert project.preprocessing == PreprocessingConfig(clip_percentiles=(1, 99))
    assert [p.name for p in path.parent.iterdir()] == ["a.jrss"]  # nothing is left aside
    with pytest.raises(ProjectError, match="no such folder"):
        Project.open(tmp_path / "nowhere")
    with pytest.raises(ProjectError, match="not a project"):
        Project.open(path.parent)


@pytest.mark.slow
def test_a_second_program_may_look_while_the_first_writes(project: Project, tmp_path: Path) -> None:
    script = """
        import sys
        from napari_jrss.project.project import (Project)
        try:
            Project.open(sys.argv[1])
        except ValueError as error:
            print(error)
        with Project.open(sys.argv[1], read_only=True) as project:
            print(len(project.cases()))
            project.restore("case0", "v0001", "Ada")
    """
    result = run(tmp_path, script, project.path)
    assert "open for writing in process" in result.stdout
    assert result.stdout.splitlines()[-1] == str(CASES)
    assert "is open read-only" in result.stderr
    project.restore("case0", "v0001", "Ada")  # and the first still writes


def test_looking_changes_no_file(project_path: Path) -> None:
    before = tree(project_path)
    with Project.open(project_path, read_only=True) as project:
        project.snapshot().arrays.image("case0")
        project.history()
        for call in (
            lambda: project.split(),
            lambda: project.add_label_version("case0", project.label("case0"), "Ada"),
            lambda: list(project.add_cases([])),
            lambda: project.start_round(None, "{}", {}),
            lambda: project.reject("case0", "Ada"),
        ):
            with pytest.raises(ProjectError, match="read-only"):
                call()
    assert tree(project_path) == before


def test_a_newer_project_is_refused(project_path: Path) -> None:
    bare = sqlite3.connect(project_path / "project.sqlite")
    (version,) = bare.execute("PRAGMA user_version").fetchone()
    bare.execute("PRAGMA user_version = 999")
    bare.close()
    for read_only in (False, True):
        with pytest.raises(ProjectError, match="newer version"):
            Project.open(project_path, read_only)
    bare = sqlite3.connect(project_path / "project.sqlite")
    bare.execute(f"PRAGMA user_version = {version}")
    bare.close()
    Project.open(project_path).close()  # the failed openings left no lock behind


def test_nothing_in_the_project_points_to_where_it_was(made_once: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(made_once, tmp_path / "elsewhere" / "x.jrss"))
    with Project.open(moved) as project:
        round_ = project.start_round(None, "{}", {})
        assert round_.folder == moved / "rounds" / "0000"
        assert project.label("case1").any()
    for name, content in tree(moved).items():
        assert str(made_once).encode() not in content, name


# -- cases


def test_scans_become_labelled_cases_on_one_grid(project: Project) -> None:
    cases = project.cases()
    assert [c.case_id for c in cases] == [f"case{i}" for i in range(CASES)]
    assert {(c.split, c.status, c.label_version) for c in cases} == {
        (Split.TRAIN, Status.MANUAL, "v0001")
    }
    for case in cases:
        assert project.image(case.case_id).shape == project.grid.shape
        assert sorted(np.unique(project.label(case.case_id))) == [0, 1, 2]


@pytest.mark.slow
def test_a_scan_that_fails_is_reported_and_can_be_added_later(
    project: Project, tmp_path: Path
) -> None:
    write_scan(tmp_path, "late", "RAS", seed=9)
    write_scan(tmp_path, "plain", "RAS", seed=8, labelled=False)
    late = tmp_path / "images" / "late.nii.gz"
    content = late.read_bytes()
    late.write_bytes(content[:-500])
    scans = [
        FoundCase("late", late, tmp_path / "labels" / "late.nii.gz"),
        FoundCase("plain", tmp_path / "images" / "plain.nii.gz"),
        FoundCase("CASE0", late),
        FoundCase("../../escaped", late),
    ]
    results = {r.case_id: r for r in project.add_cases(scans, workers=1)}
    assert results["plain"].ok
    assert project.case("plain").status is Status.UNLABELLED
    assert "late.nii.gz" in results["late"].reason
    assert "already" in results["CASE0"].reason
    assert "can't be a case id" in results["../../escaped"].reason
    assert {f.case_id for f in project.failed_imports()} == {"late", "../../escaped"}
    assert not list(tmp_path.rglob("*escaped*"))

    late.write_bytes(content)
    assert [r.ok for r in project.add_cases(scans[:1], workers=1, groups={"late": "s1"})] == [True]
    assert project.case("late").group == "s1"
    assert {f.case_id for f in project.failed_imports()} == {"../../escaped"}


@pytest.mark.parametrize(
    "case_id",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/etc",
        "C:x",
        ".hidden",
        "dot.",
        "con",
        "NUL.nii",
        "é",
        "a b",
        "a\n",
    ],
)
def test_case_ids_cannot_leave_the_folder(case_id: str, project: Project) -> None:
    with pytest.raises(ProjectError, match="case id"):
        check_case_id(case_id)
    with pytest.raises(ProjectError, match="case id"):
        project.register_case(case_id)


def test_links_are_not_followed(project: Project, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    inside = project.case_path("case0")
    inside.rename(outside)
    inside.symlink_to(outside)
    before = tree(outside)
    with pytest.raises(ProjectError, match="a symbolic link"):
        project.add_label_version("case0", np.zeros(project.grid.shape, np.uint8), "Ada")
    with pytest.raises(ProjectError, match="a symbolic link"):
        project.image("case0")
    assert tree(outside) == before


# -- split and snapshot


def test_hidden_labels_are_kept_but_never_trained_on(project: Project) -> None:
    project.split(labelled=1, validation=1, test=2, training=2)
    by_split = {s: [c for c in project.cases() if c.split is s] for s in Split}
    assert {s: len(cases) for s, cases in by_split.items()} == {
        Split.TRAIN: 2,
        Split.VALIDATION: 1,
        Split.TEST: 2,
        Split.UNUSED: 1,
    }
    snapshot = project.snapshot()
    (labelled,) = [c.case_id for c in by_split[Split.TRAIN] if c.labelled]
    (hidden,) = [c for c in by_split[Split.TRAIN] if not c.labelled]
    assert (snapshot.labelled, snapshot.unlabelled) == ((labelled,), (hidden.case_id,))
    assert (hidden.status, hidden.label_version, hidden.reference_version) == (
        Status.UNLABELLED,
        None,
        "v0001",
    )
    assert snapshot.validation == (by_split[Split.VALIDATION][0].case_id,)
    assert set(snapshot.label_versions) == {labelled, *snapshot.validation}
    assert snapshot.class_names == ("background", "left part", "right part")
    assert snapshot.arrays.image(labelled).dtype == np.float32
    np.testing.assert_array_equal(snapshot.arrays.label(labelled), project.label(labelled))
    for case_id in (hidden.case_id, by_split[Split.TEST][0].case_id):
        with pytest.raises(KeyError, match="no label in this snapshot"):
            snapshot.arrays.label(case_id)
    with pytest.raises(ProjectError, match="has no label"):
        project.label(hidden.case_id)
    assert project.label(hidden.case_id, "v0001").any()

    project.split(labelled=2, validation=1, test=2, training=2)  # the label comes back
    assert project.case(hidden.case_id).labelled
    assert labelled in project.snapshot().labelled


def test_groups_are_needed_for_all_cases_and_remembered(project: Project) -> None:
    groups: dict[str, str | None] = {f"case{i}": f"s{i // 2}" for i in range(CASES)}
    with pytest.raises(ProjectError, match="case5"):
        project.split(test=2, groups={k: v for k, v in groups.items() if k != "case5"})
    first = project.split(test=2, groups=groups)
    assert len({groups[c] for c in first.test}) == 1
    assert project.split(test=2) == first


def test_a_project_with_rounds_keeps_its_split(project: Project) -> None:
    project.start_round(None, "{}", project.snapshot().label_versions)
    with pytest.raises(ProjectError, match="new project"):
        project.split(test=2)


# -- label versions


def test_versions_never_change_and_restoring_makes_a_new_one(project: Project) -> None:
    first = project.label("case0")
    before = tree(project.case_path("case0") / "labels" / "v0001")
    changed = first.copy()
    changed[0, 0, :3] = 2
    name = project.add_label_version(
        "case0", changed, "Ada", draft="version:v0001", status=Status.CORRECTED, seconds=12.5
    )
    assert name == "v0002"
    assert project.case("case0").status is Status.CORRECTED
    np.testing.assert_array_equal(project.label("case0"), changed)
    np.testing.assert_array_equal(project.label("case0", "v0001"), first)
    assert project.restore("case0", "v0001", "Grace") == "v0003"
    np.testing.assert_array_equal(project.label("case0"), first)
    assert project.case("case0").status is Status.MANUAL
    assert tree(project.case_path("case0") / "labels" / "v0001") == before
    versions = project.label_versions("case0")
    assert [(v.version, v.author, v.draft, v.voxels_changed, v.seconds) for v in versions] == [
        ("v0001", "import", "imported", None, None),
        ("v0002", "Ada", "version:v0001", 3, 12.5),
        ("v0003", "Grace", "version:v0001", 0, None),
    ]
    assert [(e.kind, e.author, e.version) for e in project.history("case0")] == [
        (Event.IMPORTED, "import", "v0001"),
        (Event.CORRECTED, "Ada", "v0002"),
        (Event.RESTORED, "Grace", "v0003"),
    ]


def test_labels_that_do_not_fit_are_refused(project: Project) -> None:
    good = project.label("case0")
    for array, author, message in (
        (good[:-1], "Ada", "the training grid has"),
        (good.astype(np.float32), "Ada", "integers"),
        (np.full_like(good, 3), "Ada", "has class 3, the project's are 0 to 2"),
        (np.full(good.shape, -1), "Ada", "has class -1"),
        (good, "  ", "author"),
    ):
        with pytest.raises(ProjectError, match=message):
            project.add_label_version("case0", array, author)  # type: ignore[arg-type]
    for arguments, message in (
        ({"draft": "my head"}, "is no draft"),
        ({"status": Status.REJECTED}, "status can't be rejected"),
    ):
        with pytest.raises(ProjectError, match=message):
            project.add_label_version("case0", good, "Ada", **arguments)
    assert len(project.label_versions("case0")) == 1
    assert store.label_versions(project.case_path("case0")) == ("v0001",)


def test_a_damaged_label_is_noticed(project: Project) -> None:
    path, other = project.case_path("case0"), project.case_path("case1")
    before = project.label("case0")
    for part in ("labels", "scan"):
        np.testing.assert_array_equal(project.label("case0"), before)  # of the one that is left
        shutil.rmtree(path / part / "v0001")
        shutil.copytree(other / part / "v0001", path / part / "v0001")
    for read in (project.label, project.scan_label):
        with pytest.raises(ProjectError, match=r"case0.*damaged"):
            read("case0")


def test_rejecting_a_pseudo_label_leaves_a_persons_label(project: Project) -> None:
    project.split(labelled=3)
    labelled, hidden = project.snapshot().labelled[0], project.snapshot().unlabelled[0]
    project.reject(labelled, "Ada", "leaks into the ventricle")
    project.reject(hidden, "Ada", "leaks into the ventricle")
    project.skip(hidden, "Ada")
    assert project.case(labelled).status is Status.MANUAL
    assert project.case(hidden).status is Status.REJECTED
    assert hidden in project.snapshot().unlabelled
    assert [e.kind for e in project.history(hidden)][-2:] == [Event.REJECTED, Event.SKIPPED]
    project.add_label_version(
        hidden, project.label(labelled), "Ada", draft="round:0", status=Status.ACCEPTED
    )
    assert hidden in project.snapshot().labelled


# -- rounds


def test_a_round_keeps_the_labels_it_started_with(project: Project) -> None:
    project.split(labelled=2, validation=1, test=1)
    snapshot = project.snapshot()
    first = project.start_round(None, '{"a": 1}', snapshot.label_versions)
    assert (first.number, first.parent, first.outcome) == (0, None, RoundOutcome.RUNNING)
    assert (first.folder / "config.json").read_text() == '{"a": 1}'
    corrected = snapshot.labelled[0]
    project.add_label_version(corrected, np.ones(snapshot.shape, np.uint8), "Ada")
    project.add_label_version(snapshot.unlabelled[0], np.ones(snapshot.shape, np.uint8), "Ada")

    again = project.snapshot(0)
    assert (again.labelled, again.unlabelled, again.validation) == (
        snapshot.labelled,
        snapshot.unlabelled,
        snapshot.validation,
    )
    assert dict(again.label_versions) == dict(snapshot.label_versions)
    assert dict(project.round(0).label_versions) == dict(snapshot.label_versions)
    np.testing.assert_array_equal(again.arrays.label(corrected), project.label(corrected, "v0001"))
    assert project.snapshot().arrays.label(corrected).all()


def test_teachers_are_promoted_and_rolled_back(project: Project) -> None:
    assert project.teacher is None
    versions = project.snapshot().label_versions
    project.start_round(None, "{}", versions)
    with pytest.raises(ProjectError, match="isn't finished"):
        project.promote(0)
    project.finish_round(0, RoundOutcome.FINISHED, {"dice": 0.8}, promote=True)
    assert project.teacher is not None
    assert (project.teacher.number, project.teacher.metrics) == (0, {"dice": 0.8})
    project.start_round(0, "{}", versions)
    project.finish_round(1, "finished")
    project.promote(1, "Ada")
    assert project.teacher.number == 1
    project.promote(0, "Ada", "round 1 is worse on the left side")
    assert project.teacher.number == 0
    assert [e.round for e in project.history() if e.kind is Event.PROMOTED] == [0, 1, 0]
    with pytest.raises(ProjectError, match="round 1 is finished"):
        project.finish_round(1, RoundOutcome.FAILED)


def test_an_unfinished_round_is_found_resumed_or_left(project: Project) -> None:
    versions = project.snapshot().label_versions
    assert project.unfinished_round() is None
    project.start_round(None, "{}", versions)
    unfinished = project.unfinished_round()
    assert unfinished is not None
    assert unfinished.outcome is RoundOutcome.RUNNING
    project.finish_round(0, RoundOutcome.CANCELLED)
    assert project.resume_round(0).outcome is RoundOutcome.RUNNING
    with pytest.raises(ProjectError, match="no teacher"):
        project.start_round(0, "{}", versions)
    project.start_round(None, "{}", versions)  # the other one is left
    assert [r.outcome for r in project.rounds()] == [RoundOutcome.CANCELLED, RoundOutcome.RUNNING]
    project.finish_round(1, RoundOutcome.FINISHED)
    assert project.unfinished_round() is None


def test_rounds_take_only_labels_that_exist(project: Project) -> None:
    project.split(test=1)
    (test,) = [c.case_id for c in project.cases() if c.split is Split.TEST]
    with pytest.raises(ProjectError, match="neither trains nor validates"):
        project.start_round(None, "{}", {test: "v0001"})
    train = project.snapshot().labelled[0]
    with pytest.raises(ProjectError, match="FOREIGN KEY"):
        project.start_round(None, "{}", {train: "v0009"})
    assert project.rounds() == []
    assert project.start_round(None, "{}", {train: "v0001"}).number == 0


# -- kill -9

KILLED = """
    import os, signal, sys
    import numpy as np
    from pathlib import Path
    from napari_jrss.io.layouts import (discover)
    from napari_jrss.project.database import (Ledger)
    from napari_jrss.project.project import (Project)

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    if __name__ == "__main__":
        folder, moment, scans = sys.argv[1:]
        project = Project.open(folder)
        setattr(Ledger, moment, die)  # everything is written but the ledger's row
        if moment == "add_case":
            list(project.add_cases(discover(scans).cases, workers=1))
        elif moment == "add_version":
            project.add_label_version("case0", np.ones(project.grid.shape, np.uint8), "Ada")
        elif moment == "add_round":
            project.start_round(None, "{}", {})
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["add_case", "add_version", "add_round"])
def test_killed_before_the_ledgers_row_leaves_no_half_thing(
    moment: str, project_path: Path, tmp_path: Path, cohort: FoundCohort
) -> None:
    write_scan(tmp_path / "scans", "new", "RAS", seed=9)
    (project_path / "cases" / ".0123.partial").mkdir()  # as an earlier kill may have left
    with Project.open(project_path, read_only=True) as project:
        before = project.cases(), project.history()
    killed = run(tmp_path, KILLED, project_path, moment, tmp_path / "scans")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with Project.open(project_path) as project:
        assert (project.cases(), project.history()) == before
        assert project.rounds() == []
        assert not list((project_path / "cases").glob(".*.partial"))
        if moment == "add_case":
            assert project.case_path("new").exists()  # written in full, yet no case
            scan = FoundCase("new", tmp_path / "scans" / "images" / "new.nii.gz")
            assert [r.ok for r in project.add_cases([scan], workers=1)] == [True]
            assert project.case("new").label_version is None  # the new import, not the old
        elif moment == "add_version":
            kept = tree(project.case_path("case0") / "labels" / "v0002")
            zeros = np.zeros(project.grid.shape, np.uint8)
            assert project.add_label_version("case0", zeros, "Ada") == "v0003"
            assert tree(project.case_path("case0") / "labels" / "v0002") == kept
        else:
            (project_path / "rounds" / "0000" / ".ab12-config.json").touch()
            started = project.start_round(None, '{"a": 1}', {})
            assert started.number == 0
            assert (started.folder / "config.json").read_text() == '{"a": 1}'
            (project_path / "rounds" / "0001").mkdir()
            (project_path / "rounds" / "0001" / "weights").touch()
            with pytest.raises(ProjectError, match="the ledger has no round"):
                project.start_round(None, "{}", {})


def test_a_leftover_with_a_persons_labels_is_put_aside(project: Project) -> None:
    path = project.case_path("case0")
    other = project.case_path("other")
    shutil.copytree(path, other)
    shutil.copytree(other / "labels" / "v0001", other / "labels" / "v0002")
    before = tree(other)
    project._clear(other)
    assert not other.exists()
    (kept,) = (project.path / "leftovers").iterdir()
    assert tree(kept) == before


@pytest.mark.slow
def test_scans_of_other_sizes_brought_to_one_grid_keep_their_own_millimetres(
    tmp_path: Path,
) -> None:
    for name, edge in (("a", 16), ("b", 32)):
        ids = np.zeros((edge,) * 3, np.uint8)
        ids[4 : edge // 2, 4:8, 4:8] = 1
        for part, array in (("images", ids * 100.0), ("labels", ids)):
            (tmp_path / part).mkdir(exist_ok=True)
            scan = nib.Nifti1Image(array, np.eye(4))
            nib.save(scan, tmp_path / part / f"{name}.nii.gz")
    config = PreprocessingConfig(shape=(16, 16, 16), resize=True, reference_case="a")
    table = LabelTable.of_groups({"block": (1,)})
    with Project.create(tmp_path / "p.jrss", table, config) as project:
        results = list(project.add_cases(discover(tmp_path).cases, workers=1))
        assert all(result.ok for result in results)
        assert project.spacing_of("a") == (1, 1, 1)
        assert project.spacing_of("b") == (2, 2, 2)


@pytest.mark.slow
def test_a_scan_under_another_name_is_no_other_case(project: Project, tmp_path: Path) -> None:
    write_scan(tmp_path, "one", "LPS", seed=77)
    image, label = (tmp_path / part / "one.nii.gz" for part in ("images", "labels"))
    assert [r.ok for r in project.add_cases([FoundCase("one", image, label)], workers=1)] == [True]
    again = image.with_name("two.nii.gz")
    shutil.copy(image, again)
    [result] = project.add_cases([FoundCase("two", again)], workers=1)
    assert (result.ok, result.reason) == (False, "the same scan as one")
    assert "two" not in {case.case_id for case in project.cases()}
    assert not project.case_path("two").exists()
    assert [f.reason for f in project.failed_imports()] == ["the same scan as one"]
