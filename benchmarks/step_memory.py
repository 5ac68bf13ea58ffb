"""Peak memory and time of one training step of each stage, by precision.

    python benchmarks/step_memory.py [--shape 160 192 160] [--batch 2] [--classes 11]

On a CUDA device the memory is what PyTorch allocated on it; on a CPU it is how far the resident
memory of the process rose, each stage in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time

import torch
from lightning_fabric import Fabric

from napari_jrss.config import NetworkConfig, RegistrationTraining
from napari_jrss.engine.device import make_fabric
from napari_jrss.engine.steps import PairBatch, mono_segmentation_step, registration_step
from napari_jrss.networks.build import build_registration_network, build_segmentation_network

STAGES = ("segmentation", "registration")


def measure(
    stage: str, shape: tuple[int, int, int], batch: int, classes: int, precision: str
) -> tuple[str, float, float]:
    """Device, peak in GB and seconds of a step; the step before it has made Adam's moments.

    The peak counts the network and the batch, too, but not the program itself.
    """
    fabric = make_fabric("auto", precision)
    start = _in_use(fabric)
    if stage == "registration":
        network = build_registration_network(NetworkConfig())
    else:
        network = build_segmentation_network(NetworkConfig(), classes)
    adam = torch.optim.Adam(network.parameters())
    network, adam = fabric.setup(network, adam)
    image = torch.randn(batch, 1, *shape, device=fabric.device)
    label = torch.randint(classes, (batch, *shape), device=fabric.device)
    for _ in range(2):
        started = time.perf_counter()
        _step(stage, fabric, network, adam, image, label, classes)
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return str(fabric.device), (_in_use(fabric) - start) / 1e9, seconds


def _step(stage, fabric, network, adam, image, label, classes) -> None:
    if stage == "segmentation":
        losses = mono_segmentation_step(network, image, label)
    else:
        both = torch.ones(len(image), dtype=torch.bool, device=image.device)
        pairs = PairBatch(image, image.flip(2), label, label.flip(1), both)
        losses = registration_step(network, pairs, classes, 0.025, RegistrationTraining())
    adam.zero_grad()
    fabric.backward(losses["total"])
    adam.step()


def _in_use(fabric: Fabric) -> float:
    """The highest use of memory up to now, in bytes."""
    if fabric.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 192, 160))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--precision", nargs="*", default=["32-true", "bf16-mixed"])
    options = parser.parse_args()
    print("| stage | precision | device | peak (GB) | seconds |\n|---|---|---|---:|---:|")
    spawn = multiprocessing.get_context("spawn")
    for precision in options.precision:
        for stage in STAGES:
            wanted = (stage, tuple(options.shape), options.batch, options.classes, precision)
            with spawn.Pool(1) as pool:
                device, gigabytes, seconds = pool.apply(measure, wanted)
            print(
                f"| {stage} | {precision} | {device} | {gigabytes:.1f} | {seconds:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
