"""Triton kernels that pack a mask: `fastsam3d.session.mask_bits.pack_mask` in two launches.

The first interpolates, thresholds, packs and bounds a few rows of one plane at a time; the second
puts the bounds of all together. Both orders are fixed, so bytes are the same each time.
"""
# pyright: basic, reportMissingImports=false, reportIndexIssue=false
# ruff: noqa: ARG001 - kernels take pointers and sizes one by one

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsam3d.session.mask_bits import packed_size

_ROWS = 32  # of one program
_NUM_PARTS = 4  # first and last voxel of j, and of k


@triton.jit
def _source(at, SIDE: tl.constexpr, SOURCE: tl.constexpr):
    """Return the two source voxels of a voxel along one axis, and the weight of the second."""
    place = tl.maximum((at.to(tl.float32) + 0.5) * (SOURCE / SIDE) - 0.5, 0.0)
    low = place.to(tl.int32)
    return low, tl.minimum(low + 1, SOURCE - 1), place - low.to(tl.float32)


@triton.jit
def _line(plane_ptr, j, low_k, high_k, part_k, SOURCE: tl.constexpr):
    line_ptr = plane_ptr + j[:, None] * SOURCE
    low = tl.load(line_ptr + low_k[None, :])
    high = tl.load(line_ptr + high_k[None, :])
    return low * (1 - part_k)[None, :] + high * part_k[None, :]


@triton.jit
def _pack(
    logits_ptr, out_ptr, parts_ptr, SIDE: tl.constexpr, SOURCE: tl.constexpr, ROWS: tl.constexpr
):
    i = tl.program_id(0)
    j = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, SIDE)
    if SOURCE == SIDE:
        values = tl.load(logits_ptr + (i * SIDE + j)[:, None] * SIDE + k[None, :])
    else:
        low_i, high_i, part_i = _source(i, SIDE, SOURCE)
        low_j, high_j, part_j = _source(j, SIDE, SOURCE)
        low_k, high_k, part_k = _source(k, SIDE, SOURCE)
        near_ptr = logits_ptr + low_i * SOURCE * SOURCE
        far_ptr = logits_ptr + high_i * SOURCE * SOURCE
        near = _line(near_ptr, low_j, low_k, high_k, part_k, SOURCE) * (1 - part_j)[:, None]
        near += _line(near_ptr, high_j, low_k, high_k, part_k, SOURCE) * part_j[:, None]
        far = _line(far_ptr, low_j, low_k, high_k, part_k, SOURCE) * (1 - part_j)[:, None]
        far += _line(far_ptr, high_j, low_k, high_k, part_k, SOURCE) * part_j[:, None]
        values = near * (1 - part_i) + far * part_i
    is_set = values > 0
    places = tl.arange(0, 8)
    bits = tl.reshape(is_set.to(tl.int32), (ROWS, SIDE // 8, 8)) << (7 - places)[None, None, :]
    at = (i * SIDE + j)[:, None] * (SIDE // 8) + tl.arange(0, SIDE // 8)[None, :]
    tl.store(out_ptr + at, tl.sum(bits, 2).to(tl.uint8))
    every_j = tl.broadcast_to(j[:, None], (ROWS, SIDE))
    every_k = tl.broadcast_to(k[None, :], (ROWS, SIDE))
    ends_ptr = parts_ptr + (i * tl.num_programs(1) + tl.program_id(1)) * 4
    tl.store(ends_ptr, tl.min(tl.min(tl.where(is_set, every_j, SIDE), 1), 0))
    tl.store(ends_ptr + 1, tl.min(tl.min(tl.where(is_set, every_k, SIDE), 1), 0))
    tl.store(ends_ptr + 2, tl.max(tl.max(tl.where(is_set, every_j + 1, 0), 1), 0))
    tl.store(ends_ptr + 3, tl.max(tl.max(tl.where(is_set, every_k + 1, 0), 1), 0))


@triton.jit
def _store_end(out_ptr, number: tl.constexpr, value):
    tl.store(out_ptr + number, (value & 255).to(tl.uint8))
    tl.store(out_ptr + 6 + number, (value >> 8).to(tl.uint8))


@triton.jit
def _bound(
    parts_ptr, quality_ptr, out_ptr, SIDE: tl.constexpr, PER_PLANE: tl.constexpr
):  # the quality is read as the integer of its bits
    slots = tl.arange(0, SIDE * PER_PLANE)
    i = slots // PER_PLANE
    first_j = tl.load(parts_ptr + slots * 4)
    first_k = tl.load(parts_ptr + slots * 4 + 1)
    last_j = tl.load(parts_ptr + slots * 4 + 2)
    last_k = tl.load(parts_ptr + slots * 4 + 3)
    is_set = last_k > 0
    _store_end(out_ptr, 0, tl.min(first_j, 0))
    _store_end(out_ptr, 1, tl.min(first_k, 0))
    _store_end(out_ptr, 2, tl.max(last_j, 0))
    _store_end(out_ptr, 3, tl.max(last_k, 0))
    _store_end(out_ptr, 4, tl.min(tl.where(is_set, i, SIDE), 0))
    _store_end(out_ptr, 5, tl.max(tl.where(is_set, i + 1, 0), 0))
    places = tl.arange(0, 4)
    quality = tl.load(quality_ptr)
    tl.store(out_ptr + 12 + places, ((quality >> (8 * places)) & 255).to(tl.uint8))


def serves(side: int) -> bool:
    """Return whether masks of this side can be packed here."""
    return side >= _ROWS and side & (side - 1) == 0


@torch.library.custom_op(
    "fastsam3d::pack_mask",
    mutates_args=(),
    schema="(Tensor logits, Tensor quality, int side) -> Tensor",
)
def pack_mask_by_kernel(logits: Tensor, quality: Tensor, side: int) -> Tensor:
    """Return what `pack_mask` returns; arguments are the same, `serves` tells the sides."""
    source = logits.shape[-1]
    per_plane = side // _ROWS
    out = logits.new_empty(packed_size(side), dtype=torch.uint8)
    parts = logits.new_empty(side * per_plane * _NUM_PARTS, dtype=torch.int32)
    _pack[side, per_plane](
        logits.contiguous(), out, parts, SIDE=side, SOURCE=source, ROWS=_ROWS, num_warps=4
    )
    bits = quality.reshape(-1)[:1].view(torch.int32)
    _bound[(1,)](parts, bits, out[side**3 // 8 :], SIDE=side, PER_PLANE=per_plane, num_warps=4)
    return out


@pack_mask_by_kernel.register_fake
def _(logits: Tensor, quality: Tensor, side: int) -> Tensor:
    return logits.new_empty(packed_size(side), dtype=torch.uint8)
