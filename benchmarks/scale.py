"""A project of many cases, and what the cache's chunks and shards cost.

    python benchmarks/scale.py --cases 1000
    python benchmarks/scale.py --chunks

The first makes a synthetic project and times what a person waits for: opening it, its status,
its table of cases, accepting a label. Cases are small (the grid is an option), as those steps
read no image; each is written as ingest writes it, but for the flushing. The second writes one
case of 160x192x160 voxels in several ways and times a slice along each axis, and the whole.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BRAIN = (160, 192, 160)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def median_seconds(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median of wall and of computing time."""
    wall, computing = [], []
    for _ in range(repeats):
        started, before = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - started)
        computing.append(time.process_time() - before)
    return statistics.median(wall), statistics.median(computing)


def make(path: Path, cases: int, shape: tuple[int, int, int]) -> None:
    from napari_jrss.config import PreprocessingConfig
    from napari_jrss.geometry import rows
    from napari_jrss.io import atomic
    from napari_jrss.labels import LabelTable
    from napari_jrss.preprocess import case_store as store
    from napari_jrss.preprocess.case_attributes import CaseAttributes
    from napari_jrss.preprocess.transform import GridTransform, Intensity, TrainingGrid
    from napari_jrss.project.project import Project

    table = LabelTable.of_groups({f"structure {n}": (n,) for n in range(1, 11)})
    rng = np.random.default_rng(0)
    image = rng.normal(0, 1, shape).astype(np.float32)
    label = rng.integers(0, 11, shape).astype(np.uint8)
    grid = TrainingGrid(shape=shape, spacing_mm=(1, 1, 1))
    flush = os.fsync
    os.fsync = lambda descriptor: None  # only while the project is made
    try:
        with Project.create(path, table, PreprocessingConfig()) as project:
            project._ledger.set_grid(grid.model_dump_json())
            for number in range(cases):
                case_id = f"case{number:05d}"
                transform = GridTransform(
                    source_shape=shape,
                    source_affine=rows(np.eye(4)),
                    header=None,
                    shape=shape,
                    grid_to_source=rows(np.eye(4)),
                    intensity=Intensity(low=-3, high=3, mean=0, std=1),
                )
                attributes = CaseAttributes(
                    case_id=case_id,
                    source=f"/scans/{case_id}.nii.gz",
                    checksum="0" * 64,
                    transform=transform,
                    spacing_mm=grid.spacing_mm,
                )
                labelled = number % 5 == 0
                store.write_case(
                    path / "cases",
                    attributes,
                    image,
                    label if labelled else None,
                    table if labelled else None,
                    version="v0001",
                )
                project.register_case(case_id, group=f"subject{number // 2}")
            project.split(labelled=cases // 20, validation=cases // 20, test=cases // 20)
    finally:
        os.fsync = flush
    atomic.sync_folder(path.parent)


def measure(path: Path) -> None:
    """In a process of its own: prints rows of the table."""
    from napari_jrss.app.status import project_status
    from napari_jrss.project.project import Project

    start = peak_mb()

    def look() -> None:
        Project.open(path, read_only=True).close()

    def row(name: str, work: Callable[[], object], repeats: int = 5) -> None:
        wall, computing = median_seconds(work, repeats)
        print(f"| {name} | {wall:.3f} | {computing:.3f} |")

    row("open to look", look)
    row("open to write", lambda: Project.open(path).close())
    with Project.open(path, read_only=True) as project:
        row("`napari-jrss status` without the start of Python", lambda: project_status(project))
        row("list of all cases", project.cases)
        row("history of the project", project.history)
    with Project.open(path) as project:
        cases = project.cases()
        label = np.ones(project.grid.shape, np.uint8)
        rest = iter([c.case_id for c in cases if c.label_version is None])
        row("accept a label", lambda: project.add_label_version(next(rest), label, "Ada"), 7)
        row("reject a pseudo-label", lambda: project.reject(next(rest), "Ada", "blurred"), 7)
        row("history of one case", lambda: project.history(cases[0].case_id))
    print(f"peak memory: {peak_mb():.0f} MB, {start:.0f} MB of it before the first step")


def reading_seconds(path: Path) -> list[float]:
    """Computing time of the whole image, then of a slice across z, y and x."""
    import zarr

    array = zarr.open_array(path, mode="r")
    z, y, x = (n // 2 for n in array.shape)
    reads = (
        lambda: array[:],
        lambda: array[z],
        lambda: array[:, y],
        lambda: array[:, :, x],
    )
    return [median_seconds(read, 9)[1] for read in reads]


def brain(folder: Path, scan: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """A normalised image and a label of ten structures: synthetic, or a scan's own voxels."""
    from napari_jrss.io.nifti import read_label_volume
    from napari_jrss.io.read import read_volume
    from napari_jrss.sample_data import make_cohort

    made = make_cohort(folder / "cohort", cases=1, shape=BRAIN, seed=0, structures=10)
    image = read_volume(scan or next((made / "images").iterdir())).to_lps().array
    label = read_label_volume(next((made / "labels").iterdir())).to_lps().array.astype(np.uint8)
    z, y, x = image.shape
    return ((image - image.mean()) / image.std()).astype(np.float32), label[:z, :y, :x]


def chunks(folder: Path, scan: Path | None) -> None:
    """One case written in several ways; CPU milliseconds, medians of nine reads."""
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

    image, label = brain(folder, scan)
    shape = image.shape
    zstd = BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")
    lz4 = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")
    plain = BloscCodec(cname="zstd", clevel=3, shuffle="noshuffle")
    checked = (plain, Crc32cCodec())
    variants: list[tuple[str, tuple[int, int, int], bool, object]] = [
        ("32x64x64, one shard, zstd unshuffled, CRC (ours)", (32, 64, 64), True, checked),
        ("32x64x64, one shard, zstd unshuffled", (32, 64, 64), True, (plain,)),
        ("32x64x64, one shard, zstd shuffled", (32, 64, 64), True, (zstd,)),
        ("32x64x64, one shard, lz4 shuffled", (32, 64, 64), True, (lz4,)),
        ("32x64x64, one shard, zstd without Blosc", (32, 64, 64), True, (ZstdCodec(level=3),)),
        ("32x64x64, no shard", (32, 64, 64), False, checked),
        ("16x64x64, one shard", (16, 64, 64), True, checked),
        ("32x32x32, one shard", (32, 32, 32), True, checked),
        ("64x64x64, one shard", (64, 64, 64), True, checked),
        ("one axial slice, one shard", (1, *shape[1:]), True, checked),
        ("one axial slice, no shard", (1, *shape[1:]), False, checked),
        ("one chunk", shape, False, checked),
    ]
    zarr.create_array(folder / "warm", data=image, chunks=(64, 64, 64))[:]  # threads, imports
    print(f"{shape} voxels")
    print("| chunks | files | MB | write | whole | axial | coronal | sagittal |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, chunk, sharded, codecs in variants:
        path = folder / "variant"
        shutil.rmtree(path, ignore_errors=True)
        shard = tuple(-(-n // c) * c for n, c in zip(shape, chunk, strict=True))
        started = time.process_time()
        for part, array in (("image", image), ("label", label)):
            zarr.create_array(
                path / part,
                data=array,
                chunks=chunk,
                shards=shard if sharded else None,
                compressors=codecs,
            )
        written = time.process_time() - started
        files = [p for p in path.rglob("*") if p.is_file()]
        size = sum(p.stat().st_size for p in files) / 1e6
        times = [1000 * seconds for seconds in reading_seconds(path / "image")]
        columns = " | ".join(f"{t:.0f}" for t in times)
        print(
            f"| {name} | {len(files)} | {size:.1f} | {1000 * written:.0f} | {columns} |", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--shape", type=int, nargs=3, default=[32, 40, 32])
    parser.add_argument("--chunks", action="store_true", help="the cache's layout instead")
    parser.add_argument("--scan", type=Path, help="a NIfTI file for --chunks, else synthetic")
    parser.add_argument("--folder", type=Path, help="where to make the project")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.chunks:
            chunks(Path(folder), options.scan)
            return
        for cases in options.cases:
            path = Path(folder) / f"{cases}.jrss"
            started = time.perf_counter()
            make(path, cases, tuple(options.shape))
            files = sum(len(names) for _, _, names in os.walk(path))
            seconds = time.perf_counter() - started
            print(f"\n{cases} cases, made in {seconds:.0f} s, {files} files")
            print("| step | seconds | CPU seconds |\n|---|---:|---:|", flush=True)
            command = [sys.executable, __file__, "--measure", str(path)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
