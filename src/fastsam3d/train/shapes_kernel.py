"""Triton kernel behind `fill_labels`: one pass, no intermediate maps in memory."""
# pyright: basic, reportMissingImports=false, reportIndexIssue=false
# ruff: noqa: PLR0913, PLR0917 - a kernel takes pointers and sizes one by one; Triton has no CPU build

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsam3d.train.shapes import (
    FIELD_SIDE,
    PRIMITIVE_ID0,
    REGION_ID0,
    UNUSED_FIELD,
    WARP_SIDE,
    is_drawn,
)

BLOCK = 1024


@triton.jit
def _sample(ptr, x, y, z, G: tl.constexpr):
    """Trilinear sample of a G^3 grid at coordinates in -1..1, clamped to the border."""
    x = tl.minimum(tl.maximum((x + 1.0) * (0.5 * (G - 1)), 0.0), G - 1.0)
    y = tl.minimum(tl.maximum((y + 1.0) * (0.5 * (G - 1)), 0.0), G - 1.0)
    z = tl.minimum(tl.maximum((z + 1.0) * (0.5 * (G - 1)), 0.0), G - 1.0)
    i = tl.minimum(x.to(tl.int32), G - 2)
    j = tl.minimum(y.to(tl.int32), G - 2)
    k = tl.minimum(z.to(tl.int32), G - 2)
    u = x - i
    v = y - j
    w = z - k
    at = ptr + (i * G + j) * G + k
    c00 = tl.load(at) * (1 - w) + tl.load(at + 1) * w
    c01 = tl.load(at + G) * (1 - w) + tl.load(at + G + 1) * w
    c10 = tl.load(at + G * G) * (1 - w) + tl.load(at + G * G + 1) * w
    c11 = tl.load(at + G * G + G) * (1 - w) + tl.load(at + G * G + G + 1) * w
    return (c00 * (1 - v) + c01 * v) * (1 - u) + (c10 * (1 - v) + c11 * v) * u


@triton.jit
def _fill(
    base_ptr, field_ptr, num_fields_ptr, zoom_ptr, warp_ptr, prim_ptr, num_prims_ptr, out_ptr,
    S: tl.constexpr, K: tl.constexpr, F: tl.constexpr, W: tl.constexpr, P: tl.constexpr,
    REGION0: tl.constexpr, PRIM0: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    k = n % S
    j = (n // S) % S
    i = n // (S * S)
    x = (i - S / 2) * (2.0 / S)
    y = (j - S / 2) * (2.0 / S)
    z = (k - S / 2) * (2.0 / S)
    warp = warp_ptr + b * 3 * W * W * W
    dx = _sample(warp, x, y, z, W)
    dy = _sample(warp + W * W * W, x, y, z, W)
    dz = _sample(warp + 2 * W * W * W, x, y, z, W)
    x += dx
    y += dy
    z += dz
    zoom = tl.load(zoom_ptr + b)
    best = tl.full([BLOCK_SIZE], -3.0e38, tl.float32)
    label = tl.zeros([BLOCK_SIZE], tl.int32)
    for f in range(tl.load(num_fields_ptr + b)):
        value = _sample(field_ptr + (b * K + f) * F * F * F, x * zoom, y * zoom, z * zoom, F)
        wins = value > best
        best = tl.where(wins, value, best)
        label = tl.where(wins, REGION0 + f, label)
    base = tl.load(base_ptr + b * S * S * S + n).to(tl.int32)
    label = tl.where(base > 0, base, label)
    free = tl.where(base > 0, 0.0, 1.0)
    for p in range(tl.load(num_prims_ptr + b)):
        m = prim_ptr + (b * P + p) * 16
        ox = x - tl.load(m + 9)
        oy = y - tl.load(m + 10)
        oz = z - tl.load(m + 11)
        q0 = tl.abs(ox * tl.load(m) + oy * tl.load(m + 1) + oz * tl.load(m + 2))
        q1 = tl.abs(ox * tl.load(m + 3) + oy * tl.load(m + 4) + oz * tl.load(m + 5))
        q2 = tl.abs(ox * tl.load(m + 6) + oy * tl.load(m + 7) + oz * tl.load(m + 8))
        q0 = tl.maximum(q0 - tl.load(m + 12), 0.0)
        exponent = tl.load(m + 13)
        reach = (
            tl.exp2(exponent * tl.log2(tl.maximum(q0, 1e-6)))
            + tl.exp2(exponent * tl.log2(tl.maximum(q1, 1e-6)))
            + tl.exp2(exponent * tl.log2(tl.maximum(q2, 1e-6)))
        )
        inner = tl.exp2(exponent * tl.log2(tl.maximum(tl.load(m + 14), 1e-30)))
        inside = (reach < 1.0) & (reach >= inner) & (free + tl.load(m + 15) > 0.0)
        label = tl.where(inside, PRIM0 + p, label)
    tl.store(out_ptr + b * S * S * S + n, label.to(tl.int16))


def fill_labels_cuda(
    base: Tensor, fields: Tensor, zoom: Tensor, warp: Tensor, primitives: Tensor
) -> Tensor:
    """Fill label maps on the GPU; arguments and result as `fastsam3d.train.shapes.fill_labels`."""
    batch, side = base.shape[0], base.shape[1]
    out = torch.empty_like(base)
    # Used ones come first: none behind the last is computed.
    num_fields = _last_used(fields[:, :, 0, 0, 0] > UNUSED_FIELD)
    num_primitives = _last_used(is_drawn(primitives))
    _fill[(side**3 // BLOCK, batch)](
        base.contiguous(), fields.contiguous(), num_fields, zoom.contiguous(), warp.contiguous(),
        primitives.contiguous(), num_primitives, out,
        S=side, K=fields.shape[1], F=FIELD_SIDE, W=WARP_SIDE, P=primitives.shape[1],
        REGION0=REGION_ID0, PRIM0=PRIMITIVE_ID0, BLOCK_SIZE=BLOCK,
    )  # fmt: skip
    return out


def _last_used(used_BN: Tensor) -> Tensor:
    """Return the number of the last used entry of each row, counted from 1; 0 for none."""
    numbers = torch.arange(1, used_BN.shape[1] + 1, device=used_BN.device, dtype=torch.int32)
    return (used_BN * numbers).amax(1)
