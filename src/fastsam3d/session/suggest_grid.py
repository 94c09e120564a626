"""Where to click when nobody does: pure functions of the volume's grid and intensities.

Each level has one spacing. The volume is cut into cells, each with an ROI of that spacing around
the clicks in it, so that they lie near its middle. The clicks are a lattice in millimetres over the
whole volume, without those on air. Coordinates with `_mm` count from the corner of the canonical
volume.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fastsam3d.preprocess.roi import Roi, canonical_spacing
from fastsam3d.session import scale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastsam3d.volume import Geometry, Volume

    Points = NDArray[np.float64]

_PERCENTILES: Final = (1.0, 99.0)
_SAMPLES_PER_AXIS: Final = 64
_LATTICE_GROWTH: Final = 1.03


@dataclass(frozen=True, eq=False)
class Tile:
    """What is asked in one ROI.

    Attributes:
        roi: What the model sees.
        voxels: Clicks, whole voxels of the volume as stored, shape (N, 3), N at least 1.
    """

    roi: Roi
    voxels: NDArray[np.int64] = field(repr=False)


def plan_levels(
    volume: Volume,
    *,
    spacings_mm: Sequence[float],
    size: int,
    core: float,
    max_points: int,
    min_intensity: float,
) -> tuple[tuple[Tile, ...], ...]:
    """Return the ROIs and clicks of each level, coarse first.

    Args:
        volume: Where to look.
        spacings_mm: Of the levels; those that make no difference on this volume count once.
        size: Side of an ROI in voxels.
        core: Side of a cell, over that of an ROI.
        max_points: Of all levels together, which share them equally.
        min_intensity: Voxels below this part of the range between the 1st and the 99th
            percentile are air or background.
    """
    threshold = background_below(volume, min_intensity)
    spacings = level_spacings(volume.geometry, spacings_mm, size)
    share = max(1, max_points // len(spacings))
    return tuple(
        _tiles(volume, spacing, size=size, core=core, max_points=share, threshold=threshold)
        for spacing in spacings
    )


def background_below(volume: Volume, min_intensity: float) -> float:
    """Return the intensity up to which a voxel is background; that of all where all are alike."""
    steps = tuple(slice(n // (2 * s), None, s) for n in volume.shape
                  for s in (math.ceil(n / _SAMPLES_PER_AXIS),))  # fmt: skip
    low, high = np.percentile(volume.array[steps], _PERCENTILES).tolist()
    return float(low + min_intensity * (high - low))


def level_spacings(
    geometry: Geometry, spacings_mm: Sequence[float], size: int
) -> tuple[float, ...]:
    """Return the spacings of the levels, coarsest first.

    None is coarser than what shows the whole volume, nor finer than half of its finest voxel side.
    """
    policy = scale.ScalePolicy()
    middle = (np.asarray(geometry.canonical_reorder().reordered_shape) - 1) / 2
    finest = scale.finest_spacing(policy, geometry)
    coarsest = max(finest, scale.covering_spacing(geometry, middle, size))
    chosen: list[float] = []
    for spacing in sorted((min(max(s, finest), coarsest) for s in spacings_mm), reverse=True):
        if not chosen or chosen[-1] > spacing * policy.same_spacing:
            chosen.append(spacing)
    return tuple(chosen)


def _tiles(
    volume: Volume, spacing_mm: float, *, size: int, core: float, max_points: int, threshold: float
) -> tuple[Tile, ...]:
    geometry = volume.geometry
    sides_mm = _sides_mm(geometry)
    roi_mm = size * spacing_mm
    counts = [math.ceil(n / (core * roi_mm)) for n in sides_mm.tolist()]
    voxels, at_mm = _clicks(volume, max_points, threshold)
    cell = np.minimum(np.floor(at_mm / sides_mm * counts), np.subtract(counts, 1)).astype(int)
    tiles: list[Tile] = []
    for index in itertools.product(*(range(count) for count in counts)):
        inside = (cell == index).all(axis=1)
        if not inside.any():
            continue
        # Models see best what is clicked in the middle of the ROI.
        centre = voxels[inside].mean(axis=0)
        roi = replace(Roi.around(centre, geometry, spacing_mm, size), focus_voxel=None)
        tiles.append(Tile(roi, voxels[inside]))
    return tuple(tiles)


def _clicks(
    volume: Volume, max_points: int, threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the finest lattice of at most so many clicks that lie on no background.

    Returns:
        Voxels of the volume as stored, and where they lie in mm, both (N, 3).
    """
    sides_mm = _sides_mm(volume.geometry)
    step_mm = float((sides_mm.prod() / max_points) ** (1 / 3)) / 4
    while True:
        voxels, at_mm = _lattice(volume, step_mm)
        is_kept = volume.array[tuple(voxels.T)] > threshold
        if np.count_nonzero(is_kept) <= max_points:
            return voxels[is_kept], at_mm[is_kept]
        step_mm *= _LATTICE_GROWTH


def _lattice(volume: Volume, step_mm: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    geometry = volume.geometry
    shape: Any = geometry.canonical_reorder().reordered_shape
    sides_mm = _sides_mm(geometry)
    # At least one click along each axis, at most one in each voxel.
    counts = np.clip(np.rint(sides_mm / step_mm), 1, shape).astype(int)
    index = np.argwhere(np.ones(counts.tolist(), np.bool_))
    at_mm: Points = (index + 0.5) / counts * sides_mm
    canonical = np.minimum(np.floor(at_mm / canonical_spacing(geometry)), np.subtract(shape, 1))
    stored = geometry.canonical_reorder().invert_points(canonical)
    return np.rint(stored).astype(np.int64), at_mm


def _sides_mm(geometry: Geometry) -> NDArray[np.float64]:
    shape = geometry.canonical_reorder().reordered_shape
    return np.multiply(shape, canonical_spacing(geometry))
