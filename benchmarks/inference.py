"""Time and memory of one case and one pair on a CPU or GPU, next to its peers in the same run.

    python benchmarks/inference.py
    python benchmarks/inference.py --device cuda
    python benchmarks/inference.py --peers monai ants --threads 4

Prints a table in Markdown. On a CPU each row runs in a process of its own, so that its peak memory
is its own; images are two synthetic heads, weights are untrained, which changes no time. Reading
and writing of files is not timed, nor are the ways to a GPU and back, whose memory is what PyTorch
allocated there. ANTs SyN runs once, with its defaults; the rest counts the median.
If the machine is not idle, only the CPU seconds can be compared. Training steps are the matter of
step_memory.py.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = 11
ROWS = {
    "segmentation": "JRSS segmentation, 11 classes",
    "unet": "JRSS segmentation by monai_unet, 11 classes",
    "registration": "JRSS registration, field and warped image",
    "velocity": "JRSS registration, velocity field in 7 steps",
    "refined": "JRSS registration, field refined on the pair, 11 classes",
    "monai": "MONAI VoxelMorph, field and warped image",
    "ants": "ANTs SyN, its defaults",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 192, 160), metavar="N")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peers", nargs="*", choices=("monai", "ants"), default=("monai",))
    arguments = parser.parse_args()

    rows = ["segmentation", "unet", "registration", "velocity", "refined", *arguments.peers]
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ[name] = str(arguments.threads)
    results = {}
    context = multiprocessing.get_context("spawn")
    for row in rows:
        print(f"{ROWS[row]} ...", file=sys.stderr)
        shape = tuple(arguments.shape)
        job = (row, shape, arguments.threads, arguments.repeats, arguments.device)
        if arguments.device == "cuda":
            results[row] = measure(*job)
        else:
            with context.Pool(1) as pool:
                results[row] = pool.apply(measure, job)

    size = "x".join(map(str, arguments.shape))
    print(f"{size} voxels, {arguments.threads} threads, {processor(arguments.device)}\n")
    print("| | seconds | CPU seconds | peak memory (GB) | time / JRSS registration |")
    print("|---|---:|---:|---:|---:|")
    ours = results["registration"][0]
    for row in rows:
        seconds, busy, memory = results[row]
        figures = f"{seconds:.3g} | {busy:.3g} | {memory:.2f} | {seconds / ours:.1f}"
        print(f"| {ROWS[row]} | {figures} |")


def measure(
    row: str, shape: tuple[int, int, int], threads: int, repeats: int, device: str
) -> tuple[float, float, float]:
    """Median wall and CPU seconds, and the peak memory in GB of this process, or of the GPU."""
    from napari_jrss.sample_data import make_case

    images = [make_case(index, shape).image.astype(np.float32) for index in range(2)]
    if row != "ants":  # which takes centres of mass, and those need positive intensities
        images = [(image - image.mean()) / image.std() for image in images]
    run = prepare(row, images, threads, device)
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    if row == "ants":
        repeats = 1
    else:
        run()  # allocations and the choice of kernels
    walls, busy = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        walls.append(time.perf_counter() - wall)
        busy.append(time.process_time() - cpu)
    return statistics.median(walls), statistics.median(busy), _peak_gb(device)


def _peak_gb(device: str) -> float:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


def prepare(row: str, images: list[np.ndarray], threads: int, device: str) -> Callable[[], object]:
    """What a row times."""
    if row == "ants":
        import ants

        moving, fixed = (ants.from_numpy(image) for image in images)
        return lambda: ants.registration(fixed, moving, type_of_transform="SyN")

    import torch

    torch.set_num_threads(threads)
    moving, fixed = (torch.from_numpy(image)[None, None].to(device) for image in images)
    run = _network_row(row, moving, fixed)

    def to_its_end() -> None:
        run()
        if device == "cuda":
            torch.cuda.synchronize()

    return to_its_end


def _network_row(row: str, moving: Tensor, fixed: Tensor) -> Callable[[], object]:
    """What a row of a network times, on the images' device."""
    import torch

    device = fixed.device
    if row == "monai":
        from monai.networks.nets import VoxelMorph

        peer = VoxelMorph().to(device).eval()
        return torch.inference_mode()(lambda: peer(moving, fixed))

    from napari_jrss.config import NetworkConfig
    from napari_jrss.networks.build import build_registration_network, build_segmentation_network
    from napari_jrss.networks.spatial import warp

    if row in ("segmentation", "unet"):
        config = NetworkConfig() if row == "segmentation" else NetworkConfig(name="monai_unet")
        network = build_segmentation_network(config, CLASSES).to(device).eval()
        return torch.inference_mode()(lambda: network(fixed).argmax(1))
    steps = 7 if row == "velocity" else 0
    network = build_registration_network(NetworkConfig(integration_steps=steps)).to(device).eval()

    def register() -> Tensor:
        displacement = network(moving, fixed)
        return warp(moving, displacement)

    if row == "refined":
        from napari_jrss.inference.refine import RefinedRegistration

        teacher = build_segmentation_network(NetworkConfig(), CLASSES).to(device).eval()
        network = RefinedRegistration(network, teacher)
        return torch.no_grad()(register)
    return torch.inference_mode()(register)


def processor(device: str) -> str:
    """The GPU's or processor's name where the system tells it."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    description = Path("/proc/cpuinfo")
    lines = description.read_text().splitlines() if description.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
