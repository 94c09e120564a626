"""What fewer and larger kernels are made of, for inference on weights that change no more.

A click is a chain of products so small that launching them takes as long as computing them. Here
grids are rows, channels last throughout; a convolution whose kernel equals its stride is a product
of rows with blocks of eight voxels, and is not turned back into a grid where the next one wants
blocks again.

Shape legend: B batch, C channels, I J K grid axes, H heads, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsam3d.model.inference_ops import GridNorm

BLOCK = 8  # voxels of a block of 2^3, in the order of their places (a, b, d)
# Tensor cores want rows of 16 bytes; from others a slower product would be chosen.
ALIGNED = 8


def linear_of(weight_RC: Tensor, bias_R: Tensor) -> nn.Linear:
    """Return a layer with these weights, copied, that records no gradient."""
    layer = nn.Linear(weight_RC.shape[1], weight_RC.shape[0], device="meta")
    layer.weight = nn.Parameter(weight_RC.detach().clone(), requires_grad=False)
    layer.bias = nn.Parameter(bias_R.detach().clone(), requires_grad=False)
    return layer


def joined(layers: Sequence[nn.Linear]) -> nn.Linear:
    """Return layers of the same input as one, outputs side by side."""
    weights = torch.cat([layer.weight for layer in layers])
    return linear_of(weights, torch.cat([layer.bias for layer in layers]))


def pointwise(conv: nn.Conv3d) -> nn.Linear:
    """Return a convolution of kernel 1 as a layer of rows."""
    return linear_of(conv.weight.flatten(1), _bias(conv))


def downsampling(conv: nn.Conv3d, channels: int | None = None) -> nn.Linear:
    """Return a convolution of kernel and stride 2 as a layer of `blocks_of`, flattened.

    Args:
        conv: Whose weights are taken.
        channels: Of its input, if those have been filled up with zeros.
    """
    spare = 0 if channels is None else channels - conv.in_channels
    weight = functional.pad(conv.weight.permute(0, 2, 3, 4, 1), (0, spare))
    return linear_of(weight.flatten(1), _bias(conv))


def upsampling(conv: nn.ConvTranspose3d) -> nn.Linear:
    """Return a transposed convolution of kernel and stride 2 as a layer that makes blocks."""
    weight = conv.weight.permute(2, 3, 4, 1, 0).flatten(0, 3)
    return linear_of(weight, _bias(conv).repeat(BLOCK))


def _bias(conv: nn.Conv3d | nn.ConvTranspose3d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def unflatten(x: Tensor, dim: int, sizes: tuple[int, ...]) -> Tensor:
    """Return `Tensor.unflatten` with its type."""
    return cast("Tensor", cast("Any", x).unflatten(dim, sizes))


def split(x: Tensor, widths: list[int]) -> tuple[Tensor, ...]:
    """Return `Tensor.split` of the last dimension with its type."""
    return cast("tuple[Tensor, ...]", cast("Any", x).split(widths, -1))


def rows_of(x_BCIJK: Tensor) -> Tensor:
    """Return a grid with channels last, (B, I, J, K, C), as a view."""
    return x_BCIJK.permute(0, 2, 3, 4, 1)


def project(layer: nn.Linear, x: Tensor) -> Tensor:
    """Return a layer of grids or blocks as one product of two matrices.

    Of tensors of many dimensions a compiler would make as many small products as there are planes.
    """
    return layer(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


def convolve(conv: nn.Conv3d, x_BIJKC: Tensor) -> Tensor:
    """Return a convolution of rows, as rows."""
    return rows_of(conv(x_BIJKC.permute(0, 4, 1, 2, 3)))


def blocks_of(x_BIJKC: Tensor) -> Tensor:
    """Return each 2^3 block of voxels side by side: (B, I/2, J/2, K/2, 8, C)."""
    batch, side_i, side_j, side_k, channels = x_BIJKC.shape
    x = x_BIJKC.reshape(batch, side_i // 2, 2, side_j // 2, 2, side_k // 2, 2, channels)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6)


def grid_of(x_BIJK8C: Tensor) -> Tensor:
    """Undo `blocks_of`: (B, I, J, K, 8, C) to (B, 2I, 2J, 2K, C)."""
    batch, side_i, side_j, side_k, _, channels = x_BIJK8C.shape
    x = unflatten(x_BIJK8C, 4, (2, 2, 2)).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(batch, 2 * side_i, 2 * side_j, 2 * side_k, channels)


def short_sum(x: Tensor, dim: int) -> Tensor:
    """Return the sum over a dimension of few terms.

    Written out a compiler computes it with what makes the terms, and holds none of them.
    """
    if not torch.compiler.is_compiling():
        return x.sum(dim)
    return reduce(torch.add, x.unbind(dim))


def smallest(x: Tensor, dim: int) -> Tensor:
    """Return the minimum over a dimension of few terms; else as `short_sum`."""
    if not torch.compiler.is_compiling():
        return x.amin(dim)
    return reduce(torch.minimum, x.unbind(dim))


def activated_rows(norm: GridNorm, x_BIJKC: Tensor) -> Tensor:
    """Return GELU of the group norm of rows."""
    groups = unflatten(x_BIJKC.float(), -1, (norm.num_groups, -1))
    variance, mean = torch.var_mean(groups, dim=(1, 2, 3, 5), correction=0, keepdim=True)
    normed = ((groups - mean) * torch.rsqrt(variance + norm.eps)).flatten(-2)
    return functional.gelu(normed * norm.weight + norm.bias)


class HeadBatch(nn.Module):
    """Small heads of equally many layers, each on a token of its own, as batched products.

    Narrower layers are filled up with zeros, which change nothing.

    Args:
        heads: The linear layers of each head.
        activation: Between layers; must map zero to zero.
    """

    def __init__(
        self, heads: Sequence[Sequence[nn.Linear]], activation: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.activation = activation
        self.depth = len(heads[0])
        sizes = [max(head[0].in_features for head in heads)]
        sizes += [max(layer.out_features for layer in at) for at in zip(*heads, strict=True)]
        for number, (wide_in, wide_out) in enumerate(pairwise(sizes)):
            layers = [head[number] for head in heads]
            weights = [
                functional.pad(x.weight.detach().T, (0, wide_out - x.out_features)) for x in layers
            ]
            weights = [functional.pad(w, (0, 0, 0, wide_in - w.shape[0])) for w in weights]
            biases = [
                functional.pad(x.bias.detach(), (0, wide_out - x.out_features)) for x in layers
            ]
            self.register_buffer(f"weight{number}", torch.stack(weights))
            self.register_buffer(f"bias{number}", torch.stack(biases)[:, None])

    def forward(self, tokens_BHC: Tensor, which: slice) -> Tensor:
        """Return (B, H, outputs) of the heads `which`, as many as tokens are given."""
        x = tokens_BHC.transpose(0, 1)
        for number in range(self.depth):
            weight = cast("Tensor", getattr(self, f"weight{number}"))[which]
            bias = cast("Tensor", getattr(self, f"bias{number}"))[which]
            x = torch.bmm(x, weight) + bias
            if number + 1 < self.depth:
                x = self.activation(x)
        return x.transpose(0, 1)
