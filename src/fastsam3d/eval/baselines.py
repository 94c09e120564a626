"""Segmenters that a model must beat, and one that takes the image away from a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastsam3d.errors import ConfigError, SessionStateError
from fastsam3d.segmenter import Prediction
from fastsam3d.volume import Region, Volume

if TYPE_CHECKING:
    from fastsam3d.eval.runner import ClickSegmenter
    from fastsam3d.prompts import Point


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
    ) -> tuple[Region, np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]:
        centre = np.asarray(click.position)
        reach = self.radius_mm / np.asarray(spacing)
        start = np.maximum(np.ceil(centre - reach), 0).astype(int)
        stop = np.minimum(np.floor(centre + reach) + 1, shape).astype(int)
        axes = [np.arange(a, b) for a, b in zip(start, stop, strict=True)]
        offsets = [((x - c) * s) ** 2 for x, c, s in zip(axes, centre, spacing, strict=True)]
        squared = offsets[0][:, None, None] + offsets[1][None, :, None] + offsets[2]
        begin, end = [int(v) for v in start], [int(v) for v in stop]
        region = Region((begin[0], begin[1], begin[2]), (end[0], end[1], end[2]))
        return region, squared <= self.radius_mm**2


class ZeroImageSegmenter:
    """Gives a segmenter an image of zeros: what remains is what clicks alone achieve.

    Args:
        inner: The segmenter under test.
    """

    def __init__(self, inner: ClickSegmenter) -> None:
        self._inner = inner

    def set_volume(self, volume: Volume) -> None:
        """Start anew on a blank volume with the geometry of `volume`."""
        blank = np.zeros(volume.shape, dtype=volume.array.dtype)
        self._inner.set_volume(Volume(blank, volume.geometry, volume.modality))

    def reset(self) -> None:
        """Forget all clicks and keep the volume."""
        self._inner.reset()

    def add_point(self, point: Point) -> Prediction:
        """Add a click and segment."""
        return self._inner.add_point(point)
