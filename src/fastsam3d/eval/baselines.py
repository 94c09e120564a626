"""Segmenters that a model must beat, and one that takes the image away from a model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fastsam3d.errors import ConfigError, SessionStateError
from fastsam3d.segmenter import Prediction
from fastsam3d.volume import Region, Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from fastsam3d.model.embedding import ImageEmbedding
    from fastsam3d.prompts import Point
    from fastsam3d.session.predictor import PromptableModel, RoiConfig


class BallSegmenter:
    """Marks a ball of fixed radius around each positive click, without looking at the image.

    Balls around negative clicks are cut out; a later click wins where balls overlap.

    Args:
        radius_mm: Of every ball.

    Raises:
        ConfigError: The radius is not positive.
    """

    def __init__(self, radius_mm: float) -> None:
        if not radius_mm > 0:
            raise ConfigError(f"radius_mm must be positive, got {radius_mm}.")
        self.radius_mm = radius_mm
        self._volume: Volume | None = None
        self._points: list[Point] = []

    def set_volume(self, volume: Volume) -> None:
        """Start anew on a volume."""
        self._volume = volume
        self._points = []

    def reset(self) -> None:
        """Forget all clicks and keep the volume."""
        self._points = []

    def add_point(self, point: Point) -> Prediction:
        """Add a ball.

        Raises:
            SessionStateError: No volume was set.
        """
        if self._volume is None:
            raise SessionStateError("No volume is set; call set_volume first.")
        geometry = self._volume.geometry
        self._points.append(point.to_voxel(geometry))
        mask = np.zeros(geometry.shape, dtype=np.uint8)
        for click in self._points:
            region, ball = self._ball(click, geometry.shape, geometry.spacing)
            mask[region.slices][ball] = 1 if click.positive else 0
        whole = Region((0, 0, 0), geometry.shape)
        return Prediction(
            volume=self._volume,
            region=whole,
            region_mask=mask,
            changed=whole,
            roi=whole,
            spacing_mm=0.0,
            predicted_quality=0.0,
            encode_ms=0.0,
            click_ms=0.0,
        )

    def _ball(
        self, click: Point, shape: tuple[int, int, int], spacing: tuple[float, float, float]
    ) -> tuple[Region, NDArray[np.bool_]]:
        low: list[int] = []
        high: list[int] = []
        squared = np.zeros((1, 1, 1))
        for axis, (centre, side) in enumerate(zip(click.position, spacing, strict=True)):
            reach = self.radius_mm / side
            low.append(max(0, math.ceil(centre - reach)))
            high.append(min(shape[axis], math.floor(centre + reach) + 1))
            offsets = (np.arange(low[-1], high[-1]) - centre) * side
            along = [1, 1, 1]
            along[axis] = -1
            squared = squared + (offsets**2).reshape(along)
        region = Region((low[0], low[1], low[2]), (high[0], high[1], high[2]))
        return region, squared <= self.radius_mm**2


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
