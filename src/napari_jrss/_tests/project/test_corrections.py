"""Corrections saved while they are made: kill -9, full disks, hostile files, the former format."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_jrss.errors import ProjectError
from napari_jrss.project.corrections import Corrections, discard, recover, recoverable, unsaved
from napari_jrss.project.project import Project
from napari_jrss.project.records import Status

from .former import FORMAT, former_file, record, write_former_file


@pytest.fixture
def corrections(project: Project) -> Corrections:
    """Corrections of case0 begun from its imported label."""
    return Corrections(project, "case0", "version:v0001", project.scan_label("case0"), "Ada")


def painted(project: Project, *strokes: tuple[list[int], int]) -> np.ndarray:
    label = project.scan_label("case0", "v0001")
    for indices, value in strokes:
        label.flat[indices] = value
    return label


def saved(corrections: Corrections, label: np.ndarray, **state: object) -> None:
    corrections.save(dict(enumerate(label)), **state)


def test_what_is_saved_is_recovered(project: Project, corrections: Corrections) -> None:
    assert not corrections.on_disk
    assert unsaved(project) == []
    saved(corrections, painted(project, ([0, 1, 2], 2)), seconds=3.5)
    label = painted(project, ([0, 2], 2), ([1, 5], 1))
    corrections.save({0: label[0]}, seconds=7.25)
    corrections.save({}, seconds=8.5)
    found = recover(project, "case0")
    np.testing.assert_array_equal(found.label, label)
    np.testing.assert_array_equal(found.base, project.scan_label("case0"))
    assert (found.info.draft, found.info.author) == ("version:v0001", "Ada")
    assert (found.info.seconds, found.voxels_changed) == (8.5, 4)
    assert found.info.started <= found.info.last_change
    (entry,) = unsaved(project)
    assert (entry.case_id, entry.author, entry.voxels_changed) == ("case0", "Ada", 4)
    assert entry.problem == ""
    corrections.discard()
    assert unsaved(project) == []
    assert list((project.path / "journal").iterdir()) == []


def test_accepted_structures_are_kept_without_a_change(
    project: Project, corrections: Corrections
) -> None:
    corrections.save({}, accepted={1, 2})
    corrections.save({}, accepted={2})
    with pytest.raises(ValueError, match="structures are 1 to 2"):
        corrections.save({}, accepted={0})
    (entry,) = unsaved(project)
    assert (entry.voxels_changed, entry.accepted) == (0, {2})
    second = Corrections(project, "case0", "blank", project.scan_label("case0"), "Grace")
    with pytest.raises(ProjectError, match="recover or discard"):
        second.save({}, accepted={1})
    found = recover(project, "case0")
    assert found.info.accepted == {2}
    Corrections.resume(project, found).accept(project.scan_label("case0"))
    assert unsaved(project) == []


def test_a_save_takes_little_time_and_the_file_stays_small(
    project: Project, corrections: Corrections
) -> None:
    label = painted(project)
    saved(corrections, label)
    (file,) = (project.path / "journal").iterdir()
    size, spent = file.stat().st_size, []
    for i in range(100):
        label.flat[i] = i % 3
        started = time.perf_counter()
        corrections.save({0: label[0]})
        spent.append(time.perf_counter() - started)
    assert np.median(spent) < 0.1
    assert file.stat().st_size < size + 20_000


def test_accepting_makes_a_version_and_removes_the_file(
    project: Project, corrections: Corrections
) -> None:
    label = painted(project, ([0, 1, 2], 2))
    corrections.save({0: label[0]}, seconds=61.23)
    assert corrections.accept(label) == "v0002"
    assert list((project.path / "journal").iterdir()) == []
    last = project.label_versions("case0")[-1]
    assert (last.status, last.author, last.draft) == (Status.CORRECTED, "Ada", "version:v0001")
    assert (last.voxels_changed, last.seconds) == (3, 61.2)
    np.testing.assert_array_equal(project.scan_label("case0"), label)

    Corrections(project, "case0", "round:0", label, "Ada").accept(label, "Grace", 5.0)
    last = project.label_versions("case0")[-1]
    assert (last.status, last.author, last.seconds) == (Status.ACCEPTED, "Grace", 5.0)
    Corrections(project, "case0", "blank", np.zeros_like(label), "Ada").accept(label)
    assert project.case("case0").status is Status.MANUAL


def test_an_acceptance_that_fails_leaves_the_corrections(
    project: Project, corrections: Corrections, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ProjectError("the disk is full")

    label = painted(project, ([0, 1, 2], 2))
    corrections.save({0: label[0]})
    with monkeypatch.context() as patch:
        patch.setattr(Project, "add_label_version", fails)
        with pytest.raises(ProjectError, match="the disk is full"):
            corrections.accept(label)
    label.flat[9] = 1
    corrections.save({0: label[0]})
    np.testing.assert_array_equal(recover(project, "case0").label, label)


def test_corrections_whose_label_is_in_the_ledger_are_not_offered(
    project: Project, corrections: Corrections, tmp_path: Path
) -> None:
    """As a kill between the version and the removal of the file leaves them."""
    label = painted(project, ([0, 1, 2], 2))
    saved(corrections, label)
    path = project.corrections_path("case0")
    shutil.copy(path, tmp_path / "kept")
    corrections.accept(label)
    shutil.copy(tmp_path / "kept", path)
    assert unsaved(project) == []
    assert recoverable(project, "case0") is None
    label[1] = 1
    saved(Corrections(project, "case0", "blank", label, "Ada"), 0 * label)  # takes its place
    assert recover(project, "case0").info.draft == "blank"


def test_later_corrections_wait_until_the_earlier_ones_are_settled(
    project: Project, corrections: Corrections
) -> None:
    base, label = project.scan_label("case0"), painted(project, ([0], 2))
    saved(corrections, base)
    again = Corrections(project, "case0", "version:v0001", base, "Ada")
    saved(again, label, seconds=12.0)  # nothing was lost
    blank = Corrections(project, "case0", "blank", base, "Grace")
    with pytest.raises(ProjectError, match="recover or discard"):
        saved(blank, label)
    resumed = Corrections.resume(project, recover(project, "case0"))
    assert (resumed.on_disk, resumed.seconds) == (True, 12.0)
    resumed.save({0: painted(project, ([0, 1], 2))[0]})
    found = recover(project, "case0")
    assert (found.voxels_changed, found.info.draft, found.info.author) == (
        *(2, "version:v0001", "Ada"),
    )
    discard(project, "case0")
    saved(blank, label)
    blank.discard()
    with pytest.raises(ProjectError, match="there are no corrections"):
        recover(project, "case0")


def test_what_cannot_be_painted_is_refused(project: Project, corrections: Corrections) -> None:
    base = project.scan_label("case0")
    for slices in (
        *({len(base): base[0]}, {-1: base[0]}, {0: base[0][1:]}, {0: base[0] + 3}),
        *({0: base[0].astype(int) - 5}, {0: base[0] * 0.5}),
    ):
        with pytest.raises(ValueError, match="case case0"):
            corrections.save(slices)
    assert unsaved(project) == []
    for arguments, message in (
        (("case9", "blank", base, "Ada"), "no case 'case9'"),
        (("../x", "blank", base, "Ada"), r"no case '\.\./x'"),
        (("case1", "my head", base, "Ada"), "is no draft"),
        (("case1", "blank", base, " "), "author"),
        (("case1", "blank", base[1:], "Ada"), "the scan has"),
        (("case1", "blank", base + 2, "Ada"), "has class"),
    ):
        with pytest.raises(ProjectError, match=message):
            Corrections(project, *arguments).save({0: base[0]})
    assert not project.corrections_path("case1").exists()


def test_a_project_open_read_only_can_look_but_not_save(project_path: Path) -> None:
    with Project.open(project_path) as project:
        label = project.scan_label("case0")
        saved(Corrections(project, "case0", "blank", label, "Ada"), 0 * label)
    with Project.open(project_path, read_only=True) as project:
        found = recover(project, "case0")
        assert not found.label.any()
        assert len(unsaved(project)) == 1
        for call in (
            lambda: saved(Corrections(project, "case1", "blank", label, "Ada"), label),
            lambda: Corrections.resume(project, found),
            lambda: discard(project, "case0"),
        ):
            with pytest.raises(ProjectError, match="read-only"):
                call()


def test_a_link_is_not_followed(project: Project, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (project.path / "journal").symlink_to(tmp_path / "outside")
    with pytest.raises(ProjectError, match="a symbolic link"):
        Corrections(project, "case0", "blank", project.scan_label("case0"), "Ada")
    with pytest.raises(ProjectError, match="a symbolic link"):
        unsaved(project)


# -- damage


@pytest.fixture(scope="module")
def with_corrections(made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(shutil.copytree(made_once, tmp_path_factory.mktemp("corrected") / "a.jrss"))
    with Project.open(path) as project:
        label = project.scan_label("case0")
        corrections = Corrections(project, "case0", "blank", label, "Ada")
        for _ in range(3):
            label = (label + 1) % 3
            saved(corrections, label, accepted={1})
    return path


@pytest.fixture(scope="module")
def reader(with_corrections: Path):
    with Project.open(with_corrections, read_only=True) as project:
        yield project


def readable(project: Project) -> np.ndarray | None:
    """The corrections' label, or None where an error names the file."""
    try:
        return recover(project, "case0").label
    except ProjectError as error:
        if f"{project.path}/journal/case0." not in str(error):
            raise
        return None


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_is_read_or_named(data: st.DataObject, reader: Project) -> None:
    path = reader.corrections_path("case0")
    whole = path.read_bytes()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    try:
        path.write_bytes(content)
        label = readable(reader)
        if label is None:
            (entry,) = unsaved(reader)
            assert "case0.sqlite" in entry.problem
        else:
            assert label.shape == reader.attributes("case0").transform.scan_shape
            assert label.max() <= 2
    finally:
        path.write_bytes(whole)


def test_a_file_that_was_cut_is_named(reader: Project) -> None:
    path = reader.corrections_path("case0")
    whole = path.read_bytes()
    try:
        for end in range(0, len(whole), 512):
            path.write_bytes(whole[:end])
            assert readable(reader) is None
    finally:
        path.write_bytes(whole)
    assert readable(reader) is not None


def test_a_file_of_a_newer_version_is_told_from_a_damaged_one(
    project: Project, corrections: Corrections
) -> None:
    saved(corrections, 0 * project.scan_label("case0"))
    path = project.corrections_path("case0")
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(ProjectError, match=r"case0\.sqlite: made by a newer version"):
        recover(project, "case0")
    path.write_bytes(b"?")
    with pytest.raises(ProjectError, match=r"case0\.sqlite: "):
        recover(project, "case0")


def test_a_file_in_the_wrong_place_is_named(project: Project, corrections: Corrections) -> None:
    saved(corrections, 0 * project.scan_label("case0"))
    project.corrections_path("case0").rename(project.corrections_path("case1"))
    (project.path / "journal" / "gone.sqlite").write_bytes(b"?")
    (project.path / "journal" / "note.txt").write_text("not ours")
    problems = {entry.case_id: entry.problem for entry in unsaved(project)}
    assert set(problems) == {"case1", "gone"}
    assert "of another case, 'case0'" in problems["case1"]
    assert "gone.sqlite" in problems["gone"]
    label = project.scan_label("case1")
    with pytest.raises(ProjectError, match="of another case"):
        saved(Corrections(project, "case1", "blank", label, "Ada"), label)
    assert len(list((project.path / "journal").iterdir())) == 3


# -- the format that came before


INSIDE = 8 * 16 * 16 + 8 * 16 + 8  # a voxel of the training grid that the scan covers


def former(project: Project, *records: bytes) -> bytes:
    label = project.label("case0")
    return former_file("case0", "version:v0001", label, "Ada", 3, *records)


def test_a_file_of_the_former_format_is_recovered_and_goes_on_in_the_new_one(
    project: Project,
) -> None:
    pair = [INSIDE, INSIDE + 1]
    records = (
        record(1.7e9, 2.5, pair, b"\2\1"),
        record(1.7e9 + 60, 9.5, pair[1:], b"\2", {2, 1}),
    )
    path = write_former_file(project.path, "case0", former(project, *records))
    base, drawn = project.scan_label("case0"), project.label("case0")
    drawn.flat[pair] = 2
    label = project.attributes("case0").transform.paint(base, project.label("case0"), drawn)
    (entry,) = unsaved(project)
    changed = np.count_nonzero(label != base)
    assert changed > 0
    assert (entry.author, entry.voxels_changed, entry.accepted) == ("Ada", changed, {1, 2})
    assert entry.last_change == "2023-11-14T22:14:20+00:00"
    found = recover(project, "case0")
    np.testing.assert_array_equal(found.label, label)
    np.testing.assert_array_equal(found.base, base)
    assert (found.info.draft, found.info.seconds) == ("version:v0001", 9.5)
    with pytest.raises(ProjectError, match="recover or discard"):
        Corrections(project, "case0", "blank", label, "Grace").save({0: label[0]})
    resumed = Corrections.resume(project, found)
    assert not path.exists()
    label.flat[5] = 1
    resumed.save({0: label[0]}, seconds=11.0)
    np.testing.assert_array_equal(recover(project, "case0").label, label)
    resumed.accept(label)
    assert list((project.path / "journal").iterdir()) == []


def test_every_cut_of_a_former_file_is_read_up_to_the_last_whole_record(project: Project) -> None:
    blank = np.zeros(project.grid.shape, np.uint8)
    records = [record(1.7e9 + i, i, [INSIDE + i], b"\2") for i in range(3)]
    whole = former_file("case0", "blank", blank, "Ada", 3, *records)
    reached = set()
    for end in range(len(whole) + 1):
        write_former_file(project.path, "case0", whole[:end])
        label = readable(project)
        if label is None:
            assert reached == set()
        else:
            count = int(np.count_nonzero(label))
            assert (label[label > 0] == 2).all()
            reached.add(count)
    assert reached == {0, 1, 2, 3}


def test_a_damaged_file_of_the_former_format_is_named_and_can_be_given_up(
    project: Project,
) -> None:
    whole = former(project)
    other = former_file("case1", "blank", project.label("case0"), "Ada", 3)
    smaller = former_file("case0", "blank", project.label("case0")[1:], "Ada", 3)
    for content, message in (
        (whole[: len(FORMAT) + 20], "beginning is damaged"),
        (whole[:-4], "first label is damaged"),
        (FORMAT.replace(b"2", b"9") + whole[len(FORMAT) :], "or a damaged one"),
        (other, "another case, 'case1'"),
        (smaller, "made for a grid of"),
    ):
        path = write_former_file(project.path, "case0", content)
        (entry,) = unsaved(project)
        assert f"{path}: " in entry.problem
        assert message in entry.problem
    discard(project, "case0")
    assert not path.exists()
    assert unsaved(project) == []


# -- kill -9 and a full disk

PAINTER = """
    import sys, time
    import numpy as np
    from napari_jrss.project.corrections import (Corrections)
    from napari_jrss.project.project import (Project)

    project = Project.open(sys.argv[1])
    label = np.zeros(project.attributes("case0").transform.scan_shape, np.uint8)
    corrections = Corrections(project, "case0", "blank", label.copy(), "Ada")
    for i in range(label.size):
        label.flat[i] = 2
        z = i // label[0].size
        corrections.save({z: label[z]})
        print(i, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
@pytest.mark.parametrize("delay", [0.0, 0.3, 0.9])
def test_kill_costs_at_most_the_change_that_is_being_saved(
    delay: float, project_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "painter.py").write_text(textwrap.dedent(PAINTER))
    command = [sys.executable, str(tmp_path / "painter.py"), str(project_path)]
    with (tmp_path / "strokes").open("w") as out:
        process = subprocess.Popen(command, stdout=out)
        while not (tmp_path / "strokes").read_text():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    strokes = (tmp_path / "strokes").read_text().count("\n")
    with Project.open(project_path) as project:
        found = recover(project, "case0")
        count = found.voxels_changed
        assert (found.label.flat[:count] == 2).all()
        assert strokes <= count <= strokes + 1
        found.label.flat[-1] = 1
        last = len(found.label) - 1
        Corrections.resume(project, found).save({last: found.label[last]})
        assert recover(project, "case0").voxels_changed == count + 1


FULL = """
    import resource, signal, sys
    import numpy as np
    from napari_jrss.project.corrections import (Corrections, recover)
    from napari_jrss.project.project import (Project)

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    project = Project.open(sys.argv[1])
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, project.attributes("case0").transform.scan_shape).astype(np.uint8)
    corrections = Corrections(project, "case0", "blank", label.copy(), "Ada")
    label[0, 0, :2] = 2
    corrections.save({0: label[0]})
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, unlimited[1]))
    label[1:] = 1
    try:
        corrections.save(dict(enumerate(label)))
    except ValueError as error:
        print(error)
    print(recover(project, "case0").voxels_changed <= 2)  # what was whole is whole
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    corrections.save(dict(enumerate(label)))  # the disk has space again: nothing was lost
    print((recover(project, "case0").label == label).all())
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no RLIMIT_FSIZE")
def test_a_full_disk_is_told_and_nothing_is_lost_when_there_is_space_again(
    project_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "full.py").write_text(textwrap.dedent(FULL))
    command = [sys.executable, str(tmp_path / "full.py"), str(project_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    told, whole, later = result.stdout.splitlines()
    assert "case0.sqlite: corrections can't be written (" in told
    assert (whole, later) == ("True", "True")
