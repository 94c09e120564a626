"""What a user draws on slices: boxes of one slice, scribbles and lassos.

Each knows its frame and gives the same voxels whether it came in voxels, RAS or LPS. The axis
across a slice counts in the prompt's own frame: array axis 0, 1, 2 of a voxel prompt; the
sagittal, coronal or axial slices (x, y, z) of a world prompt, or the volume's nearest to them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from fastsam3d.errors import PromptError
from fastsam3d.prompts.frames import (
    Frame,
    Triple,
    WorldFrame,
    as_triple,
    as_vertices,
    centres_between,
    check_axis,
    check_frame,
    check_sign,
    check_world,
    nearest_voxels,
    to_voxels,
    voxel_axis,
)
from fastsam3d.prompts.raster import brush_voxels, line_voxels, outline_voxels
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from fastsam3d.volume import Geometry

MAX_RADIUS_MM: Final = 500.0


@dataclass(frozen=True)
class SliceBox:
    """A box on one slice around a structure that goes on beyond that slice.

    Its edges run along the volume's own axes. A structure that ends with the slice is a `Box`.

    Attributes:
        start: One corner in `frame`; of a voxel box, after construction, the lower one.
        stop: The opposite corner. Voxel boxes are half-open and one voxel thick across the slice;
            world boxes hold the voxel centres between their corners.
        axis: Axis of `frame` across the slice.
        frame: As `Point.frame`.

    Raises:
        PromptError: Not finite numbers, no size along the slice, an unknown axis or frame, or a
            voxel box with fractional corners or of several slices.

    Example:
        >>> SliceBox.voxel(2, 40, (90, 60), (150, 140)).region.shape
        (60, 80, 1)
    """

    start: Triple
    stop: Triple
    axis: int
    frame: Frame

    def __post_init__(self) -> None:
        """Check the numbers and sort the corners."""
        check_frame(self.frame)
        check_axis(self.axis, "Slice box")
        a, b = as_triple(self.start, "Slice box"), as_triple(self.stop, "Slice box")
        if a == b:
            message = f"Slice box must have a size along its slice, got {a} twice; widen it."
            raise PromptError(message)
        if self.frame == "voxel":
            a, b = self._whole_corners(a, b)
        object.__setattr__(self, "start", a)
        object.__setattr__(self, "stop", b)

    def _whole_corners(self, a: Triple, b: Triple) -> tuple[Triple, Triple]:
        low, high = np.minimum(a, b).tolist(), np.maximum(a, b).tolist()
        sizes = np.subtract(high, low)
        if any(value != math.floor(value) for value in a + b) or (
            sizes[self.axis] != 1 or sizes.min() < 1
        ):
            message = (
                f"Voxel slice box must have whole corners on one slice, got {a} to {b} across "
                f"axis {self.axis}; make it with SliceBox.voxel(axis, index, start, stop)."
            )
            raise PromptError(message)
        return as_triple(low, "Slice box"), as_triple(high, "Slice box")

    @classmethod
    def voxel(cls, axis: int, index: int, start: Iterable[float], stop: Iterable[float]) -> Self:
        """Make a half-open box on a slice of the file's array.

        Args:
            axis: Array axis across the slice.
            index: Which slice.
            start: First voxel along the two other axes, in their order.
            stop: One past the last voxel.
        """
        check_axis(axis, "Slice box")
        low, high = list(start), list(stop)
        low.insert(axis, index)
        high.insert(axis, index + 1)
        return cls(as_triple(low, "Slice box"), as_triple(high, "Slice box"), axis, "voxel")

    @classmethod
    def world(
        cls, a: Iterable[float], b: Iterable[float], frame: WorldFrame = "RAS", *, axis: int
    ) -> Self:
        """Make a box between two opposite corners in millimetres, on the slice they lie on.

        Args:
            a: A corner.
            b: The opposite one.
            frame: Of both.
            axis: World axis across the slice: 0 sagittal, 1 coronal, 2 axial.
        """
        check_world(frame)
        return cls(as_triple(a, "Slice box"), as_triple(b, "Slice box"), axis, frame)

    @property
    def region(self) -> Region:
        """The voxels of a voxel box.

        Raises:
            PromptError: The box is in a world frame.
        """
        if self.frame != "voxel":
            message = f"Slice box is in the {self.frame} frame; convert it with to_voxel first."
            raise PromptError(message)
        (i0, j0, k0), (i1, j1, k1) = self.start, self.stop
        return Region((int(i0), int(j0), int(k0)), (int(i1), int(j1), int(k1)))

    def to_voxel(self, geometry: Geometry) -> SliceBox:
        """Return the voxels of a volume's slice whose centres the box holds.

        The part outside of the volume is cut off.

        Raises:
            PromptError: The box has no voxel in common with the volume, or its corners lie on
                different slices.
        """
        axis = voxel_axis(self.axis, self.frame, geometry)
        region = self.region if self.frame == "voxel" else self._slice_region(geometry, axis)
        inside = region.clip(geometry.shape)
        if inside.is_empty:
            message = (
                f"Slice box {self.start} to {self.stop} ({self.frame}) lies outside of the "
                f"volume, at voxels {region.start} to {region.stop}; it ends at {geometry.shape}."
            )
            raise PromptError(message)
        return SliceBox(inside.start, inside.stop, axis, "voxel")

    def _slice_region(self, geometry: Geometry, axis: int) -> Region:
        # Corners are sorted here and not in the world: on an oblique volume that would give
        # another box.
        corners = to_voxels((self.start, self.stop), self.frame, geometry)
        low, high = corners.min(axis=0), corners.max(axis=0)
        if high[axis] - low[axis] > 1:
            message = (
                f"Slice box must lie on one slice, but its corners are on {low[axis]:.4g} and "
                f"{high[axis]:.4g} of array axis {axis}; give a Box instead."
            )
            raise PromptError(message)
        ranges = [centres_between(*pair) for pair in zip(low.tolist(), high.tolist(), strict=True)]
        index = int(nearest_voxels(corners.mean(axis=0))[axis])
        ranges[axis] = (index, index + 1)
        (i0, i1), (j0, j1), (k0, k1) = ranges
        return Region((i0, j0, k0), (i1, j1, k1))


@dataclass(frozen=True)
class Scribble:
    """A line drawn on a structure, or on background, as with a brush.

    Attributes:
        path: Vertices of a polyline in `frame`; one vertex is a dab.
        frame: As `Point.frame`.
        positive: Whether it is on the structure.
        radius_mm: Of the brush; 0 marks the voxels that the line passes.
        axis: Axis of `frame` across the slice that was drawn on: the brush has no thickness
            across it. None for a line in 3-D with a ball as brush.

    Raises:
        PromptError: No vertex, too many, not finite numbers, or a bad radius, axis or frame.

    Example:
        >>> Scribble.voxel([(20, 30, 12), (26, 34, 12)], axis=2, radius_mm=2).positive
        True
    """

    path: tuple[Triple, ...]
    frame: Frame
    positive: bool = True
    radius_mm: float = 0.0
    axis: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        object.__setattr__(self, "path", as_vertices(self.path, "Scribble", 1))
        check_frame(self.frame)
        check_sign(self.positive, "Scribble")
        if self.axis is not None:
            check_axis(self.axis, "Scribble")
        radius = self.radius_mm
        if isinstance(radius, bool) or not 0 <= radius <= MAX_RADIUS_MM:
            message = f"Scribble radius must be 0 to {MAX_RADIUS_MM:g} mm, got {radius!r}."
            raise PromptError(message)
        object.__setattr__(self, "radius_mm", float(radius))

    @classmethod
    def voxel(
        cls,
        path: Iterable[Iterable[float]],
        *,
        positive: bool = True,
        radius_mm: float = 0.0,
        axis: int | None = None,
    ) -> Self:
        """Make a scribble through voxel coordinates i, j, k of the file's array."""
        return cls(as_vertices(path, "Scribble", 1), "voxel", positive, radius_mm, axis)

    @classmethod
    def world(
        cls,
        path: Iterable[Iterable[float]],
        frame: WorldFrame = "RAS",
        *,
        positive: bool = True,
        radius_mm: float = 0.0,
        axis: int | None = None,
    ) -> Self:
        """Make a scribble through world coordinates x, y, z in millimetres of `frame`."""
        check_world(frame)
        return cls(as_vertices(path, "Scribble", 1), frame, positive, radius_mm, axis)

    def to_voxel(self, geometry: Geometry) -> Scribble:
        """Return the scribble in the voxel frame of a volume; it may reach outside.

        Raises:
            PromptError: No voxel of the line lies in the volume, or a scribble of one slice runs
                over several.
        """
        path = to_voxels(self.path, self.frame, geometry).tolist()
        axis = None if self.axis is None else voxel_axis(self.axis, self.frame, geometry)
        moved = Scribble.voxel(path, positive=self.positive, radius_mm=self.radius_mm, axis=axis)
        moved.line(geometry)
        return moved

    def line(self, geometry: Geometry) -> NDArray[np.int64]:
        """Return the voxels that the line passes, in its order, (N, 3), N at least 1.

        Raises:
            PromptError: As `to_voxel`.
        """
        line = line_voxels(to_voxels(self.path, self.frame, geometry), geometry.shape)
        if not len(line):
            message = f"Scribble ({self.frame}) lies outside of the volume of {geometry.shape}."
            raise PromptError(message)
        if self.axis is not None:
            axis = voxel_axis(self.axis, self.frame, geometry)
            first, last = int(line[:, axis].min()), int(line[:, axis].max())
            if first != last:
                message = (
                    f"Scribble must stay on one slice, got {first} to {last} of array axis {axis}; "
                    "leave axis out for a scribble in 3-D."
                )
                raise PromptError(message)
        return line

    def voxels(self, geometry: Geometry) -> NDArray[np.int64]:
        """Return the voxels of a volume under the brush, (N, 3), sorted, N at least 1.

        Raises:
            PromptError: As `to_voxel`.
        """
        axis = None if self.axis is None else voxel_axis(self.axis, self.frame, geometry)
        return brush_voxels(
            self.line(geometry),
            geometry.spacing,
            geometry.shape,
            radius_mm=self.radius_mm,
            axis=axis,
        )


@dataclass(frozen=True)
class Lasso:
    """A closed outline around a part of a structure, or of background, on a slice.

    What it encloses follows the even-odd rule. On an oblique volume an outline along the world's
    axes lies across slices; then it holds the voxels nearest to its plane.

    Attributes:
        outline: At least three vertices in `frame`, in one plane; closed by itself.
        axis: Axis of `frame` across the slice.
        frame: As `Point.frame`.
        positive: Whether it encloses the structure.

    Raises:
        PromptError: Too few or many vertices, not finite numbers, or a bad axis or frame.

    Example:
        >>> Lasso.voxel([(20, 30, 12), (26, 30, 12), (23, 36, 12)], axis=2).positive
        True
    """

    outline: tuple[Triple, ...]
    axis: int
    frame: Frame
    positive: bool = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        object.__setattr__(self, "outline", as_vertices(self.outline, "Lasso", 3))
        check_frame(self.frame)
        check_axis(self.axis, "Lasso")
        check_sign(self.positive, "Lasso")

    @classmethod
    def voxel(cls, outline: Iterable[Iterable[float]], *, axis: int, positive: bool = True) -> Self:
        """Make a lasso through voxel coordinates i, j, k of the file's array."""
        return cls(as_vertices(outline, "Lasso", 3), axis, "voxel", positive)

    @classmethod
    def world(
        cls,
        outline: Iterable[Iterable[float]],
        frame: WorldFrame = "RAS",
        *,
        axis: int,
        positive: bool = True,
    ) -> Self:
        """Make a lasso through world coordinates x, y, z in millimetres of `frame`."""
        check_world(frame)
        return cls(as_vertices(outline, "Lasso", 3), axis, frame, positive)

    def to_voxel(self, geometry: Geometry) -> Lasso:
        """Return the lasso in the voxel frame of a volume; it may reach outside.

        Raises:
            PromptError: It encloses no voxel centre of the volume, or is not flat.
        """
        outline = to_voxels(self.outline, self.frame, geometry).tolist()
        axis = voxel_axis(self.axis, self.frame, geometry)
        moved = Lasso.voxel(outline, axis=axis, positive=self.positive)
        moved.voxels(geometry)
        return moved

    def voxels(self, geometry: Geometry) -> NDArray[np.int64]:
        """Return the voxels of a volume that it encloses, (N, 3), sorted, N at least 1.

        Raises:
            PromptError: As `to_voxel`.
        """
        outline = to_voxels(self.outline, self.frame, geometry)
        axis = voxel_axis(self.axis, self.frame, geometry)
        voxels = outline_voxels(outline, geometry.shape, axis=axis)
        if not len(voxels):
            message = (
                f"Lasso ({self.frame}) encloses no voxel centre of the volume of "
                f"{geometry.shape}; draw it larger, or scribble."
            )
            raise PromptError(message)
        return voxels

    def outside(self, geometry: Geometry) -> NDArray[np.int64]:
        """Return the voxels on the same slice that it does not enclose, (N, 3); N may be 0.

        Raises:
            PromptError: It is not flat.
        """
        outline = to_voxels(self.outline, self.frame, geometry)
        axis = voxel_axis(self.axis, self.frame, geometry)
        return outline_voxels(outline, geometry.shape, axis=axis, is_outside=True)
