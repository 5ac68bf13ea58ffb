"""How an import, a forecast and a series of rounds grow with the number of workers: a model.

    python benchmarks/scaling.py --data FOLDER_WITH_IMAGES_AND_LABELS

It measures, in CPU seconds: one scan of the folder in a worker, the same scan in the program that
keeps the ledger, and an item that does nothing on a cluster of two workers on this computer. From
these it computes 10,000 scans on 1 to 64 workers. What moves between computers is counted in bytes.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from napari_jrss import Project
from napari_jrss.pool import in_processes

SCANS = 10_000
WORKERS = (1, 2, 4, 8, 16, 32, 64)


def cpu(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def import_costs(data: Path, folder: Path) -> dict[str, float]:
    """CPU seconds of a scan in a worker and in the program, and bytes read and written."""
    own, workers = cpu(resource.RUSAGE_SELF), cpu(resource.RUSAGE_CHILDREN)
    groups = data / "groups.csv"
    groups = groups if groups.is_file() else None
    project = Project.from_folders(
        folder / "scaling.jrss", data / "images", data / "labels", groups=groups, workers=2
    )
    with project:
        count = len(project.cases())
        stored = sum(f.stat().st_size for f in project.path.rglob("*") if f.is_file())
    read = sum(f.stat().st_size for f in data.glob("*/*.nii*"))
    return {
        "scans": count,
        "worker": (cpu(resource.RUSAGE_CHILDREN) - workers) / count,
        "program": (cpu(resource.RUSAGE_SELF) - own) / count,
        "read": read / count,
        "written": stored / count,
    }


def item_cost(count: int = 300) -> float:
    """Wall seconds of an item that does nothing, sent to a cluster and back."""
    from napari_jrss.cluster import Cluster, worker_command, worker_environment

    port = 18_786
    here = ("--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
    address = f"tcp://127.0.0.1:{port}"
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", *here], stderr=subprocess.DEVNULL
    )
    worker = subprocess.Popen(
        worker_command(address, 2, gpu=False),
        env=worker_environment(1),
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(5)
        with Cluster(address) as cluster:
            list(in_processes(partial(max, 0), range(10), cluster))
            started = time.perf_counter()
            done = sum(1 for _ in in_processes(partial(max, 0), range(count), cluster))
            return (time.perf_counter() - started) / done
    finally:
        worker.terminate()
        scheduler.terminate()
        worker.wait()
        scheduler.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    with tempfile.TemporaryDirectory() as place:
        costs = import_costs(data, Path(place))
    item = item_cost()
    print(f"{costs['scans']:.0f} scans: {costs['worker']:.2f} CPU s each in a worker, ", end="")
    print(
        f"{costs['program']:.3f} CPU s in the program; {costs['read'] / 1e6:.2f} MB read, ", end=""
    )
    print(f"{costs['written'] / 1e6:.2f} MB written; an empty item {1e3 * item:.1f} ms\n")
    print("| workers | hours for 10,000 scans | MB/s from the disk | what limits |")
    print("|---|---|---|---|")
    serial = SCANS * (costs["program"] + item)
    for workers in WORKERS:
        parallel = SCANS * costs["worker"] / workers
        total = max(parallel, serial)
        rate = SCANS * (costs["read"] + costs["written"]) / 1e6 / total
        limit = "the workers" if parallel > serial else "the program that keeps the ledger"
        print(f"| {workers} | {total / 3600:.2f} | {rate:.1f} | {limit} |")


if __name__ == "__main__":
    main()
