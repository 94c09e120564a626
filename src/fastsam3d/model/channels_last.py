"""Layers that keep channels last in memory while a gradient is recorded or a compiler reads along.

Convolutions on a GPU want their grids with channels last. The library's group norm returns grids
with channels first there, and so does every reshape that has to copy: each such turn costs a pass
over the grid in front of a convolution, and one more in its gradient.

Shape legend: B batch, C channels, I J K grid axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def group_norm(
    x_BCIJK: Tensor, num_groups: int, weight_C: Tensor, bias_C: Tensor, eps: float
) -> Tensor:
    """Return ``group_norm`` with the strides of its input.

    The moments of every channel alone, which are sums over rows, are put together per group: groups
    have equally many voxels of each of their channels, so this is exact.

    Args:
        x_BCIJK: Any grid.
        num_groups: Groups of neighbouring channels.
        weight_C: Factor of each channel.
        bias_C: Offset of each channel.
        eps: Added to the variance.

    Returns:
        Normalised grid, in the wider type of input and weights, as under autocast.
    """
    wide = x_BCIJK.to(torch.promote_types(x_BCIJK.dtype, weight_C.dtype))
    spread_BC, centre_BC = torch.var_mean(wide, (2, 3, 4), correction=0)
    grouped = (len(wide), num_groups, -1)
    spread, centre = spread_BC.view(grouped), centre_BC.view(grouped)
    between, mean = torch.var_mean(centre, 2, correction=0, keepdim=True)
    variance = spread.mean(2, keepdim=True) + between
    gain = (variance + eps).rsqrt().expand_as(centre).flatten(1) * weight_C
    offset = wide - _as_grid(mean.expand_as(centre).flatten(1))
    return offset * _as_grid(gain) + bias_C.view(-1, 1, 1, 1)


def stack(maps_BIJK: Sequence[Tensor]) -> Tensor:
    """Return ``torch.stack(maps, 1)`` with channels last in memory."""
    return torch.stack(list(maps_BIJK), -1).permute(0, 4, 1, 2, 3)


def space_to_depth(x_BCIJK: Tensor) -> Tensor:
    """Return `fastsam3d.model.hr_layers.space_to_depth` with channels last in memory."""
    batch, channels, side_i, side_j, side_k = x_BCIJK.shape
    x = x_BCIJK.reshape(batch, channels, side_i // 2, 2, side_j // 2, 2, side_k // 2, 2)
    x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
    return x.permute(0, 4, 1, 2, 3)


def repeat(x_BCIJK: Tensor, count: int) -> Tensor:
    """Return ``x.repeat_interleave(count, 0)`` with channels last in memory."""
    rows = x_BCIJK.permute(0, 2, 3, 4, 1)[:, None]
    return rows.expand(-1, count, -1, -1, -1, -1).flatten(0, 1).permute(0, 4, 1, 2, 3)


def reduced(x: Tensor) -> Tensor:
    """Return `x` as autocast will give it to products: once, where several products read it."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _as_grid(values_BC: Tensor) -> Tensor:
    return values_BC[:, :, None, None, None]
