"""Layers of the high-resolution variants that cost a CPU less where no gradient is recorded.

A feature map at half resolution has 64 MiB: getting that much new memory takes a core three times
as long as one pass of arithmetic over it, and every pass that leaves the cache costs as much again.
So inference changes fresh tensors in place, and what can be done row by row is done on few rows at
a time. Training, compilation, tracing and other devices take the ordinary library calls.

Shape legend: B batch, C channels, I J K grid axes, R rows (voxels of a grid, channels last), M
masks.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsam3d.model import channels_last

CACHE_ROWS = 4096


def is_plain_inference() -> bool:
    """Return whether nothing records what is computed, so that tensors may be changed."""
    return not (torch.is_grad_enabled() or _is_in_onnx_export() or torch.compiler.is_compiling())


def is_recorded() -> bool:
    """Return whether a gradient is recorded or a compiler reads along, other than for an export."""
    is_followed = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return is_followed and not _is_in_onnx_export()


def _is_in_onnx_export() -> bool:
    # Nothing exports before the exporter is loaded, which alone takes 70 ms.
    return "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export()


def activate(fresh: Tensor) -> Tensor:
    """Return GELU of a tensor that nothing else reads; it may be changed."""
    if is_plain_inference():
        return torch.ops.aten.gelu_(fresh)
    return functional.gelu(fresh)


def add_to(fresh: Tensor, other: Tensor) -> Tensor:
    """Return the sum of a tensor that nothing else reads, which may be changed, and another."""
    if is_plain_inference() and fresh.dtype == other.dtype:
        return fresh.add_(other)
    return fresh + other


class PointwiseConv(nn.Conv3d):
    """Convolution with kernel size 1; one matrix product on a CPU and with reduced weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name is Conv3d's
        """Return (B, out_channels, I, J, K)."""
        is_reduced = input.is_cuda and self.weight.dtype != torch.float32
        if not is_reduced and not is_by_rows(input):
            return super().forward(input)
        rows = functional.linear(input.permute(0, 2, 3, 4, 1), self.weight.flatten(1), self.bias)
        return rows.permute(0, 4, 1, 2, 3)


class VoxelNorm(nn.LayerNorm):
    """Layer norm over the channels of each voxel: local, so a sub-box can be computed exactly.

    `layers.ChannelNorm3d` keeps the arithmetic of the official models; this one is a single library
    call, several times as fast where channels lie last, as they do throughout this family.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name is LayerNorm's
        """Return (B, C, I, J, K) normalised over C."""
        return super().forward(input.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)

    def activated(self, x_BCIJK: Tensor) -> Tensor:
        """Return GELU of the normalised grid."""
        return activate(self(x_BCIJK))


class GridNorm(nn.GroupNorm):
    """Group norm over the grid.

    The library's own for channels-last grids adds up millions of numbers one after another, which
    leaves errors of 1e-4 of a feature; here sums of few rows are added in float64.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name is GroupNorm's
        """Return (B, C, I, J, K) normalised over each group of channels."""
        if not _is_in_onnx_export():
            if not torch.compiler.is_compiling():
                return super().forward(input)
            # The library's own turns grids round on a GPU. Not compiled it is the faster one still.
            return channels_last.group_norm(
                input, self.num_groups, self.weight, self.bias, self.eps
            )
        # Runtimes add up whole grids in float32 too; means of means keep the digits.
        batch, _, side, *plane = input.shape
        runs = input.reshape(batch, self.num_groups, -1, plane[0] * plane[1])
        centred = runs - runs.mean(-1, keepdim=True).mean(-2, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True).mean(-2, keepdim=True)
        normed = (centred * torch.rsqrt(variance + self.eps)).view(batch, -1, side, *plane)
        return normed * self.weight.view(-1, 1, 1, 1) + self.bias.view(-1, 1, 1, 1)

    def activated(self, x_BCIJK: Tensor) -> Tensor:
        """Return GELU of the normalised grid."""
        if not is_by_rows(x_BCIJK):
            return activate(self(x_BCIJK))
        batch, channels, *grid = x_BCIJK.shape
        out_BRC = x_BCIJK.new_empty(batch, *grid, channels).flatten(1, 3)
        for rows, out in zip(_rows(x_BCIJK), out_BRC, strict=True):
            gain, shift = self._gain_and_shift(rows)
            for part, place in _few_rows(rows, out):
                torch.addcmul(shift, part, gain, out=place)
                activate(place)
        return _as_grid(out_BRC, grid)

    def activated_conv(self, x_BCIJK: Tensor, conv: PointwiseConv) -> Tensor:
        """Return a convolution of GELU of the normalised grid, which itself is never held."""
        if not is_by_rows(x_BCIJK):
            return conv(activate(self(x_BCIJK)))
        batch, _, *grid = x_BCIJK.shape
        out_BRC = x_BCIJK.new_empty(batch, *grid, conv.out_channels).flatten(1, 3)
        matrix, bias = conv.weight.flatten(1).T, conv.bias
        assert bias is not None
        for rows, out in zip(_rows(x_BCIJK), out_BRC, strict=True):
            gain, shift = self._gain_and_shift(rows)
            for part, place in _few_rows(rows, out):
                torch.addmm(bias, activate(torch.addcmul(shift, part, gain)), matrix, out=place)
        return _as_grid(out_BRC, grid)

    def _gain_and_shift(self, rows_RC: Tensor) -> tuple[Tensor, Tensor]:
        """Return per channel what the norm multiplies by and adds."""
        ones = rows_RC.new_ones(1, CACHE_ROWS)
        sums = torch.zeros(2, self.num_channels, dtype=torch.float64)
        for part in torch.split(rows_RC, CACHE_ROWS):
            some = ones[:, : len(part)]
            sums += torch.cat((some @ part, some @ part.square()))
        grouped = sums.view(2, self.num_groups, -1).mean(2) / len(rows_RC)
        mean, square = grouped.repeat_interleave(self.num_channels // self.num_groups, 1)
        gain = self.weight * (square - mean.square()).clamp(min=0).add(self.eps).rsqrt()
        return gain.to(rows_RC.dtype), (self.bias - mean * gain).to(rows_RC.dtype)


def detail_sums(conv: PointwiseConv, half: Tensor, full: Tensor, weights_BMC: Tensor) -> Tensor:
    """Return weighted sums of the channels of ``relu(conv(half) + full)``.

    Args:
        conv: From the channels of `half` to those of `full`.
        half: Features, (B, C', I, J, K).
        full: Features, (B, C, I, J, K).
        weights_BMC: One row of weights per sum.

    Returns:
        Sums, (B, M, I, J, K), channels last.
    """
    if not is_by_rows(half):
        return weighted_sums(functional.relu(conv(half) + full), weights_BMC)
    batch, _, *grid = half.shape
    sums_BRM = half.new_empty(batch, *grid, weights_BMC.shape[1]).flatten(1, 3)
    matrix = conv.weight.flatten(1)
    for some, skip, weights, sums in zip(
        _rows(half), _rows(full), weights_BMC, sums_BRM, strict=True
    ):
        for part, more, place in _few_rows(some, skip, sums):
            wide = functional.linear(part, matrix, conv.bias).add_(more).relu_()
            torch.mm(wide, weights.T, out=place)
    return _as_grid(sums_BRM, grid)


def enlarge(x_BCIJK: Tensor, factor: int) -> Tensor:
    """Interpolate linearly to a finer grid, as ``interpolate(mode="trilinear")``.

    On a CPU as products of matrices, one axis after another: a third of the time, and other
    rounding (some 1e-6 of a logit of 10).
    """
    if not is_by_rows(x_BCIJK):
        return functional.interpolate(x_BCIJK, scale_factor=factor, mode="trilinear")
    in_i, in_j, in_k = (_enlarging(side, factor, x_BCIJK.dtype) for side in x_BCIJK.shape[2:])
    planes = in_j @ (x_BCIJK.contiguous() @ in_k.T)
    cube = in_i @ planes.flatten(3)
    return cube.view(*cube.shape[:3], *planes.shape[3:])


def _enlarging(side: int, factor: int, dtype: torch.dtype) -> Tensor:
    """Return the matrix that interpolates a line of `side` points to `factor` times as many."""
    points = torch.eye(side, dtype=dtype)[None]
    return functional.interpolate(points, scale_factor=factor, mode="linear")[0].T.contiguous()


def weighted_sums(x_BCIJK: Tensor, weights_BMC: Tensor) -> Tensor:
    """Return (B, M, I, J, K): every voxel's channels times every weight row, channels-last."""
    rows = x_BCIJK.permute(0, 2, 3, 4, 1).flatten(1, 3) @ weights_BMC.transpose(1, 2)
    grid = rows.reshape(rows.shape[0], *x_BCIJK.shape[2:], rows.shape[2])
    return grid.permute(0, 4, 1, 2, 3)


def is_by_rows(x_BCIJK: Tensor) -> bool:
    """Return whether a grid is on a CPU, in full precision, and nothing records what is done."""
    # Reduced precision is left to the library, which then keeps its sums in float32.
    is_wide = x_BCIJK.dtype in {torch.float32, torch.float64}
    is_cpu = x_BCIJK.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return is_wide and is_cpu and is_plain_inference()


def _rows(x_BCIJK: Tensor) -> Tensor:
    return x_BCIJK.permute(0, 2, 3, 4, 1).flatten(1, 3)


def _few_rows(*rows: Tensor) -> zip[tuple[Tensor, ...]]:
    """Cut tensors of equally many rows into parts that stay in the cache."""
    return zip(*(torch.split(each, CACHE_ROWS) for each in rows), strict=True)


def _as_grid(x_BRC: Tensor, grid: list[int]) -> Tensor:
    return x_BRC.view(len(x_BRC), *grid, -1).permute(0, 4, 1, 2, 3)
