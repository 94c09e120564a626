"""Triton kernel that norms and turns queries and keys: `fastsam3d.model.turned_heads`.

A program takes one head of some tokens: reads its channels once and writes them once.

Shape legend: B batch, T tokens, R rows (B T), H heads, D head dim.
"""
# pyright: basic, reportMissingImports=false, reportIndexIssue=false
# ruff: noqa: ARG001, PLR0913, PLR0917 - kernels take pointers and sizes one by one

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 16  # of one program


@triton.jit
def _turn(
    qkv_ptr, gain_ptr, shift_ptr, cos_ptr, sin_ptr, out_ptr, R, T, eps,
    H: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = D // 2
    head = tl.program_id(0)  # queries' heads first, then keys'
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, PAIRS)
    is_d = d < HALF
    is_in = (rows < R)[:, None] & is_d[None, :]
    at = rows[:, None] * (3 * H * D) + head * D + d[None, :]
    first = tl.load(qkv_ptr + at, mask=is_in, other=0.0).to(tl.float32)
    second = tl.load(qkv_ptr + at + HALF, mask=is_in, other=0.0).to(tl.float32)
    wave = (rows % T)[:, None] * HALF + d[None, :]
    cos = tl.load(cos_ptr + wave, mask=is_in, other=0.0)
    sin = tl.load(sin_ptr + wave, mask=is_in, other=0.0)
    mean = ((tl.sum(first, 1) + tl.sum(second, 1)) / D)[:, None]
    first, second = tl.where(is_in, first - mean, 0.0), tl.where(is_in, second - mean, 0.0)
    variance = (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / D
    scale = tl.rsqrt(variance + eps)[:, None]
    of_head = (head // H) * D + d
    first = first * scale * tl.load(gain_ptr + of_head, mask=is_d, other=0.0)[None, :]
    first += tl.load(shift_ptr + of_head, mask=is_d, other=0.0)[None, :]
    second = second * scale * tl.load(gain_ptr + of_head + HALF, mask=is_d, other=0.0)[None, :]
    second += tl.load(shift_ptr + of_head + HALF, mask=is_d, other=0.0)[None, :]
    to_ptr = out_ptr + rows[:, None] * (2 * H * D) + head * D + d[None, :]
    kind = out_ptr.dtype.element_ty
    tl.store(to_ptr, (first * cos - second * sin).to(kind), mask=is_in)
    tl.store(to_ptr + HALF, (second * cos + first * sin).to(kind), mask=is_in)


@torch.library.custom_op(
    "fastsam3d::turned_heads",
    mutates_args=(),
    schema="(Tensor qkv, Tensor[] norms, Tensor[] waves, float eps, int heads) -> Tensor",
)
def turned_heads(
    qkv: Tensor, norms: list[Tensor], waves: list[Tensor], eps: float, heads: int
) -> Tensor:
    """Return what `fastsam3d.model.turned_heads.reference` returns; arguments are the same."""
    qkv = qkv.contiguous()
    batch, tokens, width = qkv.shape
    depth = width // (3 * heads)
    out = qkv.new_empty(batch, tokens, 2, heads, depth)
    gains, shifts, cos, sin = (part.contiguous() for part in (*norms, *waves))
    pairs = max(16, triton.next_power_of_2(depth // 2))
    _turn[2 * heads, triton.cdiv(batch * tokens, _ROWS)](
        qkv, gains, shifts, cos, sin, out, batch * tokens, tokens, eps,
        H=heads, D=depth, ROWS=_ROWS, PAIRS=pairs, num_warps=2,
    )  # fmt: skip
    return out


@turned_heads.register_fake
def _(qkv: Tensor, norms: list[Tensor], waves: list[Tensor], eps: float, heads: int) -> Tensor:
    batch, tokens, width = qkv.shape
    return qkv.new_empty(batch, tokens, 2, heads, width // (3 * heads))
