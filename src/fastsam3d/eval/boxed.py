"""Masks of large volumes kept as a box and what is in it, so that work follows the object.

Arrays are (I, J, K) on the grid of the volume; a box is a `Region` inside of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsam3d.prompts.simulate import bounding_box
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class BoxedMask:
    """A mask that is background outside of a box.

    Attributes:
        shape: Of the whole grid.
        region: The box; empty without foreground.
        array: The mask in it, bool, shape `region.shape`.
    """

    shape: Shape
    region: Region
    array: NDArray[np.bool_] = field(repr=False)

    @classmethod
    def empty(cls, shape: Shape) -> BoxedMask:
        """Return a mask without foreground."""
        return cls(shape, Region((0, 0, 0), (0, 0, 0)), np.zeros((0, 0, 0), np.bool_))

    @classmethod
    def of(cls, shape: Shape, region: Region, array: NDArray[Any]) -> BoxedMask:
        """Return the mask that is `array` (non-zero inside) in a box, with the tightest box."""
        inside = np.asarray(array) != 0
        box = bounding_box(inside)
        if box is None:
            return cls.empty(shape)
        start = tuple(first + side.start for first, side in zip(region.start, box, strict=True))
        stop = tuple(first + side.stop for first, side in zip(region.start, box, strict=True))
        (i0, j0, k0), (i1, j1, k1) = start, stop
        return cls(shape, Region((i0, j0, k0), (i1, j1, k1)), inside[box])

    @property
    def num_voxels(self) -> int:
        """Number of foreground voxels."""
        return int(np.count_nonzero(self.array))

    def crop(self, region: Region) -> NDArray[np.bool_]:
        """Return the mask in another box inside of the grid, shape `region.shape`."""
        result = np.zeros(region.shape, np.bool_)
        common = self.region.intersection(region)
        if not common.is_empty:
            i, j, k = (-first for first in region.start)
            a, b, c = (-first for first in self.region.start)
            result[common.shift((i, j, k)).slices] = self.array[common.shift((a, b, c)).slices]
        return result

    def whole(self) -> NDArray[np.bool_]:
        """Return the mask on the whole grid."""
        return self.crop(Region((0, 0, 0), self.shape))


def boxed_dice(mask: BoxedMask, truth: BoxedMask) -> float:
    """Return the Dice overlap; two empty masks agree perfectly (1)."""
    total = mask.num_voxels + truth.num_voxels
    if total == 0:
        return 1.0
    return 2.0 * int(np.count_nonzero(mask.array & truth.crop(mask.region))) / total


def boxed_labels(labels: NDArray[Any], *, min_voxels: int) -> dict[int, BoxedMask]:
    """Split a label map into one mask per value, in one pass over the volume.

    Args:
        labels: Unsigned integers, (I, J, K); 0 is background.
        min_voxels: Smaller structures are left out.

    Returns:
        Masks by ascending label value.
    """
    ndimage: Any = import_module("scipy.ndimage")
    boxes: list[tuple[slice, slice, slice] | None] = ndimage.find_objects(labels)
    i, j, k = labels.shape
    found: dict[int, BoxedMask] = {}
    for value, box in enumerate(boxes, start=1):
        if box is None:
            continue
        a, b, c = box
        region = Region((a.start, b.start, c.start), (a.stop, b.stop, c.stop))
        mask = BoxedMask((i, j, k), region, labels[box] == value)
        if mask.num_voxels >= min_voxels:
            found[value] = mask
    return found


def union(masks: Iterable[BoxedMask], shape: Shape) -> BoxedMask:
    """Return the voxels that are in any of the masks.

    Args:
        masks: On one grid; none of them gives an empty mask.
        shape: Of that grid.
    """
    parts = [mask for mask in masks if not mask.region.is_empty]
    if not parts:
        return BoxedMask.empty(shape)
    region = reduce(Region.union, (part.region for part in parts))
    inside = np.zeros(region.shape, np.bool_)
    for part in parts:
        inside |= part.crop(region)
    return BoxedMask(shape, region, inside)


def components(mask: BoxedMask, *, min_voxels: int) -> list[BoxedMask]:
    """Split a mask into its 26-connected parts, largest first (equals in memory order).

    Args:
        mask: What to split.
        min_voxels: Smaller parts are left out.
    """
    ndimage: Any = import_module("scipy.ndimage")
    if mask.region.is_empty:
        return []
    parts: NDArray[np.int32] = ndimage.label(mask.array, structure=np.ones((3, 3, 3)))[0]
    counts = np.bincount(parts.ravel())[1:]
    order = np.argsort(-counts, kind="stable")
    chosen = [int(number) for number in order if counts[number] >= min_voxels]
    return [BoxedMask.of(mask.shape, mask.region, parts == number + 1) for number in chosen]
