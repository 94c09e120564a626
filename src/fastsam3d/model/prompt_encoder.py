"""Officially compatible prompt encoder: points and a mask prompt to sparse and dense embeddings.

Attribute names are official state-dict keys.

Shape legend: B prompt sets, P points, C channels, I J K axes of voxels or tokens.

Source: SAM-Med3D (uni-medical, commit f3de1fa, Apache-2.0), `prompt_encoder3D.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastsam3d.model.config import ModelConfig
from fastsam3d.model.layers import ChannelNorm3d

# Width of the mask-prompt branch in the official models of every size.
_MASK_CHANNELS = 16
_POSITIVE, _NEGATIVE, _PADDING = 1, 0, -1


class PromptEmbeddings(NamedTuple):
    """Prompt encoder output: `sparse` (B, P, C) and `dense` (B, C, I, J, K) on the token grid."""

    sparse: Tensor
    dense: Tensor


class RandomFourierEncoding(nn.Module):
    """Position encoding by random spatial frequencies, shared by points and token grid."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, num_frequencies: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(3, num_frequencies))

    def forward(self, unit_positions: Tensor) -> Tensor:
        """Encode positions of [0, 1]^3: (..., 3) to (..., 3 * num_frequencies)."""
        frequencies = self.positional_encoding_gaussian_matrix
        # Phases reach hundreds of radians: half precision would lose the position.
        dtype = torch.promote_types(frequencies.dtype, torch.float32)
        with torch.autocast(frequencies.device.type, enabled=False):
            phase = 2 * math.pi * ((2 * unit_positions.to(dtype) - 1) @ frequencies.to(dtype))
        # Three thirds (sine, cosine, sine again), as the official models were trained.
        encoding = torch.cat([phase.sin(), phase.cos(), phase.sin()], dim=-1)
        return encoding.to(frequencies.dtype)

    def encode_grid(self, size: int) -> Tensor:
        """Encode the centres of a cubic grid: (1, C, size, size, size).

        The first two axes are swapped relative to the points' order, as in the official code.
        """
        frequencies = self.positional_encoding_gaussian_matrix
        dtype = torch.promote_types(frequencies.dtype, torch.float32)
        centres = (torch.arange(size, device=frequencies.device, dtype=dtype) + 0.5) / size
        i, j, k = torch.meshgrid(centres, centres, centres, indexing="ij")
        return self(torch.stack([j, i, k], dim=-1)).permute(3, 0, 1, 2)[None]


class PromptEncoder3D(nn.Module):
    """Turn points, boxes and a mask prompt into embeddings for the mask decoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.out_dim
        self.image_size = config.image_size
        self.grid_size = config.grid_size
        self.pe_layer = RandomFourierEncoding(dim // 3)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(2))
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv3d(1, _MASK_CHANNELS // 4, kernel_size=2, stride=2),
            ChannelNorm3d(_MASK_CHANNELS // 4),
            nn.GELU(),
            nn.Conv3d(_MASK_CHANNELS // 4, _MASK_CHANNELS, kernel_size=2, stride=2),
            ChannelNorm3d(_MASK_CHANNELS),
            nn.GELU(),
            nn.Conv3d(_MASK_CHANNELS, dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, dim)

    def encode_grid(self) -> Tensor:
        """Return the position encoding of the token grid, (1, C, I, J, K)."""
        return self.pe_layer.encode_grid(self.grid_size)

    def forward(
        self,
        points_BP3: Tensor,
        labels_BP: Tensor,
        boxes_B6: Tensor | None = None,
        mask_logits_B1IJK: Tensor | None = None,
    ) -> PromptEmbeddings:
        """Embed the prompts; see `SamMed3D.decode_masks` for units and labels."""
        if boxes_B6 is not None:
            points_BP3, labels_BP = append_box_centres(points_BP3, labels_BP, boxes_B6)
        if mask_logits_B1IJK is None:
            grid = (self.grid_size,) * 3
            dense = self.no_mask_embed.weight.view(1, -1, 1, 1, 1)
            dense = dense.expand(points_BP3.shape[0], -1, *grid)
        else:
            dense = self.mask_downscaling(mask_logits_B1IJK)
        return PromptEmbeddings(self._embed_points(points_BP3, labels_BP), dense)

    def _embed_points(self, points_BP3: Tensor, labels_BP: Tensor) -> Tensor:
        # The official models saw one more padding point whenever no box was given, and they were
        # never given a box.
        points = nn.functional.pad(points_BP3, (0, 0, 0, 1))
        labels = nn.functional.pad(labels_BP, (0, 1), value=_PADDING)[..., None]
        encoding = self.pe_layer((points + 0.5) / self.image_size)
        negative, positive = (embedding.weight for embedding in self.point_embeddings)
        embedded = torch.where(labels == _NEGATIVE, encoding + negative, encoding)
        embedded = torch.where(labels == _POSITIVE, encoding + positive, embedded)
        return torch.where(labels == _PADDING, self.not_a_point_embed.weight, embedded)


def append_box_centres(
    points_BP3: Tensor, labels_BP: Tensor, boxes_B6: Tensor
) -> tuple[Tensor, Tensor]:
    """Add each box as a positive point at its centre; an empty box becomes a padding point.

    The official 3D weights hold no box embeddings (the official box branch raises), so a centre
    point is what those models understand.
    """
    start, stop = boxes_B6.to(points_BP3.dtype).chunk(2, dim=-1)
    is_box = (stop > start).all(dim=-1, keepdim=True)
    centre = (start + stop - 1) / 2
    label = torch.where(is_box, _POSITIVE, _PADDING).to(labels_BP.dtype)
    return torch.cat([points_BP3, centre[:, None]], dim=1), torch.cat([labels_BP, label], dim=1)
