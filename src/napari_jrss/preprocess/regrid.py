"""Bring a case of a project to another training grid, from what the project holds of its scan."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ScanError
from napari_jrss.io.volume import Volume
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess import case_store as store
from napari_jrss.preprocess.facts import ScanFacts, facts_of
from napari_jrss.preprocess.padding import without_padding
from napari_jrss.preprocess.pipeline import preprocess, preprocess_channel
from napari_jrss.preprocess.transform import TrainingGrid


def kept_scan(path: Path) -> Volume:
    """The scan of a case with its own intensities, in the axes of its file.

    Of an older project whose files are gone, it is what the training grid holds.
    """
    about = store.read_attributes(path)
    transform = about.transform
    image = store.read_scan_image(path)
    if image is None:
        array = transform.image_to_source(store.read_image(path))
    else:
        array = np.ascontiguousarray(transform.turn_to_source(image), np.float32)
    affine = np.array(transform.source_affine)
    return Volume(array, affine, Path(about.source), transform.header)


def kept_channels(path: Path) -> list[Volume]:
    """The further images of a case with their own intensities, each in the axes of its file."""
    volumes = []
    for number, about in enumerate(store.read_attributes(path).channels, start=1):
        scan, transform = store.read_channel_scan(path, number), about.transform
        array = np.ascontiguousarray(transform.turn_to_source(scan), np.float32)
        affine = np.array(transform.source_affine)
        volumes.append(Volume(array, affine, Path(about.source), transform.header))
    return volumes


def regrid_case(
    case_id: str,
    *,
    old: Path,
    new: Path,
    config: PreprocessingConfig,
    grid: TrainingGrid,
    table: LabelTable,
) -> None:
    """Write a case of the folder `old` into the folder `new`, on another grid.

    Its scan and its labels on the scan's own voxels, which all have to be there, are copied; what
    lies on the training grid is made anew.

    Raises
    ------
    ScanError
        The case is damaged, or the scan lies outside the grid.
    """
    path = store.case_path(old, case_id)
    about = store.read_attributes(path)
    done = preprocess(kept_scan(path), None, config, grid)
    others = [preprocess_channel(each, done.transform, config) for each in kept_channels(path)]
    described = zip(about.channels, others, strict=True)
    target = store.write_case(
        new,
        about.model_copy(
            update={
                "transform": done.transform,
                "spacing_mm": grid.spacing_mm,
                "grid_sha256": {},
                "channels": tuple(
                    channel.model_copy(update={"transform": other.transform})
                    for channel, other in described
                ),
            }
        ),
        done.image,
        scan_image=store.read_scan_image(path),
        channels=[
            store.ChannelArrays(other.image, store.read_channel_scan(path, number))
            for number, other in enumerate(others, start=1)
        ],
    )
    sums = {}
    for version in store.label_versions(path):
        label = store.read_scan_label(path, version)
        on_grid = done.transform.label_to_grid(label)
        store.add_label(target, version, on_grid, table, label)
        sums[version] = store.fingerprint(on_grid)
    store.note_fingerprints(target, sums)


def case_facts(
    case_id: str, *, folder: Path, labels: Mapping[str, str | None], read: Collection[str]
) -> ScanFacts | None:
    """What a plan needs to know of a case; None if it is damaged.

    `labels` has the label in force of the cases that have one, `read` the cases whose voxels count.
    """
    path = store.case_path(folder, case_id)
    try:
        transform = store.read_attributes(path).transform
        about = ScanFacts.of(case_id, np.array(transform.source_affine), transform.source_shape)
        if case_id not in read:
            return about
        return facts_of(about, *_voxels(path, labels.get(case_id)))
    except ScanError:
        return None


def _voxels(path: Path, version: str | None) -> tuple[Volume, Volume | None]:
    """The scan of a case without its padding, and a label of it."""
    scan = without_padding(kept_scan(path))
    label = None
    if version is not None:
        transform = store.read_attributes(path).transform
        array = np.ascontiguousarray(transform.turn_to_source(store.read_scan_label(path, version)))
        label = Volume(array, scan.affine, header=scan.header)
    return scan, label
