"""The commands of Registration as a script uses them, with a network that translates."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from napari_jrss._tests.app.translating import add_translating_round
from napari_jrss._tests.inference.test_engines import add_package
from napari_jrss.app.pairs.comparison import compare_engines
from napari_jrss.app.pairs.files import write_pair
from napari_jrss.app.pairs.pairs import Comparison, RegisteredVolumes
from napari_jrss.app.pairs.registering import (
    RegistrationReport,
    project_registrar,
    propagate,
)
from napari_jrss.app.runner import BusyError, JobState
from napari_jrss.app.session import Session
from napari_jrss.errors import ProjectError
from napari_jrss.inference.engines import EngineError
from napari_jrss.inference.predict import Votes, follow, mirror_image, warp_array
from napari_jrss.io.read import read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.metrics import dice_per_class
from napari_jrss.project.project import Project
from napari_jrss.training.symmetry import mirror_of_votes

SHIFT = (0, 2, -1)
FAILING = """
import numpy as np
from napari_jrss.inference.engines import Engine
CALLS = []
def field(moving, fixed, *_):
    CALLS.append(fixed)
    if len(CALLS) % 2:
        raise RuntimeError("no luck")
    return np.zeros((3, *fixed.shape), np.float32)
ENGINE = Engine("theirs", "fails on every other pair", field)
"""


@pytest.fixture(scope="session")
def registrable_once(trainable_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic project with a round that translates by SHIFT."""
    path = shutil.copytree(trainable_once, tmp_path_factory.mktemp("registrable") / "brain.jrss")
    with Project.open(path) as project:
        add_translating_round(project, SHIFT)
    return path


@pytest.fixture
def session(registrable_once: Path, tmp_path: Path) -> Iterator[Session]:
    session = Session(author="Ada", device="cpu")
    session.open(shutil.copytree(registrable_once, tmp_path / "brain.jrss"))
    yield session
    session.close()


def run(session: Session, command: Callable[[], None]) -> None:
    """Give a command and wait until its job has ended well."""
    command()
    assert session.workspace.inference.wait(60)
    if session.workspace.inference.error is not None:
        raise session.workspace.inference.error
    assert session.workspace.inference.state is JobState.FINISHED


def two_labelled(session: Session) -> tuple[str, str]:
    first, second = session.workspace.open_project.snapshot().labelled
    return first, second


def test_a_pair_is_warped_by_the_field_and_its_figures_are_those_of_the_arrays(
    session: Session,
) -> None:
    moving, fixed = two_labelled(session)
    changed: list[bool] = []
    session.pairs.pair_changed.connect(lambda: changed.append(True))
    run(session, lambda: session.pairs.register(moving, fixed))
    pair, project = session.pairs.pair, session.workspace.open_project
    assert changed == [True]
    assert pair is not None
    np.testing.assert_allclose(
        pair.registered.field, np.broadcast_to(np.reshape(SHIFT, (3, 1, 1, 1)), (3, 16, 24, 16))
    )
    # warped(p) = moving(p + u)
    np.testing.assert_allclose(
        pair.registered.image[:, :-2, 1:], project.image(moving)[:, 2:, :-1], atol=1e-4
    )
    report = pair.report
    warped = warp_array(project.label(moving), pair.registered.field, nearest=True)
    np.testing.assert_array_equal(pair.registered.label, warped)
    truth = project.label(fixed)
    expected = dice_per_class(warped, truth, 3, "absent_in_either")
    before = dice_per_class(project.label(moving), truth, 3, "absent_in_either")
    np.testing.assert_allclose(np.array(report.dice, float), expected)
    np.testing.assert_allclose(np.array(report.dice_before, float), before)
    assert report.mean_dice == pytest.approx(np.nanmean(expected))
    assert (report.std_jacobian, report.folded_percent) == (pytest.approx(0, abs=1e-5), 0)
    assert report.folded_in_structures == [0, 0]
    difference = project.image(moving) - project.image(fixed)
    assert report.residual_before == pytest.approx(np.sqrt(np.mean(difference**2)), rel=1e-4)
    assert report.residual != pytest.approx(report.residual_before, rel=1e-3)


@pytest.mark.slow
def test_a_refined_pair_fits_the_images_better_and_says_that_it_is_refined(
    session: Session,
) -> None:
    moving, fixed = two_labelled(session)
    run(session, lambda: session.pairs.register(moving, fixed))
    plain = session.pairs.pair
    session.pairs.refined = True
    run(session, lambda: session.pairs.register(moving, fixed))
    pair = session.pairs.pair
    assert plain is not None
    assert pair is not None
    assert (plain.report.refined, pair.report.refined) == (False, True)
    assert pair.report.residual < plain.report.residual
    assert pair.report.folded_percent == 0
    assert np.ptp(pair.registered.field) > 1  # no translation any more
    run(session, lambda: session.pairs.compare(fixed))
    comparison = session.pairs.comparison
    assert comparison is not None
    assert [report.refined for report in comparison.reports] == [True]
    np.testing.assert_allclose(comparison.reports[0].residual, pair.report.residual, rtol=1e-3)


@pytest.mark.slow
def test_a_refinement_tells_how_far_it_is_and_stops_when_asked(session: Session) -> None:
    moving, fixed = two_labelled(session)
    session.pairs.refined = True
    seen: list[float] = []
    session.pairs.refining.connect(seen.append)
    run(session, lambda: session.pairs.register(moving, fixed))
    assert seen == sorted(set(seen))
    assert len(seen) > 10
    assert seen[0] == 0
    kept, seen[:] = session.pairs.pair, []
    session.pairs.refining.connect(lambda done: session.workspace.inference.cancel())
    session.pairs.register(fixed, moving)
    assert session.workspace.inference.wait(60)
    assert session.workspace.inference.state is JobState.CANCELLED
    assert seen == [0]
    assert session.pairs.pair is kept


def test_views_are_made_at_the_desk_once_they_are_asked_for(session: Session) -> None:
    run(session, lambda: session.pairs.register(*two_labelled(session)))
    made: list[str] = []
    session.pairs.view_made.connect(made.append)
    asked = threading.Event()
    session.pairs.queue.submit(lambda: asked.wait(20))
    assert session.pairs.view("jacobian") is None
    assert session.pairs.view("jacobian") is None  # asked for already
    assert session.pairs.view("grid", 1) is None
    asked.set()
    assert session.pairs.queue.wait(20)
    assert made == ["jacobian", "grid"]
    jacobian = session.pairs.view("jacobian")
    assert jacobian is not None
    np.testing.assert_allclose(jacobian, 1, atol=1e-5)
    pair = session.pairs.pair
    assert pair is not None
    session.pairs.view("difference")
    session.pairs.view("checkerboard")
    session.pairs.queue.wait(20)
    difference, board = session.pairs.view("difference"), session.pairs.view("checkerboard")
    assert difference is not None
    np.testing.assert_array_equal(difference, pair.registered.image - pair.fixed.image)
    assert board is not None
    assert ((board == pair.registered.image) | (board == pair.fixed.image)).all()
    # another pair, other views
    run(session, lambda: session.pairs.register(*reversed(two_labelled(session))))
    assert session.pairs.view("jacobian") is None


def test_a_pair_without_labels_has_a_residual_and_no_dice(session: Session) -> None:
    moving, fixed = session.workspace.open_project.snapshot().unlabelled
    run(session, lambda: session.pairs.register(moving, fixed))
    pair = session.pairs.pair
    assert pair is not None
    assert pair.registered.label is None
    assert pair.report.dice == pair.report.folded_in_structures == []
    assert pair.report.mean_dice is None
    assert pair.report.residual > 0
    with pytest.raises(ProjectError, match="has no label to warp"):
        session.pairs.send_to_review()


def test_all_labelled_cases_onto_one_are_ranked_and_vote(session: Session) -> None:
    project = session.workspace.open_project
    case = project.snapshot().unlabelled[0]
    seen: list[Comparison | None] = []
    session.pairs.comparison_changed.connect(lambda: seen.append(session.pairs.comparison))
    run(session, lambda: session.pairs.compare(case))
    last = session.pairs.comparison
    assert last is not None
    assert [len(c.reports) for c in seen if c] == [1, 2, 2]
    assert last.total == 2
    assert {r.moving for r in last.reports} == set(two_labelled(session))
    residuals = [r.residual for r in last.reports]
    assert residuals == sorted(residuals)
    assert last.draft is not None
    np.testing.assert_array_equal(last.draft.label, propagate(project, case, device="cpu").label)


def test_mirror_images_vote_where_left_and_right_are_alike(session: Session) -> None:
    project = session.workspace.open_project
    snapshot = project.snapshot()
    mirror = mirror_of_votes(snapshot, 2)
    assert mirror == (0, 1, 2)
    assert mirror_of_votes(snapshot, 6) is None
    case = snapshot.unlabelled[0]
    registrar = project_registrar(project, "refine", device="cpu")
    both, plain = Votes(project.image(case), 3), Votes(project.image(case), 3)
    for atlas in snapshot.labelled:
        image, label = project.image(atlas), project.label(atlas)
        pair = follow(registrar.field(image, both.fixed), image, label)
        plain.add(pair)
        both.add(pair)
        image, label = mirror_image(image, label, mirror)
        both.add(follow(registrar.field(image, both.fixed), image, label))
    found = propagate(project, case, engine="refine", device="cpu").label
    np.testing.assert_array_equal(found, both.prediction().label)
    assert not np.array_equal(found, plain.prediction().label)


def test_the_best_pair_comes_first_by_dice_then_residual_then_folds() -> None:
    def report(name: str, dice: float | None, residual: float, folded: float) -> RegistrationReport:
        return RegistrationReport(
            moving=name,
            fixed="f",
            structures=["s"],
            dice_before=[dice],
            dice=[dice],
            residual_before=1,
            residual=residual,
            std_jacobian=0,
            sdlogj_plus3=0,
            folded_percent=folded,
            folded_in_structures=[folded],
            seconds=0,
        )

    comparison = Comparison("f", 5)
    for each in (
        report("no label, far", None, 0.9, 0),
        report("no label, near", None, 0.2, 0),
        report("low", 0.3, 0.1, 0),
        report("high, folded", 0.8, 0.5, 3),
        report("high", 0.8, 0.5, 1),
    ):
        comparison = comparison.with_report(each)
    assert [r.moving for r in comparison.reports] == [
        "high",
        "high, folded",
        "low",
        "no label, near",
        "no label, far",
    ]


def test_the_export_is_a_transform_that_simpleitk_follows(session: Session, tmp_path: Path) -> None:
    moving, fixed = two_labelled(session)
    run(session, lambda: session.pairs.register(moving, fixed))
    told: list[str] = []
    session.workspace.notified.connect(told.append)
    run(session, lambda: session.pairs.export(tmp_path / "out"))
    out = tmp_path / "out" / f"{moving}_to_{fixed}"
    assert any(str(out) in line for line in told)
    names = {"displacement.nii.gz", "warped_image.nii.gz", "warped_label.nii.gz", "report.json"}
    assert names <= {path.name for path in out.iterdir()}
    report = RegistrationReport.model_validate_json((out / "report.json").read_text())
    assert session.pairs.pair is not None
    assert report == session.pairs.pair.report

    project = session.workspace.open_project
    scans = [
        sitk.ReadImage(project.attributes(case).source, sitk.sitkFloat32)
        for case in (moving, fixed)
    ]
    field = sitk.ReadImage(str(out / "displacement.nii.gz"), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(field)
    resampled = sitk.GetArrayFromImage(sitk.Resample(scans[0], scans[1], transform))
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "warped_image.nii.gz")))
    # up to the border, where a voxel reaches half a voxel beyond its centre
    np.testing.assert_allclose(written, resampled, atol=1e-3 * float(np.abs(resampled).max()))


def test_a_scan_that_was_moved_is_told_before_anything_is_written(
    session: Session, tmp_path: Path
) -> None:
    moving, fixed = two_labelled(session)
    run(session, lambda: session.pairs.register(moving, fixed))
    pair = session.pairs.pair
    assert pair is not None
    gone = replace(pair, fixed=replace(pair.fixed, scan=tmp_path / "gone.nii.gz"))
    with pytest.raises(ProjectError, match=r"gone.nii.gz: the scan of .* 'napari-jrss relink'"):
        write_pair(gone, session.workspace.open_project.table, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_warped_label_becomes_a_draft_of_the_fixed_case(session: Session) -> None:
    moving = two_labelled(session)[0]
    fixed = session.workspace.open_project.snapshot().unlabelled[0]
    run(session, lambda: session.pairs.register(moving, fixed))
    session.pairs.send_to_review()
    review = session.review
    assert review.wait(20)
    session.workspace.inference.wait(60)
    assert review.case is not None
    assert review.case.case_id == fixed
    assert session.pairs.pair is not None
    np.testing.assert_array_equal(review.case.editor.label, session.pairs.pair.registered.label)
    assert review.case.editor.origin.draft == f"case:{moving}"


def test_the_voted_draft_names_everyone_who_voted(session: Session) -> None:
    with pytest.raises(ProjectError, match="register all labelled cases"):
        session.pairs.send_draft_to_review()
    fixed = session.workspace.open_project.snapshot().unlabelled[0]
    run(session, lambda: session.pairs.compare(fixed))
    session.pairs.send_draft_to_review()
    assert session.review.wait(20)
    session.workspace.inference.wait(60)
    assert session.review.case is not None
    expected = "case:" + ",".join(sorted(two_labelled(session)))
    assert session.review.case.editor.origin.draft == expected


def correct(session: Session, case_id: str, index: int = 1) -> None:
    """A person corrects the label of a case and accepts it."""
    session.review.open(case_id)
    assert session.review.wait(20)
    session.workspace.inference.wait(60)
    label = np.full(session.workspace.open_project.grid.shape, index, np.uint8)
    session.review.open_case.editor.replace("all", label)
    session.review.accept()
    assert session.review.wait(20)


def test_what_was_warped_from_another_label_is_no_draft(session: Session, tmp_path: Path) -> None:
    moving, other = two_labelled(session)
    fixed = session.workspace.open_project.snapshot().unlabelled[0]
    pairs = session.pairs
    run(session, lambda: pairs.register(other, fixed))
    run(session, lambda: pairs.compare(fixed))
    correct(session, moving)
    pairs.forget_outdated()
    assert pairs.pair is not None
    with pytest.raises(ProjectError, match=f"{moving} has a new label: .* all labelled cases"):
        pairs.send_draft_to_review()
    assert pairs.comparison is None

    run(session, lambda: pairs.register(moving, fixed))
    correct(session, moving, 2)
    for command in (pairs.send_to_review, lambda: pairs.export(tmp_path)):
        with pytest.raises(ProjectError, match=f"{moving} has a new label: register .* again"):
            command()
    assert pairs.pair is None
    run(session, lambda: pairs.register(moving, fixed))
    pairs.send_to_review()
    assert session.review.wait(20)
    assert (session.review.open_case.editor.label == 2).any()


def test_what_the_networks_of_another_round_warped_is_no_draft(session: Session) -> None:
    moving, fixed = two_labelled(session)
    run(session, lambda: session.pairs.register(moving, fixed))
    number = add_translating_round(session.workspace.open_project, (1, 0, 0))
    with pytest.raises(
        ProjectError, match=f"are now those of round {number}: register {moving} to"
    ):
        session.pairs.send_to_review()
    assert session.pairs.pair is None


def test_a_person_who_stays_with_a_case_gets_no_draft_for_another(session: Session) -> None:
    first, second = session.workspace.open_project.snapshot().unlabelled
    review = session.review
    review.open(first)
    assert review.wait(20)
    session.workspace.inference.wait(60)
    assert review.case is not None
    moving = two_labelled(session)[0]
    review.draft_from(session.workspace.open_project.label(moving), f"case:{moving}")
    assert review.wait(20)
    review.case.editor.replace("all", np.ones(review.case.grid.shape, np.uint8))
    assert review.wait(20)
    assert review.unsaved
    review.ask = lambda case: None
    run(session, lambda: session.pairs.register(moving, second))
    session.pairs.send_to_review()
    assert review.wait(20)
    assert review.case.case_id == first
    assert (review.case.editor.label == 1).all()


def test_next_goes_through_every_ordered_pair(session: Session) -> None:
    pair = session.pairs.following("", "")
    seen = [pair]
    while (pair := session.pairs.following(*pair)) not in seen:
        seen.append(pair)
    assert len(seen) == 8 * 7
    assert pair == seen[0]
    assert all(fixed == seen[0][1] for _, fixed in seen[:7])


def test_volumes_that_are_no_cases_are_registered_where_their_affines_place_them(
    session: Session,
) -> None:
    project = session.workspace.open_project
    moving, fixed = two_labelled(session)
    found: list[RegisteredVolumes] = []
    session.pairs.volumes_registered.connect(found.append)
    scans = [
        read_volume(Path(project.attributes(case).source)).to_lps() for case in (moving, fixed)
    ]
    run(session, lambda: session.pairs.register_volumes(scans[0], scans[1], ("m", "f")))
    (result,) = found
    run(session, lambda: session.pairs.register(moving, fixed))
    pair = session.pairs.pair
    assert pair is not None
    np.testing.assert_allclose(result.pair.registered.image, pair.registered.image, atol=1e-3)
    assert result.warp.image.shape == scans[1].shape
    np.testing.assert_allclose(result.warp.affine, scans[1].affine)
    assert (result.pair.report.moving, result.pair.report.fixed) == ("m", "f")


def test_what_is_missing_is_said_in_a_line(
    session: Session, trainable_once: Path, tmp_path: Path
) -> None:
    nobody = Session()
    with pytest.raises(ProjectError, match="no project is open"):
        nobody.pairs.register("a", "b")
    with pytest.raises(ProjectError, match="register a pair first"):
        session.pairs.export(tmp_path)
    with pytest.raises(ProjectError, match="two different cases"):
        session.pairs.register("case_001", "case_001")
    volume = Volume(np.zeros((16, 16, 16), np.float32), np.eye(4))
    nobody.pairs.engine = "jrss"
    with pytest.raises(ProjectError, match="no project is open"):
        nobody.pairs.register_volumes(volume, volume, ("a", "b"))
    session.open(shutil.copytree(trainable_once, tmp_path / "untrained.jrss"))
    session.pairs.engine = "jrss"
    with pytest.raises(ProjectError, match="no trained networks yet"):
        session.pairs.register(*two_labelled(session))
    with pytest.raises(ProjectError, match="no trained networks yet"):
        session.pairs.register_volumes(volume, volume, ("a", "b"))
    session.pairs.engine = "gready"
    with pytest.raises(EngineError, match="unknown engine 'gready'; did you mean 'greedy'"):
        session.pairs.register(*two_labelled(session))


@pytest.fixture
def untrained(trainable_once: Path, tmp_path: Path) -> Iterator[Session]:
    """A session on a project with two labelled cases and no networks."""
    session = Session(author="Ada", device="cpu")
    session.open(shutil.copytree(trainable_once, tmp_path / "untrained.jrss"))
    yield session
    session.close()


def test_without_networks_pairs_are_registered_by_their_images(untrained: Session) -> None:
    moving, fixed = two_labelled(untrained)
    pairs, seen = untrained.pairs, []
    pairs.refining.connect(seen.append)
    assert pairs.engine_in_use == "refine"
    pairs.refined = True  # has no say here
    run(untrained, lambda: pairs.register(moving, fixed))
    assert pairs.pair is not None
    report = pairs.pair.report
    assert (report.engine, report.refined, report.method) == ("refine", False, "refine")
    assert report.residual < report.residual_before
    assert report.mean_dice is not None
    assert report.mean_dice_before is not None
    assert report.mean_dice > report.mean_dice_before
    assert seen == sorted(set(seen))
    run(untrained, lambda: pairs.compare(fixed))
    assert pairs.comparison is not None
    assert pairs.comparison.draft is not None
    pairs.send_to_review()


def test_images_registered_by_themselves_outlive_a_round_but_no_label(
    untrained: Session,
) -> None:
    moving, fixed = two_labelled(untrained)
    pairs, project = untrained.pairs, untrained.workspace.open_project
    run(untrained, lambda: pairs.register(moving, fixed))
    add_translating_round(project, SHIFT)
    pairs.forget_outdated()
    assert pairs.pair is not None
    assert pairs.engine_in_use == "jrss"
    pairs.engine = "refine"
    assert pairs.engine_in_use == "refine"
    correct(untrained, moving)
    pairs.forget_outdated()
    assert pairs.pair is None
    assert f"{moving} has a new label" in pairs.outdated


def test_the_first_label_is_propagated_before_anything_is_trained(untrained: Session) -> None:
    project, review = untrained.workspace.open_project, untrained.review
    case = next(c.case_id for c in project.cases() if not c.labelled)
    assert review.open(case)
    assert review.wait(20)
    run(untrained, review.prediction.propagate)
    labelled = ",".join(project.snapshot().labelled)
    draft = review.open_case.drafts[f"case:{labelled}"]
    attributes = project.attributes(case)
    truth = read_volume(Path(attributes.source.replace("images", "labels"))).array
    carried = project.table.to_source_ids(attributes.transform.turn_to_source(draft))
    for number in (1, 2):
        one, other = carried == number, truth == number
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.5


@pytest.mark.slow
def test_engines_are_compared_on_the_labelled_pairs(untrained: Session) -> None:
    project = untrained.workspace.open_project
    events = list(compare_engines.events(project, ["refine"], device="cpu"))
    snapshot = project.snapshot()
    labelled = [*snapshot.labelled, *snapshot.validation]
    assert {(e.moving, e.fixed) for e in events} == set(permutations(labelled, 2))
    assert [e.done for e in events] == list(range(1, events[0].total + 1))
    found = compare_engines(project, ["refine"], pairs=3, seed=1, device="cpu")
    assert len(found.pairs) == 3
    (figures,) = found.figures
    reports = {(e.moving, e.fixed): e.report for e in events}
    measured = [reports[pair] for pair in found.pairs]
    assert figures.dice == tuple(report.mean_dice for report in measured)
    assert found.dice_before == pytest.approx(np.mean([r.mean_dice_before for r in measured]))
    assert figures.mean_dice == pytest.approx(np.mean(figures.dice))
    assert found.best == "refine"
    assert found.verdict() == f"best here: refine, Dice {figures.mean_dice:.3f}"
    assert max(map(len, found.summary().splitlines())) <= 100
    with pytest.raises(EngineError, match="unknown engine"):
        compare_engines(project, ["gready"])


@pytest.mark.slow
def test_an_engine_that_fails_on_a_pair_is_no_best_one(
    untrained: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_package(tmp_path, FAILING, monkeypatch)
    project = untrained.workspace.open_project
    found = compare_engines(project, ["theirs", "refine"], pairs=4, device="cpu")
    assert [each.engine for each in found.figures] == ["refine", "theirs"]
    assert [each.failed for each in found.figures] == [0, 2]
    assert "theirs: the engine theirs failed: no luck" in found.summary()


def test_an_unknown_case_fails_the_job_with_a_line(session: Session) -> None:
    session.pairs.register("nobody", two_labelled(session)[0])
    assert session.workspace.inference.wait(20)
    assert session.workspace.inference.state is JobState.FAILED
    assert "nobody: neither a case" in str(session.workspace.inference.error)
    assert session.pairs.pair is None


def test_another_project_forgets_the_pair_and_a_late_result_is_dropped(
    session: Session, registrable_once: Path, tmp_path: Path
) -> None:
    moving, fixed = two_labelled(session)
    run(session, lambda: session.pairs.register(moving, fixed))
    session.open(shutil.copytree(registrable_once, tmp_path / "other.jrss"))
    assert session.pairs.pair is None
    assert session.pairs.comparison is None
    with pytest.raises(ProjectError, match="register a pair first"):
        session.pairs.view("grid")


def test_only_one_short_job_at_a_time(session: Session) -> None:
    release = threading.Event()

    def work(cancel: threading.Event) -> Iterator[None]:
        release.wait(20)
        yield

    session.workspace.inference.start(work)
    with pytest.raises(BusyError):
        session.pairs.register(*two_labelled(session))
    release.set()
    assert session.workspace.inference.wait(20)
