"""Boxes of values in a layer, written in place."""

from __future__ import annotations

import numpy as np
from napari.layers import Labels

from napari_jrss.widgets.layers.common import mark, put

SHAPE = (6, 5, 4)


def test_a_box_replaces_the_one_before_in_the_same_array() -> None:
    layer = Labels(np.zeros((1, 1, 1), np.uint8))
    first, second = np.s_[0:2, 1:3, 0:2], np.s_[3:6, 0:2, 1:4]
    assert not mark(layer, SHAPE, first, np.full((2, 2, 2), 2, np.uint8))
    held = layer.data
    assert held.shape == SHAPE
    assert not layer.editable
    assert mark(layer, SHAPE, second, np.ones((3, 2, 3), np.uint8))
    assert layer.data is held
    wanted = np.zeros(SHAPE, np.uint8)
    wanted[second] = 1
    np.testing.assert_array_equal(held, wanted)


def test_a_volume_of_another_shape_and_one_that_must_not_be_written_are_replaced() -> None:
    layer = Labels(np.broadcast_to(np.uint8(0), SHAPE))
    box, values = np.s_[0:1, 0:1, 0:1], np.ones((1, 1, 1), np.uint8)
    assert not mark(layer, SHAPE, box, values)
    assert layer.data[0, 0, 0] == 1
    assert not mark(layer, (3, 3, 3), box, values)
    assert layer.data.shape == (3, 3, 3)


def test_a_layer_that_lies_right_is_not_drawn_anew() -> None:
    layer = Labels(np.zeros(SHAPE, np.uint8), scale=(2.0, 1.0, 1.0))
    told: list[object] = []
    layer.events.scale.connect(told.append)
    layer.events.translate.connect(told.append)
    put(layer, (2.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    assert not told
    put(layer, (2.0, 1.0, 1.0), (4.0, 0.0, 0.0))
    assert len(told) == 1
    np.testing.assert_array_equal(layer.translate, (4, 0, 0))
