"""The further images of the case under review as hidden layers, each with its own contrast."""

from collections.abc import Callable, Sequence

import numpy as np
from napari.layers import Image, Layer
from napari.viewer import Viewer

from napari_jrss.app.review.open_case import OpenCase
from napari_jrss.app.review.other_images import OtherImage
from napari_jrss.widgets.layers.common import LayerSet, image_layer


class OtherImageLayers(LayerSet):
    """Shows the images that a project has of each case beside the scan; call it in the window.

    A layer gets its voxels once it is seen; `read` gives them. It lies on the scan and below all
    else.
    """

    def __init__(self, viewer: Viewer, read: Callable[[str], OtherImage]) -> None:
        super().__init__(viewer)
        self._read = read

    def show(self, case: OpenCase, names: Sequence[str], scan: Layer) -> None:
        """Put the images of a case in the place of those of the case before."""
        for name in [kind for kind in self._layers if kind not in names]:
            self._remove(name)
        place = self._viewer.layers.index(scan) + 1
        for name in names:
            layer = self.layer(name)
            if layer is None:
                layer = self._add(case, name, place)
            self._stale.add(name)
            self._fill(name)
            place = self._viewer.layers.index(layer) + 1

    def clear(self) -> None:
        """Remove the layers, and nothing that isn't ours."""
        for name in list(self._layers):
            self._remove(name)

    def _remove(self, name: str) -> None:
        layer = self._layers.pop(name)
        if layer in self._viewer.layers:
            self._viewer.layers.remove(layer)

    def _add(self, case: OpenCase, name: str, place: int) -> Image:
        nothing = np.zeros((1, 1, 1), np.float32)
        layer = image_layer(nothing, case, name, visible=False, colormap="gray")
        selected = self._viewer.layers.selection.active
        self._viewer.layers.insert(place, layer)
        self._keep(name, layer)
        if selected is not None and selected in self._viewer.layers:
            self._viewer.layers.selection.active = selected
        layer.events.visible.connect(lambda event: self._fill(name))
        return layer

    def _fill(self, name: str) -> None:
        """Give a layer its voxels if it is seen and they are those of another case."""
        layer = self.layer(name)
        if layer is None or not layer.visible or name not in self._stale:
            return
        self._stale.remove(name)
        image = self._read(name)
        layer.data = image.array
        layer.scale, layer.translate = image.spacing_mm, image.place_mm
        layer.contrast_limits_range = image.extremes
        layer.contrast_limits = image.limits
