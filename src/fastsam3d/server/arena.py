"""Memory that two processes see, for arrays that are too large to be sent as messages.

Each direction has an arena of its own, written by one side and read by the other in turns. Linux
only: an anonymous file in memory, which no other program can open by a name and no small
``/dev/shm`` of a container bounds.
"""

from __future__ import annotations

import math
import mmap
import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

IS_SUPPORTED: Final = hasattr(os, "memfd_create")
KEPT_BYTES: Final = 64 * 2**20
"""An arena that one large message has grown is cut back to so much by the next."""
_ALIGNMENT: Final = 64


class Arena:
    """One direction.

    Args:
        fd: Of the file in memory; made here if None, otherwise that of the other side.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("fastsam3d") if fd is None else fd
        self._map: mmap.mmap | None = None

    def write(self, arrays: Sequence[NDArray[Any]]) -> list[dict[str, Any]]:
        """Put arrays in, in place of what was there.

        Returns:
            Where they are, as JSON holds it, for `read`.

        Raises:
            OSError: There is no memory for them.
        """
        places: list[dict[str, Any]] = []
        end = 0
        for array in arrays:
            order = "C" if array.flags.c_contiguous or not array.flags.f_contiguous else "F"
            start = math.ceil(end / _ALIGNMENT) * _ALIGNMENT
            end = start + array.nbytes
            place = {"at": start, "dtype": array.dtype.str, "shape": list(array.shape)}
            places.append({**place, "order": order})
        size = os.fstat(self.fd).st_size
        if end > size or size > max(end, KEPT_BYTES):
            os.ftruncate(self.fd, end)
        for array, view in zip(arrays, self.read(places), strict=True):
            view[...] = array
        return places

    def read(self, places: Sequence[dict[str, Any]]) -> list[NDArray[Any]]:
        """Return views of what the other side has written, valid until it writes again."""
        memory = self._mapped()
        return [
            np.ndarray(
                tuple(place["shape"]),
                np.dtype(place["dtype"]),
                memory if math.prod(place["shape"]) else bytearray(),
                place["at"] if math.prod(place["shape"]) else 0,
                order=place["order"],
            )
            for place in places
        ]

    def clear(self) -> None:
        """Give the memory back; what was read must not be looked at any more."""
        self._map = None
        os.ftruncate(self.fd, 0)

    def close(self) -> None:
        """Give the memory back; views keep theirs."""
        self._map = None
        os.close(self.fd)

    def _mapped(self) -> mmap.mmap | bytearray:
        size = os.fstat(self.fd).st_size
        if not size:
            return bytearray()
        if self._map is None or len(self._map) != size:
            # Views of a former map keep it; it is not closed under them.
            self._map = mmap.mmap(self.fd, size)
        return self._map
