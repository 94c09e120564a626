"""Masks as run lengths: small, exact, quick to write and safe to read.

A mask inside its box is flattened in C order (axis k fastest) and told as the lengths of its runs,
background first (possibly of length 0). Each length is an unsigned LEB128 number: seven bits a
byte, lowest first, the top bit set where another byte follows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fastsam3d.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MAX_MASK_VOXELS: Final = 2**31
"""Voxels of the largest box that is read."""
_MAX_DIGITS: Final = 5  # 35 bits hold every length up to MAX_MASK_VOXELS


def encode_runs(mask: NDArray[Any]) -> bytes:
    """Return a mask as run lengths.

    Args:
        mask: Foreground where not 0, shape (I, J, K); may be empty.
    """
    flat = np.ascontiguousarray(mask).reshape(-1)
    if not flat.size:
        return b""
    bits = flat if flat.dtype == np.bool_ else flat != 0
    ends = np.flatnonzero(bits[1:] != bits[:-1]) + 1
    leading = [0] if bits[0] else []
    lengths = np.diff(np.concatenate([[0], ends, [bits.size]]))
    return _to_leb128(np.concatenate([leading, lengths]).astype(np.uint64))


def decode_runs(
    payload: bytes | memoryview, shape: Sequence[int], *, max_voxels: int = MAX_MASK_VOXELS
) -> NDArray[np.uint8]:
    """Return the mask of run lengths that may come from anyone.

    Args:
        payload: What `encode_runs` returned.
        shape: Of the box, (I, J, K).
        max_voxels: Larger boxes are refused before anything is allocated.

    Returns:
        0 and 1, shape `shape`.

    Raises:
        WireError: The box is impossible or too large, or the runs do not fill it exactly.
    """
    if len(shape) != 3 or any(type(side) is not int or side < 0 for side in shape):
        message = f"Mask box must have three sides of at least 0, got {tuple(shape)!r}."
        raise WireError(message)
    num_voxels = math.prod(shape)
    if num_voxels > max_voxels:
        message = f"Mask box has {num_voxels} voxels, at most {max_voxels} fit; send a part of it."
        raise WireError(message)
    lengths = _from_leb128(np.frombuffer(payload, np.uint8), max_runs=num_voxels + 1)
    # Each length is below 2^35 and there are at most 2^31 of them: no overflow.
    total = int(lengths.sum(dtype=np.uint64))
    if total != num_voxels:
        message = f"Mask runs must fill the {num_voxels} voxels of their box, got {total}."
        raise WireError(message)
    values = (np.arange(lengths.size) % 2).astype(np.uint8)
    return np.repeat(values, lengths.astype(np.int64)).reshape(tuple(shape))


def _to_leb128(values: NDArray[np.uint64]) -> bytes:
    digits = np.ones(values.size, np.int64)
    for count in range(1, _MAX_DIGITS):
        digits += values >> np.uint64(7 * count) > 0
    last = np.cumsum(digits) - 1
    out = np.empty(int(last[-1]) + 1, np.uint8)
    first = last - digits + 1
    for count in range(int(digits.max())):
        has = digits > count
        part = (values[has] >> np.uint64(7 * count)) & np.uint64(0x7F)
        follows = np.where(digits[has] > count + 1, np.uint64(0x80), np.uint64(0))
        out[first[has] + count] = (part | follows).astype(np.uint8)
    return out.tobytes()


def _from_leb128(data: NDArray[np.uint8], *, max_runs: int) -> NDArray[np.uint64]:
    if not data.size:
        return np.zeros(0, np.uint64)
    last = np.flatnonzero(data < 0x80)
    if not last.size or last[-1] != data.size - 1:
        message = "Mask runs end within a number; send the message whole."
        raise WireError(message)
    first = np.concatenate([[0], last[:-1] + 1])
    digits = last - first + 1
    if last.size > max_runs or int(digits.max()) > _MAX_DIGITS:
        message = f"Mask has {last.size} runs of up to {digits.max()} bytes; more than its box has."
        raise WireError(message)
    values = np.zeros(last.size, np.uint64)
    for count in range(int(digits.max())):
        has = digits > count
        part = (data[first[has] + count] & 0x7F).astype(np.uint64)
        values[has] |= part << np.uint64(7 * count)
    return values
