"""Store integer arrays losslessly and small, readable with numpy and the standard library alone.

Neighbouring voxels of a scan resemble each other, so an array is first turned into differences
along zero or more axes (modular, hence exactly invertible by cumulative sums), wide integers are
split into byte planes, and the bytes go through LZMA. The writer tries the axis combinations and
keeps the one with the lowest entropy.

This module must not know what the arrays mean.
"""

from __future__ import annotations

import lzma
from itertools import combinations
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from fastsam3d.errors import DatasetError

ARRAY_DTYPES = ("uint8", "uint16", "int8", "int16", "int32")
MIN_DICTIONARY_BYTES = 4096


class ArrayHeader(TypedDict):
    """What `decode_array` must know: shape, dtype name and the differenced axes."""

    shape: list[int]
    dtype: str
    axes: list[int]


def encode_array(array: NDArray[Any], *, predict: bool) -> tuple[NDArray[np.uint8], ArrayHeader]:
    """Compress an integer array losslessly.

    Args:
        array: Any shape, one of `ARRAY_DTYPES`.
        predict: Try differences along the axes (for intensities); label maps are better without.

    Returns:
        The compressed bytes as a 1-D uint8 array, and the header that `decode_array` needs.

    Raises:
        DatasetError: The dtype is not an integer type that the codec stores.
    """
    if array.dtype.name not in ARRAY_DTYPES:
        raise DatasetError(
            f"The codec stores {', '.join(ARRAY_DTYPES)}, got {array.dtype}; convert it first."
        )
    unsigned = np.ascontiguousarray(array).view(_unsigned(array.dtype))
    axes = _best_axes(unsigned) if predict else ()
    planes = _byte_planes(_zigzag(_differences(unsigned, axes)) if axes else unsigned)
    blob = lzma.compress(planes.tobytes(), format=lzma.FORMAT_RAW, filters=_chain(array.nbytes))
    header = ArrayHeader(shape=list(array.shape), dtype=array.dtype.name, axes=list(axes))
    return np.frombuffer(blob, dtype=np.uint8), header


def decode_array(blob: NDArray[np.uint8], header: ArrayHeader) -> NDArray[Any]:
    """Undo `encode_array` exactly.

    Raises:
        DatasetError: The bytes are damaged or do not fill the shape of the header.
    """
    dtype = np.dtype(header["dtype"])
    count = int(np.prod(header["shape"]))
    chain = _chain(count * dtype.itemsize)
    try:
        raw = lzma.decompress(blob.tobytes(), format=lzma.FORMAT_RAW, filters=chain)
    except lzma.LZMAError as error:
        raise DatasetError(f"A packed array is damaged ({error}); copy the pack again.") from error
    if len(raw) != count * dtype.itemsize:
        raise DatasetError(
            f"A packed array has {len(raw)} bytes where its header needs {count * dtype.itemsize};"
            " copy the pack and its JSON again."
        )
    values = _join_planes(np.frombuffer(raw, dtype=np.uint8), dtype).reshape(header["shape"])
    if header["axes"]:
        values = _undo_zigzag(values)
    for axis in header["axes"]:
        np.add.accumulate(values, axis=axis, out=values)
    return values.view(dtype)


def _chain(num_bytes: int) -> list[dict[str, Any]]:
    """Return the LZMA settings for so many bytes: the dictionary holds all of them, and no more."""
    size = max(MIN_DICTIONARY_BYTES, num_bytes)
    return [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 4, "lp": 0, "pb": 0, "dict_size": size}]


def _unsigned(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{dtype.itemsize}")


def _zigzag(values: NDArray[Any]) -> NDArray[Any]:
    """Map small differences of either sign to small unsigned numbers: 0, -1, 1 to 0, 1, 2."""
    negative = values >> np.uint8(8 * values.dtype.itemsize - 1)
    return (values << np.uint8(1)) ^ (negative * values.dtype.type(_mask(values.dtype)))


def _undo_zigzag(values: NDArray[Any]) -> NDArray[Any]:
    negative = values & np.uint8(1)
    return (values >> np.uint8(1)) ^ (negative * values.dtype.type(_mask(values.dtype)))


def _mask(dtype: np.dtype[Any]) -> int:
    return (1 << (8 * dtype.itemsize)) - 1


def _differences(values: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    result = values.copy()
    for axis in axes:
        head = [slice(None)] * result.ndim
        head[axis] = slice(1, None)
        tail = [slice(None)] * result.ndim
        tail[axis] = slice(None, -1)
        result[tuple(head)] -= result[tuple(tail)].copy()
    return result


def _best_axes(values: NDArray[Any]) -> tuple[int, ...]:
    sizes = range(values.ndim + 1)
    options = [axes for size in sizes for axes in combinations(range(values.ndim), size)]
    return min(options, key=lambda axes: _entropy_bits(_differences(values, axes)))


def _entropy_bits(values: NDArray[Any]) -> float:
    counts = np.bincount(_folded(values).ravel().astype(np.int64)).astype(np.float64)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def _folded(values: NDArray[Any]) -> NDArray[Any]:
    return values.view(np.uint16) if values.dtype.itemsize > 2 else values


def _byte_planes(values: NDArray[Any]) -> NDArray[np.uint8]:
    width = values.dtype.itemsize
    little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little.reshape(-1).view(np.uint8).reshape(-1, width).T)


def _join_planes(planes: NDArray[np.uint8], dtype: np.dtype[Any]) -> NDArray[Any]:
    width = dtype.itemsize
    joined = np.ascontiguousarray(planes.reshape(width, -1).T).reshape(-1)
    little = joined.view(_unsigned(dtype).newbyteorder("<"))
    return little.astype(_unsigned(dtype))
