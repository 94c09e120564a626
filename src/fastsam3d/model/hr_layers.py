"""Building blocks of the high-resolution variants.

Shape legend: B batch, C channels, I J K grid axes, T tokens, H heads, D head dim.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsam3d.model import channels_last
from fastsam3d.model.config import ModelConfig
from fastsam3d.model.inference_ops import GridNorm, VoxelNorm, activate, add_to, is_recorded
from fastsam3d.model.sparse_attention import Attend, choose_attention
from fastsam3d.model.winograd import CubeConv

NORM_GROUPS = 8
ROPE_THETA = 100.0


def grid_norm(channels: int, *, local: bool = False) -> GridNorm | VoxelNorm:
    """Return the norm of convolutional features: over the grid, or `local` to each voxel."""
    return VoxelNorm(channels) if local else GridNorm(NORM_GROUPS, channels)


class ResidualConv(nn.Module):
    """Pre-activation residual unit: ``x + conv3(GELU(norm(x)))``, resolution kept."""

    def __init__(self, channels: int, *, local: bool = False) -> None:
        super().__init__()
        self.norm = grid_norm(channels, local=local)
        self.conv = CubeConv(channels, channels, 3, padding=1)

    def forward(self, x_BCIJK: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        return add_to(self.conv(self.norm.activated(x_BCIJK)), x_BCIJK)


class Downsample(nn.Module):
    """Halve the grid: ``conv(2, stride 2)`` of the normalised activation."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = grid_norm(in_channels)
        self.conv = nn.Conv3d(in_channels, out_channels, 2, stride=2)

    def forward(self, x_BCIJK: Tensor) -> Tensor:
        """Return (B, out_channels, I/2, J/2, K/2)."""
        return self.conv(self.norm.activated(x_BCIJK))


class Upsample(nn.Module):
    """Double the grid: ``conv_transpose(2, stride 2)`` of the normalised activation."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = grid_norm(in_channels)
        self.conv = nn.ConvTranspose3d(in_channels, out_channels, 2, stride=2)

    def forward(self, x_BCIJK: Tensor) -> Tensor:
        """Return (B, out_channels, 2I, 2J, 2K)."""
        return self.conv(self.norm.activated(x_BCIJK))


def axial_rope(grid_size: int, head_dim: int) -> Tensor:
    """Return rotation angles of 3-D axial rotary positions.

    Each axis owns ``2 * (head_dim // 6)`` channels; the remaining channels are not rotated.

    Args:
        grid_size: Tokens per axis.
        head_dim: Channels of one attention head.

    Returns:
        Angles in radians, float32, shape (grid_size**3, head_dim // 2), zero for unrotated pairs.

    Source: rotary positions (arXiv 2104.09864), one third of the channels per axis.
    """
    pairs = head_dim // 6
    frequencies = ROPE_THETA ** (-torch.arange(pairs) / pairs)
    axis = torch.arange(grid_size)
    positions_T3 = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    angles = (positions_T3[:, :, None] * frequencies).reshape(grid_size**3, 3 * pairs)
    return functional.pad(angles, (0, head_dim // 2 - 3 * pairs))


def rotate(x_BHTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Rotate channel pairs (d, d + D/2) of queries or keys by the angles of `axial_rope`."""
    first, second = x_BHTD.chunk(2, dim=-1)
    return torch.cat((first * cos_TD - second * sin_TD, second * cos_TD + first * sin_TD), dim=-1)


class TrunkBlock(nn.Module):
    """Pre-norm transformer block with query-key norm, rotary positions and LayerScale.

    Attributes:
        attend: How values are mixed over the tokens, see `choose_attention`.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        self.num_heads = num_heads
        head_dim = dim // num_heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(head_dim)
        self.k_norm = nn.LayerNorm(head_dim)
        self.proj = nn.Linear(dim, dim)
        self.scale1 = nn.Parameter(torch.full((dim,), 0.1))
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, int(dim * mlp_ratio))
        self.fc2 = nn.Linear(int(dim * mlp_ratio), dim)
        self.scale2 = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x_BTC: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        """Return tokens of the input's shape; `cos_TD`, `sin_TD` are the rotary tables."""
        x_BTC = x_BTC + self.scale1 * self.attended(self.norm1(x_BTC), cos_TD, sin_TD)
        return x_BTC + self.scale2 * self.fc2(activate(self.fc1(self.norm2(x_BTC))))

    def attended(self, x_BTC: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        """Return what attention makes of normalised tokens (B, T, C), before LayerScale."""
        batch, tokens, dim = x_BTC.shape
        qkv = self.qkv(x_BTC).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q_BHTD, k_BHTD, v_BHTD = qkv.unbind(0)
        q_BHTD = rotate(self.q_norm(q_BHTD), cos_TD, sin_TD).to(v_BHTD.dtype)
        k_BHTD = rotate(self.k_norm(k_BHTD), cos_TD, sin_TD).to(v_BHTD.dtype)
        out = self.attend(q_BHTD, k_BHTD, v_BHTD)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, dim))


class Trunk(nn.Module):
    """A stack of `TrunkBlock` on the cubic token grid, with a learned absolute position."""

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        grid_size, dim, heads = config.grid_size, config.embed_dim, config.num_heads
        self.position = nn.Parameter(0.02 * torch.randn(1, grid_size**3, dim))
        self.blocks = nn.ModuleList(
            TrunkBlock(dim, heads, config.mlp_ratio, choose_attention(config, index))
            for index in range(config.depth)
        )
        angles = axial_rope(grid_size, dim // heads)
        # Tables follow from the config, so they stay out of the weights.
        self.register_buffer("rope_cos", angles.cos(), persistent=False)
        self.register_buffer("rope_sin", angles.sin(), persistent=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Return tokens of the input's shape."""
        return self.intermediates(x_BTC)[-1]

    def intermediates(self, x_BTC: Tensor, num_blocks: int | None = None) -> list[Tensor]:
        """Return the tokens after every block, or after the first ones only."""
        x_BTC = x_BTC + self.position
        outputs: list[Tensor] = []
        for block in islice(self.blocks, num_blocks):
            x_BTC = cast("Tensor", block(x_BTC, self.rope_cos, self.rope_sin))
            outputs.append(x_BTC)
        return outputs


def double_resolution(x_BCIJK: Tensor) -> Tensor:
    """Interpolate linearly to twice the grid, as ``interpolate(scale_factor=2, "trilinear")``.

    Where a gradient is wanted it is written with slices, because the gradient of the library call
    scatters atomically once compiled; slices fuse and stay deterministic.
    """
    if not (torch.is_grad_enabled() and x_BCIJK.requires_grad):
        return functional.interpolate(x_BCIJK, scale_factor=2, mode="trilinear")
    for axis in (2, 3, 4):
        size = x_BCIJK.shape[axis]
        first, last = x_BCIJK.narrow(axis, 0, 1), x_BCIJK.narrow(axis, size - 1, 1)
        before = torch.cat((first, x_BCIJK.narrow(axis, 0, size - 1)), axis)
        after = torch.cat((x_BCIJK.narrow(axis, 1, size - 1), last), axis)
        pair = (0.75 * x_BCIJK + 0.25 * before, 0.75 * x_BCIJK + 0.25 * after)
        x_BCIJK = torch.stack(pair, axis + 1).flatten(axis, axis + 1)
    return x_BCIJK


def space_to_depth(x_BCIJK: Tensor) -> Tensor:
    """Move each 2^3 block of voxels into channels: (B, C, I, J, K) -> (B, 8C, I/2, J/2, K/2).

    Channel ``8 c + 4 a + 2 b + d`` holds channel c of the voxel (a, b, d) of the block.
    """
    if is_recorded():
        return channels_last.space_to_depth(x_BCIJK)
    batch, channels, side_i, side_j, side_k = x_BCIJK.shape
    x = x_BCIJK.reshape(batch, channels, side_i // 2, 2, side_j // 2, 2, side_k // 2, 2)
    x = x.permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(batch, 8 * channels, side_i // 2, side_j // 2, side_k // 2)


def depth_to_space(x_BCIJK: Tensor) -> Tensor:
    """Undo `space_to_depth`: (B, 8C, I, J, K) -> (B, C, 2I, 2J, 2K)."""
    batch, channels, side_i, side_j, side_k = x_BCIJK.shape
    x = x_BCIJK.reshape(batch, channels // 8, 2, 2, 2, side_i, side_j, side_k)
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, channels // 8, 2 * side_i, 2 * side_j, 2 * side_k)


class PositionEncoding(nn.Module):
    """Sine and cosine of ROI coordinates at fixed octaves, followed by a learned projection."""

    frequencies: Tensor

    def __init__(self, dim: int, *, num_octaves: int = 7) -> None:
        super().__init__()
        frequencies = math.pi * 2.0 ** (torch.arange(2 * num_octaves) / 2)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.proj = nn.Linear(3 * 2 * 2 * num_octaves + 3, dim)

    def forward(self, position_BN3: Tensor) -> Tensor:
        """Encode positions.

        Args:
            position_BN3: Coordinates in [-1, 1] across the ROI, axis order i, j, k.

        Returns:
            Encoding, shape (B, N, dim).
        """
        angles = position_BN3[..., None] * self.frequencies
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(-2)
        return self.proj(torch.cat((waves, position_BN3), dim=-1))


class TokenAttention(nn.Module):
    """Multi-head attention between two token sets, in a reduced inner width.

    Source: the two-way decoder attention of SAM (arXiv 2304.02643, appendix A).
    """

    def __init__(self, dim: int, num_heads: int, inner_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner_dim)
        self.k_proj = nn.Linear(dim, inner_dim)
        self.v_proj = nn.Linear(dim, inner_dim)
        self.out_proj = nn.Linear(inner_dim, dim)

    def forward(self, q_BTC: Tensor, k_BTC: Tensor, v_BTC: Tensor, bias: Tensor | None) -> Tensor:
        """Attend; `bias` is added to the scores, shape broadcastable to (B, H, Tq, Tk)."""
        q, k, v = (
            self._split(self.q_proj(q_BTC)),
            self._split(self.k_proj(k_BTC)),
            self._split(self.v_proj(v_BTC)),
        )
        mask = None if bias is None else bias.to(q.dtype)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _split(self, x_BTC: Tensor) -> Tensor:
        return x_BTC.view(*x_BTC.shape[:2], self.num_heads, -1).transpose(1, 2)
