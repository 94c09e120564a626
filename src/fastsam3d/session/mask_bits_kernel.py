"""Triton kernels that pack a mask: `fastsam3d.session.mask_bits.pack_mask` in two launches.

The first interpolates, thresholds, packs and bounds a few rows of one plane at a time; the second
puts the bounds of all together. What lies between planes and rows is computed at the source's
voxels along the last axis, where each reads its neighbours once. Both orders are fixed, so bytes
are the same each time.
"""
# pyright: basic, reportMissingImports=false, reportIndexIssue=false
# ruff: noqa: ARG001, RET505 - kernels take pointers and sizes one by one; branches of constants

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsam3d.session.mask_bits import packed_size

# Of one program of eight warps: two values of a thread, since code that runs once is best short.
_ROWS = 16
_NUM_PARTS = 4  # first and last voxel of j, and of k
_FACTORS = (1, 2, 4, 8)  # voxels of the mask for one of the logits, along an axis


@triton.jit
def _source(at, SIDE: tl.constexpr, SOURCE: tl.constexpr):
    """Return the two source voxels of a voxel along one axis, and the weight of the second."""
    place = tl.maximum((at.to(tl.float32) + 0.5) * (SOURCE / SIDE) - 0.5, 0.0)
    low = place.to(tl.int32)
    return low, tl.minimum(low + 1, SOURCE - 1), place - low.to(tl.float32)


@triton.jit
def _columns(near_ptr, far_ptr, low_j, high_j, part_i, part_j, k, SOURCE: tl.constexpr):
    """Return what lies between two planes and their rows at source voxels k, (rows, SOURCE)."""
    low = low_j[:, None] * SOURCE + k[None, :]
    high = high_j[:, None] * SOURCE + k[None, :]
    part_j = part_j[:, None]
    near = tl.load(near_ptr + low) * (1 - part_j) + tl.load(near_ptr + high) * part_j
    far = tl.load(far_ptr + low) * (1 - part_j) + tl.load(far_ptr + high) * part_j
    return near * (1 - part_i) + far * part_i


@triton.jit
def _between(left, here, right, STEP: tl.constexpr, FACTOR: tl.constexpr):
    """Return values at one of the voxels of the mask for each source voxel."""
    off: tl.constexpr = (STEP + 0.5) / FACTOR - 0.5
    if off < 0:
        return left * (-off) + here * (1 + off)
    else:
        return here * (1 - off) + right * off


@triton.jit
def _pack(
    logits_ptr, out_ptr, parts_ptr, SIDE: tl.constexpr, SOURCE: tl.constexpr, ROWS: tl.constexpr
):
    FACTOR: tl.constexpr = SIDE // SOURCE
    i = tl.program_id(0)
    j = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    m = tl.arange(0, SOURCE)
    low_i, high_i, part_i = _source(i, SIDE, SOURCE)
    low_j, high_j, part_j = _source(j, SIDE, SOURCE)
    near_ptr = logits_ptr + low_i * SOURCE * SOURCE
    far_ptr = logits_ptr + high_i * SOURCE * SOURCE
    if FACTOR == 1:
        here = tl.load(near_ptr + j[:, None] * SOURCE + m[None, :])
        left, right = here, here
    else:
        before, after = tl.maximum(m - 1, 0), tl.minimum(m + 1, SOURCE - 1)
        left = _columns(near_ptr, far_ptr, low_j, high_j, part_i, part_j, before, SOURCE)
        here = _columns(near_ptr, far_ptr, low_j, high_j, part_i, part_j, m, SOURCE)
        right = _columns(near_ptr, far_ptr, low_j, high_j, part_i, part_j, after, SOURCE)
    # Of one source voxel all voxels of the mask along k, each of constant weights.
    bits = tl.zeros([ROWS, SOURCE], tl.int32)
    first_k = tl.full([ROWS, SOURCE], SIDE, tl.int32)
    last_k = tl.zeros([ROWS, SOURCE], tl.int32)
    for step in tl.static_range(FACTOR):
        is_set = _between(left, here, right, step, FACTOR) > 0
        k = m[None, :] * FACTOR + step
        bits = bits * 2 + is_set.to(tl.int32)
        first_k = tl.minimum(first_k, tl.where(is_set, k, SIDE))
        last_k = tl.maximum(last_k, tl.where(is_set, k + 1, 0))
    PER_BYTE: tl.constexpr = 8 // FACTOR
    shifts = (PER_BYTE - 1 - tl.arange(0, PER_BYTE)) * FACTOR
    bits = tl.reshape(bits, (ROWS, SIDE // 8, PER_BYTE)) << shifts[None, None, :]
    at = (i * SIDE + j)[:, None] * (SIDE // 8) + tl.arange(0, SIDE // 8)[None, :]
    tl.store(out_ptr + at, tl.sum(bits, 2).to(tl.uint8))
    first_k, last_k = tl.min(first_k, 1), tl.max(last_k, 1)
    ends_ptr = parts_ptr + (i * tl.num_programs(1) + tl.program_id(1)) * 4
    tl.store(ends_ptr, tl.min(tl.where(last_k > 0, j, SIDE), 0))
    tl.store(ends_ptr + 1, tl.min(first_k, 0))
    tl.store(ends_ptr + 2, tl.max(tl.where(last_k > 0, j + 1, 0), 0))
    tl.store(ends_ptr + 3, tl.max(last_k, 0))


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


def serves(side: int, source: int) -> bool:
    """Return whether logits of side `source` can be packed here as masks of `side`."""
    return side >= _ROWS and side & (side - 1) == 0 and side in {n * source for n in _FACTORS}


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
        logits.contiguous(), out, parts, SIDE=side, SOURCE=source, ROWS=_ROWS, num_warps=8
    )
    bits = quality.reshape(-1)[:1].view(torch.int32)
    _bound[(1,)](parts, bits, out[side**3 // 8 :], SIDE=side, PER_PLANE=per_plane, num_warps=4)
    return out


@pack_mask_by_kernel.register_fake
def _(logits: Tensor, quality: Tensor, side: int) -> Tensor:
    return logits.new_empty(packed_size(side), dtype=torch.uint8)
