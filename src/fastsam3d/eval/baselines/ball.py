"""A ball around each click: what a fixed guess of size achieves without an image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fastsam3d.errors import ConfigError
from fastsam3d.eval.baselines.base import Baseline, Clicks, LocalMask, nothing
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.volume import Volume

DEFAULT_RADIUS_MM = 12.0


class BallSegmenter(Baseline):
    """Marks a ball of fixed radius around each positive click, without looking at the image.

    A box is answered by the ellipsoid that touches its faces. Balls around negative clicks are
    cut out; a later click wins where balls overlap.

    Args:
        radius_mm: Of every ball.

    Raises:
        ConfigError: The radius is not positive.
    """

    def __init__(self, radius_mm: float = DEFAULT_RADIUS_MM) -> None:
        super().__init__()
        if not 0 < radius_mm < math.inf:
            raise ConfigError(f"radius_mm must be positive, got {radius_mm}; give millimetres.")
        self.radius_mm = radius_mm

    def _segment(self, volume: Volume, clicks: Clicks) -> LocalMask:
        radii = self.radius_mm / np.array(volume.geometry.spacing)
        shapes = [
            (p, radii, bool(s)) for p, s in zip(clicks.positions, clicks.is_positive, strict=True)
        ]
        if clicks.box is not None:
            centre = (np.add(clicks.box.start, clicks.box.stop) - 1) / 2
            shapes.insert(0, (centre, np.array(clicks.box.shape) / 2, True))
        region = nothing().region
        for centre, half, is_positive in shapes:
            if is_positive:
                region = region.union(_around(centre, half, volume.shape))
        array = np.zeros(region.shape, dtype=np.bool_)
        for centre, half, is_positive in shapes:
            part = _around(centre, half, volume.shape).intersection(region)
            if part.is_empty:
                continue
            inside = _ellipsoid(part, centre, half)
            array[part.shift([-n for n in region.start]).slices][inside] = is_positive
        return LocalMask(region=region, array=array, looked=region)


def _around(
    centre: NDArray[np.float64], half: NDArray[np.float64], shape: tuple[int, int, int]
) -> Region:
    low = np.ceil(centre - half).astype(int)
    high = np.floor(centre + half).astype(int) + 1
    return Region(low.tolist(), high.tolist()).clip(shape)


def _ellipsoid(
    region: Region, centre: NDArray[np.float64], half: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return which voxels of a box lie in the ellipsoid of half axes `half` (voxels)."""
    squared = np.zeros((1, 1, 1))
    for axis in range(3):
        offsets = (np.arange(region.start[axis], region.stop[axis]) - centre[axis]) / half[axis]
        along = [1, 1, 1]
        along[axis] = -1
        squared = squared + (offsets**2).reshape(along)
    return squared <= 1.0
