"""The labelled set of a project for nnU-Net (version 2), without a window.

Without arguments it makes a project of a synthetic cohort and exports that, in seconds::

    python examples/export_nnunet.py

With your own project, of which nothing is changed::

    python examples/export_nnunet.py --project study.jrss --out nnUNet_raw/Dataset001_Brain --ct

Images are the scans as their files hold them, labels lie on the same grids, test cases go to
``imagesTs`` without labels. Then ``nnUNetv2_plan_and_preprocess -d 1 --verify_dataset_integrity``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import napari_jrss as jrss
from napari_jrss.project.export.datasets import export_dataset


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the example; the folder of the data set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--project", type=Path)
    parser.add_argument("--out", type=Path, default=Path("nnUNet_raw/Dataset001_Synthetic"))
    parser.add_argument("--ct", action="store_true", help="the scans are CT, in HU")
    parser.add_argument("--size", type=int, default=32, help="voxels of a synthetic scan's edge")
    chosen = parser.parse_args(arguments)

    path = chosen.project or synthetic(chosen.out.parent, chosen.size)
    with jrss.Project.open(path, read_only=True) as project:
        modality = "CT" if chosen.ct else "MRI"
        folder = export_dataset(project, chosen.out, layout="nnunet", modality=modality)
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        print(f"{part}: {len(list((folder / part).iterdir()))} files")
    return folder


def synthetic(out: Path, size: int) -> Path:
    """A project of six synthetic cases: three labelled, one for validation, two for tests."""
    cohort = jrss.make_cohort(out / "cohort", cases=6, shape=(size,) * 3)
    with jrss.Project.from_folders(
        out / "brain.jrss", cohort / "images", cohort / "labels", groups=cohort / "groups.csv"
    ) as project:
        project.split(labelled=3, validation=1, test=2)
    return out / "brain.jrss"


if __name__ == "__main__":
    main()
