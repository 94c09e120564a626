"""Where the voxels of a grid lie in the world.

The only place where voxels and millimetres meet. Voxel frame: array index i, j, k, voxel
centres at integers. World frame: millimetres, RAS+ (x to the right, y to the front, z up).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, SupportsIndex, cast

import numpy as np

from fastsam3d.errors import GeometryError
from fastsam3d.volume.region import Region, as_ijk

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

    Float64Array = NDArray[np.float64]

# Sine-like volume of the unit voxel axes under which a grid counts as flat; float32 headers
# carry about 1e-7 of noise.
MIN_AXES_DETERMINANT = 1e-4
MAX_MM = 1e9
MIN_SPACING_MM = 1e-6
LPS_TO_RAS = (-1.0, -1.0, 1.0)


@dataclass(frozen=True)
class AxisReorder:
    """A permutation and flip of voxel axes, exactly invertible.

    Attributes:
        permutation: `permutation[a]` is the old axis that becomes new axis `a`.
        flips: `flips[a]` says whether new axis `a` runs against its old axis.
        shape: Grid shape before the reordering.
    """

    permutation: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        """Check that the permutation is one."""
        if sorted(self.permutation) != [0, 1, 2]:
            message = f"Permutation must hold 0, 1 and 2 once, got {self.permutation}; correct it."
            raise GeometryError(message)

    @property
    def is_identity(self) -> bool:
        """Whether nothing is moved."""
        return self.permutation == (0, 1, 2) and not any(self.flips)

    @property
    def reordered_shape(self) -> tuple[int, int, int]:
        """Grid shape after the reordering."""
        a, b, c = self.permutation
        return self.shape[a], self.shape[b], self.shape[c]

    @property
    def inverse(self) -> AxisReorder:
        """The reordering that undoes this one."""
        a, b, c = (self.permutation.index(axis) for axis in range(3))
        flips = (self.flips[a], self.flips[b], self.flips[c])
        return AxisReorder((a, b, c), flips, self.reordered_shape)

    @property
    def matrix(self) -> Float64Array:
        """4x4 matrix from reordered to original voxel coordinates."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1.0
        for new, (old, flip) in enumerate(zip(self.permutation, self.flips, strict=True)):
            matrix[old, new] = -1.0 if flip else 1.0
            matrix[old, 3] = self.shape[old] - 1 if flip else 0.0
        return matrix

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a view of `array` (of `shape`) with reordered axes.

        Raises:
            GeometryError: `array` does not have this reordering's shape.
        """
        if array.shape != self.shape:
            message = (
                f"Array to reorder must have shape {self.shape}, got {array.shape}; "
                "use the reordering of its own geometry."
            )
            raise GeometryError(message)
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return array.transpose(self.permutation)[steps]

    def invert(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a view of a reordered `array` with the original axes."""
        return self.inverse.apply(array)

    def apply_points(self, points: ArrayLike) -> Float64Array:
        """Return original voxel coordinates (..., 3) in the reordered grid."""
        return _transform(self.inverse.matrix, points)

    def invert_points(self, points: ArrayLike) -> Float64Array:
        """Return reordered voxel coordinates (..., 3) in the original grid."""
        return _transform(self.matrix, points)

    def apply_region(self, region: Region) -> Region:
        """Return a region of the original grid in the reordered grid."""
        start: list[int] = []
        stop: list[int] = []
        for old, flip in zip(self.permutation, self.flips, strict=True):
            low, high = region.start[old], region.stop[old]
            start.append(self.shape[old] - high if flip else low)
            stop.append(self.shape[old] - low if flip else high)
        return Region(as_ijk(start, "start"), as_ijk(stop, "stop"))

    def invert_region(self, region: Region) -> Region:
        """Return a region of the reordered grid in the original grid."""
        return self.inverse.apply_region(region)


class Geometry:
    """Shape and position of a voxel grid; immutable, compared by value.

    Args:
        shape: Voxels along i, j, k; each at least 1.
        affine: 4x4 voxel to world matrix, RAS+ millimetres; copied to read-only float64.

    Raises:
        GeometryError: A bad shape, or an affine that is not 4x4, not finite, without the last
            row 0 0 0 1, or singular.

    Example:
        >>> Geometry((256, 256, 30), np.diag([0.4, 0.4, 5.0, 1.0])).spacing
        (0.4, 0.4, 5.0)
    """

    __slots__ = ("_affine", "_inverse", "_shape")

    def __init__(self, shape: Iterable[SupportsIndex], affine: ArrayLike) -> None:
        self._shape = as_ijk(shape, "Shape")
        if min(self._shape) < 1:
            message = f"Shape must be at least 1 voxel along each axis, got {self._shape}."
            raise GeometryError(message)
        self._affine = _checked_affine(affine)
        self._inverse = _read_only(np.linalg.inv(self._affine).astype(np.float64, copy=False))

    @classmethod
    def from_itk(
        cls,
        size: Sequence[int],
        spacing: Sequence[float],
        origin: Sequence[float],
        direction: Sequence[float],
    ) -> Self:
        """Make a geometry of ITK's description.

        Args:
            size: Voxels along i, j, k (ITK's size order, not that of its numpy arrays).
            spacing: Millimetres per voxel along i, j, k.
            origin: LPS millimetres of voxel (0, 0, 0).
            direction: Nine numbers, row by row; columns are the LPS directions of i, j, k.

        Returns:
            The same grid in RAS+ millimetres.

        Raises:
            GeometryError: As the constructor.
        """
        affine = np.eye(4)
        columns = np.asarray(direction, dtype=np.float64).reshape(3, 3) * np.asarray(spacing)
        affine[:3, :3] = columns * np.asarray(LPS_TO_RAS)[:, None]
        affine[:3, 3] = np.asarray(origin) * LPS_TO_RAS
        return cls(size, affine)

    def to_itk(
        self,
    ) -> tuple[
        tuple[int, int, int],
        tuple[float, float, float],
        tuple[float, float, float],
        tuple[float, ...],
    ]:
        """Return (size, spacing, origin, direction) as ITK wants them, in LPS millimetres."""
        origin = self._affine[:3, 3] * LPS_TO_RAS
        direction = self.direction * np.asarray(LPS_TO_RAS)[:, None]
        # Adding 0.0 turns -0.0 to 0.0, which text headers would show.
        values = [float(value) for value in (direction + 0.0).ravel()]
        return self._shape, self.spacing, _triple(origin + 0.0), tuple(values)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along i, j, k."""
        return self._shape

    @property
    def affine(self) -> Float64Array:
        """4x4 voxel to world matrix, RAS+ millimetres, read-only float64."""
        return self._affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres per voxel along i, j, k; always positive."""
        return _triple(np.linalg.norm(self._affine[:3, :3], axis=0))

    @property
    def origin(self) -> tuple[float, float, float]:
        """World position of voxel (0, 0, 0), RAS+ millimetres."""
        return _triple(self._affine[:3, 3])

    @property
    def direction(self) -> Float64Array:
        """3x3 matrix whose columns are the RAS+ unit vectors of i, j, k."""
        return self._affine[:3, :3] / np.asarray(self.spacing)

    @property
    def orientation(self) -> str:
        """Letters of the world directions that i, j, k point to most, such as "RAS"."""
        reorder = self.canonical_reorder()
        inverse = reorder.inverse
        pairs = ("RL", "AP", "SI")
        return "".join(pairs[world][reorder.flips[world]] for world in inverse.permutation)

    @property
    def region(self) -> Region:
        """All voxels of the grid."""
        return Region((0, 0, 0), self._shape)

    def voxel_to_world(self, points: ArrayLike) -> Float64Array:
        """Return world positions (RAS+ mm) of voxel coordinates, both (..., 3) float64."""
        return _transform(self._affine, points)

    def world_to_voxel(self, points: ArrayLike) -> Float64Array:
        """Return voxel coordinates of world positions (RAS+ mm), both (..., 3) float64."""
        return _transform(self._inverse, points)

    def contains(self, voxel: ArrayLike) -> bool:
        """Whether a voxel coordinate lies in the grid, whose faces are half a voxel out."""
        point = _as_points(voxel)
        return bool(np.all((point >= -0.5) & (point <= np.asarray(self._shape) - 0.5)))

    def crop(self, region: Region) -> Self:
        """Return the geometry of a region of this grid.

        Args:
            region: Voxels to keep; may reach outside, as an ROI at the border does.

        Returns:
            A grid of `region.shape`, its voxels where they were.

        Raises:
            GeometryError: The region is empty.
        """
        if region.is_empty:
            message = f"Region to crop must hold a voxel, got {region}; widen or move it."
            raise GeometryError(message)
        affine = self._affine.copy()
        affine[:3, 3] = self.voxel_to_world(region.start)
        return type(self)(region.shape, affine)

    def pad(self, before: Iterable[SupportsIndex], after: Iterable[SupportsIndex]) -> Self:
        """Return the grid with voxels added at both ends of i, j, k.

        Raises:
            GeometryError: A count is negative or not an integer.
        """
        low, high = as_ijk(before, "Padding before"), as_ijk(after, "Padding after")
        if min(low + high) < 0:
            message = f"Padding must not be negative, got {low} and {high}; use crop to cut."
            raise GeometryError(message)
        start = (-low[0], -low[1], -low[2])
        return self.crop(Region(start, self.shape).union(self.region.shift(high)))

    def resample(self, spacing: float | Sequence[float]) -> Self:
        """Return a grid of another spacing over the same field of view.

        The outer corner of voxel (0, 0, 0) stays where it is; the far faces move by at most
        half a new voxel, since the number of voxels is rounded (and at least 1).

        Args:
            spacing: Millimetres per voxel; one number, or three along i, j, k.

        Raises:
            GeometryError: A spacing is not positive and finite.
        """
        wanted = np.broadcast_to(np.asarray(spacing, dtype=np.float64), (3,))
        if not (np.all(np.isfinite(wanted)) and np.all(wanted > 0)):
            message = f"Spacing must be positive millimetres, got {spacing}; give e.g. 1.5."
            raise GeometryError(message)
        scale = wanted / np.asarray(self.spacing)
        shape = [max(1, math.floor(n / s + 0.5)) for n, s in zip(self._shape, scale, strict=True)]
        affine = self._affine.copy()
        affine[:3, :3] *= scale
        affine[:3, 3] = self.voxel_to_world((scale - 1.0) / 2.0)
        return type(self)(shape, affine)

    def canonical_reorder(self) -> AxisReorder:
        """Return the reordering of axes that brings this grid closest to RAS+."""
        direction = self.direction
        # Six candidates: an optimum over all, so that axes near 45 degrees cannot clash.
        best = max(
            itertools.permutations(range(3)),
            key=lambda axes: sum(abs(direction[world, axis]) for world, axis in enumerate(axes)),
        )
        a, b, c = best
        flips = (bool(direction[0, a] < 0), bool(direction[1, b] < 0), bool(direction[2, c] < 0))
        return AxisReorder((a, b, c), flips, self._shape)

    def reorient(self, reorder: AxisReorder | None = None) -> Self:
        """Return this grid with reordered axes; every voxel keeps its place in the world.

        Args:
            reorder: What to do; the closest to RAS+ by default. `reorder.apply` does the same
                to an array, `reorder.invert` undoes it.

        Raises:
            GeometryError: `reorder` was made for another shape.
        """
        chosen = self.canonical_reorder() if reorder is None else reorder
        if chosen.shape != self._shape:
            message = f"Reordering is for shape {chosen.shape}, got a grid of {self._shape}."
            raise GeometryError(message)
        return type(self)(chosen.reordered_shape, self._affine @ chosen.matrix)

    def is_close(self, other: Geometry, *, tolerance_voxels: float = 1e-3) -> bool:
        """Whether both grids have one shape and no voxel is further apart than the tolerance.

        Args:
            other: Geometry to compare with.
            tolerance_voxels: Largest distance, in voxels of this grid; the default allows for
                affines that went through a float32 header.
        """
        if self._shape != other.shape:
            return False
        corners = np.array(list(itertools.product(*((0, n - 1) for n in self._shape))))
        distance = self.world_to_voxel(other.voxel_to_world(corners)) - corners
        return bool(np.abs(distance).max() <= tolerance_voxels)

    def __eq__(self, other: object) -> bool:
        """Whether shape and affine are equal number by number."""
        if not isinstance(other, Geometry):
            return NotImplemented
        return self._shape == other.shape and np.array_equal(self._affine, other.affine)

    def __hash__(self) -> int:
        """Hash by value; -0.0 and 0.0 are equal, hence the sum."""
        return hash((self._shape, (self._affine + 0.0).tobytes()))

    def __repr__(self) -> str:
        """Show shape, spacing and orientation."""
        spacing = ", ".join(f"{value:.4g}" for value in self.spacing)
        return f"Geometry({self._shape}, spacing=({spacing}) mm, orientation={self.orientation})"

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[int, int, int], Float64Array]]:
        """Pickle and copy through the constructor, which keeps the arrays read-only."""
        return type(self), (self._shape, self._affine)


def _checked_affine(affine: ArrayLike) -> Float64Array:
    try:
        matrix = np.array(affine, dtype=np.float64)
    except (TypeError, ValueError) as error:
        message = "Affine must be a 4x4 matrix of numbers; it could not be converted."
        raise GeometryError(message) from error
    if matrix.shape != (4, 4):
        message = f"Affine must be a 4x4 voxel to world matrix, got shape {matrix.shape}."
        raise GeometryError(message)
    # Written so that NaN fails it; the bound also keeps all later arithmetic from overflowing.
    if not np.all(np.abs(matrix) <= MAX_MM):
        message = (
            f"Affine must be finite and below {MAX_MM:.0e} mm, got {matrix.tolist()}; "
            "repair the file's header."
        )
        raise GeometryError(message)
    if not np.array_equal(matrix[3], [0, 0, 0, 1]):
        message = f"Affine must end with the row 0 0 0 1, got {matrix[3].tolist()}."
        raise GeometryError(message)
    norms = np.linalg.norm(matrix[:3, :3], axis=0)
    if (
        norms.min() < MIN_SPACING_MM
        or abs(np.linalg.det(matrix[:3, :3] / norms)) < MIN_AXES_DETERMINANT
    ):
        rows = matrix[:3, :3].tolist()
        message = f"Affine is singular (two voxel axes coincide or one has no length), got {rows}."
        raise GeometryError(message)
    return _read_only(matrix)


def _read_only(array: Float64Array) -> Float64Array:
    array.setflags(write=False)
    return array


def _as_points(points: ArrayLike) -> Float64Array:
    array = np.asarray(points, dtype=np.float64)
    if array.ndim == 0 or array.shape[-1] != 3:
        message = f"Points must have shape (..., 3), got {array.shape}; give i, j, k or x, y, z."
        raise GeometryError(message)
    return array


def _transform(matrix: Float64Array, points: ArrayLike) -> Float64Array:
    return _as_points(points) @ matrix[:3, :3].T + matrix[:3, 3]


def _triple(values: Float64Array) -> tuple[float, float, float]:
    a, b, c = cast("list[float]", values.tolist())
    return a, b, c
