"""Triton kernel of window attention: the position bias is added up in registers, never in memory.

One program holds the queries (i, all j, all k) of one head and goes through the keys one plane
(a, all b, all c) at a time. Of the three terms of `relpos.BiasTerms` two stay the same for all
planes; the third is one small load per plane. What all padding keys add is where the softmax
begins: one key whose score is known.

Shape legend: B batch, H heads, T tokens of the grid, D head dim, E extent of the window.

Source: tiled softmax, FlashAttention (arXiv 2307.08691).
"""
# pyright: basic, reportMissingImports=false, reportIndexIssue=false
# ruff: noqa: ARG001, PLR0913, PLR0917 - kernels take pointers and sizes one by one

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
# Stands for minus infinity where two of them might be subtracted.
LOWEST: tl.constexpr = tl.constexpr(-1.0e30)


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, own_ptr, i_ptr, j_ptr, virtual_ptr, k_pad_ptr, v_pad_ptr, out_ptr,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, H, scale,
    N: tl.constexpr, D: tl.constexpr, E: tl.constexpr, HAS_PADDING: tl.constexpr,
):  # fmt: skip
    PLANE: tl.constexpr = N * N
    TOKENS: tl.constexpr = N * N * N
    i = tl.program_id(0)
    b = (tl.program_id(1) // H).to(tl.int64)
    h = tl.program_id(1) % H
    slots = tl.arange(0, PLANE)
    d = tl.arange(0, D)[None, :]
    rows = i * PLANE + slots
    q = tl.load(q_ptr + b * q_b + h * q_h + rows[:, None] * q_t + d)
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    # A plane's key is (b, c) = (slots // N, slots % N), a plane's query (j, k) likewise.
    terms = (b * H + h) * TOKENS * E
    last = (slots % N)[None, :]
    line = i * PLANE + (slots // N)[:, None] * N
    own = tl.load(own_ptr + terms + rows[:, None] * E + last).to(tl.float32)
    by_j = tl.load(j_ptr + terms + (line + (slots // N)[None, :]) * E + last).to(tl.float32)
    still = (own + by_j) * LOG2E
    if HAS_PADDING:
        k_pad = tl.load(k_pad_ptr + h * D + d).to(tl.float32)
        v_pad = tl.load(v_pad_ptr + h * D + d).to(tl.float32)
        virtual = tl.load(virtual_ptr + (b * H + h) * TOKENS + rows)
        top = (tl.sum(q.to(tl.float32) * k_pad, 1) * scale + virtual) * LOG2E
        norm = tl.full([PLANE], 1.0, tl.float32)
        mixed = tl.zeros([PLANE, D], tl.float32) + v_pad
    else:
        top = tl.full([PLANE], LOWEST, tl.float32)
        norm = tl.zeros([PLANE], tl.float32)
        mixed = tl.zeros([PLANE, D], tl.float32)
    for a in range(N):
        cols = (a * PLANE + slots)[:, None]
        k = tl.load(k_ptr + cols * k_t + d)
        v = tl.load(v_ptr + cols * v_t + d)
        by_i = tl.load(i_ptr + terms + (line + a) * E + last).to(tl.float32)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E)
        s += still + by_i * LOG2E
        higher = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        fade = tl.exp2(top - higher)
        norm = norm * fade + tl.sum(p, 1)
        mixed = mixed * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = higher
    at = (b * TOKENS + rows[:, None]) * H * D + h * D + d
    tl.store(out_ptr + at, (mixed / norm[:, None]).to(out_ptr.dtype.element_ty))


@torch.library.custom_op(
    "fastsam3d::window_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor[] terms, Tensor[] padding) -> Tensor",
)
def window_attention(
    q: Tensor, k: Tensor, v: Tensor, terms: list[Tensor], padding: list[Tensor]
) -> Tensor:
    """Attend with the bias of `BiasTerms`, which is never formed.

    Args:
        q: (B, H, T, D) on a grid of T = N**3, N and D powers of two, N * N and D at least 16.
        k: As `q`.
        v: As `q`.
        terms: `BiasTerms` in order, each (B, H, N, N, N, E), E at least N.
        padding: Log-sum-exp of the padding keys' bias (B, H, N, N, N) float32, their key and their
            value (H, D); or nothing.

    Returns:
        Mixed values of q's type, heads side by side: (B, T, H * D).
    """
    batch, heads, tokens, channels = q.shape
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    terms = [term.contiguous() for term in terms]
    side, extent = terms[0].shape[-2:]
    out = torch.empty(batch, tokens, heads * channels, dtype=q.dtype, device=q.device)
    virtual, k_pad, v_pad = (x.contiguous() for x in padding) if padding else (out, out, out)
    strides = [stride for x in (q, k, v) for stride in x.stride()[:3]]
    _forward[side, batch * heads](
        q, k, v, *terms, virtual, k_pad, v_pad, out, *strides, heads, channels**-0.5,
        N=side, D=channels, E=extent, HAS_PADDING=bool(padding),
        num_warps=4 if channels <= 64 else 8,  # of 128 channels four would not hold a tile
    )  # fmt: skip
    return out


@window_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, terms: list[Tensor], padding: list[Tensor]) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1] * q.shape[3])
