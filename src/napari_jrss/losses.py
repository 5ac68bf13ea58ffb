"""The losses of the paper, as pure functions of tensors.

All are computed in float32, also if the network uses another precision.
"""

from typing import Literal

import torch
from torch import Tensor
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


def log_softmax(logits: Tensor) -> Tensor:
    """Logarithm of the softmax over classes (B, C, z, y, x).

    With many classes the sums run over what lies side by side in memory with channels last; with
    few, over volumes. Each is the quicker there, by a tenth to a fifth of a whole step.
    """
    if logits.shape[1] < _MANY_CLASSES:
        return logits.log_softmax(1)
    return logits.movedim(1, -1).log_softmax(-1).movedim(-1, 1)


_MANY_CLASSES = 32


def batch_dice_loss(probabilities: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Soft Dice loss of the structures that a batch holds, summed over the batch.

    A crop rarely holds every structure. One that no image of the batch holds (less than a voxel)
    has no part; the background has none either.

    Parameters
    ----------
    probabilities, target
        (B, C, z, y, x), values in [0, 1].
    mask
        Voxels that take part (B, z, y, x), bool.

    Returns
    -------
    Tensor
        A scalar from 0 to 1; 0 if the batch holds no structure.
    """
    shared = _sums(probabilities * target, mask)
    return _dice_loss(shared, _sums(probabilities, mask), _sums(target, mask))


def _sums(volumes: Tensor, mask: Tensor) -> Tensor:
    """Sums (C,) of volumes (B, C, z, y, x) over the voxels of a mask; no masked copy is made."""
    sums: Tensor = torch.tensordot(mask.float(), volumes.movedim(1, -1), 4)
    return sums


def _dice_loss(shared: Tensor, predicted: Tensor, wanted: Tensor) -> Tensor:
    """One minus the mean Dice of the structures that are there, from sums (C,) over voxels."""
    held = wanted[1:] >= 1
    dice = 2 * shared[1:] / (predicted[1:] + wanted[1:]).clamp(min=_SMOOTH)
    return ((1 - dice) * held).sum() / held.sum().clamp(min=1)


def label_dice_and_cross_entropy(
    logits: Tensor, labels: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`batch_dice_loss` and :func:`screened_cross_entropy` (its mean) with one label each.

    Both share one softmax, and labels are never turned into a volume for each class, which with
    many structures takes most of a step's time and memory.

    Parameters
    ----------
    logits
        (B, C, z, y, x).
    labels, mask
        Class indices (B, z, y, x), and which voxels take part, bool.
    """
    log = log_softmax(logits.float())
    target = labels.long() * mask
    log_found = log.gather(1, target.unsqueeze(1)).squeeze(1) * mask
    of_image = log_found.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)
    zeros, target = log.new_zeros(log.shape[1]), target.flatten()
    shared = zeros.index_add(0, target, (log_found.exp() * mask).flatten())
    wanted = zeros.index_add(0, target, mask.flatten().float())
    return _dice_loss(shared, _sums(log.exp(), mask), wanted), -of_image.mean()


def soft_cross_entropy(log_probabilities: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy with probabilities as target, mean over the voxels of a mask.

    Parameters
    ----------
    log_probabilities, target
        (B, C, z, y, x).
    mask
        (B, z, y, x), bool.

    Returns
    -------
    Tensor
        A scalar; 0 if the mask is empty.
    """
    loss = -(target * log_probabilities).sum(1)
    return (loss * mask).sum() / mask.sum().clamp(min=1)


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
