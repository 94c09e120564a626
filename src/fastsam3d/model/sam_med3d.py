"""The officially compatible model: SAM-Med3D ViT-B and FastSAM3D's student, one class.

Tensors only. The state dict has exactly the official key names and shapes.

Shape legend: B prompt sets, P points, M mask candidates, T tokens, C channels, I J K voxel axes.

Source: SAM-Med3D f3de1fa and FastSAM3D 226dfb5 (both Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastsam3d.model.config import ModelConfig
from fastsam3d.model.embedding import ImageEmbedding
from fastsam3d.model.mask_decoder import MaskDecoder3D
from fastsam3d.model.prompt_encoder import PromptEncoder3D
from fastsam3d.model.sam_encoder import PatchImageEncoder


class SamMed3D(nn.Module):
    """Encode a ROI once, decode a mask per prompt set, with the official arithmetic.

    Attributes:
        config: What was built.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = PatchImageEncoder(config)
        self.prompt_encoder = PromptEncoder3D(config)
        self.mask_decoder = MaskDecoder3D(config.out_dim)

    def encode_image(self, image_B1IJK: Tensor) -> ImageEmbedding:
        """Encode normalised ROIs.

        Args:
            image_B1IJK: Normalised intensities, (B, 1, S, S, S) with S = ``config.image_size``.

        Returns:
            Embedding with tokens (B, out_dim, S/16, S/16, S/16) and no skips.
        """
        return ImageEmbedding(self.image_encoder(image_B1IJK), (), self.config.image_size)

    def decode_masks(
        self,
        embedding: ImageEmbedding,
        points: Tensor,
        labels: Tensor,
        *,
        boxes: Tensor | None = None,
        mask_logits: Tensor | None = None,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Predict masks for B prompt sets, on B ROIs or all on one ROI.

        Args:
            embedding: Output of `encode_image`; its batch is B, or 1 for many objects of one ROI.
            points: Voxels of the ROI as (i, j, k), a voxel's centre is an integer; (B, P, 3), P may
                be 0.
            labels: 1 positive, 0 negative, -1 padding; (B, P).
            boxes: Half-open voxel boxes [i0, j0, k0, i1, j1, k1], (B, 6); a row with stop <= start
                is no box. The official weights know no boxes: a box acts as a positive point at
                its centre.
            mask_logits: Previous low-res logits as mask prompt, (B, 1, L, L, L) with
                L = ``config.logits_size``.
            multimask: Return three candidates in place of one.

        Returns:
            Low-res mask logits (B, M, L, L, L) and predicted quality (B, M), M = 3 or 1.
        """
        prompts = self.prompt_encoder(points, labels, boxes, mask_logits)
        grid_pe = self.prompt_encoder.encode_grid()
        return self.mask_decoder(embedding.tokens, grid_pe, prompts, multimask=multimask)

    def forward_intermediates(
        self, image_B1IJK: Tensor, indices: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Return trunk tokens after some blocks, each (B, T, C), T in i, j, k order.

        Args:
            image_B1IJK: Normalised intensities, (B, 1, S, S, S).
            indices: Blocks to return, counted from 0 and ascending; all when None.

        Returns:
            One tensor per index, in block order. Blocks after the last index are not computed.
        """
        wanted = range(self.config.depth) if indices is None else indices
        last = max(wanted, default=-1)
        outputs: list[Tensor] = []
        for index, output in zip(
            range(last + 1), self.image_encoder.iterate_blocks(image_B1IJK), strict=False
        ):
            if index in wanted:
                outputs.append(output.flatten(1, 3))
        return outputs

    def forward(self, image_B1IJK: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode and decode in one call; see `encode_image` and `decode_masks`."""
        return self.decode_masks(self.encode_image(image_B1IJK), points, labels)
