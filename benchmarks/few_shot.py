"""The paper's few-shot experiment on real scans: N labelled cases, Mono-Nets, three joint rounds.

    python benchmarks/few_shot.py run hippocampus RUNS --jobs 2
    python benchmarks/few_shot.py report RUNS --out docs/results.md

``run`` makes one project per N and seed under RUNS and drives it with the ``napari-jrss`` command,
as a user would; what is done is not done again, so a killed run goes on. ``report`` reads nothing
but the projects' own files. The data are looked for in ../shared/data, or where --data says.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Experiment:
    """A data set, how it is preprocessed and split, and which N and seeds to run."""

    title: str
    folder: str
    init: str
    split: str
    labelled: tuple[int, ...]
    seeds: tuple[int, ...]
    train: str = "--preset fast --rounds 3"


EXPERIMENTS = {
    "hippocampus": Experiment(
        "MSD hippocampus: 2 structures, labels by hand, 40x56x40 voxels of 1 mm",
        "hippocampus_msd",
        "--shape 40 56 40",
        "--validation 4 --test 40 --training 30 --group-by {data}/cases.csv:inferred_subject_group",
        labelled=(1, 3, 5, 7),
        seeds=(0, 1, 2),
    ),
    "ixi": Experiment(
        "IXI brains: 10 groups of structures, automatic labels, 80x96x80 voxels of 2 mm",
        "ixi_brain_2mm",
        "--groups {data}/groups.csv --spacing 2 2 2 --shape 80 96 80 --prealign affine "
        "--crop labelled",
        "--validation 2 --test 10 --training 28",
        labelled=(5,),
        seeds=(0,),
    ),
}


def run(name: str, runs: Path, data: Path, jobs: int, labelled: list[int], seeds: list[int]) -> int:
    """Run every (N, seed) of an experiment that is not done yet; how many failed."""
    experiment = EXPERIMENTS[name]
    grid = [(n, s) for s in seeds or experiment.seeds for n in labelled or experiment.labelled]
    with ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(lambda job: _run_one(name, runs, data, *job), grid))
    return done.count(False)


def _run_one(name: str, runs: Path, data: Path, n: int, seed: int) -> bool:
    experiment = EXPERIMENTS[name]
    source = data / experiment.folder
    project = runs / name / f"n{n}_seed{seed}.jrss"
    finished = project.with_suffix(".json")
    if finished.exists():
        return True
    project.parent.mkdir(parents=True, exist_ok=True)
    init, split, train = (
        options.format(data=source).split()
        for options in (experiment.init, experiment.split, experiment.train)
    )
    scans = ["--images", source / "images", "--labels", source / "labels"]
    log = project.with_suffix(".log")
    try:
        if not project.exists():
            _call(log, "init", project, *scans, *init)
            _call(log, "split", project, "--labelled", n, "--seed", seed, *split)
        started = time.time()
        rounds = json.loads(_call(log, "status", project, "--json"))["rounds"]
        train += ["--resume"] if rounds else []
        _call(log, "train", project, *train, "--seed", seed, "--threads", 1, "--json")
        seconds = time.time() - started
        summary = json.loads(_call(log, "evaluate", project, "--seed", seed, "--json"))
    except subprocess.CalledProcessError as error:
        print(f"{project.name}: {error}; see {log}", file=sys.stderr)
        return False
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "threads": 1}
    facts = {"n": n, "seed": seed, "train_seconds": seconds, "resumed": bool(rounds), **machine}
    finished.write_text(json.dumps({**facts, **summary}, indent=1))
    print(f"{project.name}: done in {seconds / 60:.1f} min", flush=True)
    return True


def _call(log: Path, *arguments: object) -> str:
    """Run one ``napari-jrss`` command; its output, which is also kept in the log."""
    command = [sys.executable, "-m", "napari_jrss", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n{result.stderr}\n")
        file.write("\n".join(line for line in result.stdout.splitlines() if "step_end" not in line))
    result.check_returncode()
    return result.stdout


def report(runs: Path, out: Path) -> None:
    """Write the tables of every experiment that has finished runs."""
    parts = [
        "# Results",
        "",
        f"Written by `python benchmarks/few_shot.py report` on {date.today()} from the runs' own "
        "files; `python benchmarks/few_shot.py run hippocampus RUNS` repeats them. Figures are "
        "means over the test cases (or pairs) of all seeds, with the standard deviation over "
        "cases in brackets, on the training grid; background is never counted.",
    ]
    for name, experiment in EXPERIMENTS.items():
        results = [json.loads(p.read_text()) for p in sorted((runs / name).glob("n*_seed*.json"))]
        if results:
            parts += ["", *_section(experiment, results, runs / name)]
    out.write_text("\n".join(parts) + "\n")


def _section(experiment: Experiment, results: list[dict[str, Any]], folder: Path) -> list[str]:
    minutes = [r["train_seconds"] / 60 for r in results if not r["resumed"]]
    time_taken = f"{np.median(minutes):.0f} min" if minutes else "unknown time"
    first = results[0]
    lines = [
        f"## {experiment.title}",
        "",
        f"`napari-jrss init {experiment.init}`, `napari-jrss split {experiment.split}`, "
        f"`napari-jrss train {experiment.train}`. "
        f"Median training time of one project: {time_taken} on one thread of a {first['cores']}"
        f"-core {first['processor']} machine that was shared with other work.",
        "",
        "| N | seeds | method | Dice, segmentation | HD95 (mm) | Dice, registration | std(Jac) "
        "| folded (%) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for n in sorted({r["n"] for r in results}):
        chosen = [r for r in results if r["n"] == n]
        rows = {r["seed"]: _rows(folder / f"n{n}_seed{r['seed']}.jrss") for r in chosen}
        seeds = ", ".join(str(r["seed"]) for r in chosen)
        before = _pooled([_mean_dice(p["dice_before"]) for r in rows.values() for p in r[0][1]])
        lines.append(f"| {n} | {seeds} | initial | - | - | {before} | - | - |")
        for k in range(len(next(iter(rows.values())))):
            cases = [c for r in rows.values() for c in r[k][0]]
            pairs = [p for r in rows.values() for p in r[k][1]]
            figures = (
                _pooled([_mean_dice(c["dice"]) for c in cases]),
                _pooled([_mean_dice(c["hd95_mm"]) for c in cases], 2),
                _pooled([_mean_dice(p["dice"]) for p in pairs]),
                _pooled([p["std_jacobian"] for p in pairs]),
                _pooled([p["folded_percent"] for p in pairs], 2),
            )
            method = "Mono-Nets" if k == 0 else f"JRSS round {k}"
            lines.append(f"| {n} | {seeds} | {method} | {' | '.join(figures)} |")
    lines += ["", *_gains(results, folder)]
    done = {(r["n"], r["seed"]) for r in results}
    missing = [
        f"N={n} seed {seed}"
        for n in experiment.labelled
        for seed in experiment.seeds
        if (n, seed) not in done
    ]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    return lines


def _gains(results: list[dict[str, Any]], folder: Path) -> list[str]:
    """Last round against the Mono-Nets on the same cases, seed by seed."""
    lines = [
        "JRSS (last round) minus Mono-Nets, same test cases and pairs:",
        "",
        "| N | seed | segmentation | cases better | registration | pairs better |",
        "|---|---|---|---|---|---|",
    ]
    for r in sorted(results, key=lambda r: (r["n"], r["seed"])):
        rounds = _rows(folder / f"n{r['n']}_seed{r['seed']}.jrss")
        ends, cells = (rounds[0], rounds[-1]), []
        for kind in (0, 1):
            mono, joint = (np.array([_mean_dice(row["dice"]) for row in end[kind]]) for end in ends)
            gain = joint - mono
            cells += [f"{np.nanmean(gain):+.3f}", f"{np.sum(gain > 0)} of {len(gain)}"]
        lines.append(f"| {r['n']} | {r['seed']} | {' | '.join(cells)} |")
    return lines


def _rows(project: Path) -> list[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Per round: rows of the test cases, rows of the pairs."""
    rounds = []
    for path in sorted((project / "rounds").glob("*/evaluation.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        cases = [row for row in rows if row["kind"] == "case_evaluated"]
        rounds.append((cases, [row for row in rows if row["kind"] == "pair_evaluated"]))
    return rounds


def _mean_dice(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def _pooled(values: list[float], digits: int = 3) -> str:
    return f"{np.nanmean(values):.{digits}f} ({np.nanstd(values):.{digits}f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("experiment", choices=EXPERIMENTS)
    runner.add_argument("runs", type=Path)
    runner.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    runner.add_argument("--jobs", type=int, default=2, help="projects at a time, one thread each")
    runner.add_argument("--labelled", type=int, nargs="*", default=[], help="only these N")
    runner.add_argument("--seeds", type=int, nargs="*", default=[], help="only these seeds")
    reporter = commands.add_parser("report")
    reporter.add_argument("runs", type=Path)
    reporter.add_argument("--out", type=Path, default=ROOT / "docs" / "results.md")
    options = parser.parse_args()
    if options.command == "report":
        report(options.runs, options.out)
        return 0
    return run(
        options.experiment,
        options.runs,
        options.data,
        options.jobs,
        options.labelled,
        options.seeds,
    )


if __name__ == "__main__":
    sys.exit(main())
