"""The simulated annotator: what it counts is what it did, and it cheats nowhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from napari_jrss.app.review.editor import BY_HAND, Edit
from napari_jrss.cli import app
from napari_jrss.experiments.annotator.cohort import HIDDEN
from napari_jrss.experiments.annotator.correcting import DISPUTE_LEAST, Correcting, Task
from napari_jrss.experiments.annotator.costs import CostModel, Effort
from napari_jrss.experiments.annotator.hand import believed, strokes
from napari_jrss.experiments.annotator.loops import LOOPS
from napari_jrss.experiments.annotator.report import read_loops, write_annotator_report
from napari_jrss.experiments.annotator.run import FIRST, LoopRun, place_of, run_loop
from napari_jrss.experiments.annotator.session_work import AUTHOR, opened_session
from napari_jrss.experiments.folder import PROTOCOL
from napari_jrss.experiments.protocol import Protocol, ProtocolError, load_protocol
from napari_jrss.metrics import dice_per_class
from napari_jrss.project.project import Project
from napari_jrss.sample_data import make_case

pytestmark = pytest.mark.slow

GOAL = 0.75
PROTOCOL_OF_TESTS = {
    "title": "An annotator on phantoms",
    "data": {"synthetic": {"cases": 6, "shape": [16, 24, 16], "structures": 2}},
    "split": {"validation": 0, "test": 2},
    "seeds": [0],
    "preset": "smoke",
    "settings": {
        "segmentation": {"minimum_steps": 40},
        "joint": {"minimum_steps": 8, "registration_augmentation": 0},
        "screening": {"tau": 0.3, "learned_gate": False},
    },
    "annotator": {"cases": 3, "goal_dice": GOAL, "steps_on_labels": 8},
}
COSTS = CostModel()
UNLIKE = ("learning_cpu_s", "drafting_cpu_s")


def loop_here(protocol: Protocol, out: Path, run: LoopRun) -> None:
    """Run a loop in this process, which has denormal numbers again after it."""
    try:
        run_loop(protocol, out, "cpu", run)
    finally:
        torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    return Protocol.model_validate(PROTOCOL_OF_TESTS)


@pytest.fixture(scope="module")
def study(protocol: Protocol, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a study with one loop of each kind; one thread, as in its own processes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("annotator")
    (out / PROTOCOL).write_text(protocol.model_dump_json())
    for loop in (
        FIRST,
        *(LOOPS[name] for name in ("scratch", "propagation", "monai_label", "ours")),
    ):
        loop_here(protocol, out, LoopRun(loop, 0))
    yield out
    torch.set_num_threads(threads)


def rows_of(out: Path, name: str) -> list[dict[str, Any]]:
    return place_of(LoopRun(LOOPS[name], 0), out).rows()


# -- the hand


def test_a_stroke_goes_over_one_error_and_stays_inside_the_structure() -> None:
    wanted = np.zeros((20, 30), np.uint8)
    wanted[4:16, 4:12] = 1
    wanted[4:16, 20:28] = 1
    label = wanted.copy()
    label[6:14, 6:10] = 0  # missing in one part,
    label[5:15, 22:27] = 0  # and in the other;
    label[0:3, 14:18] = 2  # too much of another structure
    made = list(strokes(label, wanted, [1, 2], fine=False, costs=COSTS))
    assert sorted(each.value for each in made) == [0, 1, 1]
    for each in made:
        assert (wanted[each.painted] == each.value).all()
        label[each.painted] = each.value
    np.testing.assert_array_equal(label, wanted)
    assert list(strokes(label, wanted, [1, 2], fine=True, costs=COSTS)) == []


def test_errors_of_one_voxel_wait_for_fine_work_and_tiny_ones_stay() -> None:
    wanted = np.zeros((16, 16), np.uint8)
    wanted[4:12, 4:12] = 1
    label = wanted.copy()
    label[4, 4:12] = 0  # one voxel thin
    label[10:12, 11] = 0  # two voxels
    assert list(strokes(label, wanted, [1], fine=False, costs=COSTS)) == []
    (thin,) = strokes(label, wanted, [1], fine=True, costs=COSTS)
    assert thin.painted[4, 4:12].all()
    assert thin.path_voxels == 8


def test_many_errors_along_one_outline_are_one_stroke_where_that_is_quicker() -> None:
    wanted = np.zeros((24, 24), np.uint8)
    wanted[6:18, 6:18] = 1
    label = wanted.copy()
    for row in range(6, 18, 4):
        label[row : row + 3, 6] = label[row : row + 3, 17] = 0
    (whole,) = strokes(label, wanted, [1], fine=True, costs=COSTS)
    assert whole.path_voxels == 44  # the outline of 12 x 12 voxels
    assert (whole.painted & (label != wanted)).sum() == 18


def test_what_the_hand_believes_is_near_the_manual_label_and_not_equal_to_it() -> None:
    truth = make_case(0, (32, 32, 32), structures=10).labels
    at_once, again, other = (believed(truth, 11, 0.35, seed) for seed in ([0], [0], [1]))
    np.testing.assert_array_equal(at_once, again)
    assert (at_once != other).any()
    dice = dice_per_class(at_once, truth, 11)
    assert 0.6 < np.nanmin(dice) < np.nanmax(dice) < 0.99
    np.testing.assert_array_equal(believed(truth, 11, 0.0, [0]), truth)


def test_seconds_are_the_sum_of_what_they_went_into() -> None:
    effort = Effort(cases=1, looks=30, slices=4, strokes=9, path_voxels=70.0, keys=5, clicks=2)
    seconds = 10 + 30 * 0.7 + 4 * 1.6 + 9 * 1.3 + 70 / 1.4 * 0.1 + 5 * 0.3 + 2 * 2.7
    assert effort.seconds(COSTS) == pytest.approx(seconds)
    assert sum(effort.parts(COSTS).values()) == pytest.approx(seconds)


# -- its work in a session


@pytest.mark.parametrize("interpolate", [False, True])
def test_every_stroke_is_an_action_of_the_session_and_every_voxel_in_the_ledger(
    study: Path, tmp_path: Path, interpolate: bool
) -> None:
    begun = place_of(LoopRun(FIRST, 0), study).folder / "untaught.jrss"
    edits: list[Edit] = []
    with opened_session(shutil.copytree(begun, tmp_path / "brain.jrss"), "cpu") as session:
        project, review = session.workspace.open_project, session.review
        case_id = project.snapshot().unlabelled[0]
        review.open(case_id)
        review.wait()
        review.label_changed.connect(edits.append)
        truth = project.scan_label(case_id, HIDDEN)
        belief = believed(truth, 3, 0.3, [7])
        work = Correcting(review, Task(truth, belief, GOAL, 1, 3, COSTS))
        if interpolate:
            work.interpolate()
        work.brush()
        assert work.failing() == []
        painted = [edit for edit in edits if edit.name == BY_HAND]
        assert len(painted) == work.effort.strokes > 0
        touched = {int(i) for e in painted for i in np.unravel_index(e.indices, truth.shape)[1]}
        assert len(touched) <= work.effort.slices
        assert any(edit.name.startswith("interpolate") for edit in edits) == interpolate
        review.accept()
        review.wait()
        version = project.label_versions(case_id)[-1]
        assert version.voxels_changed == np.count_nonzero(project.scan_label(case_id))
        assert version.author == AUTHOR


def test_two_opinions_are_decided_dispute_by_dispute_and_only_for_the_better(
    study: Path, tmp_path: Path
) -> None:
    taught = place_of(LoopRun(FIRST, 0), study).project
    edits: list[Edit] = []
    with opened_session(shutil.copytree(taught, tmp_path / "brain.jrss"), "cpu") as session:
        project, review = session.workspace.open_project, session.review
        session.cohort.predict()
        session.workspace.inference.wait()
        case_id = project.snapshot().unlabelled[0]
        review.ahead.prepare([case_id])
        session.workspace.background.wait()
        review.open(case_id)
        review.wait()
        review.label_changed.connect(edits.append)
        truth = next(iter(review.open_case.drafts.values()))  # the propagated label is right
        work = Correcting(review, Task(truth, truth, 0.99, 1, 3, COSTS))
        voxels = [np.count_nonzero(review.open_case.editor.label == truth)]
        review.label_changed.connect(
            lambda _: voxels.append(np.count_nonzero(review.open_case.editor.label == truth))
        )
        work.choose_opinions()
        assert len(edits) > 0
        assert all(edit.name.startswith("as the ") for edit in edits)
        assert voxels == sorted(voxels)
        assert work.effort.keys >= len(edits)
        assert work.effort.looks == 2 * work.effort.keys
        large = [each for each in review.disputed.disputes if each.mask.sum() >= DISPUTE_LEAST]
        assert work.effort.keys == len(large)


def test_each_case_is_brought_to_the_goal_and_counted_as_in_the_ledger(study: Path) -> None:
    for name in ("scratch", "propagation", "monai_label", "ours"):
        rows = rows_of(study, name)
        assert [row["step"] for row in rows] == [0, 1, 2]
        path = place_of(LoopRun(LOOPS[name], 0), study).project
        with Project.open(path, read_only=True) as project:
            assert {row["case"] for row in rows} == {case.case_id for case in project.cases()}
            for row in rows:
                version = project.label_versions(row["case"])[-1]
                assert version.voxels_changed == row["effort"]["voxels"]
                assert version.draft == row["draft"]
                truth = project.scan_label(row["case"], HIDDEN)
                dice = dice_per_class(project.scan_label(row["case"]), truth, 3)
                np.testing.assert_allclose(dice, row["dice"])
                assert row["reached"] == (dice >= GOAL).all()
                assert row["by_case"].keys() == {each["case"] for each in rows}
        assert rows[-1]["cohort_dice"] == pytest.approx(np.mean([row["dice"] for row in rows]))
        assert rows[0]["effort"] == rows_of(study, "scratch")[0]["effort"]  # all begin alike


def test_training_never_sees_a_hidden_label(study: Path) -> None:
    for name in ("monai_label", "ours"):
        path = place_of(LoopRun(LOOPS[name], 0), study).project
        with Project.open(path, read_only=True) as project:
            trained = {
                (case_id, version)
                for entry in project.rounds()
                for case_id, version in entry.label_versions.items()
            }
            assert [entry.number for entry in project.rounds()] == [0, 1, 2]
            assert len(trained) == 2
            for case_id, version in trained:
                (found,) = (v for v in project.label_versions(case_id) if v.version == version)
                assert found.author == AUTHOR
                seen, hidden = (project.scan_label(case_id, v) for v in (version, HIDDEN))
                assert (seen != hidden).any()


def test_a_killed_loop_goes_on_and_ends_with_the_same_table(
    study: Path, protocol: Protocol, tmp_path: Path
) -> None:
    run = LoopRun(LOOPS["ours"], 0)
    for name in ("runs/start-seed0", PROTOCOL):
        (shutil.copytree if (study / name).is_dir() else shutil.copyfile)(
            study / name, tmp_path / name
        )
    command = (
        "from pathlib import Path; from napari_jrss.experiments.protocol import Protocol; "
        "from napari_jrss.experiments.annotator.run import *; "
        f"out = Path({str(tmp_path)!r}); "
        "protocol = Protocol.model_validate_json((out / 'protocol.json').read_text()); "
        "run_loop(protocol, out, 'cpu', LoopRun(LOOPS['ours'], 0))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", command], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    place, until = place_of(run, tmp_path), time.monotonic() + 120
    try:
        # While it learns from its second case: one row is kept, the next one isn't yet.
        while not (len(place.rows()) == 1 and place.pending_path.exists()):
            assert child.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert len(place.rows()) == 1
    loop_here(protocol, tmp_path, run)

    def comparable(out: Path) -> list[dict[str, Any]]:
        rows = rows_of(out, "ours")
        return [{name: row[name] for name in row if name not in UNLIKE} for row in rows]

    assert comparable(tmp_path) == comparable(study)


# -- the report and the command


def test_the_report_tells_seconds_strokes_and_parts_of_each_loop(study: Path) -> None:
    page = write_annotator_report(study)
    text = (page.parent / "tables.md").read_text()
    assert text.count("| napari-jrss |") == 3
    assert "Not run (seeds in brackets): teacher (0);" in text
    for result in read_loops(study):
        assert result.seconds == sorted(result.seconds)
        assert result.at(1.1) is None
    ours, scratch = (
        next(each for each in read_loops(study) if each.loop.name == name)
        for name in ("ours", "scratch")
    )
    level = min(ours.dice()[-1], scratch.dice()[-1])
    at = ours.at(level)
    assert at is not None
    assert ours.dice()[at] >= level
    assert {path.name for path in page.parent.glob("*.svg")} == {"curves.svg", "parts.svg"}
    assert "napari-jrss" in page.read_text()


def test_the_command_lists_the_loops_and_names_mistakes(tmp_path: Path) -> None:
    run = CliRunner().invoke
    listed = run(app, ["experiment", "annotator_synthetic", "--list"]).output.split()
    assert listed == [f"{name}-seed0" for name in LOOPS]
    only = run(app, ["experiment", "annotator_synthetic", "--list", "--only", "ours"])
    assert only.output.split() == ["ours-seed0"]
    wrong = dict(PROTOCOL_OF_TESTS, annotator={**PROTOCOL_OF_TESTS["annotator"], "costs": {"x": 1}})
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(wrong))
    refused = run(app, ["experiment", str(path), "--out", str(tmp_path / "out")])
    assert isinstance(refused.exception, ProtocolError)
    assert str(refused.exception).startswith("costs: there is no x; known: case_s, click_s, key_s")
    assert not (tmp_path / "out").exists()
    both = dict(PROTOCOL_OF_TESTS, runs=[{"methods": ["mono"], "labelled": [1]}])
    path.write_text(json.dumps(both))
    with pytest.raises(ProtocolError, match="give either runs or an annotator"):
        load_protocol(path)
