"""Find the cases of a ``dataset.json``, of the Medical Segmentation Decathlon or of nnU-Net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from napari_jrss.errors import ScanError
from napari_jrss.io.contrasts import NUMBER, complete, names_of
from napari_jrss.io.found import (
    FoundCohort,
    Part,
    Scan,
    cohort_of,
    existing_folder,
    scan_files,
    stem,
)
from napari_jrss.io.label_files import label_table_from_dataset_json
from napari_jrss.io.text_files import read_json


def described(root: Path, wanted: Sequence[str]) -> FoundCohort:
    """Cases of a dataset.json: the Decathlon lists the files, nnU-Net names them by a rule."""
    path = root / "dataset.json"
    description = read_json(path)
    names = names_of(description, path)
    table = label_table_from_dataset_json(path)
    listed = description.get("training")
    if isinstance(listed, list) and not {"file_ending", "channel_names"} & set(description):
        tests = description.get("test")
        further = [_listed(root, path, e) for e in tests] if isinstance(tests, list) else []
        pairs = [_listed(root, path, entry) for entry in listed]
        pairs += [pair for pair in further if pair[0].is_file()]  # scans without a label
        label_of = {NUMBER.sub("", stem(i)): label for i, label in pairs}
        cases = {NUMBER.sub("", stem(i)): _images_in(i, names) for i, _ in pairs}
        if len(cases) < len(pairs):
            return cohort_of("decathlon", ((stem(i), i, k) for i, k in pairs), root, table)
        groups = complete(cases, names, wanted, root)
        firsts = ((name, image, label_of[name]) for name, image in groups.first)
        return groups.into(cohort_of("decathlon", firsts, root, table))
    ending = str(description.get("file_ending", ".nii.gz"))
    found: dict[str, dict[str, Scan]] = {}
    labelled: dict[str, Path | None] = {}
    alone: list[Path] = []
    existing_folder(root / "imagesTr")
    for part in ("Tr", "Ts"):  # imagesTs are scans without a label, or with one in labelsTs
        folders = [root / f"{kind}{part}" for kind in ("images", "labels")]
        images, labels = (scan_files(f) if f.is_dir() else [] for f in folders)
        by_name = {p.name.removesuffix(ending): p for p in labels}
        for number, channel in enumerate(names):
            end = f"_{number:04d}{ending}"
            for image in (each for each in images if each.name.endswith(end)):
                name = image.name.removesuffix(end)
                found.setdefault(name, {})[channel] = image
                labelled.setdefault(name, by_name.pop(name, None))
        alone += by_name.values()
    groups = complete(found, names, wanted, root / "imagesTr")
    firsts = ((name, image, labelled[name]) for name, image in groups.first)
    return groups.into(cohort_of("nnunet", firsts, root / "imagesTr", table, alone))


def _images_in(image: Path, names: Sequence[str]) -> dict[str, Scan]:
    """The images of a case of the Decathlon, or of nnU-Net 1 with a file for each, by name."""
    if len(names) == 1:
        return {names[0]: image}
    if not NUMBER.search(stem(image)):
        return {name: Part(image, number) for number, name in enumerate(names)}
    base, ending = NUMBER.sub("", stem(image)), image.name.removeprefix(stem(image))
    files = {n: image.with_name(f"{base}_{i:04d}{ending}") for i, n in enumerate(names)}
    return {name: file for name, file in files.items() if file.is_file()}


def _listed(root: Path, path: Path, entry: Any) -> tuple[Path, Path | None]:
    """Image and label that an entry of a dataset.json names; a scan for tests is only a name."""
    if isinstance(entry, str):
        return _inside(root, path, entry), None
    if not isinstance(entry, Mapping) or not isinstance(entry.get("image"), str):
        raise ScanError(f"{path}: a training entry names no image")
    label = entry.get("label")
    image = _inside(root, path, entry["image"])
    return image, _inside(root, path, label) if isinstance(label, str) else None


def _inside(root: Path, path: Path, name: str) -> Path:
    """The file of a name in a dataset.json, which must lie in its folder."""
    file = root / name
    try:
        if not file.resolve().is_relative_to(root.resolve()):
            raise ScanError(f"{path}: {name[:100]!r} lies outside the folder")
        if file.exists():
            return file
        # nnU-Net 1 lists names without the channel that the files have.
        name = stem(file)
        channel = file.with_name(f"{name}_0000{file.name.removeprefix(name)}")
        return channel if channel.exists() else file
    except ScanError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # not a possible name of a file
        raise ScanError(f"{path}: {name[:100]!r} can't be a file") from error
