"""From drawn lines to voxels: polylines with a radius, filled outlines.

All coordinates are voxels of one volume, float64; all results are voxel indices, int64 (N, 3),
inside the volume. Ties are decided by `ROUNDING_VOXELS`, so that a drawing
gives the same voxels whichever frame it came in.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from fastsam3d.errors import PromptError
from fastsam3d.prompts.frames import ROUNDING_VOXELS, nearest_voxels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Positions = NDArray[np.float64]
    Indices = NDArray[np.int64]

MAX_LINE_VOXELS: Final = 500_000
"""Length of a polyline; a longer one is a mistake."""
_SAMPLES_PER_VOXEL: Final = 2.0
# Not along an axis or a diagonal: no edge that people draw is parallel to it.
_NUDGE: Final = np.array([ROUNDING_VOXELS, ROUNDING_VOXELS * 0.618])


def line_voxels(path: Positions, shape: tuple[int, int, int]) -> Indices:
    """Return the voxels that a polyline passes, in its order, each once in a row.

    Args:
        path: Vertices, (N, 3), N at least 1.
        shape: Of the volume; what lies outside is left out.

    Raises:
        PromptError: The line is longer than `MAX_LINE_VOXELS`.
    """
    steps = np.abs(np.diff(path, axis=0)).max(axis=1, initial=0.0)
    if steps.sum() > MAX_LINE_VOXELS:
        message = f"Scribble is {steps.sum():.3g} voxels long; at most {MAX_LINE_VOXELS} fit."
        raise PromptError(message)
    parts = [path[:1]]
    for start, stop, length in zip(path[:-1], path[1:], steps.tolist(), strict=True):
        count = max(1, math.ceil(length * _SAMPLES_PER_VOXEL - ROUNDING_VOXELS))
        share = np.arange(1, count + 1)[:, None] / count
        parts.append(start + (stop - start) * share)
    voxels = nearest_voxels(np.concatenate(parts))
    voxels = voxels[np.all((voxels >= 0) & (voxels < shape), axis=1)]
    is_new = np.ones(len(voxels), np.bool_)
    is_new[1:] = np.any(voxels[1:] != voxels[:-1], axis=1)
    return voxels[is_new]


def brush_voxels(
    line: Indices,
    spacing: tuple[float, float, float],
    shape: tuple[int, int, int],
    *,
    radius_mm: float,
    axis: int | None,
) -> Indices:
    """Return the voxels whose centre is within a distance of a line of voxels.

    Args:
        line: What `line_voxels` returned, at least one voxel.
        spacing: Millimetres per voxel along i, j, k.
        shape: Of the volume.
        radius_mm: The distance; 0 gives the line itself.
        axis: Array axis across which the brush has no thickness; None for a ball.
    """
    ndimage: Any = import_module("scipy.ndimage")  # Late: most prompts do without.
    reach = np.floor(radius_mm / np.asarray(spacing) + ROUNDING_VOXELS).astype(np.int64)
    if axis is not None:
        reach[axis] = 0
    low = np.maximum(line.min(axis=0) - reach, 0)
    high = np.minimum(line.max(axis=0) + reach + 1, shape)
    off = np.ones(tuple(high - low), np.bool_)
    off[tuple((line - low).T)] = False
    distance = cast("Positions", ndimage.distance_transform_edt(off, sampling=spacing))
    return np.argwhere(distance <= radius_mm * (1 + 1e-9)) + low


def outline_voxels(
    outline: Positions, shape: tuple[int, int, int], *, axis: int, is_outside: bool = False
) -> Indices:
    """Fill a flat closed outline by the even-odd rule.

    Each line of voxels along `axis` that the outline encloses gives the voxel nearest to the
    outline's plane: on a slice that is the slice itself. A centre exactly on the outline counts
    as inside where the inside lies towards higher indices.

    Args:
        outline: Vertices, (N, 3), N at least 3.
        shape: Of the volume; what lies outside is left out.
        axis: Array axis across the plane, roughly.
        is_outside: Return the rest of the plane instead.

    Raises:
        PromptError: The vertices do not lie in one plane.
    """
    u, v = (other for other in range(3) if other != axis)
    plane = _plane(outline[:, (u, v)], outline[:, axis])
    inside = _even_odd(outline[:, (u, v)] - _NUDGE, (shape[u], shape[v]))
    columns = np.argwhere(inside != is_outside)
    voxels = np.empty((len(columns), 3), np.int64)
    voxels[:, (u, v)] = columns
    voxels[:, axis] = nearest_voxels(columns @ plane[:2] + plane[2])
    return voxels[(voxels[:, axis] >= 0) & (voxels[:, axis] < shape[axis])]


def _plane(columns: Positions, heights: Positions) -> Positions:
    """Return a, b, c of height = a u + b v + c through the vertices."""
    middle = columns.mean(axis=0)
    design = np.column_stack([columns - middle, np.ones(len(columns))])
    a, b, c = np.linalg.lstsq(design, heights, rcond=1e-6)[0]
    if np.abs(design @ (a, b, c) - heights).max() > 0.5:
        message = (
            "Lasso must be flat, but its vertices lie on slices "
            f"{heights.min():.4g} to {heights.max():.4g}; draw it on one slice."
        )
        raise PromptError(message)
    return np.array([a, b, c - a * middle[0] - b * middle[1]])


def _even_odd(outline: Positions, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which integer positions a closed polygon holds, bool of `shape`."""
    toggles = np.zeros((shape[0], shape[1] + 1), np.int64)
    for (u0, v0), (u1, v1) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        low, high = sorted((u0, u1))
        rows = np.arange(max(0, math.ceil(low)), min(shape[0], math.ceil(high)))
        if len(rows):
            crossing = v0 + (rows - u0) * ((v1 - v0) / (u1 - u0))
            columns = np.clip(np.ceil(crossing), 0, shape[1]).astype(np.int64)
            np.add.at(toggles, (rows, columns), 1)
    return np.cumsum(toggles, axis=1)[:, :-1] % 2 == 1
