"""What prompts are worth on labelled scans: Dice and seconds after each, by a real server.

    nninteractive-server                 # on a computer with a GPU
    python benchmarks/prompts.py --data shared/data/hippocampus_msd --address http://gpu-box:1527

The first prompt on a structure is a point in its middle, each further one a point in the middle of
the largest error: inside where voxels are missing, outside where there are too many. It drives the
same client as the tab Review.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import fmean

import nibabel as nib
import numpy as np
from scipy import ndimage

from napari_jrss.inference.prompts import ADDRESS, Prompt, PromptServer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with images/, labels/")
    parser.add_argument("--address", default=ADDRESS)
    parser.add_argument("--key", default="")
    parser.add_argument("--cases", type=int, default=10, help="at most")
    parser.add_argument("--prompts", type=int, default=5, help="on each structure")
    wanted = parser.parse_args()
    server = PromptServer(wanted.address, wanted.key)
    print(f"{server.name}, weights {server.licence}")
    dice: list[list[float]] = [[] for _ in range(wanted.prompts)]
    seconds: list[list[float]] = [[] for _ in range(wanted.prompts)]
    for path in sorted((wanted.data / "images").glob("*.nii.gz"))[: wanted.cases]:
        image, label = (
            np.asarray(nib.load(wanted.data / kind / path.name).dataobj).T
            for kind in ("images", "labels")
        )
        server.show(image)
        for index in np.unique(label)[1:]:
            truth, drawn = label == index, np.zeros(label.shape, bool)
            server.begin()
            for number in range(wanted.prompts):
                started = time.perf_counter()
                drawn = server.ask(correction(truth, drawn))
                seconds[number].append(time.perf_counter() - started)
                dice[number].append(2 * (drawn & truth).sum() / (drawn.sum() + truth.sum()))
    server.close()
    print("| points | Dice | worst | seconds |\n|---|---|---|---|")
    for number, (values, times) in enumerate(zip(dice, seconds, strict=True), start=1):
        print(f"| {number} | {fmean(values):.3f} | {min(values):.3f} | {fmean(times):.2f} |")


def correction(truth: np.ndarray, drawn: np.ndarray) -> Prompt:
    """A point in the middle of the largest connected error."""
    missing, extra = truth & ~drawn, drawn & ~truth
    inside = missing.sum() >= extra.sum()
    parts, _ = ndimage.label(missing if inside else extra)
    if not parts.any():
        parts, inside = truth.astype(int), True
    largest = np.bincount(parts.ravel())[1:].argmax() + 1
    depth = ndimage.distance_transform_edt(parts == largest)
    return Prompt.point(np.unravel_index(depth.argmax(), depth.shape), inside=bool(inside))


if __name__ == "__main__":
    main()
