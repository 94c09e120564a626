"""Distances between surfaces, weighted by area: exact where a figure depends on them.

Distances come from k-d trees of surface elements, so that work grows with the surfaces and not
with the volume. A mask that has flooded a scan has hundreds of thousands of elements far from the
truth; of those, only the ones that may decide the percentile are measured, the others by blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.eval.surface import Spacing, Surface

    Distances = NDArray[np.float64]

HAUSDORFF_SHARE = 0.95
EXACT_MM = 2.0
"""Distances up to this are always exact: the largest tolerance of a surface Dice."""
_BLOCK = 4
_SAMPLE_STEP = 64


def robust_maximum(distances: Distances, areas: NDArray[np.float64]) -> float:
    """Return the smallest distance in mm within which 95 % of the area lies."""
    order = np.lexsort((areas, distances))
    share = np.cumsum(areas[order])
    at = min(int(np.searchsorted(share / areas.sum(), HAUSDORFF_SHARE)), len(order) - 1)
    return float(distances[order[at]])


class SurfaceTree:
    """Finds distances to one surface.

    Args:
        surface: With one element at least.
        spacing: Voxel size in mm.
    """

    def __init__(self, surface: Surface, spacing: Spacing) -> None:
        from scipy.spatial import KDTree  # noqa: PLC0415 - heavy

        self._surface = surface
        self._spacing = np.array(spacing)
        # For speed only, as measured on organs: none of the options changes what is found.
        self._tree: Any = KDTree(
            surface.cells * self._spacing, leafsize=32, balanced_tree=False, compact_nodes=False
        )

    def distances(self, surface: Surface) -> Distances:
        """Return how far the elements of another surface are from this one.

        Args:
            surface: On the same grid.

        Returns:
            Millimetres, float64 (N,). Exact up to `EXACT_MM` and around the percentile that
            `robust_maximum` returns; elsewhere on the right side of both.
        """
        exact = self._exact(surface.cells[::_SAMPLE_STEP])
        reach = float(np.linalg.norm(_BLOCK * self._spacing))
        if np.median(exact) < EXACT_MM + reach:
            return self._exact_where_apart(surface)
        return self._bounded(surface)

    def _exact_where_apart(self, surface: Surface) -> Distances:
        """Skip the elements that both surfaces have."""
        keys = self._surface.keys
        at = np.minimum(np.searchsorted(keys, surface.keys), len(keys) - 1)
        apart = np.flatnonzero(keys[at] != surface.keys)
        distances = np.zeros(len(surface.cells))
        distances[apart] = self._exact(surface.cells[apart])
        return distances

    def _bounded(self, surface: Surface) -> Distances:
        """Measure blocks first, and then the elements whose bounds leave a question open."""
        blocks = surface.cells // _BLOCK
        shape = blocks.max(axis=0) + 1
        _, first, block_of = np.unique(
            np.ravel_multi_index(tuple(blocks.T), tuple(shape)),
            return_index=True,
            return_inverse=True,
        )
        half = (_BLOCK - 1) / 2
        middles = (blocks[first] * _BLOCK + half) * self._spacing
        middle_mm: Distances = self._tree.query(middles)[0][block_of]
        reach = float(np.linalg.norm(half * self._spacing)) * (1 + 1e-9)  # rounding never decides
        low, high = np.maximum(middle_mm - reach, 0.0), middle_mm + reach
        at_least = robust_maximum(low, surface.areas)
        at_most = robust_maximum(high, surface.areas)
        open_ = (low <= EXACT_MM) | ((high >= at_least) & (low <= at_most))
        distances: Distances = np.where(high < at_least, high, low)
        distances[open_] = self._exact(surface.cells[open_])
        return distances

    def _exact(self, cells: NDArray[np.int64]) -> Distances:
        nearest = self._tree.query(cells * self._spacing)[1]
        # Whole steps times spacing: a distance of exactly the tolerance must not miss it by
        # rounding, which differences of millimetre coordinates would.
        steps = (cells - self._surface.cells[nearest]) * self._spacing
        return np.sqrt((steps**2).sum(axis=1))
