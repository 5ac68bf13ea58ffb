"""Runs the grid of a protocol: one process per GPU or core, each run kept in its own folder.

A run with a ``run.json`` is done, unless another starts from weights that it hasn't kept; a killed
one goes on inside a stage from its last validated epoch.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from napari_jrss.experiments.cohort import COHORT, prepare_cohort
from napari_jrss.experiments.folder import PROTOCOL, RUN, RUNS, begun_with, collect
from napari_jrss.experiments.methods import METHODS
from napari_jrss.experiments.protocol import Protocol, ProtocolError, Run, plan
from napari_jrss.experiments.worker import train_and_evaluate
from napari_jrss.io.atomic import write_text
from napari_jrss.pool import Pool, Workers, in_processes
from napari_jrss.processes import thread_limits
from napari_jrss.threads import available_cores

Each = TypeVar("Each")


@dataclass(frozen=True)
class RunEnded(Generic[Each]):
    """One run ended: `problem` is empty if it went well, `skipped` if it had been done before."""

    run: Each
    seconds: float  # of computing, in this start
    problem: str = ""
    skipped: bool = False


def run_experiment(
    protocol: Protocol,
    out: Path,
    *,
    only: Sequence[str] = (),
    resume: bool = False,
    workers: Workers = None,
    threads: int | None = None,
    device: str = "auto",
) -> Iterator[RunEnded[Run]]:
    """Run what is not done yet in the folder `out`, and yield how each run ended.

    A run that fails leaves the others alone. A :class:`ProtocolError` is raised before anything is
    trained.

    Parameters
    ----------
    protocol, out
        What to run, and the experiment's folder, made if missing.
    only
        Methods, or ids of runs, to do now, with what they start from; all by default.
    resume
        Whether `out` may hold an experiment already, which goes on.
    workers, threads
        Processes, by default one per GPU, or per core without one; and the CPU threads of each, by
        default the cores are shared out. Or the workers of a cluster, which see the data and `out`
        at the same paths; their threads are those that they were started with, by default.
    device
        ``cpu``, ``cuda`` or ``auto``.
    """
    kind, gpus = (device, []) if isinstance(workers, Pool) else _devices(device)
    planned = plan(protocol)
    runs = chosen_runs(planned, only)
    for run in planned:
        _check_settings(run, out)
    _check_packages([run for run in runs if not _is_done(run, out)])
    begun = claim(protocol, out, resume)
    try:
        project = prepare_cohort(protocol, out, runs)
    except (ValueError, OSError):
        if not begun and not (out / COHORT).exists():
            (out / PROTOCOL).unlink()  # nothing came of it: the next try may be another
        raise
    missing = _missing(runs, out)
    yield from (RunEnded(run, 0.0, skipped=True) for run in runs if run.id not in missing)
    environments = environments_of(workers, threads, gpus)
    if environments is not None:
        threads = int(environments[0]["OMP_NUM_THREADS"])
    job = partial(train_and_evaluate, protocol, out, project, kind, threads)

    def ready(run: Run) -> bool:
        return run.start is None or run.start.id not in missing

    waiting = [run for run in runs if run.id in missing]
    try:
        for ended in run_each(job, waiting, workers, environments, ready):
            missing.remove(ended.run.id)
            yield ended
    finally:
        collect(out)


def environments_of(
    workers: Workers, threads: int | None, gpus: Sequence[str] = ()
) -> list[dict[str, str]] | None:
    """Variables of each process that runs, one per GPU or core; None for those of a cluster."""
    if isinstance(workers, Pool):
        return None
    count = workers or len(gpus) or available_cores()
    limits = thread_limits(threads or max(1, available_cores() // count))
    if not gpus:
        return [limits] * count
    return [{**limits, "CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(count)]


def run_each(
    job: Callable[[Each], float],
    runs: Sequence[Each],
    workers: Workers,
    environments: Sequence[Mapping[str, str]] | None,
    ready: Callable[[Each], bool],
) -> Iterator[RunEnded[Each]]:
    """Do each run in a process of its own; whatever one fails of, the others go on."""
    for run, result in in_processes(job, runs, workers, environments=environments, ready=ready):
        if isinstance(result, Exception):
            yield RunEnded(run, 0.0, " ".join(f"{type(result).__name__}: {result}".split()))
        else:
            yield RunEnded(run, result)


def _missing(runs: Sequence[Run], out: Path) -> set[str]:
    """Ids of the runs that aren't done, or whose weights are gone that one of these starts from."""
    missing: set[str] = set()
    started_from: set[str] = set()
    for run in reversed(runs):  # each comes after those that it starts from
        weights = any((out / RUNS / run.id).glob("**/*.safetensors"))
        if not _is_done(run, out) or (run.id in started_from and not weights):
            missing.add(run.id)
            started_from |= {each.id for each in run.before[-1:]}
    return missing


def chosen_runs(runs: list[Run], only: Sequence[str]) -> list[Run]:
    """The runs that `only` names (methods, or patterns of runs), and those they start from."""
    if not only:
        return runs
    wanted: dict[str, Run] = {}
    for name in only:
        found = [run for run in runs if name == run.method or fnmatch(run.id, name)]
        if not found:
            methods = ", ".join(dict.fromkeys(run.method for run in runs))
            raise ProtocolError(f"--only {name}: no such run; methods: {methods}")
        wanted |= {run.id: run for run in found}
    for run in list(wanted.values()):
        wanted |= {each.id: each for each in run.before}
    return [run for run in runs if run.id in wanted]


def _check_packages(runs: Sequence[Run]) -> None:
    for name in dict.fromkeys(run.method for run in runs):
        package = METHODS[name].package
        if package is not None and importlib.util.find_spec(package) is None:
            raise ProtocolError(
                f"method {name} needs the package {package}: pip install 'napari-jrss[{package}]', "
                "or leave it out with --only"
            )


def claim(protocol: Protocol, out: Path, resume: bool) -> bool:
    """Make the folder, or see that what is there belongs to the same data and splits.

    Returns whether the experiment had been begun before.
    """
    path = out / PROTOCOL
    begun = path.exists()
    text = protocol.model_dump_json(indent=1)
    if begun:
        if not resume:
            raise ProtocolError(f"{out}: holds an experiment already; --resume goes on with it")
        before = json.loads(path.read_text(encoding="utf-8"))
        for name in ("data", "split", "pairs", "joint_rounds", "annotator"):
            if before.get(name) != json.loads(text)[name]:
                raise ProtocolError(f"{out}: was begun with other {name}; use another folder")
    elif out.exists() and any(out.iterdir()):
        raise ProtocolError(f"{out}: is neither empty nor an experiment")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return begun


def _check_settings(run: Run, out: Path) -> None:
    """A run that was begun with other settings is not the same run.

    Settings that one of the two versions of this program doesn't know, and the screening of a
    method without pseudo-labels, make no difference.
    """
    now = run.config.model_dump(mode="json")
    if not METHODS[run.method].needs_unlabelled:
        del now["screening"]
    before = begun_with(out / RUNS / run.id)
    if before is not None and not _agree(before, now):
        raise ProtocolError(
            f"{out / RUNS / run.id}: was begun with other settings; use another folder"
        )


def _agree(before: Any, now: Any) -> bool:
    """Whether two nested settings have the same values where both have one."""
    if isinstance(before, dict) and isinstance(now, dict):
        return all(_agree(before[name], now[name]) for name in before.keys() & now.keys())
    return bool(before == now)


def _is_done(run: Run, out: Path) -> bool:
    return (out / RUNS / run.id / RUN).exists()


def _devices(device: str) -> tuple[str, list[str]]:
    """What runs compute on, ``cpu`` or ``cuda``, and the names of the GPUs."""
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise ProtocolError(f"--device {device}: auto, cpu or cuda")
    count = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cuda" and count == 0:
        raise ProtocolError("this machine has no cuda device; try --device cpu")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(i) for i in range(count)]
    return ("cuda", names[:count]) if count else ("cpu", [])
