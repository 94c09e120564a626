"""Surfaces of voxel masks, as elements with a place and an area.

A surface element sits in the middle of every 2x2x2 block of voxels (a cell) that holds voxels of
both kinds; its area is that of the marching-cubes triangles in the cell. Beyond the array is
outside, so a mask that touches the border of the scan is closed there.

Arrays are (I, J, K); spacing in mm; cell (i, j, k) lies between voxels i-1 and i, and so on.

Source: elements, neighbour codes and areas as defined by google-deepmind/surface-distance
(Apache-2.0; Nikolov et al., arXiv 1809.04430), written anew: the area of a cell depends only on its
pattern up to the symmetries of a cube and up to swapping inside and outside, so that thirteen
patterns say everything. A test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastsam3d.prompts.simulate import bounding_box

if TYPE_CHECKING:
    from numpy.typing import NDArray

Spacing = tuple[float, float, float]

# Corners are named by their bits: 4 along i, 2 along j, 1 along k. Per pattern: the corners that
# are inside, and the area vector of every triangle in eighths of a voxel face.
_CORNER = (1, 1, 1)
_PATTERNS: tuple[tuple[tuple[int, ...], tuple[tuple[int, int, int], ...]], ...] = (
    ((0,), (_CORNER,)),
    ((0, 1), ((2, 2, 0), (2, 2, 0))),
    ((1, 2), (_CORNER, _CORNER)),
    ((3, 4), (_CORNER, _CORNER)),
    ((0, 1, 2), (_CORNER, (2, 2, 2), (4, 0, 0))),
    ((1, 2, 4), (_CORNER, _CORNER, _CORNER)),
    ((0, 3, 4), ((0, 2, 2), (0, 2, 2), _CORNER)),
    ((0, 1, 2, 3), ((4, 0, 0), (4, 0, 0))),
    ((0, 1, 2, 4), (_CORNER, _CORNER, (2, 2, 2), (2, 2, 2))),
    ((0, 1, 3, 4), ((0, 2, 2), _CORNER, (2, 0, 2), (3, 3, 3))),
    ((1, 2, 3, 4), (_CORNER, _CORNER, (2, 2, 2), (4, 0, 0))),
    ((2, 3, 4, 5), ((2, 2, 0), (2, 2, 0), (2, 2, 0), (2, 2, 0))),
    ((0, 3, 5, 6), (_CORNER, _CORNER, _CORNER, _CORNER)),
)
_NUM_CODES = 256
_ALL_INSIDE = _NUM_CODES - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """The surface elements of one mask.

    Attributes:
        cells: Where they are, int64 (N, 3), in cells of the whole array.
        keys: Their number in memory order, int64 (N,), ascending; equal keys are equal cells.
        areas: In mm^2, float64 (N,).
    """

    cells: NDArray[np.int64]
    keys: NDArray[np.int64]
    areas: NDArray[np.float64]


def surface_of(mask: NDArray[np.bool_], spacing: Spacing) -> Surface:
    """Find the surface elements of a mask.

    Args:
        mask: (I, J, K).
        spacing: Voxel size in mm.

    Returns:
        Elements in memory order; none for an empty mask.
    """
    box = bounding_box(mask)
    if box is None:
        none = np.zeros((0, 3), np.int64)
        return Surface(cells=none, keys=none[:, 0], areas=np.zeros(0))
    codes = neighbour_codes(mask[box])
    # 0 wraps around to 255, so that one comparison leaves out both pure codes.
    found = np.flatnonzero((codes - np.uint8(1)) < _ALL_INSIDE - 1)
    cells = np.stack(np.unravel_index(found, codes.shape), axis=1)
    cells += [side.start for side in box]
    sides = [side + 1 for side in mask.shape]
    keys = (cells[:, 0] * sides[1] + cells[:, 1]) * sides[2] + cells[:, 2]
    return Surface(cells=cells, keys=keys, areas=cell_areas(spacing)[codes.ravel()[found]])


def neighbour_codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return which of its eight voxels are inside, for every cell.

    Args:
        mask: (I, J, K).

    Returns:
        uint8 (I + 1, J + 1, K + 1): bit 4 * i + 2 * j + k is the corner (i, j, k) of the cell.
    """
    codes = np.pad(mask, 1).astype(np.uint8)
    for axis, shift in ((2, 1), (1, 2), (0, 4)):
        lower = (slice(None),) * axis + (slice(None, -1),)
        upper = (slice(None),) * axis + (slice(1, None),)
        codes = codes[lower] | (codes[upper] << np.uint8(shift))
    return codes


@lru_cache(maxsize=64)
def cell_areas(spacing: Spacing) -> NDArray[np.float64]:
    """Return the area in mm^2 of the surface in a cell, per neighbour code, float64 (256,)."""
    i, j, k = spacing
    face = np.array([j * k, i * k, i * j]) / 8.0
    areas = np.zeros(_NUM_CODES)
    for code, triangles in _triangles_by_code().items():
        areas[code] = np.linalg.norm(np.array(triangles) * face, axis=1).sum()
    areas.setflags(write=False)
    return areas


@lru_cache(maxsize=1)
def _triangles_by_code() -> dict[int, tuple[tuple[int, int, int], ...]]:
    """Spread the patterns over all codes by the 48 symmetries of a cube and by complement."""
    found: dict[int, tuple[tuple[int, int, int], ...]] = {}
    symmetries = list(product(permutations(range(3)), range(8)))
    for (corners, triangles), (axes, mirror) in product(_PATTERNS, symmetries):
        code = sum(1 << (_permuted(corner, axes) ^ mirror) for corner in corners)
        turned = tuple(cast("Any", tuple(t[axis] for axis in axes)) for t in triangles)
        found[code] = turned
        found[_ALL_INSIDE - code] = turned
    return found


def _permuted(corner: int, axes: tuple[int, ...]) -> int:
    bits = (corner >> 2 & 1, corner >> 1 & 1, corner & 1)
    i, j, k = (bits[axis] for axis in axes)
    return 4 * i + 2 * j + k
