"""Sparse attention by regrouping: every group becomes one short sequence of a batch.

Views, permutes and one copy bring the tokens of a group together; torch's own attention kernels
do the rest. Serves CPUs and any device without Triton.

Shape legend: B batch, H heads, T tokens of the grid, C head dim, N groups of all batch items,
G positions of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from fastsam3d.model.sparse_attention_pattern import Tiling

# Log-sum-exp of positions beyond the grid: no weight is left to any key.
_CLOSED = 1e30
_aten = cast("Any", torch.ops.aten)


class BranchTask(NamedTuple):
    """One branch to attend: where its groups lie and what is added to its scores.

    Attributes:
        tiling: The branch on its grid.
        bias_HGG: Score bias by head and pair of positions, the same in every group, or None.
    """

    tiling: Tiling
    bias_HGG: Tensor | None


def attend_single(q: Tensor, k: Tensor, v: Tensor, task: BranchTask, scale: float) -> Tensor:
    """Attend within the groups of one branch, all (B, H, T, C); differentiable as it stands."""
    grouped = (to_groups(x, task.tiling) for x in (q, k, v))
    mask = _score_mask(task, q)
    mask = None if mask is None else mask.to(q.dtype)
    out = functional.scaled_dot_product_attention(*grouped, attn_mask=mask, scale=scale)
    return from_groups(out, task.tiling, q.shape[0])


def forward(
    q: Tensor, k: Tensor, v: Tensor, tasks: Sequence[BranchTask], scale: float
) -> tuple[Tensor, Tensor]:
    """Attend in every branch and mix the branches by their softmax normalisers.

    Args:
        q: Queries, (B, H, T, C), like `k` and `v`.
        k: Keys.
        v: Values.
        tasks: The branches.
        scale: Factor of the scores.

    Returns:
        Mixed values (B, H, T, C) and the log-sum-exp of all scores of a token (B, H, T), float32.
    """
    outs: list[Tensor] = []
    sums: list[Tensor] = []
    for task in tasks:
        grouped = [to_groups(x, task.tiling) for x in (q, k, v)]
        out, total = _attend(grouped, _score_mask(task, q), scale)
        outs.append(from_groups(out, task.tiling, q.shape[0]))
        sums.append(from_groups(total[..., None], task.tiling, q.shape[0])[..., 0])
    total = torch.stack(sums).logsumexp(0)
    mixed = torch.zeros_like(q, dtype=total.dtype)
    for out, own in zip(outs, sums, strict=True):
        mixed.addcmul_(out.to(mixed.dtype), (own - total).exp_()[..., None])
    return mixed.to(q.dtype), total


def backward(
    grad: Tensor, saved: Sequence[Tensor], tasks: Sequence[BranchTask], scale: float
) -> tuple[Tensor, Tensor, Tensor, list[Tensor | None]]:
    """Return the gradients of queries, keys, values and biases.

    With the log-sum-exp L over all branches, the weight of any key is exp(score - L) in whichever
    branch it occurs, and the softmax's inner product is that of the mixed output. So the usual
    backward pass of each branch, given the mixed output and L, adds up to the exact gradient; no
    gradient through the branch weights is needed.

    Args:
        grad: Gradient of the mixed values, (B, H, T, C).
        saved: q, k, v, mixed values and log-sum-exp, as `forward` took and returned them.
        tasks: The branches.
        scale: Factor of the scores.
    """
    q, _, _, _, total = saved
    sums = [torch.zeros_like(q, dtype=total.dtype) for _ in range(3)]
    bias_grads: list[Tensor | None] = []
    for task in tasks:
        grouped = [to_groups(x, task.tiling) for x in (grad, *saved[:4])]
        closed = to_groups(total[..., None], task.tiling, fill=_CLOSED)[..., 0]
        mask = _score_mask(task, q)
        for whole, part in zip(sums, _attend_back(grouped, closed, mask, scale), strict=True):
            whole.add_(from_groups(part, task.tiling, q.shape[0]))
        wanted = task.bias_HGG is not None and task.bias_HGG.requires_grad
        bias_grads.append(_bias_grad(grouped, closed, mask, scale) if wanted else None)
    dq, dk, dv = (whole.to(q.dtype) for whole in sums)
    return dq, dk, dv, bias_grads


def to_groups(x_BHTC: Tensor, tiling: Tiling, *, fill: float = 0.0) -> Tensor:
    """Bring the tokens of each group together: (B, H, T, C) to (N, H, G, C), edges filled."""
    batch, heads, _, channels = x_BHTC.shape
    x = x_BHTC.reshape(batch, heads, *tiling.grid, channels)
    if tiling.is_padded:
        pads = [side for axis in reversed(tiling.axes) for side in axis.padding]
        x = functional.pad(x, (0, 0, *pads), value=fill)
    cut = [part for a in tiling.axes for part in (a.num_segments, a.extent, a.dilation)]
    x = x.reshape(batch, heads, *cut, channels)
    x = x.permute(0, 2, 4, 5, 7, 8, 10, 1, 3, 6, 9, 11)
    return x.reshape(batch * tiling.num_groups, heads, tiling.group_size, channels)


def from_groups(x_NHGC: Tensor, tiling: Tiling, batch: int) -> Tensor:
    """Undo `to_groups`: (N, H, G, C) to (B, H, T, C), every token back in its place."""
    heads, channels = x_NHGC.shape[1], x_NHGC.shape[3]
    classes = [part for a in tiling.axes for part in (a.num_segments, a.dilation)]
    extents = [axis.extent for axis in tiling.axes]
    x = x_NHGC.reshape(batch, *classes, heads, *extents, channels)
    x = x.permute(0, 7, 1, 8, 2, 3, 9, 4, 5, 10, 6, 11)
    x = x.reshape(batch, heads, *(a.num_segments * a.segment for a in tiling.axes), channels)
    for dim, axis in enumerate(tiling.axes, start=2):
        x = x.narrow(dim, axis.shift, axis.size)
    return x.flatten(2, 4)


def _score_mask(task: BranchTask, like: Tensor) -> Tensor | None:
    """Return what to add to scores, broadcastable to (N, H, G, G), or None for nothing."""
    dtype = _wide(like.dtype)
    bias = None if task.bias_HGG is None else task.bias_HGG.to(dtype)[None]
    if not task.tiling.is_padded:
        return bias
    batch, _, tokens, _ = like.shape
    # Finite, so that a group without any token yields numbers (cut off later), not NaN.
    low = torch.finfo(like.dtype).min / 4
    real = like.new_zeros(1, 1, tokens, 1, dtype=dtype)
    edge = to_groups(real, task.tiling, fill=low)[..., 0][:, :, None, :]
    edge = edge.repeat(batch, 1, 1, 1)
    return edge if bias is None else bias + edge


def _attend(grouped: Sequence[Tensor], mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Return attended values (N, H, G, C) and the log-sum-exp of scores (N, H, G)."""
    q, k, v = grouped
    if q.device.type == "cpu":
        return _aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, attn_mask=_for_cpu(mask, q), scale=scale
        )
    scores = _scores(q, k, mask, scale)
    total = scores.logsumexp(-1)
    return ((scores - total[..., None]).exp() @ v.to(scores.dtype)).to(v.dtype), total


def _attend_back(
    grouped: Sequence[Tensor], total_NHG: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a branch's part of the gradients of q, k and v, each (N, H, G, C)."""
    grad, q, k, v, out = grouped
    if q.device.type == "cpu":
        return _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, total_NHG, 0.0, False, attn_mask=_for_cpu(mask, q), scale=scale
        )
    weights, slopes = _slopes(grouped, total_NHG, mask, scale)
    grad, q, k = (x.to(weights.dtype) for x in (grad, q, k))
    dq, dk = slopes @ k, slopes.transpose(-1, -2) @ q
    return dq * scale, dk * scale, weights.transpose(-1, -2) @ grad


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type of scores: float32 for half types."""
    return torch.promote_types(dtype, torch.float32)


def _for_cpu(mask: Tensor | None, q: Tensor) -> Tensor | None:
    # The CPU kernel reads masks by their strides, which expanding leaves at zero.
    return None if mask is None else mask.expand(*q.shape[:3], q.shape[2])


def _bias_grad(
    grouped: Sequence[Tensor], total_NHG: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    return _slopes(grouped, total_NHG, mask, scale)[1].sum(0)


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    # Half types would round the scores themselves, which no attention kernel does.
    scores = (q.to(_wide(q.dtype)) * scale) @ k.to(_wide(k.dtype)).transpose(-1, -2)
    return scores if mask is None else scores + mask


def _slopes(
    grouped: Sequence[Tensor], total_NHG: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the weights (N, H, G, G) and the gradient of the scores, same shape."""
    grad, q, k, v, out = grouped
    weights = (_scores(q, k, mask, scale) - total_NHG[..., None]).exp()
    grad, v, out = (x.to(weights.dtype) for x in (grad, v, out))
    inner = (grad * out).sum(-1, keepdim=True)
    return weights, weights * (grad @ v.transpose(-1, -2) - inner)
