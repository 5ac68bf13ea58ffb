"""Predictions: whole or in tiles, fields in voxels, propagated labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from napari_jrss._tests.training.phantoms import NAMES, SHAPE, RecordingArrays, phantom
from napari_jrss.config import NetworkConfig
from napari_jrss.inference.predict import (
    Votes,
    displacement_field,
    evaluation,
    follow,
    free_memory,
    mirror_image,
    predict_case,
    segmentation_logits,
    tile_for,
    warp_array,
)
from napari_jrss.io.predictions import Prediction
from napari_jrss.labels import IGNORED
from napari_jrss.networks.build import build_registration_network, build_segmentation_network
from napari_jrss.preprocess.cost import BYTES_PER_VOXEL

CPU = torch.device("cpu")
C = len(NAMES)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Shift(nn.Module):
    """A registration network that knows the answer: a translation in voxels z, y, x."""

    def __init__(self, *shift: float) -> None:
        super().__init__()
        self.shift = torch.tensor(shift).view(1, 3, 1, 1, 1)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        return self.shift.expand(len(moving), 3, *moving.shape[2:]).contiguous()


def test_a_prediction_is_the_teachers_softmax_in_evaluation_mode() -> None:
    network = build_segmentation_network(NetworkConfig(), C, dropout=0.5).train()
    image = phantom("u")[0]
    told = predict_case(network, image, CPU)
    assert network.training
    with torch.no_grad():
        network.eval()
        expected = network(torch.from_numpy(image)[None, None]).softmax(1)[0]
    np.testing.assert_array_equal(told.label, expected.argmax(0).numpy())
    np.testing.assert_allclose(told.confidence, expected.max(0).values.numpy(), atol=1e-3)
    assert told.label.dtype == np.uint8
    assert told.confidence.dtype == np.float16
    assert told.uncertainty is None


def test_uncertainty_is_the_divergence_of_teacher_and_student() -> None:
    teacher, student = (build_segmentation_network(NetworkConfig(), C) for _ in range(2))
    image = phantom("u")[0]
    same = predict_case(teacher, image, CPU, teacher).uncertainty
    other = predict_case(teacher, image, CPU, student).uncertainty
    assert same is not None
    assert other is not None
    assert (same == 0).all()
    assert other.min() >= 0
    assert other.max() > 0


@pytest.mark.slow
def test_tiles_agree_with_the_whole_where_a_network_looks_around_locally() -> None:
    network = nn.Conv3d(1, C, 3, padding=1)
    image = np.random.default_rng(0).normal(size=(24, 40, 33)).astype(np.float32)
    whole = segmentation_logits(network, image, CPU, tile=image.shape)
    tiled = segmentation_logits(network, image, CPU, tile=(16, 24, 16))
    assert tiled.shape == whole.shape
    # Only a tile's own border differs: there a tile is padded with zeros.
    assert float((tiled - whole).abs().mean()) < 0.05 * float(whole.std())
    label = predict_case(network, image, CPU, tile=(16, 24, 16)).label
    assert np.mean(label == whole.argmax(0).numpy()) > 0.95


def test_a_tile_as_large_as_the_image_is_the_whole() -> None:
    network = build_segmentation_network(NetworkConfig(), C)
    image = phantom("u")[0]
    whole = segmentation_logits(network, image, CPU)
    assert torch.equal(whole, segmentation_logits(network, image, CPU, tile=(32, 32, 32)))


@given(st.tuples(*[st.integers(8, 400)] * 3), st.integers(1, 2**34))
def test_a_tile_fits_into_memory_or_is_as_small_as_they_get(
    shape: tuple[int, int, int], free: int
) -> None:
    tile = tile_for(shape, free)
    if tile is None:
        assert np.prod(shape) * BYTES_PER_VOXEL <= free or max(shape) <= 32
        return
    assert np.prod(tile) * BYTES_PER_VOXEL <= free or max(tile) <= 32
    assert tile != shape
    for size, own in zip(shape, tile, strict=True):
        assert own == size or (own % 8 == 0 and 32 <= own < size)


def test_memory_decides_about_tiles() -> None:
    voxels = 160 * 192 * 160
    assert tile_for((160, 192, 160), voxels * BYTES_PER_VOXEL) is None
    assert tile_for((160, 192, 160), voxels * BYTES_PER_VOXEL - 1) == (160, 96, 160)
    assert free_memory(CPU) > 0


def test_an_untrained_registration_network_is_next_to_the_identity() -> None:
    network = build_registration_network(NetworkConfig())
    field = displacement_field(network, phantom("a")[0], phantom("b")[0], CPU)
    assert field.shape == (3, *SHAPE)
    assert field.dtype == np.float32
    assert np.abs(field).max() < 1e-2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_a_warped_array_keeps_its_type_and_follows_the_field(dtype: type) -> None:
    rng = np.random.default_rng(0)
    array: np.ndarray = rng.integers(0, 200, (6, 7, 8)).astype(dtype)
    field = np.zeros((3, 6, 7, 8), np.float32)
    field[0], field[2] = 1, -2  # warped(p) = moving(p + u(p))
    nearest = warp_array(array, field, nearest=True)
    assert nearest.dtype == dtype
    np.testing.assert_array_equal(nearest[:-1, :, 2:], array[1:, :, :-2])
    assert (nearest[-1] == 0).all()
    assert (nearest[:, :, :2] == 0).all()
    linear = warp_array(array, field)
    assert linear.dtype == dtype
    np.testing.assert_allclose(linear[:-1, :, 2:], array[1:, :, :-2], atol=1e-3)
    np.testing.assert_allclose(linear[-1], linear[-2], atol=1e-3)


def test_an_integer_image_is_rounded_not_cut_off() -> None:
    array = np.full((4, 4, 4), 100, np.int16)
    field = np.full((3, 4, 4, 4), 0.3, np.float32)
    assert (warp_array(array, field) == 100).all()


def test_registering_a_pair_gives_field_image_and_label() -> None:
    image, label = phantom("a")
    field = displacement_field(Shift(0, 2, 0), image, image, CPU)
    pair = follow(field, image, label)
    np.testing.assert_allclose(pair.image[:, :-2], image[:, 2:], atol=1e-5)
    assert pair.label is not None
    np.testing.assert_array_equal(pair.label[:, :-2], label[:, 2:])
    assert follow(field, image).label is None


class Moved(RecordingArrays):
    """``near`` is the fixed case shifted by two voxels; ``far`` shows something else."""

    def image(self, case_id: str) -> np.ndarray:
        image = phantom("a")[0]
        return {"fixed": image, "near": np.roll(image, 2, 1), "far": np.roll(image, -5, 1)}[case_id]

    def label(self, case_id: str) -> np.ndarray:
        assert case_id != "fixed"
        return np.roll(phantom("a")[1], {"near": 2, "far": -5}[case_id], 1)


def propagated(network: nn.Module, arrays: Moved, atlases: list[str]) -> Prediction:
    """Label of ``fixed`` by vote of the atlases."""
    votes = Votes(arrays.image("fixed"), C)
    for atlas in atlases:
        image = arrays.image(atlas)
        field = displacement_field(network, image, votes.fixed, CPU)
        votes.add(follow(field, image, arrays.label(atlas)))
    return votes.prediction()


def test_a_label_is_propagated_along_a_known_translation() -> None:
    told = propagated(Shift(0, 2, 0), Moved(), ["near"])
    np.testing.assert_array_equal(told.label[:, :-2], phantom("a")[1][:, :-2])
    np.testing.assert_allclose(told.confidence[:, :-2], 1)
    assert told.uncertainty is None


def test_the_vote_follows_the_atlas_that_looks_alike() -> None:
    truth = phantom("a")[1]
    together = propagated(Shift(0, 2, 0), Moved(), ["far", "near"])
    wrong = propagated(Shift(0, 2, 0), Moved(), ["far"])
    inner = np.s_[:, 3:-3]
    assert np.mean(together.label[inner] == truth[inner]) > 0.95
    assert np.mean(wrong.label[inner] == truth[inner]) < 0.9
    assert 0.5 < together.confidence[inner].min() <= together.confidence[inner].max() <= 1


def test_one_atlas_keeps_its_label_where_it_looks_nothing_like_the_case() -> None:
    """A weight must not vanish: the only vote there is decides, however poor."""

    class Spot(Moved):
        def image(self, case_id: str) -> np.ndarray:
            image = np.zeros(SHAPE, np.float32)
            if case_id == "near":
                image[6, 8, 6] = 1000
            return image

        def label(self, case_id: str) -> np.ndarray:
            return np.ones(SHAPE, np.uint8)

    told = propagated(Shift(0, 0, 0), Spot(), ["near"])
    assert (told.label == 1).all()
    assert (told.confidence == 1).all()


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_is_left_again_also_after_an_error(training: bool) -> None:
    network = nn.Dropout().train(training)
    with pytest.raises(ZeroDivisionError), evaluation(network):
        1 / (0 if not network.training else 1)
    assert network.training is training


def test_left_and_right_change_places_in_the_mirror() -> None:
    image = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    label = np.zeros((2, 3, 4), np.uint8)
    label[..., 0], label[..., 2], label[0, 0, 3] = 1, 2, IGNORED
    turned, other = mirror_image(image, label, (0, 2, 1))
    np.testing.assert_array_equal(turned[..., 3], image[..., 0])
    assert (other[..., 3] == 2).all()  # left lies on the left again
    assert (other[..., 1] == 1).all()
    assert other[0, 0, 0] == IGNORED
    back, same = mirror_image(turned, other, (0, 2, 1))
    np.testing.assert_array_equal(back, image)
    np.testing.assert_array_equal(same, label)
