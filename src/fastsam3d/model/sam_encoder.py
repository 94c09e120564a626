"""Officially compatible image encoder: patch embedding, transformer blocks, convolutional neck.

One class covers SAM-Med3D's ViT-B and FastSAM3D's six-layer student; what differs (residual order,
attention-free blocks, windows) is a config value. Attribute names are official state-dict keys.

Shape legend: B batch, C channels, I J K axes of voxels or tokens.

Source: SAM-Med3D f3de1fa and FastSAM3D 226dfb5 (both Apache-2.0), `image_encoder3D.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from fastsam3d.model.config import DENSE, ModelConfig
from fastsam3d.model.layers import ChannelNorm3d, FeedForward
from fastsam3d.model.sparse_attention import choose_attention
from fastsam3d.model.window_attention import WindowAttention

# The official encoders differ here from torch's default of 1e-5, and trained weights notice.
_NORM_EPS = 1e-6


class PatternAttention(nn.Module):
    """Multi-head self-attention by a sparse pattern; projections as in `WindowAttention`."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.attend = choose_attention(config, index)
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BIJKC: Tensor) -> Tensor:
        """Mix the tokens of the model's grid; same shape."""
        qkv = self.qkv(x_BIJKC).flatten(1, 3).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(x_BIJKC.shape))


class EncoderBlock(nn.Module):
    """Transformer block; attention is optional and the residual order is a config value."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        patch, dim = config.patch, config.embed_dim
        self.residual_after_norm = patch.residual_after_norm
        self.has_attention = index >= patch.num_attention_free_blocks
        if self.has_attention:
            self.norm1 = nn.LayerNorm(dim, eps=_NORM_EPS)
            self.attn = _attention(config, index)
        self.norm2 = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.mlp = FeedForward(dim, int(dim * config.mlp_ratio))

    def forward(self, x_BIJKC: Tensor) -> Tensor:
        """Return the block output, same shape."""
        if self.has_attention:
            x_BIJKC = x_BIJKC + self.attn(self.norm1(x_BIJKC))
        normed = self.norm2(x_BIJKC)
        # FastSAM3D adds the feed-forward part to the *normalised* stream; SAM-Med3D to the stream.
        stream = normed if self.residual_after_norm else x_BIJKC
        return stream + self.mlp(normed)


def _attention(config: ModelConfig, index: int) -> nn.Module:
    if config.attention != DENSE:
        return PatternAttention(config, index)
    patch = config.patch
    is_global = patch.window_size == 0 or index in patch.global_blocks
    return WindowAttention(
        config.embed_dim,
        num_heads=config.num_heads,
        extent=config.grid_size if is_global else patch.window_size,
        path=patch.attention,
    )


class PatchEmbed3D(nn.Module):
    """Cut the ROI into cubic patches and project each to a token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = nn.Conv3d(1, config.embed_dim, kernel_size=size, stride=size)

    def forward(self, image_B1IJK: Tensor) -> Tensor:
        """Return tokens on their grid, channels last: (B, I/p, J/p, K/p, C)."""
        weight = self.proj.weight
        if weight.dtype != torch.bfloat16:
            return self.proj(image_B1IJK).permute(0, 2, 3, 4, 1)
        # Convolutions of one channel starve matrix units: here each patch is a row of a product.
        size = weight.shape[-1]
        patches = image_B1IJK[:, 0].unfold(1, size, size).unfold(2, size, size)
        rows = patches.unfold(3, size, size).flatten(4).to(weight.dtype)
        return nn.functional.linear(rows, weight.flatten(1), self.proj.bias)


class PatchImageEncoder(nn.Module):
    """ViT encoder on 16^3 patches with the official arithmetic."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        grid, out = config.grid_size, config.out_dim
        self.patch_embed = PatchEmbed3D(config)
        self.pos_embed = nn.Parameter(torch.empty(1, grid, grid, grid, config.embed_dim))
        # Not `trunc_normal_`, of the same distribution here: it draws until all values are within
        # bounds, so for ever in `without_random_weights`, which draws nothing.
        nn.init.normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(EncoderBlock(config, index) for index in range(config.depth))
        self.neck = nn.Sequential(
            nn.Conv3d(config.embed_dim, out, kernel_size=1, bias=False),
            ChannelNorm3d(out),
            nn.Conv3d(out, out, kernel_size=3, padding=1, bias=False),
            ChannelNorm3d(out),
        )

    def embed_patches(self, image_B1IJK: Tensor) -> Tensor:
        """Return patch plus position embedding, (B, I, J, K, C) on the token grid."""
        return self.patch_embed(image_B1IJK) + self.pos_embed

    def iterate_blocks(self, image_B1IJK: Tensor) -> Iterator[Tensor]:
        """Yield each block's output in turn, (B, I, J, K, C) on the token grid."""
        x_BIJKC = self.embed_patches(image_B1IJK)
        for block in self.blocks:
            x_BIJKC = cast("Tensor", block(x_BIJKC))
            yield x_BIJKC

    def forward(self, image_B1IJK: Tensor) -> Tensor:
        """Return the image embedding, (B, out_dim, I, J, K) on the token grid."""
        x_BIJKC = self.embed_patches(image_B1IJK)
        for block in self.blocks:
            x_BIJKC = block(x_BIJKC)
        return self.neck(x_BIJKC.permute(0, 4, 1, 2, 3))
