"""How work on 10,000 scans, or pairs of them, grows with the number of workers: a model.

    python benchmarks/scaling.py --data COHORT --scans 14 56 --segment --refine

COHORT holds images and labels. It imports a small and a larger part of it with one worker; with
--segment it segments a quarter of each, and with --refine it registers one pair and four by
refinement. The difference tells what a further scan, or pair, costs: CPU seconds in the worker and
in the program that keeps the ledger, and bytes that are read and written. An item that does nothing
tells what dask costs. With these costs it simulates 10,000 scans or pairs on 1 to 64 workers, whose
files lie on one network disk: each of them waits for dask's scheduler, the disk, a worker and the
program, and each of these serves one at a time.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import psutil

import napari_jrss as jrss
from napari_jrss.app.pairs.comparison import compare_engines
from napari_jrss.config import TrainingConfig, preset
from napari_jrss.io.layouts import discover
from napari_jrss.pool import in_processes

ITEMS = 10_000
PAIRS = (1, 4)
WORKERS = (1, 2, 4, 8, 16, 32, 64)
DISKS = {"1 Gbit/s": 110e6, "10 Gbit/s": 1.1e9}
"""Bytes per second of a disk behind a network, as a rule of thumb."""


@dataclass(frozen=True)
class Cost:
    """Of a scan or pair, or of all that doesn't grow with their number: CPU seconds, and bytes."""

    worker: float
    program: float
    read: float
    written: float

    def __sub__(self, other: Cost) -> Cost:
        return self.each(lambda own, others: own - others, other)

    def __truediv__(self, number: int) -> Cost:
        return self.each(lambda own, _: max(0.0, own / number), self)

    def times(self, number: int) -> Cost:
        return self.each(lambda own, _: own * number, self)

    def each(self, combine: Callable[[float, float], float], other: Cost) -> Cost:
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return Cost(*(combine(*pair) for pair in pairs))


def now() -> Cost:
    """What this process, and its children that have ended, have used."""

    def cpu(who: int) -> float:
        used = resource.getrusage(who)
        return used.ru_utime + used.ru_stime

    # Linux counts the bytes of children that have ended, too
    lines = Path("/proc/self/io").read_text().splitlines()
    moved = {name: float(value) for name, value in (line.split(": ") for line in lines)}
    return Cost(
        cpu(resource.RUSAGE_CHILDREN),
        cpu(resource.RUSAGE_SELF),
        moved["rchar"],
        moved["wchar"],
    )


def part_of(data: Path, count: int, folder: Path) -> Path:
    """A folder with the first scans of a cohort and their labels."""
    folder.mkdir()
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for image in sorted((data / "images").iterdir())[:count]:
        (folder / "images" / image.name).symlink_to(image)
        label = data / "labels" / image.name
        if label.is_file():
            (folder / "labels" / image.name).symlink_to(label)
    if (data / "groups.csv").is_file():
        shutil.copy(data / "groups.csv", folder)
    return folder


def imported(cohort: Path) -> tuple[Cost, Path]:
    """What the import of a cohort costs, and the project."""
    groups = cohort / "groups.csv"
    path = cohort / "study.jrss"
    before = now()
    jrss.Project.from_folders(
        path,
        cohort / "images",
        cohort / "labels",
        groups=groups if groups.is_file() else None,
        workers=1,
    ).close()
    return now() - before, path


def segmented(path: Path, config: TrainingConfig, scans: list[Path]) -> Cost:
    """What it costs to segment scans; the network is hardly trained, which costs the same."""
    with jrss.Project.open(path) as project:
        project.split(labelled=2, validation=0, training=3)
        jrss.train(project, config, rounds=0, device="cpu", anyway=True)
        before = now()
        made = jrss.segment_scans(project, scans, path.parent / "out", device="cpu", workers=1)
        assert not any(each.problem for each in made)
        return now() - before


def refined(path: Path, pairs: int) -> Cost:
    """What it costs to register pairs of scans by refinement, without a network."""
    with jrss.Project.open(path, read_only=True) as project:
        before = now()
        found = compare_engines(project, ["refine"], pairs=pairs, device="cpu", workers=1)
        assert len(found.pairs) == pairs
        assert not found.failed
        return now() - before


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def dask_cost(count: int = 500) -> dict[str, float]:
    """CPU seconds of an item that does nothing, in the scheduler and in the program that asks."""
    from napari_jrss.cluster import Cluster, worker_command, worker_environment

    port = free_port()
    here = ("--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
    address = f"tcp://127.0.0.1:{port}"
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", *here], stderr=subprocess.DEVNULL
    )
    worker = subprocess.Popen(
        worker_command(address, 1, gpu=False),
        env=worker_environment(1),
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(20)
        with Cluster(address) as cluster:
            list(in_processes(partial(max, 0), range(10), cluster))
            processes = (psutil.Process(scheduler.pid), psutil.Process())
            before = [sum(each.cpu_times()[:2]) for each in processes]
            done = sum(1 for _ in in_processes(partial(max, 0), range(count), cluster))
            after = [sum(each.cpu_times()[:2]) for each in processes]
        used = [(b - a) / done for a, b in zip(before, after, strict=True)]
        return {"scheduler": used[0], "asking": used[1]}
    finally:
        worker.terminate()
        scheduler.terminate()
        worker.wait()
        scheduler.wait()


def simulate(
    cost: Cost, start: float, workers: int, disk: float, scheduler: float
) -> tuple[float, str]:
    """Seconds until 10,000 scans or pairs are done, and what is busy longest.

    A worker takes the next one when it has ended one: it waits for the scheduler and for the disk,
    computes, and hands over to the program that keeps the ledger. Those serve in turn.
    """
    moving = (cost.read + cost.written) / disk
    free = {"the scheduler": 0.0, "the disk": 0.0, "the program": 0.0}
    busy = dict.fromkeys(free, 0.0)

    def served(by: str, since: float, seconds: float) -> float:
        begun = max(since, free[by])
        free[by] = begun + seconds
        busy[by] += seconds
        return free[by]

    ready = [(0.0, n) for n in range(workers)]
    end = 0.0
    for _ in range(ITEMS):
        at, number = heapq.heappop(ready)
        at = served("the disk", served("the scheduler", at, scheduler), moving)
        at += cost.worker
        heapq.heappush(ready, (at, number))
        end = max(end, served("the program", at, cost.program))
    busy["the workers"] = ITEMS * cost.worker / workers
    return start + end, max(busy, key=busy.__getitem__)


def table(name: str, item: str, cost: Cost, fixed: Cost, dask: dict[str, float]) -> None:
    """Print the costs, and the simulated hours."""
    print(
        f"\n{name}: {cost.worker:.2f} CPU s a {item} in a worker, {1e3 * cost.program:.0f} ms in "
        f"the program; {cost.read / 1e6:.2f} MB read, {cost.written / 1e6:.2f} MB written; once "
        f"{fixed.worker:.1f} CPU s in each worker, {fixed.program:.1f} in the program"
    )
    asked = Cost(cost.worker, cost.program + dask["asking"], cost.read, cost.written)
    start = fixed.program + fixed.worker
    print("\n| workers | " + " | ".join(f"hours, {disk} | busy longest" for disk in DISKS) + " |")
    print("|---" * (1 + 2 * len(DISKS)) + "|")
    for workers in WORKERS:
        cells = []
        for rate in DISKS.values():
            seconds, limit = simulate(asked, start, workers, rate, dask["scheduler"])
            cells += [f"{seconds / 3600:.2f}", limit]
        print(f"| {workers} | {' | '.join(cells)} |")


def message_bytes(cohort: Path) -> float:
    """Bytes of a case as it is sent to a worker."""
    from distributed.protocol import serialize

    cases = discover(images=cohort / "images", labels=cohort / "labels").cases
    return sum(len(frame) for case in cases for frame in serialize(case)[1]) / len(cases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scans", type=int, nargs=2, default=(14, 56), metavar=("FEW", "MANY"))
    parser.add_argument("--segment", action="store_true", help="also measure a segmentation")
    parser.add_argument("--refine", action="store_true", help="also measure pairs")
    parser.add_argument("--json", type=Path, help="also write the costs there")
    options = parser.parse_args()
    few, many = options.scans
    os.environ["OMP_NUM_THREADS"] = "1"
    settings = preset("fast").model_dump()
    settings["segmentation"] |= {"minimum_steps": 2, "steps_per_structure": 0}
    config = TrainingConfig.model_validate(settings)
    imports: list[Cost] = []
    segments: list[Cost] = []
    refinements: list[Cost] = []
    with tempfile.TemporaryDirectory() as place:
        projects: list[Path] = []
        for count in (2, few, many):  # the first one loads what this process needs
            cohort = part_of(options.data.absolute(), count, Path(place) / str(len(imports)))
            cost, project = imported(cohort)
            imports.append(cost)
            projects.append(project)
        for project, count, pairs in zip(projects[1:], (few, many), PAIRS, strict=True):
            if options.refine:
                refinements.append(refined(project, pairs))
            if options.segment:
                scans = sorted((project.parent / "images").iterdir())[: max(1, count // 4)]
                segments.append(segmented(project, config, scans))
        sent = message_bytes(cohort)
    dask = dask_cost()
    print(
        f"dask: {1e3 * dask['scheduler']:.1f} CPU ms an item in the scheduler, "
        f"{1e3 * dask['asking']:.1f} ms in the program; a case is sent in {sent:.0f} bytes"
    )
    known: dict[str, object] = {"dask": dask, "scans": [few, many]}
    for name, item, costs, (fewer, more) in (
        ("import", "scan", imports[1:], (few, many)),
        ("segment", "scan", segments, (max(1, few // 4), max(1, many // 4))),
        ("refine", "pair", refinements, PAIRS),
    ):
        if costs:
            small, large = costs
            each = (large - small) / (more - fewer)
            fixed = (small - each.times(fewer)) / 1
            # too little to be told from what the program does once, so all of it is counted
            each = replace(each, program=large.program / more)
            table(name, item, each, fixed, dask)
            known[name] = {"each": asdict(each), "measured": [asdict(cost) for cost in costs]}
    if options.json:
        options.json.write_text(json.dumps(known, indent=1))


if __name__ == "__main__":
    main()
