"""Triton kernels of sparse attention: one launch per branch, mixed in place, no scores in memory.

A program holds one tile of one group. A table of token indices brings scattered tokens in and out,
so that no regrouped copy of queries, keys or values exists. Every token occurs once per branch,
hence branches can be mixed by reading and rewriting one float32 row per token: no atomics (but for
the bias), bitwise repeatable.

Scores are kept in units of log 2. Rows lie as (B, T, H, C); log-sum-exp and softmax inner products
as (B, T, H).

Source: tiled softmax with recomputation in the backward pass, FlashAttention (arXiv 2307.08691).
"""
# pyright: basic, reportMissingImports=false, reportIndexIssue=false
# ruff: noqa: ARG001, PLR0913, PLR0915, PLR0917 - kernels take pointers and sizes one by one

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from fastsam3d.model.sparse_attention_groups import BranchTask, to_groups
from fastsam3d.model.sparse_attention_pattern import AxisTiling, Tiling, triple

_MAX_TILE = {torch.float32: 32, torch.bfloat16: 64, torch.float16: 64}
_MIN_TILE = 16  # the least side of a matrix product in Triton
_ROWS = 64
# Numbers that vary from call to call; a kernel compiled anew for each would gain nothing.
_PLAIN = ["T", "H", "G", "is_first", "is_last"]
# Three TF32 products stand for one of float32: near its accuracy, on matrix units.
PRECISION: tl.constexpr = tl.constexpr("tf32x3")
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
# Stands for minus infinity where two of them might be subtracted.
LOWEST: tl.constexpr = tl.constexpr(-1.0e30)


@triton.jit
def _load_tokens(index_ptr, slots):
    """Return the tokens of some positions and which of them are real."""
    tokens = tl.load(index_ptr + slots)
    return tl.maximum(tokens, 0).to(tl.int64), tokens >= 0


@triton.jit
def _load_rows(ptr, tokens, stride, real, C: tl.constexpr, CP: tl.constexpr):
    """Return one row of channels per token, zeros where there is none."""
    d = tl.arange(0, CP)[None, :]
    return tl.load(ptr + tokens[:, None] * stride + d, mask=real[:, None] & (d < C), other=0.0)


@triton.jit
def _scores(q, k, real_k, bias_ptr, rows, cols, G, scale, HAS_BIAS: tl.constexpr):
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
    if HAS_BIAS:
        inside = (rows < G)[:, None] & (cols < G)[None, :]
        at = rows[:, None] * G + cols[None, :]
        s += tl.load(bias_ptr + at, mask=inside, other=0.0) * LOG2E
    return tl.where(real_k[None, :], s, float("-inf"))


@triton.jit
def _merge(sum_ptr, out_ptr, at, mask, value, is_first, is_last):
    """Add to what earlier branches left; the last branch writes the result's own type."""
    value += tl.load(sum_ptr + at, mask=mask & (is_first == 0), other=0.0)
    if is_last:
        tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(sum_ptr + at, value, mask=mask)


@triton.jit(do_not_specialize=_PLAIN)
def _forward(
    q_ptr, k_ptr, v_ptr, index_ptr, bias_ptr, sum_ptr, total_ptr, out_ptr,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, T, H, G, P, scale, is_first, is_last,
    C: tl.constexpr, CP: tl.constexpr, TILE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    tiles = P // TILE
    group = tl.program_id(0) // tiles
    b = (tl.program_id(1) // H).to(tl.int64)
    h = tl.program_id(1) % H
    q_ptr += b * q_b + h * q_h
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    index_ptr += group * P
    bias_ptr += h * G * G
    d = tl.arange(0, CP)
    slots = tl.arange(0, TILE)
    rows = (tl.program_id(0) % tiles) * TILE + slots
    here, real = _load_tokens(index_ptr, rows)
    mask = real[:, None] & (d < C)[None, :]
    q = _load_rows(q_ptr, here, q_t, real, C, CP)
    top = tl.full([TILE], LOWEST, tl.float32)
    norm = tl.zeros([TILE], tl.float32)
    mixed = tl.zeros([TILE, CP], tl.float32)
    for start in range(0, P, TILE):
        cols = start + slots
        there, real_k = _load_tokens(index_ptr, cols)
        k = _load_rows(k_ptr, there, k_t, real_k, C, CP)
        v = _load_rows(v_ptr, there, v_t, real_k, C, CP)
        s = _scores(q, k, real_k, bias_ptr, rows, cols, G, scale, HAS_BIAS)
        higher = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        fade = tl.exp2(top - higher)
        norm = norm * fade + tl.sum(p, 1)
        mixed = mixed * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        top = higher
    total = top + tl.log2(norm)
    mixed = mixed / norm[:, None]
    row = (b * T + here) * H + h
    # Before the first branch nothing is there: no weight, value zero.
    is_there = is_first == 0
    before = tl.load(total_ptr + row, mask=real & is_there, other=LOWEST)
    old = tl.load(sum_ptr + row[:, None] * C + d[None, :], mask=mask & is_there, other=0.0)
    higher = tl.maximum(before, total)
    both = higher + tl.log2(tl.exp2(before - higher) + tl.exp2(total - higher))
    mixed = mixed * tl.exp2(total - both)[:, None] + old * tl.exp2(before - both)[:, None]
    tl.store(total_ptr + row, both, mask=real)
    # The sum above is weighted, so nothing is left to add.
    _merge(sum_ptr, out_ptr, row[:, None] * C + d[None, :], mask, mixed, 1, is_last)


@triton.jit
def _inner_products(a_ptr, b_ptr, out_ptr, num_rows, C: tl.constexpr, CP: tl.constexpr,
                    ROWS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, CP)
    mask = (row < num_rows)[:, None] & (d < C)[None, :]
    at = row[:, None] * C + d[None, :]
    a = tl.load(a_ptr + at, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row, tl.sum(a * b, 1), mask=row < num_rows)


@triton.jit
def _slopes(q, k, v, grad, total, inner, real_q, real_k, bias_ptr, rows, cols, G, scale,
            HAS_BIAS: tl.constexpr):  # fmt: skip
    """Return the weights of a tile and the gradient of its scores."""
    s = _scores(q, k, real_k, bias_ptr, rows, cols, G, scale, HAS_BIAS)
    p = tl.where(real_q[:, None], tl.exp2(s - total[:, None]), 0.0)
    dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    return p, p * (dp - inner[:, None])


@triton.jit(do_not_specialize=_PLAIN)
def _backward(
    q_ptr, k_ptr, v_ptr, index_ptr, bias_ptr, grad_ptr, total_ptr, inner_ptr,
    dq_sum_ptr, dk_sum_ptr, dv_sum_ptr, dq_ptr, dk_ptr, dv_ptr, dbias_ptr,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, T, H, G, P, scale, is_first, is_last,
    C: tl.constexpr, CP: tl.constexpr, TILE: tl.constexpr, ONE_TILE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    tiles = P // TILE
    group = tl.program_id(0) // tiles
    b = (tl.program_id(1) // H).to(tl.int64)
    h = tl.program_id(1) % H
    q_ptr += b * q_b + h * q_h
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    index_ptr += group * P
    bias_ptr += h * G * G
    dbias_ptr += h * G * G
    d = tl.arange(0, CP)
    slots = tl.arange(0, TILE)
    mine = (tl.program_id(0) % tiles) * TILE + slots
    here, real = _load_tokens(index_ptr, mine)
    mask = real[:, None] & (d < C)[None, :]
    row = (b * T + here) * H + h
    at_row = row[:, None] * C + d[None, :]

    # This tile as keys: gather from all queries of the group.
    k = _load_rows(k_ptr, here, k_t, real, C, CP)
    v = _load_rows(v_ptr, here, v_t, real, C, CP)
    dk = tl.zeros([TILE, CP], tl.float32)
    dv = tl.zeros([TILE, CP], tl.float32)
    dq = tl.zeros([TILE, CP], tl.float32)
    for start in range(0, P, TILE):
        theirs = start + slots
        there, real_q = _load_tokens(index_ptr, theirs)
        row_q = (b * T + there) * H + h
        q = _load_rows(q_ptr, there, q_t, real_q, C, CP)
        grad = _load_rows(grad_ptr, row_q, C, real_q, C, CP)
        total = tl.load(total_ptr + row_q, mask=real_q, other=0.0)
        inner = tl.load(inner_ptr + row_q, mask=real_q, other=0.0)
        p, ds = _slopes(
            q, k, v, grad, total, inner, real_q, real, bias_ptr, theirs, mine, G, scale, HAS_BIAS
        )
        dv += tl.dot(tl.trans(p.to(grad.dtype)), grad, input_precision=PRECISION)
        dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision=PRECISION)
        if ONE_TILE:
            dq = tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)
        if HAS_BIAS:
            inside = (theirs < G)[:, None] & (mine < G)[None, :]
            tl.atomic_add(dbias_ptr + theirs[:, None] * G + mine[None, :], ds, mask=inside)
    _merge(dk_sum_ptr, dk_ptr, at_row, mask, dk * scale, is_first, is_last)
    _merge(dv_sum_ptr, dv_ptr, at_row, mask, dv, is_first, is_last)

    # This tile as queries: gather from all keys of the group.
    if not ONE_TILE:
        q = _load_rows(q_ptr, here, q_t, real, C, CP)
        grad = _load_rows(grad_ptr, row, C, real, C, CP)
        total = tl.load(total_ptr + row, mask=real, other=0.0)
        inner = tl.load(inner_ptr + row, mask=real, other=0.0)
        for start in range(0, P, TILE):
            theirs = start + slots
            there, real_k = _load_tokens(index_ptr, theirs)
            k = _load_rows(k_ptr, there, k_t, real_k, C, CP)
            v = _load_rows(v_ptr, there, v_t, real_k, C, CP)
            _, ds = _slopes(
                q, k, v, grad, total, inner, real, real_k, bias_ptr, mine, theirs, G, scale,
                HAS_BIAS,
            )  # fmt: skip
            dq += tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)
    _merge(dq_sum_ptr, dq_ptr, at_row, mask, dq * scale, is_first, is_last)


def forward(
    q: Tensor, k: Tensor, v: Tensor, tasks: Sequence[BranchTask], scale: float
) -> tuple[Tensor, Tensor]:
    """Attend and mix, as `sparse_attention_groups.forward`; the log-sum-exp is this module's own.

    Returns:
        Mixed values (B, H, T, C) and the base-2 log-sum-exp, (B, T, H) float32.
    """
    rows, total = _forward_op(q, k, v, *_flatten(tasks), scale)
    return rows.transpose(1, 2), total


def backward(
    grad: Tensor, saved: Sequence[Tensor], tasks: Sequence[BranchTask], scale: float
) -> tuple[Tensor, Tensor, Tensor, list[Tensor | None]]:
    """Return the gradients of queries, keys, values and biases, given what `forward` returned."""
    grads = _backward_op(grad, list(saved), *_flatten(tasks), scale)
    dq, dk, dv = (rows.transpose(1, 2) for rows in grads[:3])
    return dq, dk, dv, grads[3:] or [None] * len(tasks)


# Operators of their own keep launches, plans and cached tables out of what torch.compile traces.
@torch.library.custom_op("fastsam3d::sparse_attention", mutates_args=())
def _forward_op(
    q: Tensor, k: Tensor, v: Tensor, biases: list[Tensor], cuts: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    q, k, v = _adjacent(q), _adjacent(k), _adjacent(v)
    out = _rows_like(q, q.dtype)
    total = torch.empty(out.shape[:3], dtype=torch.float32, device=q.device)
    plans = _make_plans((q, k, v), biases, cuts)
    sums = out if len(plans) == 1 else _rows_like(q, torch.float32)
    with torch.cuda.device_of(q):
        for number, plan in enumerate(plans):
            _forward[plan.launch](
                q, k, v, plan.index, plan.bias, sums, total, out, *plan.sizes, scale,
                int(number == 0), int(number == len(plans) - 1), **plan.constants,
            )  # fmt: skip
    return out, total


@torch.library.custom_op("fastsam3d::sparse_attention_backward", mutates_args=())
def _backward_op(
    grad: Tensor, saved: list[Tensor], biases: list[Tensor], cuts: list[int], scale: float
) -> list[Tensor]:
    q, k, v = (_adjacent(x) for x in saved[:3])
    out, total = saved[3].transpose(1, 2).contiguous(), saved[4]
    rows = grad.transpose(1, 2).to(q.dtype).contiguous()
    inner = torch.empty_like(total)
    grads = [_rows_like(q, q.dtype) for _ in range(3)]
    plans = _make_plans((q, k, v), biases, cuts)
    sums = grads if len(plans) == 1 else [_rows_like(q, torch.float32) for _ in range(3)]
    bias_grads = [
        torch.zeros(bias.shape, dtype=torch.float32, device=bias.device) for bias in biases
    ]
    channels = q.shape[-1]
    with torch.cuda.device_of(q):
        _inner_products[(-(-inner.numel() // _ROWS),)](
            rows, out, inner, inner.numel(), channels, _padded_channels(channels), _ROWS
        )
        for number, plan in enumerate(plans):
            _backward[plan.launch](
                q, k, v, plan.index, plan.bias, rows, total, inner, *sums, *grads,
                bias_grads[number] if biases else plan.bias, *plan.sizes, scale,
                int(number == 0), int(number == len(plans) - 1),
                ONE_TILE=plan.is_one_tile, **plan.constants,
            )  # fmt: skip
    return grads + [part.to(bias.dtype) for part, bias in zip(bias_grads, biases, strict=True)]


@_forward_op.register_fake
def _forward_shapes(
    q: Tensor, k: Tensor, v: Tensor, biases: Any, cuts: Any, scale: Any
) -> tuple[Tensor, Tensor]:
    rows = _rows_like(q, q.dtype)
    return rows, torch.empty(rows.shape[:3], dtype=torch.float32, device=q.device)


@_backward_op.register_fake
def _backward_shapes(grad: Tensor, saved: Any, biases: Any, cuts: Any, scale: Any) -> list[Tensor]:
    q = saved[0]
    return [_rows_like(q, q.dtype) for _ in range(3)] + [torch.empty_like(bias) for bias in biases]


def _flatten(tasks: Sequence[BranchTask]) -> tuple[list[Tensor], list[int]]:
    """Return biases and tilings as operators take them, four numbers per axis."""
    biases = [task.bias_HGG for task in tasks if task.bias_HGG is not None]
    cuts: list[int] = []
    for task in tasks:
        for axis in task.tiling.axes:
            cuts += (axis.size, axis.segment, axis.dilation, axis.shift)
    return biases, cuts


def _make_plans(
    qkv: tuple[Tensor, Tensor, Tensor], biases: list[Tensor], cuts: list[int]
) -> list[_Plan]:
    q = qkv[0]
    layouts = _lay_out(tuple(cuts), _MAX_TILE[q.dtype], q.device)
    chosen = biases or [None] * len(layouts)
    return [_Plan(*pair, qkv) for pair in zip(layouts, chosen, strict=True)]


class _Plan:
    """Launch parameters of one branch."""

    def __init__(
        self, layout: _Layout, bias: Tensor | None, qkv: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        batch, heads, tokens, channels = qkv[0].shape
        self.index = layout.index
        self.is_one_tile = layout.positions == layout.tile
        self.launch = (layout.num_tiles, batch * heads)
        self.bias = self.index if bias is None else bias.float().contiguous()
        strides = [stride for x in qkv for stride in x.stride()[:3]]
        self.sizes = (*strides, tokens, heads, layout.group_size, layout.positions)
        self.constants = {
            "C": channels,
            "CP": _padded_channels(channels),
            "TILE": layout.tile,
            "HAS_BIAS": bias is not None,
            "num_warps": 4 if layout.tile * channels <= 64 * 64 else 8,
        }


class _Layout(NamedTuple):
    """What depends on a branch and its grid alone.

    Attributes:
        index: The token at each position of each group, int32 (groups, positions), -1 for none.
        group_size: Positions of a group, before it was padded to whole tiles.
        positions: Positions of a group, a multiple of `tile`.
        tile: Positions that one program holds.
        num_tiles: Tiles of all groups.
    """

    index: Tensor
    group_size: int
    positions: int
    tile: int
    num_tiles: int


# Kept from call to call: laying out takes longer than a small grid's kernels.
@lru_cache(maxsize=256)
def _lay_out(cuts: tuple[int, ...], max_tile: int, device: torch.device) -> tuple[_Layout, ...]:
    axes = [
        AxisTiling(size=size, segment=segment, dilation=dilation, shift=shift)
        for size, segment, dilation, shift in zip(*[iter(cuts)] * 4, strict=True)
    ]
    tilings = [Tiling(axes=triple(axes[at : at + 3])) for at in range(0, len(axes), 3)]
    return tuple(_lay_out_branch(tiling, max_tile, device) for tiling in tilings)


def _lay_out_branch(tiling: Tiling, max_tile: int, device: torch.device) -> _Layout:
    size, (depth, height, width) = tiling.group_size, tiling.grid
    tile = min(max(_next_power_of_2(size), _MIN_TILE), max_tile)
    numbers = torch.arange(1, depth * height * width + 1, dtype=torch.float64)
    # The same cut that regroups tensors numbers the tokens; 0 marks positions beyond the grid.
    table = to_groups(numbers[None, None, :, None], tiling)[:, 0, :, 0].to(torch.int32) - 1
    table = functional.pad(table, (0, -size % tile), value=-1).contiguous().to(device)
    return _Layout(table, size, table.shape[1], tile, table.numel() // tile)


def _adjacent(x: Tensor) -> Tensor:
    """Return a tensor whose channels lie side by side, as the kernels read them."""
    return x if x.stride(3) == 1 else x.contiguous()


def _rows_like(q: Tensor, dtype: torch.dtype) -> Tensor:
    batch, heads, tokens, channels = q.shape
    return torch.empty(batch, tokens, heads, channels, dtype=dtype, device=q.device)


def _padded_channels(channels: int) -> int:
    return max(_next_power_of_2(channels), _MIN_TILE)


def _next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()
