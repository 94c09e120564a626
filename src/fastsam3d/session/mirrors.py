"""Asking a model about mirror images of the ROI as well, and averaging what it says.

A mirrored body is as likely as the body, and a model's mistakes are not the same in both. Each
answer costs as many encodes and decodes as images, which an accelerator may take as one batch.

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
    # Parts of an embedding, points, boxes, masks.
    _Asked = tuple[tuple[Tensor, ...], Tensor, Tensor | None, Tensor | None]

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
        in_batch: Ask about all images at once. A CPU gains nothing by it, and engines of fixed
            shapes know one ROI at a time.

    Raises:
        ConfigError: There is no such number of images.

    Source: test-time mirroring as in nnU-Net (arXiv 1809.10486), with prompts mirrored alike.
    """

    def __init__(self, model: PromptableModel, count: int, *, in_batch: bool = True) -> None:
        if count not in MIRRORS:
            msg = (
                f"The number of mirror images must be 1, 2, 4 or 8, got {count}; take one of them."
            )
            raise ConfigError(msg)
        self.model = model
        self.images = MIRRORS[count]
        self.in_batch = in_batch

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
        images = [image.flip(_dims(axes)) if axes else image for axes in self.images]
        if self.in_batch:
            images = [torch.cat(images)]
        found = [self.model.encode_image(one.contiguous()) for one in images]
        parts = [(one.tokens, *one.skips) for one in found]
        if self.in_batch:
            parts = list(zip(*(part.chunk(len(self.images)) for part in parts[0]), strict=True))
        tokens, *skips = [part for of_image in parts for part in of_image]
        return ImageEmbedding(tokens, tuple(skips), found[0].image_size)

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
        num, side = len(self.images), self.config.image_size
        parts = (embedding.tokens, *embedding.skips)
        size = len(parts) // num
        asked = [
            (
                parts[n * size : (n + 1) * size],
                _mirrored_points(points, axes, side),
                None if boxes is None else _mirrored_boxes(boxes, axes, side),
                None if mask_logits is None else mask_logits.flip(_dims(axes)),
            )
            for n, axes in enumerate(self.images)
        ]
        if self.in_batch:
            asked = [_together(asked)]
            labels = labels.repeat(num, 1)
        answers = [
            self.model.decode_masks(
                ImageEmbedding(of_image[0], tuple(of_image[1:]), embedding.image_size),
                where,
                labels,
                boxes=box,
                mask_logits=mask,
                multimask=multimask,
            )
            for of_image, where, box, mask in asked
        ]
        logits, quality = (
            torch.cat(each).float().chunk(num) for each in zip(*answers, strict=True)
        )
        back = [part.flip(_dims(axes)) for part, axes in zip(logits, self.images, strict=True)]
        return torch.stack(back).mean(0), torch.stack(quality).mean(0)


def _together(asked: list[_Asked]) -> _Asked:
    """Return what is asked of all images as one batch, image by image."""
    parts, points, boxes, masks = zip(*asked, strict=True)
    return (
        tuple(torch.cat(of_images) for of_images in zip(*parts, strict=True)),
        torch.cat(points),
        None if boxes[0] is None else torch.cat(boxes),
        None if masks[0] is None else torch.cat(masks),
    )


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
