"""Queries and keys normed by head and turned by their positions, as attention reads them.

The function here is what is meant; where a Triton kernel serves, it computes the same in one
launch, see `fastsam3d.model.turned_heads_kernel`.

Shape legend: B batch, T tokens, H heads, D head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fastsam3d.model.fused_layers import unflatten
from fastsam3d.model.hr_layers import rotate
from fastsam3d.model.triton_kernels import HAS_TRITON

KERNELS = "fastsam3d.model.turned_heads_kernel"


def turned_heads(
    qkv_BTC: Tensor, norms: list[Tensor], waves: list[Tensor], eps: float, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, each (B, H, T, D), tokens before heads in memory.

    Args:
        qkv_BTC: Queries, keys and values side by side, heads one after another, (B, T, 3 * H * D).
        norms: Gains (2, D) of the norms of a head's queries and of its keys, and their shifts.
        waves: Cosine and sine (T, D / 2) by which channels (d, d + D / 2) are turned together.
        eps: Of the norms.
        num_heads: H.
    """
    turn = torch.ops.fastsam3d.turned_heads if _is_served(qkv_BTC) else reference
    both = turn(qkv_BTC, norms, waves, eps, num_heads)
    q, k = (part.transpose(1, 2) for part in both.unbind(2))
    values = qkv_BTC[..., -(qkv_BTC.shape[-1] // 3) :]
    return q, k, unflatten(values, 2, (num_heads, -1)).transpose(1, 2)


def reference(
    qkv: Tensor, norms: list[Tensor], waves: list[Tensor], eps: float, heads: int
) -> Tensor:
    """Return queries and keys, (B, T, 2, H, D); arguments as `turned_heads`."""
    both = unflatten(qkv, 2, (3, heads, -1))[:, :, :2].float()
    gain, shift = (part[:, None] for part in norms)
    both = functional.layer_norm(both, both.shape[-1:], eps=eps) * gain + shift
    cos, sin = (wave[:, None, None] for wave in waves)
    return rotate(both, cos, sin).to(qkv.dtype)


def _is_served(qkv: Tensor) -> bool:
    return HAS_TRITON and qkv.is_cuda
