"""Predictions of trained networks: classes of a scan, the displacement field of a pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_jrss.io.predictions import Prediction
from napari_jrss.labels import IGNORED
from napari_jrss.losses import symmetric_kl
from napari_jrss.networks.obelisk import seeing_tiles
from napari_jrss.networks.spatial import warp
from napari_jrss.preprocess.cost import BYTES_PER_VOXEL
from napari_jrss.snapshot import CaseArrays, Image, Label

TILE_OVERLAP = 0.25
Field = NDArray[np.float32]


@torch.no_grad()
def segmentation_logits(
    network: nn.Module, image: Image, device: torch.device, tile: Sequence[int] | None = None
) -> Tensor:
    """Logits (C, z, y, x) of one image, the network in evaluation mode.

    `image` and `tile` are as for :func:`predict_case`.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(image))[None]
    if image.ndim == 3:
        tensor = tensor[None]
    shape = image.shape[-3:]
    if tile is None:
        tile = tile_for(shape, free_memory(device))
    with evaluation(network):
        if tile is None or all(t >= s for t, s in zip(tile, shape, strict=True)):
            logits: Tensor = network(tensor.to(device))
            return logits.float()[0]
        from monai.inferers import sliding_window_inference

        with seeing_tiles(network, shape, tile):
            tiled = sliding_window_inference(
                tensor,
                tuple(tile),
                1,
                network,
                overlap=TILE_OVERLAP,
                mode="gaussian",
                sw_device=device,
                device="cpu",
            )
        assert isinstance(tiled, Tensor)
        return tiled.float()[0]


def tile_for(shape: Sequence[int], free_bytes: int) -> tuple[int, ...] | None:
    """The largest tile (z, y, x) whose forward pass fits into `free_bytes` of memory.

    None if the whole image does. The longest axis is halved, in multiples of 8 voxels, until the
    tile fits.
    """
    tile = list(shape)
    while np.prod(tile) * BYTES_PER_VOXEL > free_bytes and max(tile) > 32:
        longest = int(np.argmax(tile))
        tile[longest] = max(32, -(-tile[longest] // 16) * 8)
    return None if tile == list(shape) else tuple(tile)


def free_memory(device: torch.device) -> int:
    """Free memory in bytes: of the CUDA device, else of the machine."""
    if device.type == "cuda":
        # what PyTorch keeps for its next tensors is free for them, though not for other programs
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    import psutil

    return int(psutil.virtual_memory().available)


@torch.no_grad()
def predict_case(
    teacher: nn.Module,
    image: Image,
    device: torch.device,
    student: nn.Module | None = None,
    tile: Sequence[int] | None = None,
) -> Prediction:
    """Teacher's label and confidence and, given a student, their KL divergence (Eq. 5).

    Parameters
    ----------
    teacher, student
        Segmentation networks.
    image
        (z, y, x), or of several channels (channels, z, y, x); normalised, on the training grid.
    device
        Where to compute.
    tile
        Size (z, y, x) in voxels of overlapping tiles; by default the whole image in one
        piece, or tiles where the free memory does not hold it.
    """
    teacher_logits = segmentation_logits(teacher, image, device, tile)
    probabilities = teacher_logits.softmax(0)
    uncertainty = None
    if student is not None:
        student_logits = segmentation_logits(student, image, device, tile)
        kl = symmetric_kl(teacher_logits[None], student_logits[None])[0]
        uncertainty = kl.cpu().numpy().astype(np.float16)
    return _most_probable(probabilities, uncertainty)


def _most_probable(
    probabilities: Tensor, uncertainty: NDArray[np.float16] | None = None
) -> Prediction:
    """The two most probable classes of each voxel; overwrites the probabilities (C, z, y, x)."""
    found: list[tuple[Label, NDArray[np.float16]]] = []
    for _ in range(2):  # several times faster than topk along this axis
        confidence, label = probabilities.max(0)
        probabilities.scatter_(0, label[None], -1)
        found.append(
            (label.cpu().numpy().astype(np.uint8), confidence.cpu().numpy().astype(np.float16))
        )
    (first, sure), (second, less_sure) = found
    return Prediction(first, sure, uncertainty, second, less_sure)


@torch.no_grad()
def displacement_field(
    network: nn.Module, moving: Image, fixed: Image, device: torch.device
) -> Field:
    """Displacement field (3, z, y, x) in voxels that pulls `moving` onto `fixed`.

    Each is (z, y, x), or (channels, z, y, x), of which the first is registered.
    """
    pair = [
        torch.from_numpy(np.ascontiguousarray(a if a.ndim == 4 else a[None]))[None].to(device)
        for a in (moving, fixed)
    ]
    with evaluation(network):
        return network(*pair).float()[0].cpu().numpy()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class RegisteredPair:
    """A moving case on a fixed one: field in voxels, warped image, warped label if it had one."""

    field: Field
    image: Image
    label: Label | None


def follow(field: Field, moving: Image, moving_label: Label | None = None) -> RegisteredPair:
    """Warp a moving image, and its label if it has one, along a field."""
    label = None if moving_label is None else warp_array(moving_label, field, nearest=True)
    return RegisteredPair(field, warp_array(moving, field), label)


def warp_array(array: NDArray, field: Field, nearest: bool = False) -> NDArray:  # type: ignore[type-arg]
    """Warp a volume (z, y, x) by a field (3, z, y, x) in voxels; its type is kept.

    Outside, an image continues its border and a label is background.
    """
    tensor = torch.from_numpy(array.astype(np.float32))[None, None]
    displacement = torch.from_numpy(field)[None]
    mode, padding = ("nearest", "zeros") if nearest else ("linear", "border")
    warped = warp(tensor, displacement, mode=mode, padding=padding)  # type: ignore[arg-type]
    values = warped[0, 0].numpy()
    if np.issubdtype(array.dtype, np.integer):
        values = values.round()
    return values.astype(array.dtype)


def mirror_image(
    image: Image, label: Label, classes: Sequence[int]
) -> tuple[Image, NDArray[np.uint8]]:
    """An image (z, y, x) and its label mirrored across x; class c of the label is `classes[c]`."""
    others = np.arange(IGNORED + 1, dtype=np.uint8)
    others[: len(classes)] = classes
    return np.ascontiguousarray(image[..., ::-1]), others[label[..., ::-1]]


def warp_label(
    network: nn.Module, arrays: CaseArrays, moving: str, fixed: str, device: torch.device
) -> Label:
    """The moving case's label on the fixed case, by nearest neighbour."""
    field = displacement_field(network, arrays.channels(moving), arrays.channels(fixed), device)
    return warp_array(arrays.label(moving), field, nearest=True)


class Votes:
    """Label fusion: labelled cases, registered to a fixed image, vote for the label of each voxel.

    The weight of a vote falls with the local squared intensity difference d² from the fixed
    image, smoothed over 5 voxels: ``exp(-d² / mean d²)``.

    Parameters
    ----------
    fixed
        (z, y, x), normalised.
    classes
        Number of classes, background included.
    """

    def __init__(self, fixed: Image, classes: int) -> None:
        self.fixed = fixed
        self._sums = np.zeros((classes, *fixed.shape), np.float32)

    def add(self, pair: RegisteredPair) -> None:
        """Count the vote of a pair that has a warped label."""
        from scipy.ndimage import uniform_filter

        if pair.label is None:
            raise ValueError("a pair without a label has no vote")
        difference = uniform_filter((pair.image - self.fixed) ** 2, 5)
        # Bounded, so that no voxel is left without a vote.
        weight = np.exp(-np.minimum(difference / max(float(difference.mean()), 1e-6), 20))
        weight = np.where(pair.label == IGNORED, 0, weight)
        label = np.where(pair.label == IGNORED, 0, pair.label)
        np.add.at(self._sums, (label, *np.indices(self.fixed.shape, sparse=True)), weight)

    def shares(self) -> NDArray[np.float32]:
        """Each class's share of the votes, (C, z, y, x)."""
        shares: NDArray[np.float32] = self._sums / np.maximum(self._sums.sum(0), np.float32(1e-12))
        return shares

    def prediction(self) -> Prediction:
        """The winner at each voxel; its share of the votes is the confidence."""
        return _most_probable(torch.from_numpy(self.shares()))


@contextmanager
def evaluation(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and back into the mode it was in."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
