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


class MaskPrompt:
    """A mask to start from: an earlier result or a rough drawing. Immutable.

    Kept as the voxels in the smallest box around the structure, since logs hold many.

    Args:
        array: Shape (I, J, K); copied, every label counts as structure.
        geometry: Grid of the array; must be that of the volume it is used on.

    Attributes:
        geometry: As given.
        region: The smallest box around the structure; empty without any.
        part: The mask in that box, bool, read-only.
        is_answer: Whether it is the answer as it stands, whatever points and boxes came before;
            see `as_answer`.

    Raises:
        PromptError: Not 3-D, another shape than the geometry's, or not whole numbers.
    """

    __slots__ = ("_digest", "geometry", "is_answer", "part", "region")

    geometry: Geometry
    is_answer: bool
    region: Region
    part: NDArray[np.bool_]
    _digest: bytes

    def __init__(self, array: NDArray[Any], geometry: Geometry) -> None:
        given = np.asarray(array)
        if given.shape != geometry.shape:
            message = (
                f"Mask prompt must have the volume's shape {geometry.shape}, "
                f"got {given.shape}; resample it onto the volume."
            )
            raise PromptError(message)
        if given.dtype.kind not in "biu":
            message = f"Mask prompt must hold labels, got {given.dtype}; threshold it first."
            raise PromptError(message)
        region = _box_around(given)
        self._set(region, given[region.slices] != 0, geometry)

    @classmethod
    def of_part(cls, region: Region, part: NDArray[Any], geometry: Geometry) -> Self:
        """Make a mask prompt of what it holds in a box, without an array of the whole grid.

        Args:
            region: A box of the grid.
            part: Shape `region.shape`; copied, every label counts as structure.
            geometry: The grid.

        Raises:
            PromptError: The box reaches out of the grid, or the part has another shape.
        """
        if region.clip(geometry.shape) != region and not region.is_empty:
            message = f"Mask prompt at {region} reaches out of a grid of {geometry.shape}; cut it."
            raise PromptError(message)
        if part.shape != region.shape:
            message = f"Mask prompt must have its box's shape {region.shape}, got {part.shape}."
            raise PromptError(message)
        tight = _box_around(part)
        made = cls.__new__(cls)
        made._set(tight.shift(region.start), part[tight.slices] != 0, geometry)
        return made

    def as_answer(self) -> Self:
        """Return the prompt as a choice: the mask is the answer, voxel by voxel.

        Without this, points and boxes beside a mask make it a start that the model refines.
        """
        made = type(self).of_part(self.region, self.part, self.geometry)
        object.__setattr__(made, "is_answer", True)
        return made

    def _set(self, region: Region, part: NDArray[np.bool_], geometry: Geometry) -> None:
        part.setflags(write=False)
        # Kept, since a session looks prompts up by value again and again.
        digest = hashlib.blake2b(np.packbits(part).tobytes(), digest_size=16).digest()
        # Empty boxes are equal wherever they lie.
        region = Region((0, 0, 0), (0, 0, 0)) if region.is_empty else region
        values = {"region": region, "part": part, "geometry": geometry, "_digest": digest}
        for name, value in (values | {"is_answer": False}).items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: values do not change."""
        message = f"A mask prompt is immutable, so {name} cannot be set; make another."
        raise AttributeError(message)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Pickle and copy through the constructors."""
        if self.is_answer:
            plain = type(self).of_part(self.region, self.part, self.geometry)
            return type(self).as_answer, (plain,)
        return type(self).of_part, (self.region, self.part, self.geometry)

    @property
    def array(self) -> NDArray[np.bool_]:
        """The mask on its whole grid, made anew at each access, read-only."""
        whole = np.zeros(self.geometry.shape, np.bool_)
        whole[self.region.slices] = self.part
        whole.setflags(write=False)
        return whole

    @property
    def is_empty(self) -> bool:
        """Whether no voxel is marked; such a prompt says nothing."""
        return self.region.is_empty

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
        return (
            self.geometry == other.geometry
            and self.region == other.region
            and self.is_answer == other.is_answer
            and np.array_equal(self.part, other.part)
        )

    def __hash__(self) -> int:
        """Hash by value."""
        return hash((self.geometry, self.region, self.is_answer, self._digest))

    def __repr__(self) -> str:
        """Show where the structure is."""
        return f"MaskPrompt({self.region}, {self.geometry})"


def _box_around(array: NDArray[Any]) -> Region:
    """Return the smallest box around what is not 0; an empty one where everything is."""
    start, stop = [0, 0, 0], [0, 0, 0]
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        hits = np.flatnonzero((array != 0).any(axis=others))
        if not len(hits):
            return Region((0, 0, 0), (0, 0, 0))
        start[axis], stop[axis] = int(hits[0]), int(hits[-1]) + 1
    return Region((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
