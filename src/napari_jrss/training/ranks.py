"""Several processes take the step that one process would take: each passes a part of the batch.

Each process draws the whole batch, with the same random numbers, and passes its part of it through
the network. The outputs are gathered, so that each process has the loss of the whole batch, however
that mixes its images. Batch normalisation takes the statistics of the whole batch, and channels
that are dropped are those that one process would drop.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn
from torch.nn import functional


def shared(network: nn.Module, fabric: Fabric) -> nn.Module:
    """A network whose batches the processes share; the network itself if there is one process.

    Parameters
    ----------
    network
        Takes tensors (B, ...) and returns a tensor (B, ...). Its layers of batch normalisation and
        dropout are replaced by such as know the whole batch; the parameters stay the same objects.
    fabric
        Which process this is, and how many there are.

    Returns
    -------
    nn.Module
        Takes the whole batch, of at least one image for each process, in each process; returns the
        outputs of the whole batch.
    """
    if fabric.world_size == 1:
        return network
    return _Shared(network, _Part(fabric.global_rank, fabric.world_size))


class _Part:
    """Which images of the present batch are this process's."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks
        self.images = 0

    @property
    def sizes(self) -> list[int]:
        """Number of images of each process."""
        least, more = divmod(self.images, self.ranks)
        return [least + (rank < more) for rank in range(self.ranks)]

    @property
    def own(self) -> slice:
        first = sum(self.sizes[: self.rank])
        return slice(first, first + self.sizes[self.rank])


class _Shared(nn.Module):
    def __init__(self, network: nn.Module, part: _Part) -> None:
        super().__init__()
        self.network = network
        self._part = part
        for module in list(network.modules()):
            for name, layer in module.named_children():
                if isinstance(layer, nn.BatchNorm3d):
                    setattr(module, name, _BatchNorm(layer))
                elif isinstance(layer, nn.Dropout | nn.Dropout3d):
                    setattr(module, name, _Dropout(layer, part))

    def forward(self, *inputs: Tensor) -> Tensor:
        part = self._part
        part.images = len(inputs[0])
        own = self.network(*(each[part.own] for each in inputs))
        result: Tensor = _Gathered.apply(own, part)  # type: ignore[no-untyped-call]
        return result


class _Gathered(torch.autograd.Function):
    """The outputs of all processes, from those of this one."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, part: _Part) -> Tensor:
        ctx.own, ctx.ranks = part.own, part.ranks
        most = max(part.sizes)
        padded = own.new_zeros((most, *own.shape[1:]))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in part.sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([each[:size] for each, size in zip(parts, part.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Each process has the gradient of the whole batch's loss. The gradients of the weights
        # are averaged over the processes afterwards, and should be their sum.
        return gradient[ctx.own] * ctx.ranks, None


class _BatchNorm(nn.BatchNorm3d):
    """Batch normalisation by the statistics of all processes' images."""

    def __init__(self, layer: nn.BatchNorm3d) -> None:
        super().__init__(
            layer.num_features,
            layer.eps,
            layer.momentum,
            layer.affine,
            layer.track_running_stats,
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.num_batches_tracked = layer.num_batches_tracked
        self.training = layer.training

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return super().forward(features)
        wide = features.detach().float()
        count = wide.new_tensor([wide[:, 0].numel()])
        sums = torch.cat([wide.sum(_BUT_CHANNELS), count])
        distributed.all_reduce(sums)
        mean, count = sums[:-1] / sums[-1], sums[-1]
        off = (wide - _by_channel(mean)).square().sum(_BUT_CHANNELS)
        distributed.all_reduce(off)
        if self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            factor = self.momentum or 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, factor)
            self.running_var.lerp_(off / (count - 1), factor)
        result: Tensor = _Normalised.apply(  # type: ignore[no-untyped-call]
            features, self.weight, self.bias, mean, off / count, count, self.eps
        )
        return result


class _Normalised(torch.autograd.Function):
    """Features (B, C, z, y, x) normalised by the mean and variance (C,) of all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        deviation = torch.rsqrt(variance + eps)
        ctx.save_for_backward(features, weight, mean, deviation, count)
        return functional.batch_norm(features, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, mean, deviation, count = ctx.saved_tensors
        normal = (features.float() - _by_channel(mean)) * _by_channel(deviation)
        wide = gradient.float()
        own = torch.stack([wide.sum(_BUT_CHANNELS), (wide * normal).sum(_BUT_CHANNELS)])
        means = own.clone()
        distributed.all_reduce(means)
        offset, slope = (_by_channel(each) for each in means / count)
        scale = deviation if weight is None else deviation * weight
        passed = (wide - offset - normal * slope) * _by_channel(scale)
        learned = (None, None) if weight is None else (own[1], own[0])
        return passed.to(features.dtype), *learned, None, None, None, None


class _Dropout(nn.Module):
    """Dropout of the elements or channels that one process would drop in the whole batch."""

    def __init__(self, layer: nn.Dropout | nn.Dropout3d, part: _Part) -> None:
        super().__init__()
        self.rate, self.channels = layer.p, isinstance(layer, nn.Dropout3d)
        self._part = part
        self.training = layer.training

    def forward(self, features: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return features
        sizes = features.shape[1:]
        if self.channels:
            sizes = torch.Size([sizes[0], *(1 for _ in sizes[1:])])
        kept = features.new_empty((self._part.images, *sizes)).bernoulli_(1 - self.rate)
        return features * (kept / (1 - self.rate))[self._part.own]


_BUT_CHANNELS = (0, 2, 3, 4)


def _by_channel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
