"""A grid runs in other processes, keeps every figure, and goes on where it was stopped."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_jrss.experiments.folder import COLUMNS
from napari_jrss.experiments.protocol import Protocol, ProtocolError, Run
from napari_jrss.experiments.run import RunEnded, run_experiment
from napari_jrss.project.project import Project

pytestmark = pytest.mark.slow

RUNS = [
    "initial-n0-seed0",
    "mono-n2-seed0",
    "jrss-n2-seed0",
    "mono-n0-seed0",
    "jrss-n2-seed0-tau0.999",
]
Experiment = tuple[Path, list[RunEnded[Run]]]


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_run_ends_well(experiment: Experiment) -> None:
    out, ended = experiment
    assert {e.run.id: e.problem for e in ended} == dict.fromkeys(RUNS, "")
    assert sorted(p.name for p in (out / "runs").iterdir()) == sorted(RUNS)


def test_a_run_says_what_it_was_and_where(experiment: Experiment) -> None:
    out, _ = experiment
    about = json.loads((out / "runs" / "jrss-n2-seed0" / "run.json").read_text())
    assert about["config"]["screening"]["tau"] == 0.3
    assert about["parameters"] == {"segmentation": 321_635, "registration": 251_213}
    assert {"torch", "napari-jrss", "python"} <= about["versions"].keys()
    assert about["machine"]["threads"] >= 1
    cases = about["cases"]
    assert len(cases["labelled"]) == 2
    assert set(cases["labelled"]) < set(cases["training"])
    assert not set(cases["training"]) & {*cases["test"], *cases["validation"]}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_a_gpu_a_run_names_it(protocol: Protocol, tmp_path: Path) -> None:
    ended = list(run_experiment(protocol, tmp_path / "out", only=["jrss-n2-seed0"], workers=2))
    assert [e.problem for e in ended] == ["", ""]
    about = json.loads((tmp_path / "out" / "runs" / "jrss-n2-seed0" / "run.json").read_text())
    assert about["device"] == "cuda:0"
    assert about["device_name"] == torch.cuda.get_device_name()


def test_the_rows_are_tidy_and_complete(experiment: Experiment) -> None:
    out, _ = experiment
    table = rows(out)
    assert tuple(table[0]) == COLUMNS
    dice = [
        r
        for r in table
        if (r["run"], r["task"], r["metric"]) == ("jrss-n2-seed0", "segmentation", "dice")
    ]
    assert len(dice) == 2 * 3 * 2  # rounds, test cases, structures
    assert {r["round"] for r in dice} == {"1", "2"}
    assert {r["round"] for r in table if r["method"] != "jrss"} == {"0"}
    assert all(0 <= float(r["value"]) <= 1 for r in dice)
    # Without labels there is no segmentation, and what does nothing changes nothing.
    assert {r["task"] for r in table if r["run"] == "mono-n0-seed0"} == {"registration"}
    initial = {
        (r["case"], r["moving"], r["structure"], r["metric"]): r["value"]
        for r in table
        if r["run"] == "initial-n0-seed0"
    }
    for (case, moving, structure, metric), value in initial.items():
        if metric == "dice":
            assert value == initial[case, moving, structure, "dice_before"]


def test_methods_are_compared_on_the_same_cases(experiment: Experiment) -> None:
    out, _ = experiment
    pairs = {
        run: {(r["case"], r["moving"]) for r in rows(out) if r["run"] == run and r["moving"]}
        for run in RUNS
    }
    assert len({frozenset(each) for each in pairs.values()}) == 1


def test_a_tau_that_nothing_passes_leaves_the_mono_nets_and_says_so(experiment: Experiment) -> None:
    out, _ = experiment
    about = json.loads((out / "runs" / "jrss-n2-seed0-tau0.999" / "run.json").read_text())
    assert "round 1 not run: no structure" in about["note"]
    by_run = {
        run: [r["value"] for r in rows(out) if r["run"] == run and r["metric"] == "dice"]
        for run in ("mono-n2-seed0", "jrss-n2-seed0-tau0.999")
    }
    assert by_run["mono-n2-seed0"] == by_run["jrss-n2-seed0-tau0.999"]


def test_what_is_done_is_not_done_again(
    experiment: Experiment, protocol: Protocol, tmp_path: Path
) -> None:
    out = shutil.copytree(experiment[0], tmp_path / "copy")
    before = rows(out)
    with pytest.raises(ProtocolError, match="--resume goes on"):
        next(run_experiment(protocol, out))
    shutil.rmtree(out / "runs" / "initial-n0-seed0")
    ended = list(run_experiment(protocol, out, resume=True, workers=1, threads=1, device="cpu"))
    assert [e.run.id for e in ended if not e.skipped] == ["initial-n0-seed0"]
    figures = [
        [r["value"] for r in each if r["metric"] != "seconds"] for each in (before, rows(out))
    ]
    assert figures[0] == figures[1]


def test_a_folder_in_which_another_experiment_begins_is_gone_on_with(
    experiment: Experiment, protocol: Protocol, tmp_path: Path
) -> None:
    out = shutil.copytree(experiment[0], tmp_path / "copy")
    shutil.rmtree(out / "runs" / "initial-n0-seed0")
    with Project.open(out / "cohort.jrss"):  # which holds its lock
        ended = list(run_experiment(protocol, out, resume=True, workers=1, device="cpu"))
    assert [e.run.id for e in ended if not e.skipped] == ["initial-n0-seed0"]
    assert [e.problem for e in ended] == [""] * len(RUNS)


def test_figures_kept_without_weights_are_done_unless_another_run_starts_from_them(
    experiment: Experiment, protocol: Protocol, tmp_path: Path
) -> None:
    out = shutil.copytree(experiment[0], tmp_path / "copy")
    for weights in (out / "runs").glob("**/*.safetensors"):
        weights.unlink()
    shutil.rmtree(out / "runs" / "jrss-n2-seed0-tau0.999")
    ended = run_experiment(protocol, out, resume=True, workers=1, threads=1, device="cpu")
    log = out / "runs" / "mono-n2-seed0" / "events.jsonl"
    first = len(log.read_text().splitlines())
    told = {e.run.id: (e.skipped, e.problem) for e in ended}
    assert len(log.read_text().splitlines()) == first  # begun anew
    again = {"mono-n2-seed0", "jrss-n2-seed0-tau0.999"}
    assert told == {run: (run not in again, "") for run in RUNS}


def test_a_killed_run_goes_on_with_its_log_and_its_time(
    experiment: Experiment, protocol: Protocol, tmp_path: Path
) -> None:
    out = shutil.copytree(experiment[0], tmp_path / "copy")
    folder = out / "runs" / "mono-n0-seed0"
    seconds = json.loads((folder / "run.json").read_text())["train_seconds"]
    (folder / "run.json").unlink()
    log = folder / "events.jsonl"
    whole = log.read_text()
    whole = whole[: whole.index('{"kind": "trained"')]
    logged = [json.loads(line)["seconds"] for line in whole.splitlines()]
    assert logged == sorted(logged)
    assert 0 < logged[-1] <= seconds + 0.1
    log.write_text(whole + '{"kind": "epoch_e')  # killed while it wrote
    list(run_experiment(protocol, out, resume=True, only=["mono-n0-seed0"], device="cpu"))
    assert log.read_text().startswith(whole)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    later = [line["seconds"] for line in lines]
    assert later == sorted(later)
    [trained] = [line["seconds"] for line in lines if line["kind"] == "trained"]
    about = json.loads((folder / "run.json").read_text())
    assert about["train_seconds"] == pytest.approx(trained, abs=0.1)
    assert about["train_seconds"] > logged[-1]


def test_a_run_killed_while_it_was_evaluated_keeps_the_figures_it_had(
    experiment: Experiment, protocol: Protocol, tmp_path: Path
) -> None:
    out = shutil.copytree(experiment[0], tmp_path / "copy")
    folder = out / "runs" / "initial-n0-seed0"
    (folder / "run.json").unlink()
    (folder / "rows.csv.gz").unlink()
    log = folder / "events.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["trained", *["figures"] * (len(lines) - 1)]
    lines[0]["seconds"] = 7.0
    lines[1]["figures"]["std_jacobian"] = 0.25  # so that it can be told from one made anew
    log.write_text("".join(json.dumps(line) + "\n" for line in lines[:3]))
    list(run_experiment(protocol, out, resume=True, only=["initial"], device="cpu"))
    again = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line.get("of") for line in again] == [line.get("of") for line in lines]
    assert json.loads((folder / "run.json").read_text())["train_seconds"] == 7.0
    folds = [
        float(r["value"])
        for r in rows(out)
        if r["method"] == "initial" and r["metric"] == "std_jacobian"
    ]
    assert sorted(folds) == [0.0] * (len(lines) - 2) + [0.25]


def test_a_run_that_fails_leaves_the_others_alone_and_is_tried_again(
    experiment: Experiment, protocol: Protocol, tmp_path: Path
) -> None:
    out = shutil.copytree(experiment[0], tmp_path / "copy")
    (out / "runs" / "jrss-n2-seed0" / "run.json").unlink()
    damaged = out / "runs" / "jrss-n2-seed0" / "round1" / "teacher.safetensors"
    damaged.write_bytes(b"not weights")
    shutil.rmtree(out / "runs" / "initial-n0-seed0")
    ended = list(run_experiment(protocol, out, resume=True, workers=1, threads=1, device="cpu"))
    problems = {e.run.id: e.problem for e in ended if e.problem}
    assert list(problems) == ["jrss-n2-seed0"]
    assert "teacher.safetensors" in problems["jrss-n2-seed0"]
    assert not (out / "runs" / "jrss-n2-seed0" / "run.json").exists()
    assert (out / "runs" / "initial-n0-seed0" / "run.json").exists()


def test_an_experiment_is_not_continued_with_other_data_or_settings(
    experiment: Experiment, protocol: Protocol, tmp_path: Path
) -> None:
    out = shutil.copytree(experiment[0], tmp_path / "copy")
    other = protocol.model_copy(update={"pairs": "all"})
    with pytest.raises(ProtocolError, match="begun with other pairs"):
        next(run_experiment(other, out, resume=True))
    other = protocol.model_copy(update={"settings": {}})
    with pytest.raises(ProtocolError, match="begun with other settings"):
        list(run_experiment(other, out, resume=True, only=["initial"]))
    # nor where only one that was killed, or isn't asked for now, was begun
    for file in (out / "runs").glob("*/run.json"):
        file.unlink()
    for folder in (out / "runs").iterdir():
        if folder.name != "mono-n2-seed0":
            shutil.rmtree(folder)
    with pytest.raises(ProtocolError, match=r"mono-n2-seed0: was begun with other settings"):
        list(run_experiment(other, out, resume=True, only=["initial"]))


def test_figures_of_an_earlier_version_are_not_made_again(
    experiment: Experiment, protocol: Protocol, tmp_path: Path
) -> None:
    out = shutil.copytree(experiment[0], tmp_path / "copy")
    for folder in (out / "runs").iterdir():
        (folder / "settings.json").unlink()
        about = json.loads((folder / "run.json").read_text())
        about["config"]["segmentation"]["lambda_that_was"] = 0.0
        del about["config"]["joint"]["dropout"]
        if about["method"] != "jrss":
            about["config"]["screening"]["tau"] = 0.9
        (folder / "run.json").write_text(json.dumps(about))
    assert all(ended.skipped for ended in run_experiment(protocol, out, resume=True))


def test_an_unknown_device_is_not_taken_for_the_cpu(protocol: Protocol, tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="--device gpu: auto, cpu or cuda"):
        list(run_experiment(protocol, tmp_path / "out", device="gpu"))


def test_a_split_project_with_a_single_test_case_is_refused_before_anything_is_trained(
    experiment: Experiment, protocol: Protocol, tmp_path: Path
) -> None:
    from napari_jrss.experiments.cohort import COHORT
    from napari_jrss.project.project import Project

    path = shutil.copytree(experiment[0] / COHORT, tmp_path / "own.jrss")
    with Project.open(path) as project:
        project.split(labelled=2, validation=1, test=1)
    data = protocol.data.model_copy(update={"synthetic": None, "project": path})
    own = protocol.model_copy(update={"data": data})
    with pytest.raises(ProtocolError, match="two test cases with labels, and there are 1"):
        list(run_experiment(own, tmp_path / "out", device="cpu"))
    assert not (tmp_path / "out" / "runs").exists()


def test_only_takes_methods_and_patterns(experiment: Experiment, protocol: Protocol) -> None:
    out, _ = experiment
    jrss = list(run_experiment(protocol, out, resume=True, only=["jrss-*-seed0"]))
    assert [e.run.id for e in jrss] == ["mono-n2-seed0", "jrss-n2-seed0"]
    with pytest.raises(ProtocolError, match="--only SyN: no such run"):
        next(run_experiment(protocol, out, resume=True, only=["SyN"]))


def test_unlabelled_cases_have_no_label_to_read(experiment: Experiment, protocol: Protocol) -> None:
    from napari_jrss.experiments.cohort import COHORT, assign, snapshot_of
    from napari_jrss.experiments.protocol import plan
    from napari_jrss.project.project import Project

    run = next(run for run in plan(protocol) if run.labelled == 2)
    with Project.open(experiment[0] / COHORT, read_only=True) as project:
        snapshot = snapshot_of(assign(protocol, run, project), project)
        assert np.any(snapshot.arrays.label(snapshot.labelled[0]))
        with pytest.raises(KeyError):
            snapshot.arrays.label(snapshot.unlabelled[0])
