"""Many masks of one volume in little memory: bits, whole bytes along k, compared without unpacking.

Boxes begin and end at multiples of eight along k, so bits of any two masks of a volume that
overlap lie in the same places of their bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from fastsam3d.session.object_mask import ObjectMask
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BITS_OF_BYTE: Final = np.array([bin(value).count("1") for value in range(256)], np.uint8)


@dataclass(frozen=True, eq=False)
class PackedMask:
    """A set of voxels of a volume.

    Attributes:
        region: The smallest box around it.
        bytes_IJK: Bits, eight voxels along k a byte, from `8 * (region.start[2] // 8)`.
        num_voxels: How many voxels.
    """

    region: Region
    bytes_IJK: NDArray[np.uint8] = field(repr=False)
    num_voxels: int

    @classmethod
    def of(cls, mask: ObjectMask) -> Self:
        """Pack a mask."""
        before = mask.region.start[2] % 8
        padded = np.pad(mask.array, ((0, 0), (0, 0), (before, 0)))
        return cls(mask.region, np.packbits(padded, axis=2), mask.num_voxels)

    def unpack(self) -> ObjectMask:
        """Return the mask."""
        start, length = self.region.start[2] % 8, self.region.shape[2]
        bits = np.unpackbits(self.bytes_IJK, axis=2, count=start + length)
        return ObjectMask(self.region, bits[:, :, start:].view(np.bool_).copy())

    def holds(self, voxel: tuple[int, int, int]) -> bool:
        """Whether a voxel of the volume is in the mask."""
        i, j, k = voxel
        (i0, j0, k0), (i1, j1, k1) = self.region.start, self.region.stop
        if not (i0 <= i < i1 and j0 <= j < j1 and k0 <= k < k1):
            return False
        byte = int(self.bytes_IJK[i - i0, j - j0, k // 8 - k0 // 8])
        return bool(byte >> (7 - k % 8) & 1)

    def count_within(self, region: Region) -> int:
        """Return the number of voxels in a box of the volume."""
        shared = self.region.intersection(region)
        if shared.is_empty:
            return 0
        part = self._bytes(shared).copy()
        # The outer bytes hold voxels beyond the box.
        part[:, :, 0] &= 0xFF >> shared.start[2] % 8
        part[:, :, -1] &= 0xFF << (-shared.stop[2] % 8) & 0xFF
        return _count(part)

    def count_shared(self, other: PackedMask) -> int:
        """Return the number of voxels that both masks hold."""
        shared = self.region.intersection(other.region)
        if shared.is_empty:
            return 0
        return _count(self._bytes(shared) & other._bytes(shared))

    def largest_iou(self, other: PackedMask) -> float:
        """Return a bound of the IoU with another mask that needs the boxes only."""
        i, j, k = self.region.intersection(other.region).shape
        low, high = sorted((self.num_voxels, other.num_voxels))
        most = min(i * j * k, low)
        return most / (low + high - most)

    def iou(self, other: PackedMask) -> float:
        """Return the intersection over union with another mask."""
        shared = self.count_shared(other)
        return shared / (self.num_voxels + other.num_voxels - shared)

    def union(self, other: PackedMask) -> PackedMask:
        """Return the voxels of either mask."""
        return PackedMask.of(self.unpack().union(other.unpack()))

    def _bytes(self, part: Region) -> NDArray[np.uint8]:
        """Return the bytes of a part of the box; the outer ones may reach beyond it along k."""
        (i0, j0, k0), (p0, q0, r0), (p1, q1, r1) = self.region.start, part.start, part.stop
        first, last = r0 // 8 - k0 // 8, (r1 + 7) // 8 - k0 // 8
        return self.bytes_IJK[p0 - i0 : p1 - i0, q0 - j0 : q1 - j0, first:last]


def _count(bytes_IJK: NDArray[np.uint8]) -> int:
    return int(_BITS_OF_BYTE[bytes_IJK].sum(dtype=np.int64))
