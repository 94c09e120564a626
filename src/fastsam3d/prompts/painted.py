"""What a user paints as voxels: strokes, and areas of a slice, from clients that send masks.

A `Scribble` or `Lasso` knows the line that was drawn; here only the voxels under it are known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from fastsam3d.errors import PromptError
from fastsam3d.prompts.frames import check_axis, check_sign
from fastsam3d.prompts.types import MaskPrompt
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.volume import Geometry

MAX_PAINTED_VOXELS: Final = 2**22
"""Of one prompt: a filled slice of 2048 by 2048."""


@dataclass(frozen=True)
class Painted:
    """Painted voxels of a volume; make it with `of`.

    Without `lasso_axis` they are a stroke, as of a `Scribble`: they are on the object, or not. With
    it they are an area of one slice, as inside of a `Lasso`: the area is object and the rest of the
    slice is not, or (negative) the area is not.

    Attributes:
        geometry: Grid that was painted on; must be that of the volume it is used on.
        region: The smallest box around the voxels.
        bits: The voxels in that box, eight a byte, k fastest, as `numpy.packbits` packs them.
        positive: Whether they are on the object.
        lasso_axis: Array axis across the slice of an area; None for a stroke.

    Raises:
        PromptError: No voxel, too many, bits that do not fill the box, a box that reaches out of
            the grid, or an area of several slices.

    Example:
        >>> stroke = np.zeros(volume.shape, bool)  # doctest: +SKIP
        >>> stroke[20:30, 40, 12] = True  # doctest: +SKIP
        >>> session.add(Painted.of(stroke, volume.geometry))  # doctest: +SKIP
    """

    geometry: Geometry
    region: Region
    bits: bytes = field(repr=False)
    positive: bool = True
    lasso_axis: int | None = None

    def __post_init__(self) -> None:
        """Check that box, bits and slice fit each other."""
        check_sign(self.positive, "Painted prompt")
        region = self.region
        if region.is_empty or region.clip(self.geometry.shape) != region:
            message = f"Painted box {region} must lie in a grid of {self.geometry.shape}; cut it."
            raise PromptError(message)
        if len(self.bits) != (math.prod(region.shape) + 7) // 8:
            message = f"Painted bits must fill their box of {region.shape}; make it with of()."
            raise PromptError(message)
        count = int(np.count_nonzero(self._part()))
        if not 0 < count <= MAX_PAINTED_VOXELS:
            message = f"1 to {MAX_PAINTED_VOXELS} voxels can be painted at once, got {count}."
            raise PromptError(message)
        if self.lasso_axis is not None:
            check_axis(self.lasso_axis, "Painted prompt")
            if region.shape[self.lasso_axis] != 1:
                message = (
                    f"A painted area must lie on one slice of array axis {self.lasso_axis}, got a "
                    f"box of {region.shape}; paint each slice by itself."
                )
                raise PromptError(message)

    @classmethod
    def of(
        cls,
        array: NDArray[Any],
        geometry: Geometry,
        *,
        region: Region | None = None,
        positive: bool = True,
        lasso_axis: int | None = None,
    ) -> Self:
        """Make a prompt of an array.

        Args:
            array: Painted where not 0; shape of the grid, or of `region`. Copied.
            geometry: Grid of the volume.
            region: Where the array lies in the grid; the whole grid by default.
            positive: Whether the voxels are on the object.
            lasso_axis: See the class.

        Raises:
            PromptError: As the class, or the array has another shape.
        """
        box = geometry.region if region is None else region
        mask = MaskPrompt.of_part(box, np.asarray(array), geometry)
        return cls.of_mask(mask, positive=positive, lasso_axis=lasso_axis)

    @classmethod
    def of_mask(
        cls, mask: MaskPrompt, *, positive: bool = True, lasso_axis: int | None = None
    ) -> Self:
        """Make a prompt of the voxels of a mask prompt; see `of`."""
        if mask.is_empty:
            message = "Nothing is painted; mark at least one voxel."
            raise PromptError(message)
        bits = np.packbits(mask.part).tobytes()
        return cls(mask.geometry, mask.region, bits, positive, lasso_axis)

    @property
    def mask(self) -> MaskPrompt:
        """The voxels as a mask prompt."""
        return MaskPrompt.of_part(self.region, self._part(), self.geometry)

    def to_voxel(self, geometry: Geometry) -> Painted:
        """Return the prompt if it lies on the grid of a volume.

        Raises:
            PromptError: The grids differ.
        """
        if not geometry.is_close(self.geometry):
            message = (
                f"Painted prompt lies on another grid than the volume, got {self.geometry} "
                f"beside {geometry}; paint on the volume."
            )
            raise PromptError(message)
        return self

    def voxels(self, geometry: Geometry) -> NDArray[np.int64]:
        """Return the painted voxels of a volume, (N, 3), sorted, N at least 1.

        Raises:
            PromptError: As `to_voxel`.
        """
        self.to_voxel(geometry)
        return np.argwhere(self._part()) + self.region.start

    def line(self, geometry: Geometry) -> NDArray[np.int64]:
        """Return what a stroke must pass through: all of its voxels, as `voxels`."""
        return self.voxels(geometry)

    def outside(self, geometry: Geometry) -> NDArray[np.int64]:
        """Return the voxels of an area's slice that are not painted, (N, 3); N may be 0.

        Raises:
            PromptError: As `to_voxel`, or it is not an area.
        """
        self.to_voxel(geometry)
        if self.lasso_axis is None:
            message = "A painted stroke has no outside; give lasso_axis for an area."
            raise PromptError(message)
        sides, at = list(geometry.shape), list(self.region.slices)
        sides[self.lasso_axis], at[self.lasso_axis] = 1, slice(None)
        rest = np.ones(sides, np.bool_)
        rest[tuple(at)] = ~self._part()
        voxels = np.argwhere(rest)
        voxels[:, self.lasso_axis] = self.region.start[self.lasso_axis]
        return voxels

    def _part(self) -> NDArray[np.bool_]:
        flat = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=math.prod(self.region.shape))
        return flat.view(np.bool_).reshape(self.region.shape)


def fill_outline(area: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Return an area of one slice with what its outlines enclose; filled areas stay as they are.

    Args:
        area: Shape 1 along `axis`.
        axis: Across the slice.
    """
    ndimage: Any = import_module("scipy.ndimage")
    return np.expand_dims(ndimage.binary_fill_holes(area.any(axis=axis)), axis)
