"""A model that cannot see: what remains of it is what clicks alone achieve."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fastsam3d.model.embedding import ImageEmbedding
    from fastsam3d.session.predictor import PromptableModel, RoiConfig


class BlindModel:
    """Hides the image from a model: every normalised ROI is replaced by zeros.

    What remains is what clicks alone achieve. Blanking the volume itself would not measure that,
    because a session answers a constant volume with an empty mask.

    Args:
        inner: The model under test.
    """

    def __init__(self, inner: PromptableModel) -> None:
        self._inner = inner

    @property
    def config(self) -> RoiConfig:
        """Config of the model under test."""
        return self._inner.config

    def encode_image(self, image: Tensor) -> ImageEmbedding:
        """Embed zeros in place of `image`, shape (B, 1, I, J, K)."""
        return self._inner.encode_image(image * 0)

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
        """Decode as the model under test does."""
        return self._inner.decode_masks(
            embedding, points, labels, boxes=boxes, mask_logits=mask_logits, multimask=multimask
        )
