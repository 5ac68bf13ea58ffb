"""What the manifest offers to napari besides the dock: readers, a writer, sample data, menus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import napari
import numpy as np
from napari.layers import Image, Layer
from napari.utils.notifications import show_error, show_info, show_warning
from qtpy.QtCore import QObject

from napari_jrss.app.runner import JobState
from napari_jrss.app.segmenting import VolumeSegmented, segment_volume
from napari_jrss.errors import ProjectError, ScanError
from napari_jrss.io.found import ENDINGS, stem
from napari_jrss.io.nifti import write_nifti
from napari_jrss.io.ome_zarr import is_zarr
from napari_jrss.io.read import read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.labels import LabelTable
from napari_jrss.project.folder import LEDGER
from napari_jrss.widgets.bridge import Relay, line_of, report_errors
from napari_jrss.widgets.layers.common import look_of
from napari_jrss.widgets.layers.scan import (
    LayerTuple,
    in_source_axes,
    layer_of,
    metadata_of,
    read_as_label,
    volume_of,
)
from napari_jrss.widgets.main_widget import MainWidget

if TYPE_CHECKING:
    from napari.viewer import Viewer

PLUGIN, DOCK = "napari-jrss", "JRSS"
_NO_LAYERS = cast("list[LayerTuple]", [(None,)])
_FILES = (*ENDINGS, ".dcm")
_LOOKED_AT = 20  # files of a folder that are asked whether they are DICOM
_MOST_SERIES = 8

Reader = Callable[[str], list[LayerTuple]]


# -- readers


def get_reader(path: str | Sequence[str]) -> Reader | None:
    """A reader for a project, a scan or a folder of DICOM series; None for anything else."""
    if not isinstance(path, str):
        return None  # a stack of files is no scan
    place = Path(path)
    if place.is_dir():
        if (place / LEDGER).is_file():
            return read_project
        if is_zarr(place):
            return read_ome_zarr
        return read_dicom if _holds_dicom(place) else None
    return read_scan if place.name.lower().endswith(_FILES) else None


def read_project(path: str) -> list[LayerTuple]:
    """Open a project in the dock; it has layers once a case is opened there."""
    viewer = napari.current_viewer()
    if viewer is None:
        raise ProjectError(f"{path}: a project opens in a napari window only")
    dock_of(viewer).cohort.open_project(Path(path))
    return _NO_LAYERS


def read_scan(path: str) -> list[LayerTuple]:
    """A scan as an image, or as labels if it holds patches of whole numbers."""
    place = Path(path)
    label = None if place.suffix.lower() == ".dcm" else read_as_label(place)
    name = stem(place)
    if label is not None:
        return [layer_of(label, name, "labels")]
    return [layer_of(read_volume(place), name)]


def read_dicom(path: str) -> list[LayerTuple]:
    """Each image series of a folder as an image; what can't be used is named."""
    from napari_jrss.io.dicom import find_series, most_telling, no_series

    series, left = find_series(Path(path))
    if not series:
        raise no_series(path, left)
    if len(series) > _MOST_SERIES:
        raise ScanError(f"{path}: holds {len(series)} image series; open the folder of one")
    first = most_telling(left)
    if first is not None:
        show_info(f"Left out: {first.what}: {first.reason} ({len(left)} in all)")
    name = Path(path).name
    names = [name] if len(series) == 1 else [f"{name} {i + 1}" for i in range(len(series))]
    return [layer_of(read_volume(each), name) for each, name in zip(series, names, strict=True)]


def read_ome_zarr(path: str) -> list[LayerTuple]:
    """An OME-Zarr image, and its labels."""
    from napari_jrss.io.ome_zarr import read_zarr_image, read_zarr_labels

    name = Path(path).name.removesuffix(".zarr").removesuffix(".ome")
    layers = [layer_of(read_zarr_image(Path(path)), name)]
    for label_name, label in read_zarr_labels(Path(path)):
        layers.append(layer_of(label, f"{name} {label_name}", "labels"))
    return layers


def _holds_dicom(folder: Path) -> bool:
    """Whether one of a folder's first files, at most two folders down, is DICOM."""
    files = (p for pattern in ("*", "*/*", "*/*/*") for p in folder.glob(pattern) if p.is_file())
    for file, _ in zip(files, range(_LOOKED_AT), strict=False):
        with file.open("rb") as stream:
            if stream.read(132)[128:] == b"DICM":
                return True
    return False


# -- writer


class SaveError(RuntimeError):
    """A layer that can't be saved; no ValueError, by which napari means "another writer's"."""


def write_labels(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Write a Labels layer as NIfTI in the geometry of its scan.

    Raises
    ------
    SaveError
        The layer doesn't know its scan, or has another shape.
    """
    try:
        metadata = metadata_of(attributes.get("metadata", {}), str(attributes.get("name", "")))
        label = in_source_axes(np.asarray(data), metadata)
        largest = int(label.max(initial=0))
        kind = np.uint8 if largest < 256 else np.uint16 if largest < 65536 else np.int32
        return [str(write_nifti(path, label.astype(kind), metadata.header))]
    except ScanError as error:
        raise SaveError(str(error)) from error


# -- sample data


def sample_case() -> list[LayerTuple]:
    """A synthetic brain-like scan and its ten structures."""
    from napari_jrss.sample_data import STRUCTURES, make_case

    case = make_case(0, (64, 80, 64))
    size = 2.5
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = -size * (np.array(case.image.shape[::-1]) - 1) / 2
    table = LabelTable.of_groups({name: (i,) for i, name in enumerate(STRUCTURES, start=1)})
    return [
        layer_of(Volume(case.image, affine), "synthetic brain"),
        layer_of(Volume(case.labels, affine), "structures", "labels", **look_of(table)),
    ]


# -- menus


def dock_of(viewer: Viewer) -> MainWidget:
    """The dock of a window, opened if it isn't."""
    dock, widget = viewer.window.add_plugin_dock_widget(PLUGIN, DOCK)
    dock.show()
    return cast("MainWidget", widget)


def segment_selected(viewer: Viewer) -> None:
    """Layers > Segment: the selected scan, by the teacher of the project that is open."""
    with report_errors(show_error):
        widget = dock_of(viewer)
        layer = _selected_scan(viewer)
        metadata = metadata_of(layer.metadata, layer.name)
        volume = volume_of(layer.data, metadata)
        segment_volume(widget.session.workspace, volume, layer.name)
        _LabelArriving(viewer, widget, layer)


def register_cases(viewer: Viewer) -> None:
    """Layers > Register: the tab where a moving case is registered to a fixed one."""
    widget = dock_of(viewer)
    widget.tabs.setCurrentWidget(widget.registration)


def new_labels(viewer: Viewer) -> None:
    """Layers > Annotate: an empty Labels layer that can be saved in its scan's geometry."""
    with report_errors(show_error):
        layer = _selected_scan(viewer)
        metadata_of(layer.metadata, layer.name)
        viewer.add_labels(
            np.zeros(layer.data.shape, np.uint8),
            name=f"{layer.name} labels",
            metadata=dict(layer.metadata),
            **_placement(layer),
        )


def _selected_scan(viewer: Viewer) -> Image:
    layer = viewer.layers.selection.active
    if not isinstance(layer, Image) or layer.data.ndim != 3:
        raise ScanError("select the image layer of one scan first")
    return layer


def _placement(layer: Layer) -> dict[str, Any]:
    return {
        "scale": layer.scale,
        "translate": layer.translate,
        "units": layer.units,
        "axis_labels": layer.axis_labels,
    }


class Arriving(QObject):
    """Waits in the window's thread for what the dock's job brings, and goes when it has ended."""

    def __init__(self, widget: MainWidget) -> None:
        super().__init__(widget)
        self._workspace = widget.session.workspace
        self._relay = Relay(self)
        self._relay.connect(self._workspace.inference.state_changed, self._ended)

    def _ended(self, state: JobState) -> None:
        if not state.busy:
            error = self._workspace.inference.error
            if state is JobState.FAILED and error is not None:
                show_error(line_of(error))
            self._relay.disconnect_all()
            self.deleteLater()


class _LabelArriving(Arriving):
    """Shows the label of one scan."""

    def __init__(self, viewer: Viewer, widget: MainWidget, layer: Image) -> None:
        super().__init__(widget)
        self._viewer, self._layer, self._asked = viewer, layer, layer.name
        self._relay.connect(self._workspace.inference.event, self._show)

    def _show(self, event: object) -> None:
        if isinstance(event, VolumeSegmented) and event.name == self._asked:
            name, metadata = self._layer.name, dict(self._layer.metadata)
            self._viewer.add_labels(
                event.label,
                name=f"{name} by the teacher",
                metadata=metadata,
                **look_of(event.table),
                **_placement(self._layer),
            )
            sure = event.mean_confidence
            found = "nothing found" if sure is None else f"mean confidence {sure:.2f}"
            show_info(f"{name}: {found}")
            if event.warning:
                show_warning(event.warning)
