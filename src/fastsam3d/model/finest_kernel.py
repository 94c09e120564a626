"""Triton kernels of the finest stage of the high-resolution decoder, for one mask of one ROI.

At half resolution each feature map has 16 MiB in bfloat16: what reads them once costs least. The
first kernel adds, norms, activates, projects and weights the channels of each voxel, and leaves
nine numbers of them; the second puts these in their places at full resolution.

Shape legend: I J K axes of the half-resolution grid, R its voxels, C and F channels, S side of the
ROI.
"""
# pyright: basic, reportMissingImports=false, reportIndexIssue=false
# ruff: noqa: ARG001, PLR0913, PLR0917 - kernels take pointers and sizes one by one

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 8  # voxels of a block of 2^3
_ROWS = 128  # voxels of one program
_LINES = 16  # lines along the last axis of one program


@triton.jit
def _sums(
    conv_ptr, x_ptr, full_ptr, conv_bias_ptr, gain_ptr, shift_ptr, weight_ptr, bias_ptr,
    masks_ptr, rough_ptr, blocks_ptr, R, eps,
    C: tl.constexpr, F: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    VOXELS: tl.constexpr = 8
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = (rows < R)[:, None]
    c = tl.arange(0, C)
    f = tl.arange(0, F * VOXELS)
    at = rows[:, None] * C + c[None, :]
    full = tl.load(full_ptr + rows[:, None] * (F * VOXELS) + f[None, :], mask=is_row, other=0.0)
    x = tl.load(conv_ptr + at, mask=is_row, other=0.0).to(tl.float32)
    x += tl.load(x_ptr + at, mask=is_row, other=0.0).to(tl.float32)
    x += tl.load(conv_bias_ptr + c).to(tl.float32)[None, :]
    centred = x - tl.sum(x, 1)[:, None] / C
    variance = tl.sum(centred * centred, 1)[:, None] / C
    x = centred * tl.rsqrt(variance + eps) * tl.load(gain_ptr + c)[None, :]
    x += tl.load(shift_ptr + c)[None, :]
    x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    rough = tl.sum(x * tl.load(masks_ptr + c).to(tl.float32)[None, :], 1)
    tl.store(rough_ptr + rows, rough, mask=rows < R)
    weight = tl.load(weight_ptr + f[:, None] * C + c[None, :])
    detail = tl.dot(x.to(weight.dtype), tl.trans(weight), input_precision="ieee")
    detail += tl.load(bias_ptr + f).to(tl.float32)[None, :] + full.to(tl.float32)
    # A channel's eight voxels lie side by side.
    fine = tl.load(masks_ptr + C + f // VOXELS).to(tl.float32)[None, :]
    detail = tl.reshape(tl.maximum(detail, 0.0) * fine, (ROWS, F, VOXELS))
    voxels = tl.arange(0, VOXELS)[None, :]
    at = (voxels // 2) * (2 * R) + rows[:, None] * 2 + voxels % 2
    tl.store(blocks_ptr + at, tl.sum(detail, 1), mask=is_row)


@triton.jit
def _near(at, HALF: tl.constexpr):
    """Return the two voxels at half resolution about a voxel, and the weight of the second."""
    place = tl.maximum(0.5 * at.to(tl.float32) - 0.25, 0.0)
    low = place.to(tl.int32)
    return low, tl.minimum(low + 1, HALF - 1), place - low.to(tl.float32)


@triton.jit
def _columns(near_ptr, far_ptr, low_j, high_j, part_i, part_j, m, HALF: tl.constexpr):
    """Return what lies between two planes and their lines at voxels m along the last axis."""
    low, high = low_j * HALF + m, high_j * HALF + m
    near = tl.load(near_ptr + low) * (1 - part_j) + tl.load(near_ptr + high) * part_j
    far = tl.load(far_ptr + low) * (1 - part_j) + tl.load(far_ptr + high) * part_j
    return near * (1 - part_i) + far * part_i


@triton.jit
def _place(rough_ptr, blocks_ptr, offset_ptr, out_ptr, HALF: tl.constexpr, LINES: tl.constexpr):
    SIDE: tl.constexpr = 2 * HALF
    R: tl.constexpr = HALF * HALF * HALF
    i = tl.program_id(0)
    j = (tl.program_id(1) * LINES + tl.arange(0, LINES))[:, None]
    k = tl.arange(0, SIDE)[None, :]
    # Voxels of a block lie side by side along the last axis, as they do in the mask.
    corner = (i % 2) * 2 + j % 2
    fine = tl.load(blocks_ptr + corner * (2 * R) + ((i // 2) * HALF + j // 2) * SIDE + k)
    m = tl.arange(0, HALF)[None, :]
    low_i, high_i, part_i = _near(i, HALF)
    low_j, high_j, part_j = _near(j, HALF)
    near_ptr = rough_ptr + low_i * HALF * HALF
    far_ptr = rough_ptr + high_i * HALF * HALF
    before, after = tl.maximum(m - 1, 0), tl.minimum(m + 1, HALF - 1)
    left = _columns(near_ptr, far_ptr, low_j, high_j, part_i, part_j, before, HALF)
    here = _columns(near_ptr, far_ptr, low_j, high_j, part_i, part_j, m, HALF)
    right = _columns(near_ptr, far_ptr, low_j, high_j, part_i, part_j, after, HALF)
    pairs = tl.join(0.25 * left + 0.75 * here, 0.75 * here + 0.25 * right)
    found = tl.reshape(pairs, (LINES, SIDE)) + fine + tl.load(offset_ptr).to(tl.float32)
    tl.store(out_ptr + (i * SIDE + j) * SIDE + k, found)


def serves(half: Tensor, channels: int, full_channels: int) -> bool:
    """Return whether this grid (B, I, J, K, C) can be finished here."""
    batch, side = half.shape[0], half.shape[1]
    powers = (side, channels, full_channels)
    is_fit = all(n & (n - 1) == 0 for n in powers) and channels >= 16 and side >= _LINES
    return batch == 1 and is_fit and half.is_cuda


@torch.library.custom_op(
    "fastsam3d::finest_logits",
    mutates_args=(),
    schema=(
        "(Tensor conv, Tensor x, Tensor full, Tensor conv_bias, Tensor[] norm, Tensor weight, "
        "Tensor bias, Tensor masks, float eps) -> Tensor"
    ),
)
def finest_logits(
    conv: Tensor,
    x: Tensor,
    full: Tensor,
    conv_bias: Tensor,
    norm: list[Tensor],
    weight: Tensor,
    bias: Tensor,
    masks: Tensor,
    eps: float,
) -> Tensor:
    """Return logits, (1, 1, S, S, S) float32.

    Args:
        conv: What the last convolution makes, without its bias, (1, I, J, K, C).
        x: What it is added to, of the same shape.
        full: Features at full resolution in blocks, (1, I, J, K, 8 F).
        conv_bias: (C,).
        norm: Gain and shift (C,) of the norm of each voxel.
        weight: From C to 8 F channels, (8 F, C).
        bias: (8 F,).
        masks: Weights of C, then of F channels, then what is added: (C + F + 1,).
        eps: Of the norm.
    """
    conv, x, full = (part.contiguous() for part in (conv, x, full))
    channels, half = x.shape[-1], x.shape[1]
    count = half**3
    rough = x.new_empty(count, dtype=torch.float32)
    blocks = x.new_empty(BLOCK * count, dtype=torch.float32)
    masks = masks.contiguous()
    full_channels = weight.shape[0] // BLOCK
    _sums[(triton.cdiv(count, _ROWS),)](
        conv, x, full, conv_bias, *norm, weight, bias, masks, rough, blocks, count, eps,
        C=channels, F=full_channels, ROWS=_ROWS, num_warps=8,
    )  # fmt: skip
    out = x.new_empty(1, 1, *(2 * half,) * 3, dtype=torch.float32)
    _place[2 * half, 2 * half // _LINES](
        rough, blocks, masks[channels + full_channels :], out, HALF=half, LINES=_LINES, num_warps=8
    )
    return out


@finest_logits.register_fake
def _(
    conv: Tensor,
    x: Tensor,
    full: Tensor,
    conv_bias: Tensor,
    norm: list[Tensor],
    weight: Tensor,
    bias: Tensor,
    masks: Tensor,
    eps: float,
) -> Tensor:
    return x.new_empty(1, 1, *(2 * x.shape[1],) * 3, dtype=torch.float32)
