"""Half-open boxes of voxels.

A region says *which* voxels, in i, j, k index order, and knows no millimetres: a
`Geometry` does. Regions may reach outside a grid (an ROI near the border); `clip` cuts them.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, SupportsIndex

from fastsam3d.errors import GeometryError

if TYPE_CHECKING:
    from collections.abc import Iterable


def as_ijk(values: Iterable[SupportsIndex], what: str) -> tuple[int, int, int]:
    """Check that `values` are three integers.

    Args:
        values: Three Python or numpy integers; booleans and floats are refused.
        what: Name of the value for the error message.

    Returns:
        The values as Python integers, in i, j, k order.

    Raises:
        GeometryError: Not three values, or not integers.
    """
    given = tuple(values)
    try:
        checked = tuple(operator.index(value) for value in given if not isinstance(value, bool))
    except TypeError:
        checked = ()
    if len(given) != 3 or len(checked) != 3:
        message = f"{what} must be three integers (i, j, k), got {given}; round or complete it."
        raise GeometryError(message)
    return checked[0], checked[1], checked[2]


@dataclass(frozen=True)
class Region:
    """A box of voxels, from `start` (included) to `stop` (excluded), in i, j, k order.

    Attributes:
        start: First voxel of the box; may be negative (outside of the grid).
        stop: One past the last voxel; where it does not exceed `start` the region is empty.

    Raises:
        GeometryError: `start` or `stop` is not three integers.

    Example:
        >>> Region((0, 0, 0), (4, 4, 2)).shape
        (4, 4, 2)
    """

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    def __post_init__(self) -> None:
        """Normalise numpy integers to Python integers."""
        object.__setattr__(self, "start", as_ijk(self.start, "Region start"))
        object.__setattr__(self, "stop", as_ijk(self.stop, "Region stop"))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along i, j, k; zero where the region is empty."""
        (i0, j0, k0), (i1, j1, k1) = self.start, self.stop
        return max(0, i1 - i0), max(0, j1 - j0), max(0, k1 - k0)

    @property
    def is_empty(self) -> bool:
        """Whether the region holds no voxel."""
        return 0 in self.shape

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the region in an array; clip to the array's shape first.

        Raises:
            GeometryError: The region starts before voxel 0, where numpy would wrap around.
        """
        if min(self.start) < 0:
            message = f"Region starts outside of the grid at {self.start}; clip it first."
            raise GeometryError(message)
        (i0, j0, k0), (i1, j1, k1) = self.start, self.stop
        return slice(i0, max(i0, i1)), slice(j0, max(j0, j1)), slice(k0, max(k0, k1))

    def intersection(self, other: Region) -> Self:
        """Return the voxels that both regions hold; possibly empty."""
        (a0, b0, c0), (a1, b1, c1) = self.start, self.stop
        (i0, j0, k0), (i1, j1, k1) = other.start, other.stop
        start = (max(a0, i0), max(b0, j0), max(c0, k0))
        return type(self)(start, (min(a1, i1), min(b1, j1), min(c1, k1)))

    def clip(self, shape: Iterable[SupportsIndex]) -> Self:
        """Return the part of the region inside a grid of `shape` voxels; possibly empty."""
        return self.intersection(Region((0, 0, 0), as_ijk(shape, "Shape")))

    def union(self, other: Self) -> Self:
        """Return the smallest region that holds both; an empty one adds nothing."""
        if self.is_empty or other.is_empty:
            return other if self.is_empty else self
        (a0, b0, c0), (a1, b1, c1) = self.start, self.stop
        (i0, j0, k0), (i1, j1, k1) = other.start, other.stop
        start = (min(a0, i0), min(b0, j0), min(c0, k0))
        return type(self)(start, (max(a1, i1), max(b1, j1), max(c1, k1)))

    def shift(self, offset: Iterable[SupportsIndex]) -> Self:
        """Return the region moved by `offset` voxels along i, j, k."""
        di, dj, dk = as_ijk(offset, "Offset")
        (i0, j0, k0), (i1, j1, k1) = self.start, self.stop
        return type(self)((i0 + di, j0 + dj, k0 + dk), (i1 + di, j1 + dj, k1 + dk))
