"""The losses of the paper, as pure functions of tensors.

All are computed in float32, also if the network uses another precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Class indices (B, z, y, x) -> float32 (B, classes, z, y, x)."""
    result = torch.zeros(
        (labels.shape[0], classes, *labels.shape[1:]), dtype=torch.float32, device=labels.device
    )
    return result.scatter_(1, labels.long().unsqueeze(1), 1.0)


def soft_dice_loss(
    probabilities: Tensor, target: Tensor, include_background: bool = True
) -> Tensor:
    """Soft multi-class Dice loss, Eq. 1 and 7 of the paper.

    Per image, 1 minus the mean over classes of ``2 |S ∩ P| / (|S| + |P|)``, with products and
    sums of the soft values; then the mean over the batch. A class that is absent from the target
    has a Dice of 0 as soon as it has any probability; if it is absent from both, its Dice is 1,
    as in MONAI's DiceLoss with equal smoothing of numerator and denominator.

    Probabilities and target are (B, C, z, y, x) in [0, 1]; the target is one-hot or soft. The
    paper counts the background, channel 0, as a class.
    """
    first = 0 if include_background else 1
    predicted = probabilities[:, first:].float().flatten(2)
    wanted = target[:, first:].float().flatten(2)
    intersection = (predicted * wanted).sum(2)
    total = predicted.sum(2) + wanted.sum(2)
    dice = (2 * intersection + _SMOOTH) / (total + _SMOOTH)
    return 1 - dice.mean()


# far below one voxel: it matters only for absent classes
_SMOOTH = 1e-5


@dataclass(frozen=True)
class DiceAndCrossEntropy:
    """Two losses and their sum, which alone has a gradient; all are scalars."""

    total: Tensor
    dice: Tensor
    cross_entropy: Tensor


def dice_and_cross_entropy(
    logits: Tensor, target: Tensor, in_dice: Tensor, weight: Tensor
) -> DiceAndCrossEntropy:
    """Soft Dice loss of the structures that a batch holds, plus cross-entropy.

    The Dice of a structure is summed over the batch. A crop rarely holds every structure: one that
    no image of the batch holds (less than a voxel) has no part; the background has none either.

    The gradient is found together with the losses, in few passes over the voxels, a part of them
    at a time: with many structures most of a training step would else be memory traffic.

    Parameters
    ----------
    logits
        (B, C, z, y, x); fastest with channels last in memory.
    target
        Class indices (B, z, y, x), or probabilities (B, C, z, y, x), which sum to 1.
    in_dice
        Voxels that take part in the Dice (B, z, y, x), bool.
    weight
        Of each voxel in the cross-entropy (B, z, y, x), which is the sum over all voxels: 1 over
        their number for a mean, 0 for a voxel that takes no part.
    """
    rows = _rows(target) if target.ndim == logits.ndim else target.flatten().long()
    masks = in_dice.flatten().float(), weight.flatten().float()
    of = _DiceAndCrossEntropy.apply(_rows(logits).float(), rows, *masks)  # type: ignore[no-untyped-call]
    return DiceAndCrossEntropy(*of)


def _rows(volumes: Tensor) -> Tensor:
    """(B, C, z, y, x) -> a row for each voxel, (B z y x, C)."""
    return volumes.movedim(1, -1).flatten(0, -2)


def _parts(rows: Tensor) -> list[slice]:
    """Parts of the rows that one operation after the other is done on; on a GPU all at once."""
    voxels, classes = rows.shape
    size = voxels if rows.is_cuda else max(1, _PART_VALUES // classes)
    return [slice(start, start + size) for start in range(0, voxels, size)]


_PART_VALUES = 2**18
"""Of this many values intermediate results stay in a processor's cache."""


def _softmax_of_part(logits: Tensor, result: Tensor) -> tuple[Tensor, Tensor]:
    """Write the softmax of rows into `result`; its logarithm is the first minus log of the second.

    PyTorch's own takes four to five times as long on a CPU with 3 and 11 classes, and nearly three
    times with 139 (docs/dev/benchmark-notes.md).
    """
    shifted = logits - logits.amax(1, keepdim=True)
    total = torch.exp(shifted, out=result).sum(1, keepdim=True)
    result /= total
    return shifted, total


@torch.no_grad()
def softmax(logits: Tensor) -> Tensor:
    """Probabilities of logits (B, C, z, y, x), without gradient; fastest with channels last."""
    rows = _rows(logits).float()
    result = torch.empty_like(rows)
    for part in _parts(rows):
        _softmax_of_part(rows[part], result[part])
    batch, classes, *grid = logits.shape
    return result.view(batch, *grid, classes).movedim(-1, 1)


class _DiceAndCrossEntropy(torch.autograd.Function):
    """:func:`dice_and_cross_entropy` of rows; its gradient takes the place of the softmax."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, in_dice: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts, softmax = _parts(logits), torch.empty_like(logits)
        shared, predicted, wanted = softmax.new_zeros(3, logits.shape[1])
        cross_entropy = softmax.new_zeros(())
        for part in parts:
            found, true = softmax[part], target[part]
            shifted, total = _softmax_of_part(logits[part], found)
            predicted += in_dice[part] @ found
            if true.ndim == 1:
                at = true.unsqueeze(1)
                log = shifted.gather(1, at).squeeze(1) - total.squeeze(1).log()
                shared.index_add_(0, true, found.gather(1, at).squeeze(1) * in_dice[part])
                wanted.index_add_(0, true, in_dice[part])
            else:
                log = torch.linalg.vecdot(shifted, true) - total.squeeze(1).log()
                shared += in_dice[part] @ torch.mul(found, true, out=shifted)
                wanted += in_dice[part] @ true
            cross_entropy -= log @ weight[part]
        held = wanted >= 1
        held[0] = False
        share = held / held.sum().clamp(min=1)
        both = (predicted + wanted).clamp(min=_SMOOTH)
        dice = 2 * shared / both
        if ctx.needs_input_grad[0]:
            # gradient of the loss by probabilities: of any class, and in addition of the target
            each, hit = share * dice / both, -2 * share / both
            for part in parts:
                _softmax_to_gradient(
                    softmax[part], target[part], in_dice[part], weight[part], each, hit
                )
            ctx.gradient = softmax
        loss = ((1 - dice) * share).sum()
        ctx.mark_non_differentiable(loss, cross_entropy)
        return loss + cross_entropy, loss, cross_entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.gradient * total, None, None, None


def _softmax_to_gradient(
    softmax: Tensor, target: Tensor, in_dice: Tensor, weight: Tensor, each: Tensor, hit: Tensor
) -> None:
    """Turn rows of probabilities p into the gradient by their logits, in place.

    By p the Dice loss has the gradient ``g = in_dice (each + hit target)``, so by the logits
    ``p (g - sum p g)``; the cross-entropy has ``weight (p - target)``.
    """
    if target.ndim == 1:
        at = target.unsqueeze(1)
        on_target = softmax.gather(1, at).squeeze(1) * in_dice * hit[target]
        mean = in_dice * (softmax @ each) + on_target
        softmax *= torch.addcmul((weight - mean).unsqueeze(1), in_dice.unsqueeze(1), each)
        softmax.scatter_add_(1, at, (on_target - weight).unsqueeze(1))
    else:
        gradient = torch.addcmul(each, hit, target)
        gradient -= torch.linalg.vecdot(softmax, gradient).unsqueeze(1)
        softmax *= gradient.mul_(in_dice.unsqueeze(1)).add_(weight.unsqueeze(1))
        softmax.addcmul_(target, weight.unsqueeze(1), value=-1)


def screened_cross_entropy(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    class_weight: Tensor | None = None,
) -> Tensor:
    """Weighted cross-entropy over the accepted voxels of each image, Eq. 4 of the paper.

    Parameters
    ----------
    logits
        (B, C, z, y, x).
    target
        Class indices (B, z, y, x), int64; ignored where the mask is False.
    mask
        Accepted voxels (B, z, y, x), bool; all by default.
    weight
        Factor per voxel (B, z, y, x), such as exp(-KL); 1 by default. The loss is not divided by
        the sum of these weights, so uncertainty lowers it.
    class_weight
        Factor per class (C,), by which the mean over voxels is weighted; 1 by default.

    Returns
    -------
    Tensor
        (B,); exactly 0 and without gradient for an image without accepted voxels.
    """
    if mask is not None:
        target = target.masked_fill(~mask, _IGNORED)
    accepted = target != _IGNORED
    loss = F.cross_entropy(
        logits.float(), target, class_weight, ignore_index=_IGNORED, reduction="none"
    )
    if weight is not None:
        loss = loss * weight
    if class_weight is None:
        share = accepted.float()
    else:
        share = class_weight[target.clamp(min=0)] * accepted
    return loss.flatten(1).sum(1) / share.flatten(1).sum(1).clamp(min=_SMOOTH)


_IGNORED = -100


def class_weights(counts: Tensor, background: float = 0.5) -> Tensor:
    """Weights (C,) of classes that favour rare ones, as in the reference training of OBELISK.

    One over the square root of a class's number of voxels, divided by the mean of these values;
    0 for a class without voxels. The background comes first and has a weight of its own,
    independent of its voxels: 0.5 in OBELISK, 0.15 in PDD-Net.
    """
    weight = counts.clamp(min=1).float().rsqrt() * (counts > 0)
    weight = weight / weight.mean()
    weight[0] = background
    return weight


def symmetric_kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Symmetric KL divergence per voxel, the uncertainty of Eq. 5 of the paper.

    ``1/C sum_c (P_t - P_s) (log P_t - log P_s)``, which is KL(t||s) + KL(s||t) over C, from
    log-softmax, so that saturated predictions stay finite. Logits are (B, C, z, y, x), the
    teacher's detached; the result is (B, z, y, x), at least 0.
    """
    teacher = F.log_softmax(teacher_logits.float(), dim=1)
    student = F.log_softmax(student_logits.float(), dim=1)
    return ((teacher.exp() - student.exp()) * (teacher - student)).mean(1)


def mean_squared_error(warped: Tensor, fixed: Tensor) -> Tensor:
    """Mean squared intensity difference, Eq. 8 of the paper; (B, C, z, y, x) each."""
    return F.mse_loss(warped.float(), fixed.float())


def local_normalized_cross_correlation(warped: Tensor, fixed: Tensor, window: int = 9) -> Tensor:
    """Negative mean of the squared local correlation coefficient (LNCC of VoxelMorph).

    An alternative to Eq. 8 if intensities differ between scans: -1 if each window of ``warped``
    is a linear function of that of ``fixed``, 0 if they are unrelated or constant. Outside the
    image there are zeros, as in VoxelMorph and MONAI. Images are (B, 1, z, y, x); the cubic
    window's side in voxels is odd.
    """
    if window % 2 == 0:
        raise ValueError(f"window must be odd, not {window}")
    first, second = warped.float(), fixed.float()
    means = torch.cat([first, second, first * first, second * second, first * second], dim=1)
    # means along one axis after the other need 27 reads per voxel, that of the cube 729
    for axis in range(3):
        kernel, padding = [1, 1, 1], [0] * 6
        kernel[axis] = window
        padding[4 - 2 * axis : 6 - 2 * axis] = [window // 2] * 2  # the last axis comes first
        # padded before, as the pooling can't pad a volume that is smaller than the window
        means = F.avg_pool3d(F.pad(means, padding), kernel, stride=1)
    mean_a, mean_b, square_a, square_b, product = means.unbind(1)
    variance_a = (square_a - mean_a * mean_a).clamp(min=_FLAT)
    variance_b = (square_b - mean_b * mean_b).clamp(min=_FLAT)
    covariance = product - mean_a * mean_b
    return -(covariance * covariance / (variance_a * variance_b)).mean()


# a window of smaller variance counts as constant; images have standard deviation 1
_FLAT = 1e-5


def image_difference(warped: Tensor, fixed: Tensor, kind: Literal["mse", "lncc"]) -> Tensor:
    """The image term of Eq. 10: mean squared error or LNCC of two images (B, 1, z, y, x)."""
    if kind == "mse":
        return mean_squared_error(warped, fixed)
    return local_normalized_cross_correlation(warped, fixed)


def mind_ssc(image: Tensor, distance: int = 1) -> Tensor:
    """Self-similarity context of each voxel, for images of different contrast.

    The twelve pairs of a voxel's six neighbours that aren't opposite are compared, each by the
    mean squared difference D of 3x3x3 patches; a channel is ``exp(-(D - min D) / mean D)``. It
    describes shape without brightness, so the mean squared error of two images' channels
    compares, say, T1 with T2 (MIND-SSC; Heinrich et al., MICCAI 2013, doi
    10.1007/978-3-642-40811-3_24).

    Parameters
    ----------
    image
        (B, 1, z, y, x), standard deviation 1.
    distance
        Voxels between a voxel and its neighbours.

    Returns
    -------
    Tensor
        (B, 12, z, y, x), values in 0..1, float32.
    """
    wide = F.pad(image.float(), (distance,) * 6, mode="replicate")
    around = []
    for axis in (2, 3, 4):
        for offset in (0, 2 * distance):
            cut = wide
            for each in (2, 3, 4):
                start = offset if each == axis else distance
                cut = cut.narrow(each, start, image.shape[each])
            around.append(cut)
    # neighbours 2k and 2k + 1 are opposite
    apart = [
        (around[a] - around[b]).square() for b in range(6) for a in range(b) if a // 2 != b // 2
    ]
    patches = F.pad(torch.cat(apart, dim=1), (1,) * 6, mode="replicate")
    distances = F.avg_pool3d(patches, 3, stride=1)
    distances = distances - distances.amin(1, keepdim=True)
    noise = distances.mean(1, keepdim=True)
    typical = noise.mean()
    return torch.exp(-distances / noise.clamp(min=1e-3 * typical + 1e-6))


def diffusion_regulariser(displacement: Tensor) -> Tensor:
    """Mean squared forward difference of a displacement field, Eq. 9 of the paper.

    The paper's sum over voxels is taken as the mean over voxels and components, averaged over
    the three axes, as VoxelMorph does: a sum would freeze the field at lambda_r = 0.025. The
    displacement is (B, 3, z, y, x) in voxels, at least 2 voxels along each axis.
    """
    field = displacement.float()
    terms = [field.diff(dim=axis).square().mean() for axis in (2, 3, 4)]
    return torch.stack(terms).mean()


def folding(determinant: Tensor, least: float = 0.3) -> Tensor:
    """Mean amount by which the Jacobian determinant (B, z, y, x) is below `least`.

    Not in the paper. A determinant of 0 or less is a fold; the margin allows for interpolation.
    """
    return F.relu(least - determinant).mean()
