"""Asking a model about mirror images of the ROI as well, and averaging what it says.

A mirrored body is as likely as the body, and a model's mistakes are not the same in both. Each
answer costs as many encodes and decodes as images, which an accelerator takes as one batch.

Shape legend: B ROIs, N points, M mask candidates, S ROI side, L side of the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastsam3d.errors import ConfigError
from fastsam3d.model.embedding import ImageEmbedding

if TYPE_CHECKING:
    from torch import Tensor

    from fastsam3d.session.predictor import PromptableModel, RoiConfig

    Axes = tuple[int, ...]

# The mirrored axes of each image, by how many images there are. Four are the image and one mirror
# per axis, so that no axis of an unknown orientation is special.
MIRRORS: dict[int, tuple[Axes, ...]] = {
    1: ((),),
    2: ((), (0,)),
    4: ((), (0,), (1,), (2,)),
    8: ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)),
}


class MirroredModel:
    """A promptable model that answers with the mean over mirror images of the ROI.

    Args:
        model: What answers about each image.
        count: Number of images, the ROI itself included: 1, 2, 4 or 8.

    Raises:
        ConfigError: There is no such number of images.

    Source: test-time mirroring as in nnU-Net (arXiv 1809.10486), with prompts mirrored alike.
    """

    def __init__(self, model: PromptableModel, count: int) -> None:
        if count not in MIRRORS:
            msg = (
                f"The number of mirror images must be 1, 2, 4 or 8, got {count}; take one of them."
            )
            raise ConfigError(msg)
        self.model = model
        self.images = MIRRORS[count]

    @property
    def config(self) -> RoiConfig:
        """The model's config."""
        return self.model.config

    def encode_image(self, image: Tensor) -> ImageEmbedding:
        """Embed ROIs and their mirror images.

        Args:
            image: Shape (B, 1, S, S, S).

        Returns:
            The embedding of the ROIs; those of the mirror images, tokens and skips in turn, follow
            its own skips.
        """
        batch = torch.cat([image.flip(_dims(axes)) if axes else image for axes in self.images])
        found = self.model.encode_image(batch.contiguous())
        parts = [part.chunk(len(self.images)) for part in (found.tokens, *found.skips)]
        tokens, *skips = [part[n] for n in range(len(self.images)) for part in parts]
        return ImageEmbedding(tokens, tuple(skips), found.image_size)

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
        """Decode the same prompts on every image.

        Args:
            embedding: From `encode_image`.
            points: Float32 (B, N, 3), ROI voxels.
            labels: Integers (B, N).
            boxes: Float32 (B, 6), ROI voxels, half-open, or None.
            mask_logits: Float32 (B, 1, L, L, L), or None.
            multimask: Ask for several candidates.

        Returns:
            Mean logits (B, M, L, L, L) and mean quality (B, M), float32.
        """
        side = self.config.image_size
        answers = self.model.decode_masks(
            self._together(embedding),
            torch.cat([_mirrored_points(points, axes, side) for axes in self.images]),
            labels.repeat(len(self.images), 1),
            boxes=None
            if boxes is None
            else torch.cat([_mirrored_boxes(boxes, axes, side) for axes in self.images]),
            mask_logits=None
            if mask_logits is None
            else torch.cat([mask_logits.flip(_dims(axes)) for axes in self.images]),
            multimask=multimask,
        )
        logits, quality = (answer.float().chunk(len(self.images)) for answer in answers)
        back = [part.flip(_dims(axes)) for part, axes in zip(logits, self.images, strict=True)]
        return torch.stack(back).mean(0), torch.stack(quality).mean(0)

    def _together(self, embedding: ImageEmbedding) -> ImageEmbedding:
        """Return the embeddings of all images as one batch, image by image."""
        parts = (embedding.tokens, *embedding.skips)
        size = len(parts) // len(self.images)
        tokens, *skips = [torch.cat(parts[n::size]) for n in range(size)]
        return ImageEmbedding(tokens, tuple(skips), embedding.image_size)


def _dims(axes: Axes) -> Axes:
    """Return the dimensions of a (B, C, I, J, K) tensor that belong to axes of the ROI."""
    return tuple(axis + 2 for axis in axes)


def _mirrored_points(points_BN3: Tensor, axes: Axes, side: int) -> Tensor:
    mirrored = points_BN3.clone()
    for axis in axes:
        mirrored[..., axis] = side - 1 - points_BN3[..., axis]
    return mirrored


def _mirrored_boxes(boxes_B6: Tensor, axes: Axes, side: int) -> Tensor:
    mirrored = boxes_B6.clone()
    for axis in axes:
        mirrored[:, axis] = side - boxes_B6[:, axis + 3]
        mirrored[:, axis + 3] = side - boxes_B6[:, axis]
    return mirrored
