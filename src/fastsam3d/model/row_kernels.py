"""Triton kernels for few rows: a norm, a product and what follows it in one; and attention.

A click is a chain of products of few rows. Each takes longer to launch than to compute, so what
stands before a product (a norm, a position) and behind it (bias, activation, residual) is done
by the same kernel. A program that norms holds its rows whole; columns are shared among programs,
each of which norms the rows anew.

Every result is added up in one order, so it is the same each time.

Shape legend: B batch, R rows, K inputs, N outputs, T tokens, Q queries, H heads, D head dim.
"""
# pyright: basic, reportMissingImports=false, reportIndexIssue=false
# ruff: noqa: ARG001, C901, PLR0913, PLR0917, SIM102 - kernels take pointers and sizes one by one

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
# Stands for minus infinity where two of them might be subtracted.
LOWEST: tl.constexpr = tl.constexpr(-1.0e30)
_MOST_KEYS = 256  # of one step
# Rows and columns of a program of products: few, so that there are enough to fill the device.
_BLOCK_M, _BLOCK_N = 32, 16


@triton.jit
def _normed(x, is_k, gain, shift, K: tl.constexpr, eps):
    """Return the layer norm of whole rows, zero where `is_k` is false."""
    mean = tl.sum(x, 1)[:, None] / K
    centred = tl.where(is_k, x - mean, 0.0)
    variance = tl.sum(centred * centred, 1)[:, None] / K
    return centred * tl.rsqrt(variance + eps) * gain + shift


@triton.jit
def _gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _whole_rows(
    x_ptr, gain_ptr, shift_ptr, rows, is_row, x_r, K: tl.constexpr, W: tl.constexpr, eps
):
    """Return normed rows, (rows, W) float32, filled up with zeros from K on."""
    k = tl.arange(0, W)
    is_k = (k < K)[None, :]
    x = tl.load(x_ptr + rows[:, None] * x_r + k, mask=is_row & is_k, other=0.0).to(tl.float32)
    gain = tl.load(gain_ptr + k, mask=k < K, other=0.0)[None, :]
    shift = tl.load(shift_ptr + k, mask=k < K, other=0.0)[None, :]
    return _normed(x, is_k, gain, shift, K, eps)


@triton.jit
def _linear(
    x_ptr, weight_ptr, bias_ptr, gain_ptr, shift_ptr, place_ptr, table_ptr, residual_ptr,
    out_ptr, kept_ptr, x_r, M, N, PLACED, PLACES, PLACE_ROWS, eps,
    K: tl.constexpr, WHOLE: tl.constexpr, HAS_NORM: tl.constexpr, HAS_PLACE: tl.constexpr,
    HAS_TABLE: tl.constexpr, HAS_RESIDUAL: tl.constexpr, KEEPS: tl.constexpr,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    column_block = tl.program_id(0)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row = (rows < M)[:, None]
    is_col = cols < N
    if HAS_NORM:
        k = tl.arange(0, WHOLE)
        # Asked for first: the weights do not wait for the norm.
        weight = tl.load(
            weight_ptr + cols[:, None] * K + k, mask=is_col[:, None] & (k < K)[None, :], other=0.0
        )
        x = _whole_rows(x_ptr, gain_ptr, shift_ptr, rows, is_row, x_r, K, WHOLE, eps)
        if KEEPS:
            if column_block == 0:
                tl.store(kept_ptr + rows[:, None] * K + k, x, mask=is_row & (k < K)[None, :])
        if HAS_PLACE:
            if column_block * BLOCK_N < PLACED:
                at = (rows % PLACE_ROWS)[:, None] * K + k
                x += tl.load(place_ptr + at, mask=is_row & (k < K)[None, :], other=0.0).to(
                    tl.float32
                )
        acc = tl.dot(x.to(weight.dtype), tl.trans(weight), input_precision="ieee")
    else:
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for first in range(0, K, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            x = tl.load(x_ptr + rows[:, None] * x_r + k, mask=is_row, other=0.0)
            weight = tl.load(weight_ptr + cols[:, None] * K + k, mask=is_col[:, None], other=0.0)
            acc = tl.dot(x.to(weight.dtype), tl.trans(weight), acc, input_precision="ieee")
    acc += tl.load(bias_ptr + cols, mask=is_col, other=0.0)[None, :]
    is_in = is_row & is_col[None, :]
    if HAS_TABLE:
        at = (rows % PLACES)[:, None] * N + cols[None, :]
        acc += tl.load(table_ptr + at, mask=is_in, other=0.0)
    if ACTIVATION == 1:
        acc = tl.maximum(acc, 0.0)
    elif ACTIVATION == 2:
        acc = _gelu(acc)
    at = rows[:, None] * N + cols[None, :]
    if HAS_RESIDUAL:
        acc += tl.load(residual_ptr + at, mask=is_in, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=is_in)


@triton.jit
def _attend(
    q_ptr, k_ptr, v_ptr, bias_ptr, out_ptr, q_b, q_t, k_b, k_t, v_b, v_t, Q, scale,
    T: tl.constexpr, H: tl.constexpr, D: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(1) // H, tl.program_id(1) % H
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    slots = tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)[None, :]
    is_d = d < D
    is_q = (rows < Q)[:, None] & is_d
    q = tl.load(q_ptr + b * q_b + rows[:, None] * q_t + h * D + d, mask=is_q, other=0.0)
    k_ptr += b * k_b + h * D
    v_ptr += b * v_b + h * D
    top = tl.full([BLOCK_Q], LOWEST, tl.float32)
    norm = tl.zeros([BLOCK_Q], tl.float32)
    mixed = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for first in range(0, T, BLOCK_T):
        cols = first + slots
        is_key = cols < T
        k = tl.load(k_ptr + cols[:, None] * k_t + d, mask=is_key[:, None] & is_d, other=0.0)
        v = tl.load(v_ptr + cols[:, None] * v_t + d, mask=is_key[:, None] & is_d, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E)
        if HAS_BIAS:
            s += (tl.load(bias_ptr + b * T + cols, mask=is_key, other=0.0) * LOG2E)[None, :]
        s = tl.where(is_key[None, :], s, LOWEST)
        higher = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        fade = tl.exp2(top - higher)
        norm = norm * fade + tl.sum(p, 1)
        mixed = mixed * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = higher
    at = (b * Q + rows[:, None]) * (H * D) + h * D + d
    tl.store(out_ptr + at, (mixed / norm[:, None]).to(out_ptr.dtype.element_ty), mask=is_q)


def _step(inputs: int) -> int:
    """Return the largest step that divides the inputs of a product."""
    return next(step for step in (128, 64, 32, 16) if inputs % step == 0)


def _wide(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


@torch.library.custom_op(
    "fastsam3d::row_linear",
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor weight, Tensor bias, Tensor[] norm, Tensor[] place, Tensor[] table, "
        "Tensor[] residual, float eps, int placed, int activation, bool is_stream, bool keeps) "
        "-> (Tensor, Tensor)"
    ),
)
def row_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: list[Tensor],
    place: list[Tensor],
    table: list[Tensor],
    residual: list[Tensor],
    eps: float,
    placed: int,
    activation: int,
    is_stream: bool,
    keeps: bool,
) -> tuple[Tensor, Tensor]:
    """Return what `fastsam3d.model.row_ops.reference_linear` returns.

    Args:
        x: Rows (R, K), K a multiple of 16; whole rows, up to 512, with a norm.
        weight: (N, K).
        bias: (N,) float32.
        norm: Gain and shift (K,) float32 of a layer norm of the rows, or nothing.
        place: Added to normed rows, (P, K), rows taken in turn; or nothing.
        table: Added to the product, (P, N) float32, rows taken in turn; or nothing.
        residual: Added last, (R, N); or nothing.
        eps: Of the norm.
        placed: The place is for so many outputs, the first ones; a multiple of 16.
        activation: 0 none, 1 ReLU, 2 GELU.
        is_stream: Return float32 in place of the weight's type.
        keeps: Return the normed rows, (R, K) float32, as well.
    """
    count, inputs = x.shape
    outputs = weight.shape[0]
    x = x if x.stride(1) == 1 else x.contiguous()
    out = x.new_empty(count, outputs, dtype=torch.float32 if is_stream else weight.dtype)
    kept = x.new_empty((count, inputs) if keeps else (0,), dtype=torch.float32)
    gain, shift = norm or (bias, bias)
    places, tables, residuals = (
        part[0].contiguous() if part else bias for part in (place, table, residual)
    )
    _linear[triton.cdiv(outputs, _BLOCK_N), triton.cdiv(count, _BLOCK_M)](
        x, weight, bias, gain, shift, places, tables, residuals, out, kept, x.stride(0),
        count, outputs, placed, tables.shape[0], places.shape[0], eps,
        K=inputs, WHOLE=_wide(inputs), HAS_NORM=bool(norm), HAS_PLACE=bool(place),
        HAS_TABLE=bool(table), HAS_RESIDUAL=bool(residual), KEEPS=keeps, ACTIVATION=activation,
        BLOCK_M=_BLOCK_M, BLOCK_N=_BLOCK_N, BLOCK_K=_step(inputs),
        num_warps=8 if norm and inputs > 256 else 4, num_stages=4,
    )  # fmt: skip
    return out, kept


@row_linear.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: list[Tensor],
    place: list[Tensor],
    table: list[Tensor],
    residual: list[Tensor],
    eps: float,
    placed: int,
    activation: int,
    is_stream: bool,
    keeps: bool,
) -> tuple[Tensor, Tensor]:
    count, inputs = x.shape
    out = x.new_empty(count, weight.shape[0], dtype=torch.float32 if is_stream else weight.dtype)
    return out, x.new_empty((count, inputs) if keeps else (0,), dtype=torch.float32)


@torch.library.custom_op(
    "fastsam3d::row_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor[] bias, int heads) -> Tensor",
)
def row_attention(q: Tensor, k: Tensor, v: Tensor, bias: list[Tensor], heads: int) -> Tensor:
    """Return what `fastsam3d.model.row_ops.reference_attention` returns.

    Args:
        q: Queries, heads side by side, (B, Q, H * D), D at most 128.
        k: Keys, (B, T, H * D), of the queries' type.
        v: As `k`.
        bias: Added to the scores of each key, (B, T) float32; or nothing.
        heads: H.
    """
    batch, queries, width = q.shape
    tokens = k.shape[1]
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    out = q.new_empty(batch, queries, width)
    score_bias = bias[0].contiguous() if bias else out
    depth = width // heads
    block_q = 64 if queries > 32 else 32
    block_t = min(_wide(tokens), _MOST_KEYS if queries <= 32 else 64)
    _attend[triton.cdiv(queries, block_q), batch * heads](
        q, k, v, score_bias, out, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        queries, depth**-0.5, T=tokens, H=heads, D=depth, HAS_BIAS=bool(bias),
        BLOCK_Q=block_q, BLOCK_T=block_t, BLOCK_D=_wide(depth), num_warps=4,
    )  # fmt: skip
    return out


@row_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: list[Tensor], heads: int) -> Tensor:
    return q.new_empty(q.shape)
