"""Registration engines on pairs of the hippocampus data: Dice, folds, std(Jac), seconds.

    python benchmarks/engines.py --data shared/data/hippocampus_msd --side test

Cases and their sides are those of the protocol ``hippocampus`` (`napari_jrss/experiments`), seed 0,
on its training grid. Each test case is the fixed one of one pair, whose moving case is the next
but six, which is another person's. Every engine sees the same two images, without pre-alignment,
and no label. Times are of one process; set OMP_NUM_THREADS=1 and
ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=1 for one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory

import numpy as np

from napari_jrss.config import RefinementConfig
from napari_jrss.experiments.cohort import assign, prepare_cohort
from napari_jrss.experiments.protocol import load_protocol, plan
from napari_jrss.inference.engines import engine_named, engines
from napari_jrss.inference.partners import Field
from napari_jrss.inference.predict import warp_array
from napari_jrss.inference.refine import IMAGES_ALONE, register_images
from napari_jrss.metrics import dice_per_class, folds, jacobian_statistics
from napari_jrss.project.project import Project
from napari_jrss.snapshot import Image

APART = 7
"""Cases between a fixed case and its moving one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_formatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the hippocampus data")
    parser.add_argument("--side", choices=("training", "test"), default="training")
    parser.add_argument("--pairs", type=int, default=40, help="at most")
    parser.add_argument("--engines", nargs="*", help="names; by default all that are installed")
    parser.add_argument(
        "--refine", nargs="*", default=(), help='changes to IMAGES_ALONE, such as {"lambda_r": 2}'
    )
    parser.add_argument("--json", type=Path, help="file for the figures of each pair")
    wanted = parser.parse_args()
    ready = [name for name, engine in engines().items() if not engine.problem]
    rows: dict[str, list[dict[str, float]]] = {}
    with TemporaryDirectory() as folder:
        cases = list(read(wanted.data, Path(folder), wanted.side))
    names = ready if wanted.engines is None else wanted.engines
    for name in ("identity", *names, *wanted.refine):
        rows[name] = [
            pair(field_of(name), cases[(i + APART) % len(cases)], fixed)
            for i, fixed in enumerate(cases[: wanted.pairs])
        ]
        print(line(name, rows[name]), flush=True)
    if wanted.json:
        wanted.json.write_text(json.dumps(rows, indent=1))


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog)


def read(data: Path, out: Path, side: str) -> Iterator[tuple[Image, np.ndarray]]:
    """Image and label of each case of a side, on the training grid."""
    protocol = load_protocol(Path("hippocampus"), data)
    run = next(run for run in plan(protocol) if run.seed == 0)
    with Project.open(prepare_cohort(protocol, out, [run]), read_only=True) as project:
        sides = assign(protocol, run, project)
        for case in {"test": sides.test, "training": sides.train}[side]:
            yield project.image(case), project.label(case)


def field_of(name: str) -> Callable[[Image, Image], Field]:
    """What registers: an engine, or ours with other settings. Loaded before any time is taken."""
    if name == "identity":
        return lambda moving, fixed: np.zeros((3, *fixed.shape), np.float32)
    if name.startswith("{"):
        config = RefinementConfig.model_validate(IMAGES_ALONE.model_dump() | json.loads(name))
        return lambda moving, fixed: register_images(moving, fixed, config=config).numpy()
    engine = engine_named(name)
    small = np.random.default_rng(0).normal(size=(2, 32, 32, 32)).astype(np.float32)
    engine.register(*small)
    return engine.register


def pair(
    register: Callable[[Image, Image], Field],
    moving: tuple[Image, np.ndarray],
    fixed: tuple[Image, np.ndarray],
) -> dict[str, float]:
    """Figures of one pair."""
    started, busy = time.perf_counter(), time.process_time()
    field = register(moving[0], fixed[0])
    seconds, cpu = time.perf_counter() - started, time.process_time() - busy
    carried = warp_array(moving[1], field, nearest=True)
    dice = dice_per_class(carried, fixed[1], int(fixed[1].max()) + 1, "absent_in_either")
    return {
        "dice": float(np.nanmean(dice)),
        "std_jacobian": jacobian_statistics(field).std,
        "folded_percent": 100 * float(folds(field).mean()),
        "seconds": seconds,
        "cpu_seconds": cpu,
    }


def line(name: str, pairs: list[dict[str, float]]) -> str:
    """A row of the table in docs/benchmarks.md."""

    def mean(figure: str) -> float:
        return fmean(each[figure] for each in pairs)

    spread = stdev(each["dice"] for each in pairs)
    return (
        f"| {name} | {mean('dice'):.3f} ({spread:.3f}) | {mean('std_jacobian'):.3f} "
        f"| {mean('folded_percent'):.3f} | {mean('seconds'):.2f} | {mean('cpu_seconds'):.2f} |"
    )


if __name__ == "__main__":
    main()
