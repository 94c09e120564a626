"""Triton kernel of window attention: the position bias is added up in registers, never in memory.

One program holds the queries (i, all j, all k) of one head and goes through the keys one plane
(a, all b, all c) at a time. Of the three terms of `relpos.BiasTerms` two stay the same for all
planes; the third is one small load per plane. What all padding keys add is where the softmax
begins: one key whose score is known.

Shape legend: B batch, H heads, T tokens of the grid, D head dim, E extent of the window.

Source: tiled softmax, FlashAttention (arXiv 2307.08691).
"""
# pyright: basic, reportMissingImports=false, reportIndexIssue=false
# ruff: noqa: ARG001, PLR0915, PLR0913, PLR0917 - kernels take pointers and sizes one by one

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
# Stands for minus infinity where two of them might be subtracted.
LOWEST: tl.constexpr = tl.constexpr(-1.0e30)
_FEW_PROGRAMS = 128


@triton.jit
def _term(ptr, b, h, i, j, k, column, t_b, t_h, t_i, t_j, t_k):
    """Return what the term of query (i, j, k) adds for the key's last index `column`."""
    at = b * t_b + h * t_h + i * t_i + j * t_j + k * t_k + column
    return tl.load(ptr + at).to(tl.float32)


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, own_ptr, i_ptr, j_ptr, virtual_ptr, k_pad_ptr, v_pad_ptr, out_ptr,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    o_b, o_h, o_i, o_j, o_k, i_b, i_h, i_i, i_j, i_k, j_b, j_h, j_i, j_j, j_k, H, scale,
    N: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr, IS_FOLDED: tl.constexpr,
    HAS_PADDING: tl.constexpr,
):  # fmt: skip
    PLANE: tl.constexpr = N * N
    TOKENS: tl.constexpr = N * N * N
    ROWS: tl.constexpr = PLANE // PARTS
    i = tl.program_id(0) // PARTS
    b = (tl.program_id(1) // H).to(tl.int64)
    h = tl.program_id(1) % H
    slots = tl.arange(0, PLANE)
    places = (tl.program_id(0) % PARTS) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, D)[None, :]
    rows = i * PLANE + places
    q = tl.load(q_ptr + b * q_b + h * q_h + rows[:, None] * q_t + d)
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    # A plane's key is (b, c) = (slots // N, slots % N), a query (j, k) = (places // N, places % N).
    j = (places // N)[:, None]
    k = (places % N)[:, None]
    key_b = (slots // N)[None, :]
    key_c = (slots % N)[None, :]
    if IS_FOLDED:  # tables lie side by side, and are read at the offset of the query
        of_own = i + N - 1 - key_c
        of_i = j + N - 1 - key_c
        of_j = key_b + N - 1 - key_c
    else:
        of_own = key_c
        of_i = key_c
        of_j = key_c
    own = _term(own_ptr, b, h, i, j, k, of_own, o_b, o_h, o_i, o_j, o_k)
    by_j = _term(j_ptr, b, h, i, j, key_b, of_j, j_b, j_h, j_i, j_j, j_k)
    still = (own + by_j) * LOG2E
    if HAS_PADDING:
        k_pad = tl.load(k_pad_ptr + h * D + d).to(tl.float32)
        v_pad = tl.load(v_pad_ptr + h * D + d).to(tl.float32)
        virtual = tl.load(virtual_ptr + (b * H + h) * TOKENS + rows)
        top = (tl.sum(q.to(tl.float32) * k_pad, 1) * scale + virtual) * LOG2E
        norm = tl.full([ROWS], 1.0, tl.float32)
        mixed = tl.zeros([ROWS, D], tl.float32) + v_pad
    else:
        top = tl.full([ROWS], LOWEST, tl.float32)
        norm = tl.zeros([ROWS], tl.float32)
        mixed = tl.zeros([ROWS, D], tl.float32)
    for a in range(N):
        cols = (a * PLANE + slots)[:, None]
        key = tl.load(k_ptr + cols * k_t + d)
        value = tl.load(v_ptr + cols * v_t + d)
        by_i = _term(i_ptr, b, h, i, j, a, of_i, i_b, i_h, i_i, i_j, i_k)
        s = tl.dot(q, tl.trans(key), input_precision="ieee") * (scale * LOG2E)
        s += still + by_i * LOG2E
        higher = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        fade = tl.exp2(top - higher)
        norm = norm * fade + tl.sum(p, 1)
        mixed = mixed * fade[:, None] + tl.dot(p.to(value.dtype), value, input_precision="ieee")
        top = higher
    at = (b * TOKENS + rows[:, None]) * H * D + h * D + d
    tl.store(out_ptr + at, (mixed / norm[:, None]).to(out_ptr.dtype.element_ty))


def _launch(
    q: Tensor, k: Tensor, v: Tensor, terms: list[Tensor], padding: list[Tensor], *, is_folded: bool
) -> Tensor:
    """Run the kernel; each term is (B, H, N, N, N, columns), columns side by side."""
    batch, heads, tokens, channels = q.shape
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    terms = [term if term.stride(5) == 1 else term.contiguous() for term in terms]
    side = terms[0].shape[2]
    out = torch.empty(batch, tokens, heads * channels, dtype=q.dtype, device=q.device)
    virtual, k_pad, v_pad = (x.contiguous() for x in padding) if padding else (out, out, out)
    strides = [stride for x in (q, k, v) for stride in x.stride()[:3]]
    strides += [stride for term in terms for stride in term.stride()[:5]]
    # One ROI alone would leave most of the device without work.
    parts = 2 if side * side >= 64 and side * batch * heads < _FEW_PROGRAMS else 1
    _forward[side * parts, batch * heads](
        q, k, v, *terms, virtual, k_pad, v_pad, out, *strides, heads, channels**-0.5,
        N=side, D=channels, PARTS=parts, IS_FOLDED=is_folded, HAS_PADDING=bool(padding),
        # Of 128 channels four warps would not hold a tile of 64 rows.
        num_warps=4 if channels <= 64 or parts > 1 else 8,
    )  # fmt: skip
    return out


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
    return _launch(q, k, v, terms, padding, is_folded=False)


@window_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, terms: list[Tensor], padding: list[Tensor]) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1] * q.shape[3])


@torch.library.custom_op(
    "fastsam3d::folded_window_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor products) -> Tensor",
)
def folded_window_attention(q: Tensor, k: Tensor, v: Tensor, products: Tensor) -> Tensor:
    """Attend as `window_attention` without padding, with products of queries and whole tables.

    Args:
        q: As `window_attention`.
        k: As `q`.
        v: As `q`.
        products: Of every query and every row of the tables along i, j and k, (B, T, H, 3, W), W at
            least 2 N - 1; row n stands for the offset n + 1 - N of query and key.

    Returns:
        As `window_attention`.
    """
    side = round(q.shape[2] ** (1 / 3))
    grid = products.unflatten(1, (side,) * 3).permute(0, 4, 1, 2, 3, 5, 6)
    return _launch(q, k, v, list(grid.unbind(5)), [], is_folded=True)


@folded_window_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, products: Tensor) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1] * q.shape[3])
