"""The command line as a person meets it: real files, real mistakes, and some real processes."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

from napari_jrss._tests.io.dicom_phantoms import save, slices
from napari_jrss.cli import main
from napari_jrss.io.read import read_volume
from napari_jrss.project.project import Project
from napari_jrss.sample_data import make_cohort

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

TINY = {
    "segmentation": {"minimum_steps": 6},
    "registration": {"minimum_steps": 6},
    "joint": {"segmentation_epochs": 1, "registration_epochs": 1, "minimum_steps": 1},
    "screening": {"tau": 0.05, "learned_gate": False},
}


Done = subprocess.CompletedProcess[str]


def here(arguments: Sequence[str]) -> Done:
    """Run one command in this process, since PyTorch loads for seconds."""
    printed, told = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(told):
        patch.setattr(sys, "argv", ["napari-jrss", *arguments])
        patch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code
    assert code is None or isinstance(code, int)
    return Done(arguments, code or 0, printed.getvalue(), told.getvalue())


def apart(arguments: Sequence[str]) -> Done:
    """Run one command in a process of its own, as a person does."""
    return subprocess.run(
        [sys.executable, "-m", "napari_jrss", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
    )


def run(*arguments: object, code: int = 0, how: Callable[[Sequence[str]], Done] = here) -> Done:
    """Run one command and check its exit code."""
    words = list(map(str, arguments))
    if words[0] == "init":
        words += ["--workers", "1"]  # has read the phantoms before a second one has started
    result = how(words)
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result


def mistake(*arguments: object, how: Callable[[Sequence[str]], Done] = here) -> str:
    """The one line on the standard error with which a command refuses."""
    result = run(*arguments, code=2, how=how)
    lines = result.stderr.strip().splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1, result.stderr
    return lines[-1]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("cohort"), cases=8, shape=(16, 24, 16), structures=2)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(scope="module")
def trained(cohort: Path, settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project taken through init, split and train by the command line alone."""
    project = tmp_path_factory.mktemp("project") / "brain.jrss"
    groups = cohort / "groups.csv"
    scans = ["--images", cohort / "images", "--labels", cohort / "labels", "--groups", groups]
    assert "8 cases imported, 8 with a label" in run("init", project, *scans).stdout
    dealt = run("split", project, "--labelled", 2, "--validation", 2, "--test", 2).stdout
    assert "training 4 (labelled 2), validation 2, test 2" in dealt
    events = run(
        "train", project, "--rounds", 1, "--preset", "smoke", "--config", settings, "--json"
    ).stdout
    kinds = [json.loads(line)["kind"] for line in events.splitlines()]
    assert kinds.count("round_finished") == 2
    return project


def test_what_needs_networks_says_so_before_there_are_any(cohort: Path, tmp_path: Path) -> None:
    project, scan = tmp_path / "brain.jrss", next((cohort / "images").iterdir())
    scans = ["--images", cohort / "images", "--labels", cohort / "labels"]
    run("init", project, *scans, "--groups", cohort / "groups.csv")
    out = ["--out", tmp_path / "out"]
    for command in (
        ["segment", project, scan, *out],
        ["register", project, "--moving", scan, "--fixed", scan, *out, "--engine", "jrss"],
        ["next", project, "--propagate"],
    ):
        result = run(*command, code=2)
        assert result.stderr == f"error: {project}: has no trained networks yet (train)\n"
    assert not (tmp_path / "out").exists()


def test_status_names_rounds_and_teacher(trained: Path) -> None:
    report = json.loads(run("status", trained, "--json").stdout)
    assert report["labelled"] == 2
    assert report["unlabelled"] == 2
    assert [entry["outcome"] for entry in report["rounds"]] == ["finished", "finished"]
    assert report["teacher"] == 1
    shown = run("status", trained).stdout
    assert "round" in shown
    assert f"next: {report['next_step']}" in shown


def test_evaluate_gives_every_figure_for_every_round(trained: Path) -> None:
    rounds = json.loads(run("evaluate", trained, "--pairs", "all", "--json").stdout)["rounds"]
    assert [entry["name"] for entry in rounds] == ["Mono-Nets", "JRSS round 1"]
    for entry in rounds:
        assert entry["segmentation"]["cases"] == 2
        assert entry["registration"]["pairs"] == 2
        assert set(entry["segmentation"]["dice"]["per_class"]) == set(
            entry["registration"]["dice"]["per_class"]
        )
        for figure in ("dice_before", "dice", "std_jacobian", "sdlogj_plus3", "folded_percent"):
            assert entry["registration"][figure]["mean"] is not None
        assert "hd95_mm" in entry["segmentation"]
        assert 0 < entry["segmentation"]["calibration_error"]["mean"] < 1
        assert entry["registration"]["seconds_per_pair"]["mean"] > 0
    refined = json.loads(
        run("evaluate", trained, "--pairs", "all", "--round", 1, "--refine", "--json").stdout
    )["rounds"]
    assert [entry["name"] for entry in refined] == ["JRSS round 1, refined"]
    assert refined[0]["segmentation"]["dice"] == rounds[1]["segmentation"]["dice"]
    assert refined[0]["registration"]["dice"] != rounds[1]["registration"]["dice"]
    with Project.open(trained, read_only=True) as project:
        folder = project.round(1).folder
    plain, other = (
        (folder / name).read_text() for name in ("evaluation.jsonl", "evaluation_refined.jsonl")
    )
    assert plain.count("\n") == other.count("\n") == 4
    assert plain != other


def test_segment_writes_on_the_scans_own_grid(trained: Path, cohort: Path, tmp_path: Path) -> None:
    scans = sorted((cohort / "images").iterdir())[:2]
    result = json.loads(
        run("segment", trained, *scans, "--out", tmp_path, "--maps", "--json").stdout
    )
    for scan, entry in zip(scans, result, strict=True):
        source, label = nib.load(scan), nib.load(entry["label"])
        assert label.shape == source.shape
        np.testing.assert_array_equal(label.affine, source.affine)
        name = scan.name.removesuffix(".nii.gz")
        confidence = nib.load(tmp_path / f"{name}_confidence.nii.gz").get_fdata()
        assert 0 < confidence.max() <= 1
        assert (tmp_path / f"{name}_uncertainty.nii.gz").exists()
    told = run("segment", trained, *scans, "--out", tmp_path).stdout  # its own files it may replace
    assert "Not learned yet" in told  # in six steps
    assert "Not learned yet" in run("status", trained).stdout
    gone = tmp_path / "gone.nii.gz"
    left = run("segment", trained, scans[0], gone, "--out", tmp_path / "two", code=2)
    assert str(gone) in left.stderr
    told = " ".join(left.stdout.split())
    assert "volumes (ml)" in told
    assert "gone.nii.gz" in told
    corrected = Path(result[1]["label"])
    corrected.write_bytes(b"by hand")
    said = mistake("segment", trained, *scans, "--out", tmp_path)
    assert f"edited since: {corrected.name}" in said
    assert corrected.read_bytes() == b"by hand"


def test_scans_of_one_name_and_of_too_long_a_name(
    trained: Path, cohort: Path, tmp_path: Path
) -> None:
    first, second = sorted((cohort / "images").iterdir())[:2]
    scans = [tmp_path / "a" / "scan.nii.gz", tmp_path / "b" / "scan.nii.gz"]
    scans.append(tmp_path / f"{'L' * 247}.nii.gz")
    for source, scan in zip((first, second, first), scans, strict=True):
        scan.parent.mkdir(exist_ok=True)
        shutil.copy(source, scan)
    done = run("segment", trained, *scans, "--out", tmp_path / "out", "--json", code=2)
    one, other, long = json.loads(done.stdout)
    assert [Path(each["label"]).name for each in (one, other)] == [
        "a_scan_label.nii.gz",
        "b_scan_label.nii.gz",
    ]
    assert "the name is too long" in long["problem"]
    assert "1 of 3 scans were left out" in done.stderr
    twice = mistake("segment", trained, scans[0], scans[0], "--out", tmp_path / "out")
    assert f"{scans[0]}: is given twice" in twice


def test_a_field_between_scans_without_an_orientation_fits_simpleitk(
    trained: Path, cohort: Path, tmp_path: Path
) -> None:
    scans = []
    for source in sorted((cohort / "images").iterdir())[:2]:
        image = nib.load(source)
        header = image.header.copy()
        header["qform_code"], header["sform_code"] = 0, 0
        scans.append(tmp_path / source.name)
        plain = nib.Nifti1Image(np.asarray(image.dataobj), None, header)
        nib.save(plain, scans[-1])
    pair = ("--moving", scans[0], "--fixed", scans[1], "--out", tmp_path / "pair")
    assert "the header says nothing of orientation" in run("register", trained, *pair).stdout
    field = sitk.ReadImage(str(tmp_path / "pair" / "displacement.nii.gz"), sitk.sitkVectorFloat64)
    moving, fixed = (sitk.ReadImage(str(scan), sitk.sitkFloat32) for scan in scans)
    ours = sitk.ReadImage(str(tmp_path / "pair" / "warped_image.nii.gz"), sitk.sitkFloat32)
    theirs = sitk.Resample(moving, fixed, sitk.DisplacementFieldTransform(field))
    inside = (slice(3, -3),) * 3
    ours, theirs = (sitk.GetArrayFromImage(each)[inside] for each in (ours, theirs))
    assert np.abs(ours - theirs).max() < 0.01 * np.ptp(ours)


def test_register_cases_and_files(trained: Path, cohort: Path, tmp_path: Path) -> None:
    labelled = [c.case_id for c in Project.open(trained, read_only=True).cases() if c.label_version]
    report = json.loads(
        run(
            "register",
            trained,
            *("--moving", labelled[0], "--fixed", labelled[1], "--out", tmp_path / "cases"),
            "--json",
        ).stdout
    )
    assert len(report["dice"]) == 2
    fixed = nib.load(cohort / "images" / f"{labelled[1]}.nii.gz")
    for name in ("warped_image", "warped_label"):
        warped = nib.load(tmp_path / "cases" / f"{name}.nii.gz")
        assert warped.shape == fixed.shape
        np.testing.assert_allclose(warped.affine, fixed.affine)
    corrected = tmp_path / "cases" / "warped_label.nii.gz"
    corrected.write_bytes(b"by hand")
    pair = ("--moving", labelled[0], "--fixed", labelled[1], "--out", tmp_path / "cases")
    assert "edited since: warped_label.nii.gz" in mistake("register", trained, *pair)
    assert corrected.read_bytes() == b"by hand"
    files = sorted((cohort / "images").iterdir())
    run("register", trained, "--moving", files[0], "--fixed", files[1], "--out", tmp_path / "files")
    plain = nib.load(tmp_path / "files" / "displacement.nii.gz")
    assert plain.shape[-1] == 3
    pair = ("--moving", files[0], "--fixed", files[1], "--out", tmp_path / "refined")
    assert "s, jrss, refined;" in run("register", trained, *pair, "--refine").stdout
    refined = nib.load(tmp_path / "refined" / "displacement.nii.gz")
    assert np.abs(refined.get_fdata() - plain.get_fdata()).max() > 0.1


def test_two_scans_are_registered_without_a_project(cohort: Path, tmp_path: Path) -> None:
    scans = sorted((cohort / "images").iterdir())[:2]
    result = run("register", *scans, "--engine", "refine", "--out", tmp_path / "pair", "--json")
    report = json.loads(result.stdout)
    assert (report["engine"], report["moving"]) == ("refine", scans[0].name.removesuffix(".nii.gz"))
    assert report["residual"] < report["residual_before"]
    assert nib.load(tmp_path / "pair" / "displacement.nii.gz").shape[-1] == 3
    out = ("--out", tmp_path / "none")
    assert "unknown engine 'refin'" in mistake("register", *scans, *out, "--engine", "refin")
    assert "network of a project" in mistake("register", *scans, *out, "--engine", "jrss")
    assert "--refine improves the field" in mistake("register", *scans, *out, "--refine")
    assert "give two scans" in mistake("register", scans[0], *out)
    assert not (tmp_path / "none").exists()


def test_a_projects_cases_are_named_after_it(trained: Path, tmp_path: Path) -> None:
    with Project.open(trained, read_only=True) as project:
        moving, fixed = project.snapshot().labelled
    cases = (moving, fixed, "--out", tmp_path)
    assert "s, jrss;" in run("register", trained, *cases).stdout
    assert "s, refine;" in run("register", trained, *cases, "--engine", "refine").stdout
    assert "its own pre-alignment" in mistake("register", trained, *cases, "--prealign", "none")
    given = ("--moving", moving, "--fixed", fixed)
    assert "give two scans" in mistake("register", trained, *cases, *given)


def test_engines_are_listed_and_measured_on_a_project(trained: Path) -> None:
    listed = json.loads(run("engines", "--json").stdout)
    assert listed[0] == {"name": "refine", "about": listed[0]["about"], "state": "ready"}
    assert "convexadam" in run("engines").stdout
    table = run("engines", trained, "--engine", "refine", "--pairs", 2).stdout
    assert "best here: refine" in table
    assert "over 2 pairs" in table
    found = json.loads(run("engines", trained, "--engine", "refine", "--pairs", 1, "--json").stdout)
    assert found["figures"][0]["engine"] == "refine"


def test_a_dicom_series_is_segmented_and_registered_like_its_nifti(
    trained: Path, cohort: Path, tmp_path: Path
) -> None:
    scan = sorted((cohort / "images").iterdir())[0]
    volume = read_volume(scan)
    steps = 2000 / np.ptp(volume.array)  # what a network sees is scaled anyway
    stored = np.rint((volume.array - volume.array.min()) * steps).astype(np.int16)
    folder = save(tmp_path / "series", slices(stored, volume.affine, "MR"))
    run("segment", trained, scan, folder, "--out", tmp_path / "out", "--dicom-seg")
    seg = hd.seg.segread(tmp_path / "out" / "series_label.dcm")
    assert seg.StudyInstanceUID == pydicom.dcmread(folder / "IM0000").StudyInstanceUID
    of_nifti = nib.load(tmp_path / "out" / f"{scan.name.removesuffix('.nii.gz')}_label.nii.gz")
    of_dicom = read_volume(tmp_path / "out" / "series_label.nii.gz").to_lps()
    expected = read_volume(of_nifti.get_filename()).to_lps()
    np.testing.assert_allclose(of_dicom.affine, expected.affine, atol=1e-3)
    assert (of_dicom.array == expected.array).mean() > 0.99
    run("register", trained, "--moving", scan, "--fixed", folder, "--out", tmp_path / "pair")
    warped = read_volume(tmp_path / "pair" / "warped_image.nii.gz")
    np.testing.assert_allclose(warped.affine, read_volume(folder).affine, atol=1e-3)
    assert "no case that was made from DICOM" in mistake(
        "export", trained, tmp_path / "labels", "--dicom-source", folder
    )


def test_export_returns_an_imported_label_bit_for_bit(
    trained: Path, cohort: Path, tmp_path: Path
) -> None:
    run("export", trained, tmp_path)
    labels = sorted((tmp_path / "labels").glob("*.nii.gz"))
    assert len(labels) == 6  # 2 labelled, 2 validation, 2 test
    for path in labels:
        original = np.asarray(nib.load(cohort / "labels" / path.name).dataobj)
        # groups.csv keeps the two labelled structures; the file holds no others
        np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), original)
    predictions = sorted((tmp_path / "predictions").glob("*.nii.gz"))
    assert len(predictions) == 2
    run("export", trained, tmp_path)
    predictions[0].write_bytes(predictions[1].read_bytes() + b"\0")
    assert f"edited since: {predictions[0].name}; move" in mistake("export", trained, tmp_path)


def test_ctrl_c_stops_within_a_step_and_resume_goes_on(
    cohort: Path, settings: Path, tmp_path: Path
) -> None:
    project = tmp_path / "stopped.jrss"
    scans = ["--images", cohort / "images", "--labels", cohort / "labels"]
    run("init", project, *scans)
    run("split", project, "--labelled", 2, "--validation", 2, "--test", 2)
    long = tmp_path / "long.json"
    long.write_text(json.dumps({**TINY, "segmentation": {"minimum_steps": 60}}))
    command = [
        sys.executable,
        "-m",
        "napari_jrss",
        "train",
        str(project),
        "--rounds",
        "0",
        "--json",
    ]
    process = subprocess.Popen(
        [*command, "--preset", "smoke", "--config", str(long)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["kind"] == "step_end":
            process.send_signal(signal.SIGINT)
            break
    started = time.monotonic()
    rest, errors = process.communicate(timeout=120)
    assert time.monotonic() - started < 20
    assert process.returncode == 130, errors
    assert json.loads(rest.splitlines()[-1])["kind"] == "cancelled"
    assert "--resume" in errors
    assert "--resume" in mistake("train", project, "--preset", "smoke")
    said = "round 0 was interrupted, 0 more to come: train --resume goes on"
    assert said in run("status", project).stdout.replace("\n", " ")
    assert "still running" not in run("status", project).stdout
    with Project.open(project):  # as the training itself has it
        now = " ".join(run("status", project, how=apart).stdout.split())
        at_work = f"open for writing in process {os.getpid()}"
        assert f"{said}, unless it is still running: {at_work}" in now
        held = mistake("train", project, "--preset", "smoke", "--resume", how=apart)
        assert "open for writing in process" in held
        assert "read-only" not in held
    told = run("train", project, "--resume", "--json", "--tau", "0.9")
    assert "resuming round 0, with its first settings: preset smoke, seed 0" in told.stderr
    assert "tau 0.05" in told.stderr
    resumed = told.stdout.splitlines()
    first, last = json.loads(resumed[0]), json.loads(resumed[-1])
    assert first["first_step"] >= 1
    assert last["kind"] == "round_finished"


def test_a_project_can_be_pre_trained_again(trained: Path, settings: Path, tmp_path: Path) -> None:
    project = shutil.copytree(trained, tmp_path / "brain.jrss")
    options = ["--rounds", 0, "--preset", "smoke", "--config", settings, "--json"]
    assert "pre-trained already" in mistake("train", project, *options)
    assert "or to pre-train, not both" in mistake(
        "train", project, *options, "--pretrain", "--resume"
    )
    told = run("train", project, *(each for each in options if each != "--json"), "--pretrain")
    assert re.search(
        r"^first training, segmentation 0/\d+", told.stderr, re.MULTILINE
    )  # a log has lines
    report = json.loads(run("status", project, "--json").stdout)
    assert report["teacher"] == 2
    assert report["rounds"][-1]["parent"] is None


def test_what_can_not_end_is_not_begun_and_a_plan_helps(cohort: Path, tmp_path: Path) -> None:
    """A grid of half a million voxels, and so many steps that they take years."""
    project, years = tmp_path / "p.jrss", tmp_path / "years.json"
    made = run(
        *("init", project, "--images", cohort / "images", "--labels", cohort / "labels"),
        *("--shape", 80, 80, 80, "--plan", "fine"),
    )
    assert "plan fine: 4 mm, 80 x 80 x 80 voxels" in made.stdout
    years.write_text(json.dumps({"segmentation": {"minimum_steps": 10**9}}))
    told = mistake("train", project, "--rounds", 0, "--config", years)
    assert re.search(r"won't end well: about \d+ days.*plan PROJECT --use quick", told)
    assert not (project / "rounds").exists() or not any((project / "rounds").iterdir())

    shown = json.loads(run("plan", project, "--spacing", 8, 8, 8, "--json").stdout)
    assert list(shown) == ["quick", "balanced", "fine"]
    assert shown["quick"]["shape"] == [80, 80, 80]  # was given, so it stays
    changed = run(
        *("plan", project, "--use", "quick", "--spacing", 8, 8, 8, "--author", "Ada"),
        *("--workers", 1),
    )
    assert "plan quick: 8 mm" in changed.stdout
    status = run("status", project).stdout
    assert "training grid 80 x 80 x 80 voxels of 8 x 8 x 8 mm" in status
    assert "plan quick: 8 mm, 80 x 80 x 80 voxels" in status
    assert "Ada" in run("history", project).stdout
    assert "a budget is such as 20min" in mistake("plan", project, "--budget", "soon")


def test_two_processes_train_one_project(cohort: Path, settings: Path, tmp_path: Path) -> None:
    project = tmp_path / "two.jrss"
    run("init", project, "--images", cohort / "images", "--labels", cohort / "labels")
    run("split", project, "--labelled", 2, "--validation", 2, "--test", 2)
    options = ["--rounds", 1, "--preset", "smoke", "--config", settings, "--json"]
    events = run("train", project, *options, "--device", "cpu", "--devices", 2).stdout
    lines = [json.loads(line) for line in events.splitlines() if line.startswith("{")]
    assert [event["kind"] for event in lines].count("round_finished") == 2
    assert json.loads(run("status", project, "--json").stdout)["teacher"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nothere.jrss"], "nothere.jrss: no such folder"),
        (["init", "new.jrss"], "--folder or --images"),
        (["init", "new.jrss", "--images", "nothere"], "nothere: no such folder"),
        (["split", "nothere.jrss"], "nothere.jrss"),
        (["status", "."], "not a project"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in mistake(*arguments, how=apart)


def test_mistakes_with_a_project_are_one_line(trained: Path, cohort: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path]
    scans = ["--images", cohort / "images", "--labels", cohort / "labels"]
    assert "exists already" in mistake("init", trained, *scans)
    assert "new project" in mistake("split", trained, "--labelled", 1)
    assert "neither a case" in mistake("register", trained, "--moving", "x", "--fixed", "y", *out)
    assert "README" in mistake("segment", trained, tmp_path / "README", *out)
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"joint": {"lambda_q": 1}}')
    assert "joint.lambda_q" in mistake("train", trained, "--config", wrong)
    wrong.write_text("{")
    assert "not a readable JSON file" in mistake("train", trained, "--config", wrong)
    assert "FILE.csv:COLUMN" in mistake("split", trained, "--group-by", "nothing")
    assert "cuda" in mistake("train", trained, "--device", "cudda")


def test_a_series_that_can_not_be_run_to_its_end_is_not_begun(
    cohort: Path, trained: Path, settings: Path, tmp_path: Path
) -> None:
    labelled = tmp_path / "all.jrss"
    run("init", labelled, "--images", cohort / "images", "--labels", cohort / "labels")
    tiny = ["--preset", "smoke", "--config", settings]
    assert "all of them are labelled" in mistake("train", labelled, "--rounds", 1, *tiny)
    assert json.loads(run("status", labelled, "--json").stdout)["rounds"] == []
    project = shutil.copytree(trained, tmp_path / "brain.jrss")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**TINY, "segmentation_network": {"name": "vm_unet"}}))
    said = mistake("train", project, "--rounds", 1, "--preset", "smoke", "--config", other)
    assert "the segmentation network has other settings than in round 1" in said
    assert "pre-train again" in said
    assert len(json.loads(run("status", project, "--json").stdout)["rounds"]) == 2


def test_a_project_of_which_nothing_came_is_not_left_behind(cohort: Path, tmp_path: Path) -> None:
    project = tmp_path / "brain.jrss"
    scans = ["--images", cohort / "images", "--labels", cohort / "labels"]
    assert "no case 'nope'" in mistake("init", project, *scans, "--reference", "nope")
    assert not project.exists()
    flats = tmp_path / "flat"
    flats.mkdir()
    for image in (cohort / "images").iterdir():
        flat = np.ones((16, 24, 16), np.float32)
        nib.save(nib.Nifti1Image(flat, nib.load(image).affine), flats / image.name)
    wrong = ["--images", flats, "--labels", cohort / "labels", "--groups", cohort / "groups.csv"]
    assert "none of 8 scans could be used" in mistake("init", project, *wrong)
    assert not project.exists()
    run("init", project, *scans)
    assert "exists already" in mistake("init", project, *scans, "--reference", "nope")
    assert project.exists()


def test_the_reason_is_told_where_nothing_can_be_read(cohort: Path, tmp_path: Path) -> None:
    scan = tmp_path / "images" / "a.nii.gz"
    scan.parent.mkdir()
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8, 4), np.float32), np.eye(4)), scan)
    groups = ["--groups", cohort / "groups.csv"]
    said = mistake("init", tmp_path / "p.jrss", "--images", scan.parent, *groups)
    assert "no scan can be read" in said
    assert "(8, 8, 8, 4)" in said
    label = tmp_path / "labels" / "case_001.nii.gz"
    label.parent.mkdir()
    nib.save(nib.Nifti1Image(np.full((16, 24, 16), 1.5), np.eye(4)), label)
    scans = ["--images", cohort / "images", "--labels", label.parent]
    said = mistake("init", tmp_path / "p.jrss", *scans)
    assert "no label file can be read" in said
    assert "1.5" in said
    assert "at least 8 voxels" in mistake("sample", tmp_path / "s", "--shape", 1, 1, 1)


def test_volumes_are_those_of_the_written_label(
    trained: Path, cohort: Path, tmp_path: Path
) -> None:
    whole = nib.load(sorted((cohort / "images").iterdir())[0])
    scan = tmp_path / "half.nii.gz"
    nib.save(whole.slicer[2:12, 4:18, 3:13], scan)  # the rest of the training grid is padding
    nothing = tmp_path / "broken.nii.gz"
    nothing.write_bytes(b"")
    out = tmp_path / "out"
    command = ["segment", trained, scan, nothing, "--out", out, "--json"]
    text = run(*command, code=2).stdout
    half, broken = json.loads(text, parse_constant=pytest.fail)
    assert broken["mean_confidence"] is None
    written = nib.load(half["label"])
    ids = np.asarray(written.dataobj)
    voxel_ml = float(np.prod(written.header.get_zooms()[:3])) / 1000
    volumes = [(ids == label).sum() * voxel_ml for label in (1, 2)]
    assert half["volumes_ml"] == pytest.approx(volumes)
    assert sum(volumes) > 0
    inside = mistake("segment", trained, scan, "--out", trained / "labels")
    assert f"lies in the project {trained}" in inside
    assert "lies in the project" in mistake("export", trained, trained / "out")


def test_doctor_finds_nothing_missing() -> None:
    report = json.loads(run("doctor", "--json").stdout)
    assert report["problems"] == []
    assert {"torch", "zarr"} <= set(report["versions"])
