"""Sparse attention on any 3-D token grid: one signature, a readable reference and fast paths.

Each branch of a pattern cuts the grid into groups (`fastsam3d.model.sparse_attention_pattern`). A
token attends to the groups that contain it, one per branch, and the branches are mixed by their
softmax normalisers. That is exactly **one softmax over the union of these groups in which a key
counts once per branch that holds it** (itself, for one, counts in every branch).

With groups of bounded size, time and memory are linear in tokens: a (side, dilation) branch costs
``(side / dilation)**3`` keys per token whatever the grid, and no path but the reference forms more
than one (position x position) tile per group.

Shape legend: B batch, H heads, D x H x W grid with T tokens, C head dim, G positions of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import partial
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor
from torch.nn import functional

from fastsam3d.errors import ConfigError
from fastsam3d.model import sparse_attention_groups as groups
from fastsam3d.model.config import DENSE, ModelConfig
from fastsam3d.model.sparse_attention_groups import BranchTask
from fastsam3d.model.sparse_attention_pattern import AxisTiling, Grid, SparsePattern, Tiling
from fastsam3d.model.triton_kernels import HAS_TRITON

# Mixes values over all tokens of a grid: (q, k, v), each (B, H, T, C), to (B, H, T, C).
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Path = Literal["auto", "reference", "sdpa", "triton"]
_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TRITON_MAX_CHANNELS = 128
# A single branch needs no mixing: beyond the groups that were timed, torch's kernels take over.
_TRITON_MAX_LONE_GROUP = 512


class RelativeBias(NamedTuple):
    """Score bias by head and offset, one additive table per axis: the bias is their sum.

    An offset is key minus query in tokens of the grid, so a pair has the same bias in every branch
    that holds it. Offset 0 lies in the middle of a table, whose length is odd.

    Attributes:
        along_d: Table of the first axis, (H, 2 R - 1) with R above the largest offset.
        along_h: Table of the second axis.
        along_w: Table of the third axis.
    """

    along_d: Tensor
    along_h: Tensor
    along_w: Tensor


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: Grid,
    pattern: SparsePattern,
    bias: RelativeBias | None = None,
    path: Path = "auto",
) -> Tensor:
    """Mix values over the tokens that a pattern lets each token see.

    Args:
        q: Queries, (B, H, T, C), T = D * H * W in row-major order of the grid.
        k: Keys, same shape.
        v: Values, same shape.
        grid: Tokens per axis (D, H, W), any numbers from 1.
        pattern: Which tokens attend to each other.
        bias: Relative-position bias added to the scores, or None.
        path: ``reference`` forms all T x T scores; ``sdpa`` regroups for torch's own kernels;
            ``triton`` is one fused kernel per branch (CUDA, head dim up to 128); ``auto`` takes
            the fastest that serves the device.

    Returns:
        Mixed values, (B, H, T, C), differentiable once with respect to q, k, v and the bias.

    Raises:
        ConfigError: Shapes, grid, bias tables or path do not fit each other.
    """
    _check(q, k, v, grid, path)
    scale = q.shape[-1] ** -0.5
    tilings = pattern.fit(grid)
    if path == "reference":
        return _attend_reference(q, k, v, grid, pattern, bias)
    tasks = [BranchTask(tiling, _pair_bias(bias, tiling)) for tiling in tilings]
    chosen = _choose_path(q, tasks) if path == "auto" else path
    if chosen == "sdpa" and len(tasks) == 1:
        return groups.attend_single(q, k, v, tasks[0], scale)
    biases = [task.bias_HGG for task in tasks]
    # torch types this call loosely.
    return cast("Any", _BranchMix).apply(q, k, v, chosen, tilings, scale, *biases)


def choose_attention(config: ModelConfig, index: int) -> Attend:
    """Return the attention among image tokens of one block.

    Args:
        config: The model; its `attention` names the pattern, its grid is a cube.
        index: Number of the block. Odd blocks take the pattern's shifted form, so that information
            crosses the borders of nested segments.
    """
    if config.attention == DENSE:
        return functional.scaled_dot_product_attention
    side, pattern = config.grid_size, SparsePattern.parse(config.attention)
    if index % 2:
        pattern = pattern.shifted()
    return partial(sparse_attention, grid=(side, side, side), pattern=pattern)


def _attend_reference(
    q: Tensor, k: Tensor, v: Tensor, grid: Grid, pattern: SparsePattern, bias: RelativeBias | None
) -> Tensor:
    """Attend with all T x T scores: a key's weight is multiplied by the branches that hold it."""
    size_3 = torch.tensor(grid, device=q.device)
    place_T3 = torch.cartesian_prod(*(torch.arange(size, device=q.device) for size in grid))
    count_TT = q.new_zeros(len(place_T3), len(place_T3))
    for branch in pattern.branches:
        side, step, shift = (size_3.new_tensor(x) for x in astuple(branch))
        moved = place_T3 + shift
        segment_T3, residue_T3 = moved // torch.where(side == 0, size_3, side), moved % step
        label_T6 = torch.cat((segment_T3, residue_T3), 1)
        count_TT += (label_T6[:, None] == label_T6).all(-1)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + count_TT.log()
    for axis, table in enumerate(bias or ()):
        middle = table.shape[1] // 2
        offset_TT = place_T3[:, axis] - place_T3[:, axis, None]
        scores = scores + table[:, offset_TT.clamp(-middle, middle) + middle]
    return scores.softmax(-1) @ v


class _BranchMix(torch.autograd.Function):
    """All branches of a pattern as one differentiable step that saves no scores."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        path: Path,
        tilings: tuple[Tiling, ...],
        scale: float,
        *biases: Tensor | None,
    ) -> Tensor:
        tasks = [BranchTask(*pair) for pair in zip(tilings, biases, strict=True)]
        out, total = _engine(path).forward(q, k, v, tasks, scale)
        ctx.save_for_backward(q, k, v, out, total, *biases)
        ctx.settings = path, tilings, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Any, ...]:
        path, tilings, scale = ctx.settings
        q, k, v, out, total, *biases = ctx.saved_tensors
        tasks = [BranchTask(*pair) for pair in zip(tilings, biases, strict=True)]
        saved = (q, k, v, out, total)
        dq, dk, dv, bias_grads = _engine(path).backward(grads[0], saved, tasks, scale)
        return dq, dk, dv, None, None, None, *bias_grads


def _engine(path: Path) -> Any:
    if path == "sdpa":
        return groups
    from fastsam3d.model import sparse_attention_kernel  # noqa: PLC0415 (Triton is optional)

    return sparse_attention_kernel


def _choose_path(q: Tensor, tasks: Sequence[BranchTask]) -> Path:
    fits = q.dtype in _TRITON_DTYPES and q.shape[-1] <= _TRITON_MAX_CHANNELS
    if not (q.is_cuda and fits and HAS_TRITON):
        return "sdpa"
    is_lone = len(tasks) == 1 and tasks[0].tiling.group_size > _TRITON_MAX_LONE_GROUP
    return "sdpa" if is_lone else "triton"


def _pair_bias(bias: RelativeBias | None, tiling: Tiling) -> Tensor | None:
    """Return the bias of all pairs of positions of a group, (H, G, G), query first."""
    if bias is None:
        return None
    d, h, w = (_axis_bias(table, axis) for table, axis in zip(bias, tiling.axes, strict=True))
    pairs = (
        d[:, :, None, None, :, None, None]
        + h[:, None, :, None, None, :, None]
        + w[:, None, None, :, None, None, :]
    )
    return pairs.flatten(4, 6).flatten(1, 3)


def _axis_bias(table: Tensor, axis: AxisTiling) -> Tensor:
    middle = table.shape[1] // 2
    if table.shape[1] % 2 == 0 or middle < axis.reach:
        msg = (
            f"A bias table must have an odd number of offsets reaching {axis.reach} both ways, got "
            f"{table.shape[1]} entries; use 2 * {axis.reach} + 1 or more."
        )
        raise ConfigError(msg)
    steps = axis.dilation * torch.arange(axis.extent, device=table.device)
    # Positions beyond the grid may lie further apart than the table reaches; they are masked.
    offsets = (steps - steps[:, None]).clamp(-middle, middle)
    return table[:, offsets + middle]


def _check(q: Tensor, k: Tensor, v: Tensor, grid: Grid, path: Path) -> None:
    if path not in get_args(Path):
        msg = f"path must be one of {get_args(Path)}, got {path!r}."
        raise ConfigError(msg)
    tokens = grid[0] * grid[1] * grid[2]
    if q.ndim != 4 or q.shape != k.shape or q.shape != v.shape or q.shape[2] != tokens:
        msg = (
            f"q, k and v must have one shape (B, heads, {tokens}, head dim) for the grid {grid}, "
            f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}; flatten the grid first."
        )
        raise ConfigError(msg)
