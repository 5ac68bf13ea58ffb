"""Layers > Register: any two scans on the screen, by the project's network or an engine."""

# magicgui makes the form from annotations, so here they aren't put off.
from typing import Any

import numpy as np
from magicgui import magic_factory
from napari import Viewer
from napari.layers import Image
from napari.utils.notifications import show_error, show_info
from numpy.typing import NDArray

from napari_jrss.app.pairs.pairs import RegisteredVolumes
from napari_jrss.errors import ScanError
from napari_jrss.io.volume import Volume
from napari_jrss.widgets.bridge import report_errors
from napari_jrss.widgets.contributions import Arriving, dock_of
from napari_jrss.widgets.engine_box import engine_choices
from napari_jrss.widgets.main_widget import MainWidget

TITLE = "Register two scans"
"""Name of the form among the plugin's widgets."""

_REVERSED = [2, 1, 0, 3]


def open_form(viewer: Viewer) -> None:
    """Open the form; of two selected images the upper one in the layer list is the moving one."""
    _, form = viewer.window.add_plugin_dock_widget("napari-jrss", TITLE)
    # The list knows which are selected, but not, without its private parts, which came first.
    selected = [layer for layer in viewer.layers if layer in viewer.layers.selection]
    images = [layer for layer in selected if isinstance(layer, Image)]
    if len(images) == 2:
        form.fixed.value, form.moving.value = images


@magic_factory(
    call_button="Register",
    moving={"tooltip": "The image to be warped"},
    fixed={"tooltip": "The image that it is warped onto, and whose grid the result has"},
    engine={
        "choices": engine_choices,
        "tooltip": "Automatic: the network of the open project, if it is trained, else refine. "
        "All but the network need neither a project nor training.",
    },
    start={
        "choices": [
            ("affine alignment", "affine"),
            ("shift of the centres", "center_of_mass"),
            ("as they lie", "none"),
        ],
        "tooltip": "What comes before the engine. The network starts as its project does.",
    },
)
def register_layers(
    viewer: Viewer, moving: Image, fixed: Image, engine: str = "", start: str = "affine"
) -> None:
    """Register one image on the screen to another, by an engine or the project's network.

    The warped image becomes a layer on the grid of the fixed one. What is missing, such as the
    package of an engine, is said in one line.
    """
    with report_errors(show_error):
        if moving is None or fixed is None or moving is fixed:
            raise ScanError("registering needs two different images in the layer list")
        widget = dock_of(viewer)
        volumes = volume_of_layer(moving), volume_of_layer(fixed)
        widget.session.pairs.register_volumes(
            *volumes,
            (moving.name, fixed.name),
            engine=engine,
            prealign=start,  # type: ignore[arg-type]
        )
        _WarpArriving(viewer, widget, moving, fixed)


def volume_of_layer(layer: Image) -> Volume:
    """A layer's voxels with the place that it has on the screen, as LPS mm.

    Scale, translation, rotation, shear, affine and unit of the layer count; its axes are taken
    for (z, y, x) as :mod:`~napari_jrss.widgets.layers.scan` shows scans, growing to Superior,
    Posterior and Left. Other axes, colours, several resolutions and units that are no lengths
    are a ScanError.
    """
    if layer.ndim != 3 or layer.rgb or layer.multiscale:
        raise ScanError(f"layer {layer.name!r} is no scan with three axes and one resolution")
    corner = np.array(layer.data_to_world((0, 0, 0)))
    affine = np.eye(4)
    affine[:3, 3] = corner
    for axis in range(3):
        affine[:3, axis] = np.array(layer.data_to_world(np.eye(3)[axis])) - corner
    affine[:3] *= _mm(layer)[:, None]
    return Volume(np.asarray(layer.data), affine[_REVERSED][:, _REVERSED])


def _mm(layer: Image) -> NDArray[np.float64]:
    """Millimetres per unit of each of a layer's axes; pixels are taken for millimetres."""
    lengths = []
    for unit in layer.units:
        if str(unit) == "pixel":
            lengths.append(1.0)
        elif unit.is_compatible_with("mm"):
            lengths.append(float((1 * unit).to("mm").magnitude))
        else:
            raise ScanError(f"layer {layer.name!r} is measured in {unit}, which is no length")
    return np.array(lengths)


class _WarpArriving(Arriving):
    """Shows the warped image of one pair."""

    def __init__(self, viewer: Viewer, widget: "MainWidget", moving: Image, fixed: Image) -> None:
        super().__init__(widget)
        self._viewer, self._moving, self._fixed = viewer, moving, fixed
        self._unit_mm = _mm(fixed)
        self._relay.connect(widget.session.pairs.volumes_registered, self._show)

    def _show(self, registered: RegisteredVolumes) -> None:
        report, affine = registered.pair.report, registered.warp.affine
        placed: NDArray[Any] = affine[_REVERSED][:, _REVERSED].copy()
        placed[:3] /= self._unit_mm[:, None]
        self._viewer.add_image(
            registered.warp.image,
            name=f"{report.moving} on {report.fixed}",
            affine=placed,
            units=self._fixed.units,
            axis_labels=self._fixed.axis_labels,
            colormap=self._moving.colormap,
            contrast_limits=self._moving.contrast_limits,
        )
        show_info(
            f"{report.moving} on {report.fixed}: residual {report.residual_before:.2f} → "
            f"{report.residual:.2f} SD, folded {report.folded_percent:.2f} %, "
            f"{report.seconds:.1f} s, {report.method}"
        )
