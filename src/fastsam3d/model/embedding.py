"""The image embedding: what the encoder hands to the decoder, once per ROI.

Shape legend: B batch, C channels, I J K grid axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class ImageEmbedding:
    """Encoder output of a batch of ROIs, immutable; every decode reads it and none changes it.

    Attributes:
        tokens: Image embedding, shape (B, C, I, J, K) on the token grid (8 per axis).
        skips: Higher-resolution features that the decoder reuses, finest last; empty for the
            officially compatible variants.
        image_size: Side of the ROI in voxels.
    """

    tokens: Tensor
    skips: tuple[Tensor, ...] = ()
    image_size: int = 128

    @property
    def batch_size(self) -> int:
        """Number of ROIs."""
        return self.tokens.shape[0]

    @property
    def num_bytes(self) -> int:
        """Memory held by all tensors, in bytes."""
        return sum(t.numel() * t.element_size() for t in (self.tokens, *self.skips))

    def select(self, index: int) -> ImageEmbedding:
        """Return the embedding of one ROI as a batch of one (a view, no copy)."""
        part = slice(index, index + 1)
        skips = tuple(skip[part] for skip in self.skips)
        return ImageEmbedding(self.tokens[part], skips, self.image_size)

    def repeat(self, count: int) -> ImageEmbedding:
        """Return every ROI `count` times in a row, for `count` prompt sets per ROI."""
        if count == 1:
            return self
        return ImageEmbedding(
            self.tokens.repeat_interleave(count, dim=0),
            tuple(s.repeat_interleave(count, dim=0) for s in self.skips),
            self.image_size,
        )

    def tile(self, count: int) -> ImageEmbedding:
        """Return the whole batch `count` times in a row."""
        if count == 1:
            return self
        return ImageEmbedding(
            self.tokens.repeat(count, 1, 1, 1, 1),
            tuple(s.repeat(count, 1, 1, 1, 1) for s in self.skips),
            self.image_size,
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ImageEmbedding:
        """Return the embedding on another device or in another floating-point type."""
        return ImageEmbedding(
            self.tokens.to(device=device, dtype=dtype),
            tuple(s.to(device=device, dtype=dtype) for s in self.skips),
            self.image_size,
        )
