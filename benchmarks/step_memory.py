"""Peak memory and time of one training step of each stage, by precision.

    python benchmarks/step_memory.py [--shape 160 192 160] [--batch 2] [--classes 11]
    python benchmarks/step_memory.py --preset fast --shape 56 56 56 --classes 139

A step is what a round does: cases to the device, augmentation, the networks forth and back, the
optimiser. On a CUDA device the time is the median of steps and the memory is what PyTorch
allocated there; on a CPU it is how far the resident memory of the process rose, each stage in a
process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import torch

from napari_jrss.app.rounds.measure import one_step
from napari_jrss.config import TrainingConfig, preset
from napari_jrss.inference.device import find_device, make_fabric

STAGES = ("mono_segmentation", "registration", "student")


def measure(
    stage: str, shape: tuple[int, int, int], classes: int, config: TrainingConfig, repeats: int
) -> tuple[str, float, float]:
    """Device, peak in GB and median seconds of a step, after one that has made Adam's moments.

    The peak counts the networks and the batch, too, but not the program itself.
    """
    device = find_device()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = _in_use(device)
    step = one_step(stage, config, classes, shape, make_fabric(device.type, config.precision))
    seconds = []
    for _ in range(1 + repeats):
        seconds.append(_timed(step, device))
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return name, (_in_use(device) - before) / 1e9, statistics.median(seconds[1:])


def _timed(step: Callable[[], None], device: torch.device) -> float:
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _in_use(device: torch.device) -> float:
    """The highest use of memory up to now, in bytes."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 192, 160))
    parser.add_argument("--batch", type=int, help="if not the preset's")
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--preset", choices=["paper", "fast"], default="paper")
    parser.add_argument("--network", help="segmentation network, if not the preset's")
    parser.add_argument("--precision", nargs="*", default=["32-true", "bf16-mixed"])
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    print("| stage | precision | device | peak (GB) | seconds |\n|---|---|---|---:|---:|")
    spawn = multiprocessing.get_context("spawn")
    for precision in options.precision:
        changes: dict[str, object] = {"precision": precision}
        if options.batch:
            batch = {"batch_size": options.batch}
            changes |= {"segmentation": batch, "registration": batch}
        if options.network:
            changes["segmentation_network"] = {"name": options.network}
        config = preset(options.preset, **changes)
        for stage in STAGES:
            wanted = (stage, tuple(options.shape), options.classes, config, options.repeats)
            if torch.cuda.is_available():
                device, gigabytes, seconds = measure(*wanted)
            else:
                with spawn.Pool(1) as pool:
                    device, gigabytes, seconds = pool.apply(measure, wanted)
            row = f"{stage} | {precision} | {device} | {gigabytes:.1f} | {seconds:.3g}"
            print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
