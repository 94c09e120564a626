"""What a user gives: points, boxes and masks, each of which knows its frame.

Voxel frame: array index i, j, k of the volume's file, voxel centres at integers. World frame:
millimetres, "RAS" (3D Slicer, NiiVue, nibabel) or "LPS" (ITK, DICOM). Values are frozen; a
prompt moves between frames only through a `Geometry`. What is drawn on slices is in `drawn`.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from fastsam3d.errors import PromptError
from fastsam3d.prompts.frames import (
    ROUNDING_VOXELS,
    Frame,
    Triple,
    WorldFrame,
    as_triple,
    centres_between,
    check_frame,
    check_sign,
    check_world,
    to_voxels,
)
from fastsam3d.volume import Geometry, Region

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

MAX_CLAMP_VOXELS: Final = 0.5
"""A point up to half a voxel outside of the outermost centres is moved onto them."""


@dataclass(frozen=True)
class Point:
    """A click.

    Attributes:
        position: Coordinates in `frame`; voxel coordinates may be fractional.
        frame: "voxel", or the world frames "RAS" and "LPS" (millimetres).
        positive: Whether the point is on the structure (else on background).

    Raises:
        PromptError: Not three finite numbers, or an unknown frame.

    Example:
        >>> Point.voxel((120, 88, 40)).positive
        True
    """

    position: Triple
    frame: Frame
    positive: bool = True

    def __post_init__(self) -> None:
        """Check the numbers and the frame."""
        object.__setattr__(self, "position", as_triple(self.position, "Point"))
        check_frame(self.frame)
        check_sign(self.positive, "Point")

    @classmethod
    def voxel(cls, position: Iterable[float], *, positive: bool = True) -> Self:
        """Make a point at voxel coordinates i, j, k of the file's array."""
        return cls(as_triple(position, "Point"), "voxel", positive)

    @classmethod
    def world(
        cls,
        position: Iterable[float],
        frame: WorldFrame = "RAS",
        *,
        positive: bool = True,
    ) -> Self:
        """Make a point at world coordinates x, y, z in millimetres of `frame`."""
        check_world(frame)
        return cls(as_triple(position, "Point"), frame, positive)

    def to_voxel(self, geometry: Geometry) -> Point:
        """Return the point in the voxel frame of a volume.

        A point up to `MAX_CLAMP_VOXELS` outside of the outermost voxel centres (that is, within
        their voxels) is moved onto them.

        Raises:
            PromptError: The point lies outside of the volume; the message gives the bounds.
        """
        at = to_voxels((self.position,), self.frame, geometry)[0]
        last = np.asarray(geometry.shape) - 1.0
        margin = MAX_CLAMP_VOXELS + (0.0 if self.frame == "voxel" else ROUNDING_VOXELS)
        if np.any(at < -margin) or np.any(at > last + margin):
            found = ", ".join(f"{value:.6g}" for value in at)
            message = (
                f"Point {self.position} ({self.frame}) lies outside of the volume, at voxel "
                f"({found}); voxels run from (0, 0, 0) to {tuple(int(n) for n in last)}."
            )
            raise PromptError(message)
        return Point.voxel(np.clip(at, 0.0, last).tolist(), positive=self.positive)


@dataclass(frozen=True)
class Box:
    """A 3-D box around a structure.

    Attributes:
        start: One corner in `frame`; after construction the lower one.
        stop: The opposite corner. Voxel boxes are half-open: `stop` is one past the last voxel.
        frame: As `Point.frame`.

    Raises:
        PromptError: Not finite numbers, zero size along an axis, or a fractional voxel box.
    """

    start: Triple
    stop: Triple
    frame: Frame

    def __post_init__(self) -> None:
        """Check the numbers and sort the corners."""
        check_frame(self.frame)
        a, b = as_triple(self.start, "Box"), as_triple(self.stop, "Box")
        if any(x == y for x, y in zip(a, b, strict=True)):
            message = f"Box must have a size along each axis, got {a} to {b}; widen it."
            raise PromptError(message)
        if self.frame == "voxel" and any(value != math.floor(value) for value in a + b):
            message = f"Voxel box must have whole corners, got {a} to {b}; round them."
            raise PromptError(message)
        low, high = np.minimum(a, b).tolist(), np.maximum(a, b).tolist()
        object.__setattr__(self, "start", tuple(low))
        object.__setattr__(self, "stop", tuple(high))

    @classmethod
    def voxel(cls, start: Iterable[float], stop: Iterable[float]) -> Self:
        """Make a half-open box of voxels, `start` included and `stop` not."""
        return cls(as_triple(start, "Box"), as_triple(stop, "Box"), "voxel")

    @classmethod
    def world(cls, a: Iterable[float], b: Iterable[float], frame: WorldFrame = "RAS") -> Self:
        """Make a box along the world axes between two opposite corners in millimetres."""
        check_world(frame)
        return cls(as_triple(a, "Box"), as_triple(b, "Box"), frame)

    @property
    def region(self) -> Region:
        """The voxels of a voxel box.

        Raises:
            PromptError: The box is in a world frame.
        """
        if self.frame != "voxel":
            message = f"Box is in the {self.frame} frame; convert it with to_voxel first."
            raise PromptError(message)
        (i0, j0, k0), (i1, j1, k1) = self.start, self.stop
        return Region((int(i0), int(j0), int(k0)), (int(i1), int(j1), int(k1)))

    def to_voxel(self, geometry: Geometry) -> Box:
        """Return the voxels of a volume whose centres the box holds, as a half-open box.

        On an oblique volume this is the voxel box around all eight corners. A box between two
        layers of centres takes the layer it is nearest to. The part outside is cut off.

        Raises:
            PromptError: The box has no voxel in common with the volume.
        """
        region = self.region if self.frame == "voxel" else self._hull(geometry)
        inside = region.clip(geometry.shape)
        if inside.is_empty:
            message = (
                f"Box {self.start} to {self.stop} ({self.frame}) lies outside of the volume, at "
                f"voxels {region.start} to {region.stop}; the volume ends at {geometry.shape}."
            )
            raise PromptError(message)
        return Box.voxel(inside.start, inside.stop)

    def _hull(self, geometry: Geometry) -> Region:
        corners = np.array(list(itertools.product(*zip(self.start, self.stop, strict=True))))
        voxels = to_voxels(corners, self.frame, geometry)
        low, high = voxels.min(axis=0), voxels.max(axis=0)
        ends = [centres_between(*pair) for pair in zip(low.tolist(), high.tolist(), strict=True)]
        (i0, i1), (j0, j1), (k0, k1) = ends
        return Region((i0, j0, k0), (i1, j1, k1))


@dataclass(frozen=True, eq=False)
class MaskPrompt:
    """A mask to start from: an earlier result or a rough drawing.

    Attributes:
        array: Shape (I, J, K); copied to read-only bool, every label counts as structure.
        geometry: Grid of the array; must be that of the volume it is used on.

    Raises:
        PromptError: Not 3-D, another shape than the geometry's, or not whole numbers.
    """

    array: NDArray[Any]
    geometry: Geometry

    def __post_init__(self) -> None:
        """Check the shape and freeze a copy."""
        given = np.asarray(self.array)
        if given.shape != self.geometry.shape:
            message = (
                f"Mask prompt must have the volume's shape {self.geometry.shape}, "
                f"got {given.shape}; resample it onto the volume."
            )
            raise PromptError(message)
        if given.dtype.kind not in "biu":
            message = f"Mask prompt must hold labels, got {given.dtype}; threshold it first."
            raise PromptError(message)
        frozen = given != 0
        frozen.setflags(write=False)
        object.__setattr__(self, "array", frozen)

    @property
    def is_empty(self) -> bool:
        """Whether no voxel is marked; such a prompt says nothing."""
        return not bool(self.array.any())

    def to_voxel(self, geometry: Geometry) -> MaskPrompt:
        """Return the prompt if it lies on the grid of a volume.

        Raises:
            PromptError: The grids differ.
        """
        if not geometry.is_close(self.geometry):
            message = (
                f"Mask prompt lies on another grid than the volume, got {self.geometry} "
                f"beside {geometry}; resample it onto the volume."
            )
            raise PromptError(message)
        return self

    def __eq__(self, other: object) -> bool:
        """Whether both mark the same voxels of equal grids."""
        if not isinstance(other, MaskPrompt):
            return NotImplemented
        return self.geometry == other.geometry and np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        """Hash by value."""
        return hash((self.geometry, self._digest))

    @cached_property
    def _digest(self) -> bytes:
        """Kept, since a session looks prompts up by value again and again."""
        return hashlib.blake2b(np.packbits(self.array).tobytes(), digest_size=16).digest()
