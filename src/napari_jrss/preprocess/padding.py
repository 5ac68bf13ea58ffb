"""Voxels of a scan's file that are no scan: padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from napari_jrss.io.volume import Volume

# Padding of a CT: below the lowest value of air (in HU), this share of the voxels at least, and
# this far (in HU) from any other value. A file may have two kinds, inside and outside the gantry.
_AIR_HU = -1024
_PADDING_SHARE = 0.001
_PADDING_GAP = 100
_PADDING_VALUES = 2


def without_padding(image: Volume) -> Volume:
    """The scan with the value of air where it holds padding, and the mask of the padding.

    Padding is what the file states as such. In a CT it is also a value below air that many
    voxels share and that no other value comes near, such as -3024 around the scanned circle.
    """
    array, padding = image.array, image.padding
    for _ in range(_PADDING_VALUES):
        scan = array if padding is None else array[~padding]
        lowest = float(scan.min()) if scan.size else 0.0
        if lowest >= _AIR_HU:
            break
        same = scan == lowest
        others = scan[~same]
        if same.mean() < _PADDING_SHARE or not others.size or others.min() < lowest + _PADDING_GAP:
            break
        padding = array == lowest if padding is None else padding | (array == lowest)
    if padding is None or not padding.any() or padding.all():
        return image
    filled = np.where(padding, array[~padding].min(), array)
    return replace(image, array=filled, padding=padding)
