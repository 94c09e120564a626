"""Make a real case small: crop to the body, average down to a target spacing, code in 8 bits.

Used only when a training pack is written. Arrays are (I, J, K) with axes closest to RAS.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]

CT_AIR_HU, CT_SOFT_HU, CT_BONE_HU, CT_TOP_HU = -1024.0, -200.0, 300.0, 1600.0
AIR_STEP_HU, BONE_STEP_HU = 20.0, 28.0
SOFT_STEPS_HU = (3.2, 8.0)
NUM_LEVELS = 256
SAME_SPACING_FACTOR = 1.1


def otsu_threshold(image: NDArray[np.float32]) -> float:
    """Return the intensity that best splits the histogram in two (Otsu 1979)."""
    low, high = np.percentile(image, [0.5, 99.5])
    counts, edges = np.histogram(np.clip(image, low, high), bins=128)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(centres[int(np.nanargmax(np.where(above > 0, between, np.nan)))])


def bounding_box(mask: NDArray[np.bool_], margin: tuple[int, ...]) -> Box:
    """Return the box around a mask with a margin in voxels per axis, clipped to the array."""
    sides: list[slice] = []
    for axis in range(3):
        other = tuple(a for a in range(3) if a != axis)
        hit = np.flatnonzero(mask.any(axis=other))
        first, last = (hit[0], hit[-1] + 1) if len(hit) else (0, mask.shape[axis])
        sides.append(slice(max(0, int(first) - margin[axis]), int(last) + margin[axis]))
    return (sides[0], sides[1], sides[2])


def shrink_factors(
    shape: tuple[int, ...], spacing: tuple[float, ...], target_mm: float
) -> tuple[float, float, float]:
    """Return per axis how many voxels are averaged into one; 1 where the axis is coarse enough."""
    factors = [max(1.0, target_mm / side) for side in spacing]
    factors = [1.0 if f < SAME_SPACING_FACTOR else f for f in factors]
    out = [max(1, round(n / f)) for n, f in zip(shape, factors, strict=True)]
    exact = [n / m for n, m in zip(shape, out, strict=True)]
    return (exact[0], exact[1], exact[2])


def average_down(image: NDArray[Any], factors: tuple[float, float, float]) -> NDArray[np.float32]:
    """Average boxes of `factors` voxels (fractions count partially) into one voxel each."""
    result = image.astype(np.float32)
    for axis, factor in enumerate(factors):
        if factor > 1.0:
            weights = _overlap(result.shape[axis], factor)
            result = np.moveaxis(np.tensordot(weights, result, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(result)


def majority_down(labels: NDArray[Any], factors: tuple[float, float, float]) -> NDArray[Any]:
    """Reduce a label map on the grid of `average_down`: the majority of 8 samples per voxel."""
    grids: list[list[NDArray[np.int64]]] = []
    for size, factor in zip(labels.shape, factors, strict=True):
        centres = (np.arange(round(size / factor)) + 0.5) * factor
        offsets = (-0.25, 0.25) if factor > 1.0 else (0.0,)
        grids.append(
            [np.clip((centres + o * factor).astype(np.int64), 0, size - 1) for o in offsets]
        )
    samples = [labels[np.ix_(i, j, k)] for i in grids[0] for j in grids[1] for k in grids[2]]
    best = samples[0].copy()
    votes = np.zeros(best.shape, dtype=np.uint8)
    for sample in samples:
        count = np.zeros(best.shape, dtype=np.uint8)
        for other in samples:
            count += other == sample
        better = count > votes
        best[better] = sample[better]
        votes[better] = count[better]
    return best


def ct_levels(top: float, *, soft_step: float = SOFT_STEPS_HU[0]) -> NDArray[np.float32]:
    """Return 256 HU levels: fine steps for soft tissue, coarse ones for air and bone.

    Args:
        top: Brightest intensity worth keeping, in HU.
        soft_step: Step between -200 and 300 HU; kept within `SOFT_STEPS_HU`.
    """
    step = float(np.clip(soft_step, *SOFT_STEPS_HU))
    levels = np.concatenate(
        [
            np.arange(CT_AIR_HU, CT_SOFT_HU, AIR_STEP_HU),
            np.arange(CT_SOFT_HU, CT_BONE_HU, step),
            np.arange(CT_BONE_HU, CT_TOP_HU, BONE_STEP_HU),
        ]
    )
    return _filled(levels[levels <= max(top, CT_BONE_HU)][:NUM_LEVELS])


def linear_levels(low: float, high: float, steps: int) -> NDArray[np.float32]:
    """Return 256 levels of which the first `steps` go evenly from `low` to `high`."""
    return _filled(np.linspace(low, high, steps))


def quantise(image: NDArray[np.float32], levels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Replace each intensity by the index of the nearest level.

    Args:
        image: Intensities; those beyond the levels take the outermost one.
        levels: Ascending; the last value may be repeated, repeats are not used.
    """
    used = np.unique(levels)
    middles = (used[1:] + used[:-1]) / 2
    return np.searchsorted(middles, image).astype(np.uint8)


def _filled(levels: NDArray[np.float64]) -> NDArray[np.float32]:
    """Repeat the last level up to 256 entries."""
    return np.pad(levels, (0, NUM_LEVELS - len(levels)), mode="edge").astype(np.float32)


def noise_sigma(image: NDArray[np.float32]) -> float:
    """Estimate the noise from second differences along the two longest axes, in tissue only."""
    axes = np.argsort(image.shape)[-2:]
    found: list[float] = []
    inside = image > otsu_threshold(image)
    for axis in axes:
        second = np.diff(image, n=2, axis=int(axis))
        centre = [slice(None)] * 3
        centre[int(axis)] = slice(1, -1)
        values = second[inside[tuple(centre)]]
        if values.size:
            found.append(float(np.median(np.abs(values))) / 0.6745 / np.sqrt(6.0))
    return min(found, default=0.0)


def _overlap(size: int, factor: float) -> NDArray[np.float32]:
    count = round(size / factor)
    edges = np.arange(count + 1) * factor
    cells = np.arange(size)
    low = np.maximum(edges[:-1, None], cells[None])
    high = np.minimum(edges[1:, None], cells[None] + 1)
    weights = np.clip(high - low, 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
