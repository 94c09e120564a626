"""The high-resolution 3D Segment Anything model: encode a ROI once, decode once per click.

Shape legend: B batch, N points, M mask candidates, S side of the ROI in voxels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsam3d.model.config import ModelConfig
from fastsam3d.model.embedding import ImageEmbedding
from fastsam3d.model.hr_decoder import HighResDecoder, Prompts
from fastsam3d.model.hr_encoder import PyramidEncoder


class HighResSam3D(nn.Module):
    """Variants `hr_s` and `hr_b`: convolutional pyramid stem, dense and sparse prompts.

    Args:
        config: A config of family ``hr``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = PyramidEncoder(config)
        self.decoder = HighResDecoder(config)

    def encode_image(self, image: Tensor) -> ImageEmbedding:
        """Encode ROIs once; the result serves any number of `decode_masks` calls.

        Args:
            image: Normalised intensities, float, shape (B, 1, S, S, S), the first click (or the
                centre of the box) at voxel S/2 of each axis.

        Returns:
            Embedding of the batch.
        """
        tokens, *skips = self.encoder(image)
        return ImageEmbedding(tokens, tuple(skips), self.config.image_size)

    def forward_intermediates(
        self, image: Tensor, indices: tuple[int, ...] | None = None
    ) -> list[Tensor]:
        """Return trunk tokens (B, 512, C) after the blocks `indices` (default: all)."""
        outputs = self.encoder.intermediates(image)
        return outputs if indices is None else [outputs[index] for index in indices]

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
        """Decode one mask, or three candidates, per prompt set.

        Args:
            embedding: Embedding with batch B.
            points: Voxels of the ROI (centres are integers), float, shape (B, N, 3); N may be 0.
            labels: 1 positive, 0 negative, -1 padding without effect, shape (B, N).
            boxes: Half-open boxes i0 j0 k0 i1 j1 k1 in ROI voxels, shape (B, 6), or None; a row
                with stop <= start is no box.
            mask_logits: Logits of an earlier mask, shape (B, 1, S, S, S), or None.
            multimask: Return three candidates for an ambiguous prompt instead of one mask.

        Returns:
            Mask logits (B, M, S, S, S) and predicted quality (B, M), an estimate of the IoU;
            M is 3 with `multimask`, else 1.
        """
        previous = None
        if mask_logits is not None:
            previous = previous_mask_map(torch.sigmoid(mask_logits))
        prompts = self.prepare_prompts(points, labels, boxes=boxes, previous=previous)
        parts = (embedding.tokens, *embedding.skips)
        logits, quality, _ = self.decoder(parts, prompts, multimask=multimask)
        return (logits[:, 1:], quality[:, 1:]) if multimask else (logits, quality)

    def prepare_prompts(
        self, points: Tensor, labels: Tensor, *, boxes: Tensor | None, previous: Tensor | None
    ) -> Prompts:
        """Fill absent prompts with neutral values, see `Prompts`."""
        batch = points.shape[0]
        half = self.config.image_size // 2
        if boxes is None:
            boxes = points.new_zeros(batch, 6)
        if previous is None:
            previous = points.new_zeros(batch, 1, half, half, half)
        return Prompts(points, labels, boxes.to(points.dtype), previous)


def previous_mask_map(probabilities: Tensor) -> Tensor:
    """Map mask probabilities (B, 1, S, S, S) to the dense prompt in -1..1 at half resolution."""
    return 2 * functional.avg_pool3d(probabilities, 2) - 1
