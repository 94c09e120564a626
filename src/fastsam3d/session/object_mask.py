"""Masks of objects: the voxels in the smallest box that holds them, immutable.

A study holds many objects and many states of each; whole arrays would not fit. All regions are
voxels of one volume.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from fastsam3d.segmenter import EMPTY_REGION
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.segmenter import Prediction

PACK_LEVEL = 1  # Bits of a mask are long runs; more effort saves little.


@dataclass(frozen=True, eq=False)
class ObjectMask:
    """A set of voxels.

    Attributes:
        region: Box of the volume around it; the smallest one when made by `cropped`.
        array: bool, shape `region.shape`, read-only.
    """

    region: Region
    array: NDArray[np.bool_] = field(repr=False)

    def __post_init__(self) -> None:
        """Freeze the array."""
        self.array.setflags(write=False)

    @classmethod
    def empty(cls) -> Self:
        """Return the mask without a voxel."""
        return cls(EMPTY_REGION, np.zeros((0, 0, 0), np.bool_))

    @classmethod
    def cropped(cls, region: Region, array: NDArray[Any]) -> Self:
        """Make a mask of an array in a box, in the smallest box that does.

        Args:
            region: Where the array lies.
            array: Foreground where not 0, shape `region.shape`; copied.
        """
        inside = np.asarray(array) != 0
        start: list[int] = []
        stop: list[int] = []
        for axis in range(3):
            others = tuple(other for other in range(3) if other != axis)
            hits = np.flatnonzero(inside.any(axis=others))
            if not len(hits):
                return cls.empty()
            start.append(int(hits[0]))
            stop.append(int(hits[-1]) + 1)
        (i0, j0, k0), (i1, j1, k1) = start, stop
        tight = Region((i0, j0, k0), (i1, j1, k1))
        return cls(tight.shift(region.start), inside[tight.slices].copy())

    @classmethod
    def of(cls, prediction: Prediction) -> Self:
        """Return the mask of a prediction."""
        return cls.cropped(prediction.region, prediction.region_mask)

    @property
    def num_voxels(self) -> int:
        """Number of voxels in the mask."""
        return int(np.count_nonzero(self.array))

    @property
    def is_empty(self) -> bool:
        """Whether it holds no voxel."""
        return self.region.is_empty

    def holds(self, voxel: tuple[int, int, int]) -> bool:
        """Whether a voxel of the volume is in the mask."""
        at = np.subtract(voxel, self.region.start)
        return bool(np.all((at >= 0) & (at < self.region.shape))) and bool(self.array[tuple(at)])

    def part(self, region: Region) -> NDArray[np.bool_]:
        """Return the mask in any box of the volume, bool, shape `region.shape`, a copy."""
        found = np.zeros(region.shape, np.bool_)
        shared = self.region.intersection(region)
        if not shared.is_empty:
            found[_within(shared, region)] = self.array[_within(shared, self.region)]
        return found

    def union(self, other: ObjectMask) -> ObjectMask:
        """Return the voxels of either mask."""
        if self.is_empty or other.is_empty:
            return other if self.is_empty else self
        region = self.region.union(other.region)
        return ObjectMask(region, self.part(region) | other.part(region))

    def intersection(self, other: ObjectMask) -> ObjectMask:
        """Return the voxels of both masks."""
        shared = self.region.intersection(other.region)
        if shared.is_empty:
            return ObjectMask.empty()
        return ObjectMask.cropped(shared, self.part(shared) & other.part(shared))

    def difference(self, other: ObjectMask) -> ObjectMask:
        """Return the voxels of this mask that are not in the other; itself when none is."""
        shared = self.region.intersection(other.region)
        if shared.is_empty:
            return self
        taken = other.part(shared)
        at = _within(shared, self.region)
        if not np.any(taken & self.array[at]):
            return self
        array = self.array.copy()
        array[at] &= ~taken
        return ObjectMask.cropped(self.region, array)

    def equals(self, other: ObjectMask) -> bool:
        """Whether both hold the same voxels."""
        region = self.region.union(other.region)
        return self is other or np.array_equal(self.part(region), other.part(region))

    def paste(self, target: NDArray[Any], value: int) -> None:
        """Write a value to the mask's voxels of an array of the whole volume, in place."""
        target[self.region.slices][self.array] = value

    def to_array(self, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """Return the mask on the volume's grid, 0 or 1, shape (I, J, K)."""
        whole = np.zeros(shape, np.uint8)
        self.paste(whole, 1)
        return whole

    @cached_property
    def packed(self) -> bytes:
        """The array as compressed bits, i slowest; kept, since a study is saved often."""
        return zlib.compress(np.packbits(self.array).tobytes(), PACK_LEVEL)

    @classmethod
    def unpacked(cls, region: Region, packed: bytes) -> Self:
        """Make a mask of `packed`, which may come from anyone.

        Args:
            region: Where it lies; bounds the memory that is used.
            packed: Compressed bits.

        Raises:
            ValueError: Damaged, or another number of bits than the region holds.
        """
        num_voxels = math.prod(region.shape)
        num_bytes = (num_voxels + 7) // 8
        inflate = zlib.decompressobj()
        try:
            bits = inflate.decompress(packed, num_bytes + 1)
        except zlib.error as error:
            message = f"mask bits are damaged ({error})"
            raise ValueError(message) from error
        if len(bits) != num_bytes or not inflate.eof or inflate.unused_data:
            message = f"mask bits do not fill their box of {region.shape}"
            raise ValueError(message)
        flat = np.unpackbits(np.frombuffer(bits, np.uint8), count=num_voxels)
        return cls(region, flat.view(np.bool_).reshape(region.shape).copy())


def _within(part: Region, whole: Region) -> tuple[slice, slice, slice]:
    """Return the index of a part in the array of a box that holds it."""
    i, j, k = (-start for start in whole.start)
    return part.shift((i, j, k)).slices
