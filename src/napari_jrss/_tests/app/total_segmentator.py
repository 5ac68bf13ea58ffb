"""A program with TotalSegmentator's command line that segments by intensity: for tests."""

from __future__ import annotations

import argparse
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np


def install(folder: Path, name: str = "TotalSegmentator") -> Path:
    """Write its executable into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.name == "nt":
        path = folder / f"{name}.bat"
        path.write_text(f'@"{sys.executable}" -m {__name__} %*\n')
        return path
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {__name__} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--version", action="version", version="2.4.0")
    parser.add_argument("-i", type=Path, required=True)
    parser.add_argument("-o", type=Path, required=True)
    parser.add_argument("-ta", "--task", default="total", choices=["total", "organs", "broken"])
    parser.add_argument("-f", "--fast", action="store_true")
    parser.add_argument("-d", "--device", default="gpu")
    wanted = parser.parse_args()
    print("Using a model of nobody", flush=True)
    if wanted.task == "broken":
        print("Traceback (most recent call last):\n  ...", file=sys.stderr)
        raise SystemExit("RuntimeError: CUDA out of memory")
    if wait := os.environ.get("STAND_IN_WAITS"):
        # A process of its own, as its workers are; it tells its id.
        below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        Path(wait).write_text(f"{os.getpid()} {below.pid}")
        time.sleep(60)
    scan = nib.load(wanted.i)
    values = np.asarray(scan.dataobj)
    names = ["structure_1", "structure_2"] if wanted.task == "total" else ["spleen", "liver"]
    wanted.o.mkdir()
    for number, name in enumerate([*names, "aorta"], start=1):
        mask = np.abs(values - 20 * number) < 10
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), scan.affine), wanted.o / f"{name}.nii.gz")


if __name__ == "__main__":
    main()
