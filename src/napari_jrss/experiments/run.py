"""Runs the grid of a protocol: one process per GPU or core, each run kept in its own folder.

``runs/<run>/run.json`` says what was run, on what, and how it ended; ``rows.csv.gz`` beside it
holds every figure of every test case; ``results.csv`` is all of them in one. A run with a
``run.json`` is done, unless another starts from weights that it hasn't kept; a killed one goes on
inside a stage from its last validated epoch.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import json
import multiprocessing
import os
import platform
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from napari_jrss import __version__
from napari_jrss.config import TrainingConfig
from napari_jrss.data.atomic import write_bytes, write_text
from napari_jrss.experiments.cohort import COHORT, deal, prepare_cohort, snapshot_of
from napari_jrss.experiments.methods import METHODS
from napari_jrss.experiments.protocol import Protocol, ProtocolError, Run, plan
from napari_jrss.project.project import Project

if TYPE_CHECKING:
    from napari_jrss.engine.events import Event

PROTOCOL, RUNS, RESULTS = "protocol.json", "runs", "results.csv"
RUN, ROWS, EVENTS = "run.json", "rows.csv.gz", "events.jsonl"  # in the folder of each run
COLUMNS = (
    "run",
    "method",
    "variant",
    "labelled",
    "tau",
    "seed",
    "round",
    "task",
    "case",
    "moving",
    "structure",
    "metric",
    "value",
)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
PACKAGES = ("torch", "monai", "numpy", "scipy", "SimpleITK", "antspyx")


@dataclass(frozen=True)
class RunEnded:
    """One run ended: `problem` is empty if it went well, `skipped` if it had been done before."""

    run: Run
    seconds: float
    problem: str = ""
    skipped: bool = False


@dataclass(frozen=True)
class Worker:
    """Where a worker process computes: device, CPU threads, and which GPU it may see."""

    number: int
    device: str
    threads: int
    gpu: str | None = None


def run_experiment(
    protocol: Protocol,
    out: Path,
    *,
    only: Sequence[str] = (),
    resume: bool = False,
    workers: int | None = None,
    threads: int | None = None,
    device: str = "auto",
) -> Iterator[RunEnded]:
    """Run what is not done yet.

    Parameters
    ----------
    protocol
        What to run.
    out
        The experiment's folder, made if missing.
    only
        Methods, or ids of runs, to do now, with what they start from; all by default.
    resume
        Whether `out` may hold an experiment already, which goes on.
    workers
        Processes; by default one per GPU, or per core without one.
    threads
        CPU threads of each; by default the cores are shared out.
    device
        ``cpu``, ``cuda`` or ``auto``.

    Yields
    ------
    RunEnded
        As the runs end. One that fails leaves the others alone.

    Raises
    ------
    ProtocolError
        Before anything is trained, in one line.
    """
    runs = _chosen(plan(protocol), only)
    _check_packages([run for run in runs if not _is_done(run, out)])
    begun = _claim(protocol, out, resume)
    try:
        project = prepare_cohort(protocol, out, runs)
    except (ValueError, OSError):
        if not begun and not (out / COHORT).exists():
            (out / PROTOCOL).unlink()  # nothing came of it: the next try may be another
        raise
    places = _workers(workers, threads, device)
    # Workers take the number of threads from here as they are born, before torch or ANTs read it.
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(before, str(places[0].threads)))
    try:
        yield from _in_processes(protocol, out, project, runs, places)
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        collect(out)


def _in_processes(
    protocol: Protocol, out: Path, project: Path, runs: list[Run], places: list[Worker]
) -> Iterator[RunEnded]:
    """Give each free worker the next run whose start is done."""
    context = multiprocessing.get_context("spawn")
    # One pool of one process for each place, so that a crash takes no neighbour with it.
    pools = {place: ProcessPoolExecutor(1, context) for place in places}
    started_from = {run.start.id for run in runs if run.start and not _is_done(run, out)}
    waiting, free = list(runs), list(places)
    busy: dict[Future[float], tuple[Run, Worker]] = {}
    problems: dict[str, str] = {}  # of each run that ended
    try:
        while waiting or busy:
            for run in list(waiting):
                ready = run.start is None or problems.get(run.start.id) == ""
                weights = run.id not in started_from or any(
                    (out / RUNS / run.id).glob("**/*.safetensors")
                )
                if _is_done(run, out) and weights:
                    ended = RunEnded(run, 0.0, skipped=True)
                elif run.start is not None and problems.get(run.start.id):
                    ended = RunEnded(run, 0.0, f"{run.start.id} failed")
                elif free and ready:
                    place = free.pop(0)
                    job = pools[place].submit(run_one, protocol, run, out, project, place)
                    busy[job] = (run, place)
                    waiting.remove(run)
                    continue
                else:
                    continue
                waiting.remove(run)
                problems[run.id] = ended.problem
                yield ended
            for job in wait(busy, return_when=FIRST_COMPLETED).done:
                run, place = busy.pop(job)
                problem, seconds = "", 0.0
                try:
                    seconds = job.result()
                except Exception as error:  # whatever a run died of, the others go on
                    problem = " ".join(f"{type(error).__name__}: {error}".split())
                    pools[place].shutdown(wait=False)
                    pools[place] = ProcessPoolExecutor(1, context)
                free.append(place)
                problems[run.id] = problem
                yield RunEnded(run, seconds, problem)
    finally:
        for pool in pools.values():
            pool.shutdown(wait=False, cancel_futures=True)


def run_one(protocol: Protocol, run: Run, out: Path, project_path: Path, place: Worker) -> float:
    """Train and evaluate one run; what :func:`run_experiment` does in its processes.

    Returns
    -------
    float
        Seconds it took.
    """
    _end_with_parent()
    if place.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.gpu
    import torch

    from napari_jrss.data.batches import CachedArrays
    from napari_jrss.engine.device import make_fabric
    from napari_jrss.engine.evaluate import (
        evaluate_registration,
        evaluate_segmentation,
        evaluation_pairs,
    )
    from napari_jrss.experiments.examples import write_examples
    from napari_jrss.experiments.recipe import Task

    torch.set_num_threads(place.threads)
    _flush_denormals()
    folder = out / RUNS / run.id
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with Project.open(project_path, read_only=True) as project:
        dealt = deal(protocol, run, project)
        snapshot = snapshot_of(dealt, project)
        fabric = make_fabric(place.device, run.config.precision)
        with (folder / EVENTS).open("a", encoding="utf-8") as log:
            task = Task(
                snapshot=snapshot,
                config=run.config,
                folder=folder,
                fabric=fabric,
                joint_rounds=protocol.joint_rounds,
                start=None if run.start is None else out / RUNS / run.start.id,
                report=lambda event: _log(event, log),
            )
            trained = METHODS[run.method].train(task)
        train_seconds = time.perf_counter() - started

        arrays = CachedArrays(project.image, project.label)
        names, spacing = snapshot.class_names, snapshot.spacing_mm
        pairs = evaluation_pairs(dealt.test, protocol.pairs, run.seed)
        rows: list[dict[str, object]] = []
        for each in (*trained.earlier, trained):
            if each.segmentation is not None:
                network = each.segmentation.to(fabric.device).eval()
                for case in evaluate_segmentation(
                    network, arrays, dealt.test, len(names), spacing, fabric.device
                ):
                    about = {"round": each.round, "task": "segmentation", "case": case.case_id}
                    rows += _rows(case.model_dump(), about, names)
            if each.registration is not None:
                network = each.registration.to(fabric.device).eval()
                for pair in evaluate_registration(
                    network, arrays, pairs, len(names), spacing, fabric.device
                ):
                    about = {"round": each.round, "task": "registration", "case": pair.fixed}
                    rows += _rows(pair.model_dump(), {**about, "moving": pair.moving}, names)
        write_examples(folder, trained, arrays, dealt.test[0], pairs[0], fabric.device)
    _write_rows(folder / ROWS, run, rows)
    seconds = time.perf_counter() - started
    description = {
        **describe(run, place),
        "title": METHODS[run.method].title,
        "device": str(fabric.device),
        "device_name": _device_name(fabric.device.type),
        "note": trained.note,
        "parameters": trained.parameters(),
        "train_seconds": train_seconds,
        "seconds": seconds,
        "structures": list(names[1:]),
        "cases": {
            "labelled": dealt.labelled,
            "training": dealt.train,
            "validation": dealt.validation,
            "test": dealt.test,
        },
    }
    write_text(folder / RUN, json.dumps(description, indent=1))
    return seconds


def describe(run: Run, place: Worker) -> dict[str, Any]:
    """What a run is, and the software and machine it ran on."""
    versions = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "run": run.id,
        "method": run.method,
        "variant": run.variant,
        "labelled": "K" if run.labelled is None else run.labelled,
        "seed": run.seed,
        "config": run.config.model_dump(mode="json"),
        "versions": {"napari-jrss": __version__, "python": platform.python_version(), **versions},
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": place.threads,
        },
    }


def collect(out: Path) -> Path:
    """Put the rows of all finished runs into one tidy ``results.csv``."""
    parts = [out / RUNS / run["run"] / ROWS for run in finished_runs(out)]
    content = [",".join(COLUMNS) + "\n"]
    for path in parts:
        content += read_rows(path).splitlines(keepends=True)[1:]
    write_text(out / RESULTS, "".join(content))
    return out / RESULTS


def finished_runs(out: Path) -> list[dict[str, Any]]:
    """What ``run.json`` says of each finished run, in the order of their ids."""
    paths = sorted((out / RUNS).glob(f"*/{RUN}"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def read_rows(path: Path) -> str:
    """A run's rows as CSV."""
    return gzip.decompress(path.read_bytes()).decode()


def _chosen(runs: list[Run], only: Sequence[str]) -> list[Run]:
    if not only:
        return runs
    wanted: dict[str, Run] = {}
    for name in only:
        found = [run for run in runs if name == run.method or fnmatch(run.id, name)]
        if not found:
            methods = ", ".join(dict.fromkeys(run.method for run in runs))
            raise ProtocolError(f"--only {name}: no such run; methods: {methods}")
        wanted |= {run.id: run for run in found}
    wanted |= {run.start.id: run.start for run in list(wanted.values()) if run.start is not None}
    return [run for run in runs if run.id in wanted]


def _check_packages(runs: Sequence[Run]) -> None:
    for name in dict.fromkeys(run.method for run in runs):
        package = METHODS[name].package
        if package is not None and importlib.util.find_spec(package) is None:
            raise ProtocolError(
                f"method {name} needs the package {package}: pip install 'napari-jrss[{package}]', "
                "or leave it out with --only"
            )


def _claim(protocol: Protocol, out: Path, resume: bool) -> bool:
    """Make the folder, or see that what is there belongs to the same data and splits.

    Returns
    -------
    bool
        Whether the experiment had been begun before.
    """
    path = out / PROTOCOL
    begun = path.exists()
    text = protocol.model_dump_json(indent=1)
    if begun:
        if not resume:
            raise ProtocolError(f"{out}: holds an experiment already; --resume goes on with it")
        before = json.loads(path.read_text(encoding="utf-8"))
        for name in ("data", "split", "pairs", "joint_rounds"):
            if before.get(name) != json.loads(text)[name]:
                raise ProtocolError(f"{out}: was begun with other {name}; use another folder")
    elif out.exists() and any(out.iterdir()):
        raise ProtocolError(f"{out}: is neither empty nor an experiment")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return begun


def _is_done(run: Run, out: Path) -> bool:
    """Whether the run has its figures; one with other settings is not the same run."""
    path = out / RUNS / run.id / RUN
    if not path.exists():
        return False
    config = json.loads(path.read_text(encoding="utf-8"))["config"]
    if TrainingConfig.model_validate(config) != run.config:
        raise ProtocolError(f"{path.parent}: was run with other settings; use another folder")
    return True


def _workers(count: int | None, threads: int | None, device: str) -> list[Worker]:
    """One per GPU, or per core without one."""
    import torch

    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cuda" and gpus == 0:
        raise ProtocolError("this machine has no cuda device; try --device cpu")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = count or gpus or cores or 1
    each = threads or max(1, (cores or 1) // count)
    if gpus == 0:
        return [Worker(i, "cpu", each) for i in range(count)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(i) for i in range(gpus)]
    return [Worker(i, "cuda", each, names[i % gpus]) for i in range(count)]


def _rows(
    figures: dict[str, Any], about: dict[str, object], names: Sequence[str]
) -> Iterator[dict[str, object]]:
    """One row per figure: per structure for a list, one without a structure for a number."""
    for metric, value in figures.items():
        if isinstance(value, list):
            for name, each in zip(names[1:], value, strict=True):
                yield {**about, "structure": name, "metric": metric, "value": _digits(each)}
        elif isinstance(value, float):
            yield {**about, "structure": "", "metric": metric, "value": _digits(value)}


def _digits(value: float | None) -> str:
    """Six digits are more than any figure here is good for, and keep the files small."""
    return "" if value is None else f"{value:.6g}"


def _write_rows(path: Path, run: Run, rows: Sequence[dict[str, object]]) -> None:
    about = {
        "run": run.id,
        "method": run.method,
        "variant": run.variant,
        "labelled": "K" if run.labelled is None else run.labelled,
        "tau": run.config.screening.tau,
        "seed": run.seed,
    }
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**about, **row} for row in rows)
    # without a time in it, the same figures make the same file
    write_bytes(path, gzip.compress(text.getvalue().encode(), mtime=0))


def _log(event: Event, file: TextIO) -> None:
    """Keep what outlives the run; single steps don't."""
    if event.kind != "step_end":
        file.write(event.model_dump_json() + "\n")
        file.flush()


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on writing beside the one that resumes."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _flush_denormals() -> None:
    """Sure predictions are full of numbers below 1e-38, with which a CPU computes much slower."""
    import torch

    torch.set_flush_denormal(True)
    # numpy notices as soon as somebody asks for the properties of a type
    warnings.filterwarnings("ignore", "The value of the smallest subnormal", UserWarning)


def _device_name(kind: str) -> str:
    import torch

    return torch.cuda.get_device_name() if kind == "cuda" else _processor()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
