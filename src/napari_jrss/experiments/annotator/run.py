"""Runs the loops of a protocol's annotator, each with each seed in a process of its own.

The loops of a seed have one cohort, and begin alike: with one case that was labelled by hand, and
with one teacher that was trained on it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from napari_jrss.experiments.annotator.cohort import costs_of, make_cohort_project, settings_of
from napari_jrss.experiments.annotator.loops import LOOPS, Loop
from napari_jrss.experiments.annotator.session_work import Place, loop_work
from napari_jrss.experiments.folder import RUN, RUNS
from napari_jrss.experiments.protocol import Protocol, ProtocolError
from napari_jrss.experiments.run import RunEnded, claim, environments_of, run_each
from napari_jrss.experiments.worker import describe_machine
from napari_jrss.io.atomic import new_folder, write_text
from napari_jrss.pool import Workers

FIRST = Loop("start", "The first case", "random", "blank")


@dataclass(frozen=True)
class LoopRun:
    """One loop with one seed; the loop :data:`FIRST` is what all of a seed begin with."""

    loop: Loop
    seed: int

    @property
    def id(self) -> str:
        """Name of its folder, such as ``ours-seed0``."""
        return f"{self.loop.name}-seed{self.seed}"


def loop_runs(protocol: Protocol, only: Sequence[str] = ()) -> list[LoopRun]:
    """The runs of a protocol, seed by seed; `only` names loops, or patterns of runs."""
    runs = [LoopRun(loop, seed) for seed in protocol.seeds for loop in LOOPS.values()]
    chosen = dict.fromkeys(runs, not only)
    for name in only:
        found = [run for run in runs if name == run.loop.name or fnmatch(run.id, name)]
        if not found:
            raise ProtocolError(f"--only {name}: no such run; loops: {', '.join(LOOPS)}")
        chosen |= dict.fromkeys(found, True)
    return [run for run in runs if chosen[run]]


def run_annotator(
    protocol: Protocol,
    out: Path,
    *,
    only: Sequence[str] = (),
    resume: bool = False,
    workers: Workers = None,
    threads: int | None = None,
    device: str = "auto",
) -> Iterator[RunEnded[LoopRun]]:
    """Run the loops that aren't done yet in the folder `out`, and yield how each ended.

    Parameters are those of :func:`~napari_jrss.experiments.run.run_experiment`. A
    :class:`ProtocolError` is raised before anything is trained.
    """
    costs_of(settings_of(protocol))
    runs = loop_runs(protocol, only)
    claim(protocol, out, resume)
    done = [run for run in runs if _is_done(run, out)]
    yield from (RunEnded(run, 0.0, skipped=True) for run in done)
    wanted = [run for run in runs if run not in done]
    starts = [LoopRun(FIRST, seed) for seed in dict.fromkeys(run.seed for run in wanted)]
    waiting = [run for run in starts if not _is_done(run, out)] + wanted

    def ready(run: LoopRun) -> bool:
        return run.loop == FIRST or _is_done(LoopRun(FIRST, run.seed), out)

    job = partial(run_loop, protocol, out, device)
    for ended in run_each(job, waiting, workers, environments_of(workers, threads), ready):
        if ended.problem or ended.run.loop != FIRST:
            yield ended


def run_loop(protocol: Protocol, out: Path, device: str, run: LoopRun) -> float:
    """Run one loop to its end, from wherever it was left; the seconds that took."""
    import torch

    started = time.perf_counter()
    torch.set_flush_denormal(True)
    place = place_of(run, out)
    place.folder.mkdir(parents=True, exist_ok=True)
    if run.loop == FIRST:
        _begin(protocol, run, place, device)
    else:
        start = place_of(LoopRun(FIRST, run.seed), out)
        if not _is_done(LoopRun(FIRST, run.seed), out):
            raise ProtocolError(f"{start.folder.name} failed")
        if not place.project.exists():
            shutil.copyfile(start.pending_path, place.pending_path)
            _copy(start.project if run.loop.learns else _untaught(start), place.project)
        with loop_work(protocol, run.loop, run.seed, place, device) as work:
            while work.step():
                pass
    write_text(
        place.folder / RUN,
        json.dumps(
            {
                "run": run.id,
                "loop": run.loop.name,
                "seed": run.seed,
                "config": protocol.config(run.seed).model_dump(mode="json"),
                **describe_machine(torch.get_num_threads()),
            },
            indent=1,
        ),
    )
    return time.perf_counter() - started


def _begin(protocol: Protocol, run: LoopRun, place: Place, device: str) -> None:
    """Read the cohort, label its first case, and train the first teacher."""
    if not place.project.exists():
        make_cohort_project(protocol, run.seed, place.project)
    if not _untaught(place).exists():
        with loop_work(protocol, run.loop, run.seed, place, device) as work:
            work.label_first()
        _copy(place.project, _untaught(place))
    with loop_work(protocol, run.loop, run.seed, place, device) as work:
        work.learn_first()


def _untaught(start: Place) -> Path:
    """The project with its first label and without a teacher."""
    return start.folder / "untaught.jrss"


def _copy(project: Path, to: Path) -> None:
    with new_folder(to) as unfinished:
        shutil.copytree(project, unfinished)


def place_of(run: LoopRun, out: Path) -> Place:
    """Where a run is kept."""
    return Place(out / RUNS / run.id)


def _is_done(run: LoopRun, out: Path) -> bool:
    return (place_of(run, out).folder / RUN).exists()
