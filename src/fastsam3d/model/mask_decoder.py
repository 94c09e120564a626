"""Officially compatible mask decoder: image and prompt embeddings to mask logits and quality.

Attribute names are official state-dict keys.

Shape legend: B prompt sets, P prompt tokens, M mask candidates, C channels, I J K grid axes.

Source: SAM-Med3D (uni-medical, commit f3de1fa, Apache-2.0), `mask_decoder3D.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastsam3d.model.layers import ChannelNorm3d, HeadMLP
from fastsam3d.model.prompt_encoder import PromptEmbeddings
from fastsam3d.model.two_way import TwoWayTransformer3D

# Token 0 answers alone; tokens 1 to 3 answer an ambiguous prompt with three candidates.
_NUM_MASK_TOKENS = 4
_QUALITY_HIDDEN_DIM = 256


class MaskDecoder3D(nn.Module):
    """Predict mask logits at a quarter of the ROI resolution, and their quality."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer3D(dim)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(_NUM_MASK_TOKENS, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose3d(dim, dim // 4, kernel_size=2, stride=2),
            ChannelNorm3d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose3d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            HeadMLP(dim, dim, dim // 8, 3) for _ in range(_NUM_MASK_TOKENS)
        )
        self.iou_prediction_head = HeadMLP(dim, _QUALITY_HIDDEN_DIM, _NUM_MASK_TOKENS, 3)

    def forward(
        self,
        image_BCIJK: Tensor,
        image_pe_1CIJK: Tensor,
        prompts: PromptEmbeddings,
        *,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return low-res logits (B, M, 4I, 4J, 4K) and predicted quality (B, M), M = 3 or 1."""
        source = image_BCIJK + prompts.dense
        batch, grid = source.shape[0], source.shape[2:]
        answer_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([answer_tokens.expand(batch, -1, -1), prompts.sparse], dim=1)
        image_pe_BTC = image_pe_1CIJK.flatten(2).transpose(1, 2)
        image = source.flatten(2).transpose(1, 2)
        tokens, image = self.transformer(tokens, image, image_pe_BTC)
        upscaled = self.output_upscaling(image.transpose(1, 2).unflatten(2, grid))
        chosen = slice(1, _NUM_MASK_TOKENS) if multimask else slice(0, 1)
        mask_tokens = tokens[:, 1 : 1 + _NUM_MASK_TOKENS][:, chosen]
        heads = self.output_hypernetworks_mlps[chosen]
        filters = torch.stack(
            [head(token) for head, token in zip(heads, mask_tokens.unbind(1), strict=True)], dim=1
        )
        logits = (filters @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
        return logits, self.iou_prediction_head(tokens[:, 0])[:, chosen]
