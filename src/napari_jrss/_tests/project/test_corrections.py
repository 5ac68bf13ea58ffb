"""Corrections journalled while they are made: kill -9, torn tails, full disks, hostile files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_jrss.errors import ProjectError
from napari_jrss.project.corrections import Journal, discard, recover, unsaved
from napari_jrss.project.project import Project
from napari_jrss.project.records import Status


@pytest.fixture
def journal(project: Project) -> Journal:
    """A journal of case0 begun from its imported label."""
    return Journal.start(project, "case0", "version:v0001", project.label("case0"), "Ada")


def painted(project: Project, *strokes: tuple[list[int], int]) -> np.ndarray:
    label = project.label("case0", "v0001")
    for indices, value in strokes:
        label.flat[indices] = value
    return label


def test_what_is_recorded_is_recovered(project: Project, journal: Journal) -> None:
    with journal:
        journal.record([0, 1, 2], 2)
        journal.record(np.array([1], np.uint32), np.array([1]))
        undone = painted(project, ([0, 2], 2), ([1, 5], 1))
        journal.checkpoint(undone)
        journal.record([], [])
    found = recover(project, "case0")
    np.testing.assert_array_equal(found.label, undone)
    np.testing.assert_array_equal(found.base, project.label("case0"))
    assert (found.draft, found.author, found.voxels_changed) == ("version:v0001", "Ada", 4)
    (entry,) = unsaved(project)
    assert (entry.case_id, entry.author, entry.voxels_changed) == ("case0", "Ada", 4)
    assert entry.bytes == journal.path.stat().st_size
    assert entry.problem == ""
    assert entry.started <= entry.last_change
    with pytest.raises(ProjectError, match="is closed"):
        journal.record([0], 1)


def test_accepted_structures_are_kept_without_a_change(project: Project, journal: Journal) -> None:
    journal.note_accepted({1, 2})
    journal.note_accepted({2})
    with pytest.raises(ValueError, match="structures 1 to 2"):
        journal.note_accepted({0})
    journal.record([0], 2)
    journal.checkpoint(project.label("case0"))
    journal.close()
    (entry,) = unsaved(project)
    assert (entry.voxels_changed, entry.accepted) == (0, {2})
    with pytest.raises(ProjectError, match="recover or discard"):
        Journal.start(project, "case0", "blank", project.label("case0"), "Grace")
    resumed, found = Journal.resume(project, "case0")
    assert found.accepted == {2}
    resumed.accept(project.label("case0"))
    assert unsaved(project) == []


def test_changes_are_on_the_disk_within_the_second(project: Project, journal: Journal) -> None:
    journal.record(np.arange(50), 1)
    time.sleep(1)
    found = recover(project, "case0")  # not closed: as after kill -9
    assert (found.label.flat[:50] == 1).all()
    journal.discard()
    assert unsaved(project) == []
    assert list((project.path / "journal").iterdir()) == []


def test_flushing_waits_for_the_disk(project: Project, journal: Journal) -> None:
    for i in range(20):
        journal.record([i], 2)
        journal.flush()
        assert (recover(project, "case0").label.flat[: i + 1] == 2).all()
    journal.discard()


def test_recording_costs_the_painter_nothing(project: Project, journal: Journal) -> None:
    label = project.label("case0")
    indices = np.arange(0, label.size, 2)
    spent = []
    for _ in range(50):
        started = time.perf_counter()
        journal.record(indices, 1)
        spent.append(time.perf_counter() - started)
    assert np.median(spent) < 1e-3
    journal.discard()


def test_accepting_makes_a_version_and_removes_the_journal(
    project: Project, journal: Journal
) -> None:
    label = painted(project, ([0, 1, 2], 2))
    journal.record([0, 1], 2)  # the last stroke is still on its way
    assert journal.accept(label) == "v0002"
    assert not journal.path.exists()
    last = project.label_versions("case0")[-1]
    assert (last.status, last.author, last.draft) == (Status.CORRECTED, "Ada", "version:v0001")
    assert last.voxels_changed == 3
    assert last.seconds is not None
    np.testing.assert_array_equal(project.label("case0"), label)

    untouched = Journal.start(project, "case0", "round:0", label, "Ada")
    untouched.accept(label)
    assert project.case("case0").status is Status.ACCEPTED
    blank = Journal.start(project, "case0", "blank", np.zeros_like(label), "Ada")
    blank.accept(label)
    assert project.case("case0").status is Status.MANUAL


def test_an_acceptance_that_fails_leaves_the_journal_at_work(
    project: Project, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ProjectError("no room")

    label = painted(project, ([0, 1, 2], 2))
    with monkeypatch.context() as patch:
        patch.setattr(Project, "add_label_version", fails)
        with pytest.raises(ProjectError, match="no room"):
            journal.accept(label)
    journal.record([9], 1)
    journal.close()
    np.testing.assert_array_equal(
        recover(project, "case0").label, painted(project, ([0, 1, 2], 2), ([9], 1))
    )


def test_a_journal_whose_label_is_in_the_ledger_is_not_offered(
    project: Project, journal: Journal
) -> None:
    """As a kill between the version and the removal of the journal leaves it."""
    kept = journal.path.with_name("kept")
    journal.record([0, 1, 2], 2)
    journal.close()
    kept.write_bytes(journal.path.read_bytes())
    again, found = Journal.resume(project, "case0")
    again.accept(found.label)
    kept.rename(journal.path)
    assert unsaved(project) == []
    Journal.start(project, "case0", "blank", found.label, "Ada").discard()


def test_a_second_journal_waits_until_the_first_is_settled(
    project: Project, journal: Journal
) -> None:
    base = project.label("case0")
    journal.close()
    journal = Journal.start(project, "case0", "version:v0001", base, "Ada")  # nothing was lost
    journal.record([0], 2)
    journal.close()
    with pytest.raises(ProjectError, match="recover or discard"):
        Journal.start(project, "case0", "blank", base, "Grace")
    resumed, found = Journal.resume(project, "case0")
    assert found.voxels_changed == 1
    assert (resumed.draft, resumed.author) == ("version:v0001", "Ada")
    assert resumed.seconds >= found.seconds
    resumed.record([1], 2)
    resumed.close()
    assert recover(project, "case0").voxels_changed == 2
    discard(project, "case0")
    Journal.start(project, "case0", "blank", base, "Grace").discard()
    with pytest.raises(ProjectError, match="no such journal"):
        recover(project, "case0")


def test_a_pause_is_no_work(
    project: Project, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = time.monotonic()
    for later in (10, 20, 3620):
        monkeypatch.setattr(time, "monotonic", lambda at=moment + later: at)
        journal.record([0], 1)
    assert journal.seconds == pytest.approx(50, abs=1)
    monkeypatch.undo()
    journal.close()
    assert recover(project, "case0").seconds == pytest.approx(50, abs=1)


def test_what_cannot_be_painted_is_refused(project: Project, journal: Journal) -> None:
    base = project.label("case0")
    for indices, values in (([base.size], 1), ([-1], 1), ([0], 3), ([0], -1), ([0], 0.5)):
        with pytest.raises(ValueError, match="case case0"):
            journal.record(indices, values)
    with pytest.raises(ValueError, match="shape"):
        journal.checkpoint(base[1:])
    journal.close()
    assert recover(project, "case0").voxels_changed == 0
    for arguments, message in (
        (("case9", "blank", base, "Ada"), "no case 'case9'"),
        (("../x", "blank", base, "Ada"), "no case"),
        (("case1", "my head", base, "Ada"), "drawn from"),
        (("case1", "blank", base, " "), "author"),
        (("case1", "blank", base[1:], "Ada"), "training grid"),
        (("case1", "blank", base + 2, "Ada"), "has class"),
    ):
        with pytest.raises(ProjectError, match=message):
            Journal.start(project, *arguments)
    assert not (project.path / "journal" / "case1.journal").exists()


def test_a_project_open_read_only_can_look_but_not_journal(
    project_path: Path,
) -> None:
    with Project.open(project_path) as project:
        journal = Journal.start(project, "case0", "blank", project.label("case0"), "Ada")
        journal.record([0], 2)
        journal.close()
    with Project.open(project_path, read_only=True) as project:
        assert recover(project, "case0").label.flat[0] == 2
        assert len(unsaved(project)) == 1
        for call in (
            lambda: Journal.start(project, "case1", "blank", project.label("case1"), "Ada"),
            lambda: Journal.resume(project, "case0"),
            lambda: discard(project, "case0"),
        ):
            with pytest.raises(ProjectError, match="read-only"):
                call()


def test_a_link_is_not_followed(project: Project, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (project.path / "journal").symlink_to(tmp_path / "outside")
    with pytest.raises(ProjectError, match="a link"):
        Journal.start(project, "case0", "blank", project.label("case0"), "Ada")
    with pytest.raises(ProjectError, match="a link"):
        unsaved(project)


# -- damage


@pytest.fixture(scope="module")
def journalled(made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a journal of three records, each voxel 0 to 2 getting its class at a time."""
    import shutil

    path = Path(shutil.copytree(made_once, tmp_path_factory.mktemp("journalled") / "a.jrss"))
    with Project.open(path) as project:
        zeros = np.zeros(project.grid.shape, np.uint8)
        with Journal.start(project, "case0", "blank", zeros, "Ada") as journal:
            for i in range(3):
                journal.record([i], 2)
                journal.checkpoint(
                    np.pad([2] * (i + 1), (0, zeros.size - i - 1)).reshape(zeros.shape)
                )
    return path


@pytest.fixture(scope="module")
def reader(journalled: Path):
    with Project.open(journalled, read_only=True) as project:
        yield project


def readable(project: Project) -> np.ndarray | None:
    """The journal's label, or None where an error names the file."""
    try:
        return recover(project, "case0").label
    except ProjectError as error:
        if "case0.journal" not in str(error):
            raise
        return None


def test_every_cut_of_the_file_is_read_up_to_the_last_whole_record(
    reader: Project, journalled: Path
) -> None:
    path = journalled / "journal" / "case0.journal"
    whole = path.read_bytes()
    try:
        reached = set()
        start = whole.index(b"}") + 1  # of the first label
        for end in range(0, len(whole), 1):
            path.write_bytes(whole[:end])
            label = readable(reader)
            if label is None:
                assert reached == set()
            else:
                assert end > start
                count = int(np.count_nonzero(label))
                assert (label.flat[:count] == 2).all()
                reached.add(count)
            assert path.read_bytes() == whole[:end]
        path.write_bytes(whole)
        assert np.count_nonzero(recover(reader, "case0").label) == 3
        assert reached >= {0, 1, 2}
    finally:
        path.write_bytes(whole)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_journal_is_read_so_far_or_named(
    data: st.DataObject, reader: Project, journalled: Path
) -> None:
    path = journalled / "journal" / "case0.journal"
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
            assert "case0.journal" in entry.problem
        else:
            assert label.shape == reader.grid.shape
            assert label.max() <= 2
        assert path.read_bytes() == content
    finally:
        path.write_bytes(whole)


def test_a_journal_of_another_version_is_told_from_a_damaged_one(
    project: Project, journal: Journal
) -> None:
    journal.close()
    whole = journal.path.read_bytes()
    for start, message in ((b"napari-jrss journal 9\n", "another version"), (b"?", "damaged")):
        journal.path.write_bytes(start + whole[len(start) :])
        with pytest.raises(ProjectError, match=message):
            recover(project, "case0")


def test_a_journal_in_the_wrong_place_is_named(project: Project, journal: Journal) -> None:
    journal.record([0], 1)
    journal.close()
    journal.path.rename(journal.path.with_name("case1.journal"))
    (project.path / "journal" / "gone.journal").write_bytes(b"?")
    (project.path / "journal" / "note.txt").write_text("not ours")
    problems = {entry.case_id: entry.problem for entry in unsaved(project)}
    assert set(problems) == {"case1", "gone"}
    assert "of another case, 'case0'" in problems["case1"]
    assert "gone.journal" in problems["gone"]
    with pytest.raises(ProjectError, match="recover or discard"):
        Journal.start(project, "case1", "blank", project.label("case1"), "Ada")
    assert len(list((project.path / "journal").iterdir())) == 3


# -- kill -9 and a full disk

PAINTER = """
    import sys, time
    import numpy as np
    from napari_jrss.project.corrections import (Journal)
    from napari_jrss.project.project import (Project)

    project = Project.open(sys.argv[1])
    label = np.zeros(project.grid.shape, np.uint8)
    journal = Journal.start(project, "case0", "blank", label, "Ada")
    for i in range(label.size):
        journal.record([i], 2)
        print(i, time.time(), flush=True)
        time.sleep(0.002)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
@pytest.mark.parametrize("delay", [0.0, 0.3, 0.9, 1.7])
def test_kill_costs_at_most_the_last_second(
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
        killed = time.time()
        process.wait()
    strokes = [line.split() for line in (tmp_path / "strokes").read_text().splitlines(True)]
    old = [int(i) for i, at in strokes if float(at) < killed - 1]
    with Project.open(project_path) as project:
        found = recover(project, "case0")
        count = found.voxels_changed
        assert (found.label.flat[:count] == 2).all()
        assert count >= len(old)
        resumed, _ = Journal.resume(project, "case0")
        resumed.record([found.label.size - 1], 1)
        resumed.close()
        assert recover(project, "case0").voxels_changed == count + 1


FULL = """
    import resource, signal, sys, time
    import numpy as np
    from napari_jrss.project.corrections import (Journal, recover)
    from napari_jrss.project.project import (Project)

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    project = Project.open(sys.argv[1])
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, project.grid.shape).astype(np.uint8)
    journal = Journal.start(project, "case0", "blank", label, "Ada")
    journal.record([0, 1], 2)
    time.sleep(0.6)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = journal.path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, unlimited[1]))
    journal.record(np.arange(500), rng.integers(0, 3, 500))
    for _ in range(100):
        time.sleep(0.05)
        if journal.error is not None:
            break
    try:
        journal.record([3], 1)
    except ValueError as error:
        print(error)
    print(recover(project, "case0").voxels_changed <= 2)  # what was whole is whole
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    journal.close()  # there is room again: nothing was lost
    print(recover(project, "case0").label.flat[3] == 1)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no RLIMIT_FSIZE")
def test_a_full_disk_is_told_and_nothing_is_lost_when_there_is_room_again(
    project_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "full.py").write_text(textwrap.dedent(FULL))
    command = [sys.executable, str(tmp_path / "full.py"), str(project_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    told, whole, later = result.stdout.splitlines()
    assert "case0.journal: corrections can't be written (File too large)" in told
    assert (whole, later) == ("True", "True")
