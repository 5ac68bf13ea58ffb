"""Registration of two NIfTI files without a window, and the field used by SimpleITK.

Without arguments it makes a synthetic cohort, trains for half a minute on its first scans, and
registers two that it never saw::

    python examples/register_two_scans.py

With a trained project (``napari-jrss train``, or the dock in napari) and scans of the same kind::

    python examples/register_two_scans.py --project study.jrss --moving a.nii.gz --fixed b.nii.gz

``--out`` then holds, on the fixed scan's own grid, ``warped_image.nii.gz``,
``displacement.nii.gz`` (LPS mm, as ITK, SimpleITK and ANTs read it) and ``report.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import SimpleITK as sitk  # noqa: N813

import napari_jrss as jrss
from napari_jrss.app.pairs.registering import RegistrationReport


def main(arguments: Sequence[str] | None = None) -> RegistrationReport:
    """Run the example; the figures of the pair."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--project", type=Path, help="a trained project")
    parser.add_argument("--moving", type=Path)
    parser.add_argument("--fixed", type=Path)
    parser.add_argument("--out", type=Path, default=Path("registered"))
    parser.add_argument("--size", type=int, default=32, help="voxels of a synthetic scan's edge")
    parser.add_argument("--steps", type=int, default=200, help="training steps without a project")
    chosen = parser.parse_args(arguments)

    path, moving, fixed = chosen.project, chosen.moving, chosen.fixed
    if path is None:
        path, moving, fixed = synthetic(chosen.out, chosen.size, chosen.steps)
    with jrss.Project.open(path, read_only=True) as project:
        pair = jrss.register(project, moving, fixed)
        pair.save(chosen.out)
    report = pair.figures
    print(
        f"residual {report.residual_before:.2f} -> {report.residual:.2f} standard deviations, "
        f"folded {report.folded_percent:.2f} %, {report.seconds:.2f} s"
    )

    # Any other volume in the moving scan's space follows the same field.
    field = sitk.ReadImage(str(chosen.out / "displacement.nii.gz"), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(field)
    warped = sitk.Resample(sitk.ReadImage(str(moving)), sitk.ReadImage(str(fixed)), transform)
    sitk.WriteImage(warped, str(chosen.out / "warped_by_simpleitk.nii.gz"))
    return report


def synthetic(out: Path, size: int, steps: int) -> tuple[Path, Path, Path]:
    """A project trained on six of eight synthetic scans, and the two others."""
    cohort = jrss.make_cohort(out / "cohort", cases=8, shape=(size,) * 3, structures=4)
    *_, moving, fixed = sorted((cohort / "images").iterdir())
    new = out / "new"
    new.mkdir(exist_ok=True)
    moving, fixed = (scan.rename(new / scan.name) for scan in (moving, fixed))
    settings = jrss.preset("smoke").model_dump()
    settings["segmentation"]["minimum_steps"] = 10
    settings["registration"]["minimum_steps"] = steps
    config = jrss.TrainingConfig.model_validate(settings)
    with jrss.Project.from_folders(
        out / "brain.jrss", cohort / "images", cohort / "labels", groups=cohort / "groups.csv"
    ) as project:
        project.split(labelled=4, validation=2, test=0)
        jrss.train(project, config, rounds=0)
    return out / "brain.jrss", moving, fixed


if __name__ == "__main__":
    main()
