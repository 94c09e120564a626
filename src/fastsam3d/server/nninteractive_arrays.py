"""The array format of the nnInteractive protocol, read as if anyone had written it.

A message is, in little-endian: ``NNIA``, version (u8, 1), codec (u8, 1 Zstandard or 2 LZ4), number
of axes (u8), length of the type's name (u8), the name ("float32"), each side (i64), number of
chunks (u32), and for each chunk its length (u64), its length as sent (u64) and a Blosc2 chunk.

Some hundred bytes can announce, and inflate to, gigabytes. So everything that is announced is held
against a budget, and against each other, before anything is allocated; of Blosc2 only those chunks
are decoded that writers of this format make. Ideas that go beyond (dictionaries, lazy chunks,
uninitialised values, plugins) are refused by their headers.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np

from fastsam3d.server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

MAGIC: Final = b"NNIA"
VERSION: Final = 1
MAX_AXES: Final = 4
MAX_CHUNKS: Final = 4096
CHUNK_BYTES: Final = 2**30
"""Largest chunk: Blosc2 counts in 31 bits."""
DTYPES: Final = (
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16",
    "float32", "float64",
)  # fmt: skip

_HEADER: Final = struct.Struct("<4sBBBB")
_COUNT: Final = struct.Struct("<I")
_CHUNK: Final = struct.Struct("<QQ")
_BLOSC: Final = struct.Struct("<BBBBiii6s")
_BLOSC_BYTES: Final = 32
_BLOSC_CODECS: Final = {1: 4, 2: 1}
"""By the message's codec, that of Blosc2, in the top three bits of a chunk's flags."""
_EXTENDED: Final = 0b101
_STORED: Final = 0b10
_MAX_TYPESIZE: Final = 16
_FILTERS: Final = frozenset(b"\0\1\2")  # None, shuffled bytes, shuffled bits.
_SPECIAL: Final = frozenset(b"\x00\x10\x20")  # Ordinary, all zeros, all NaN.
_LEVEL: Final = 3


@dataclass(frozen=True, kw_only=True)
class ArrayBudget:
    """What an array may be.

    Attributes:
        voxels: Elements at most.
        bytes: Of the array, at most.
        shape: Exactly this; None for any of up to four axes.
    """

    voxels: int
    bytes: int
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class _Plan:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    codec: int
    num_bytes: int
    num_chunks: int
    first: int


def load_codec() -> None:
    """Import Blosc2, which takes a second; afterwards arrays are read at once."""
    _blosc2()


def unpack_array(message: bytes | memoryview, budget: ArrayBudget) -> NDArray[Any]:
    """Return the array of a message.

    Args:
        message: Whatever came.
        budget: What is allowed.

    Returns:
        A new array in C order.

    Raises:
        ApiError: 400 ``bad_array``: the message is malformed; 422 ``bad_shape``: the array has
            another shape than it must have; 413 ``too_large``: it exceeds the budget.
    """
    view = memoryview(message)
    plan = _read_header(view)
    _check_budget(plan, budget)
    chunks = list(_walk(view, plan))
    blosc2 = _blosc2()
    # Zeros cost nothing until they are written, and what a chunk leaves out tells no secrets.
    flat = np.zeros(plan.num_bytes, np.uint8)
    at = 0
    for chunk, length in chunks:
        try:
            blosc2.decompress2(chunk, dst=flat[at : at + length], nthreads=1)
        except (ValueError, RuntimeError, TypeError) as error:
            _refuse(f"a chunk is damaged ({type(error).__name__})")
        at += length
    return flat.view(plan.dtype).reshape(plan.shape)


def pack_array(array: NDArray[Any]) -> bytes:
    """Return an array as a message.

    Args:
        array: Of one of `DTYPES`, 1 to 4 axes.
    """
    blosc2 = _blosc2()
    array = np.ascontiguousarray(array)
    name = array.dtype.name.encode("ascii")
    parts = [
        _HEADER.pack(MAGIC, VERSION, 1, array.ndim, len(name)),
        name,
        struct.pack(f"<{array.ndim}q", *array.shape),
        _COUNT.pack(-(-array.nbytes // CHUNK_BYTES)),
    ]
    raw = array.reshape(-1).view(np.uint8)
    for at in range(0, array.nbytes, CHUNK_BYTES):
        piece = raw[at : at + CHUNK_BYTES]
        packed = blosc2.compress2(
            piece,
            typesize=array.dtype.itemsize,
            codec=blosc2.Codec.ZSTD,
            clevel=_LEVEL,
            filters=[blosc2.Filter.NOFILTER],
            nthreads=1,
        )
        parts += [_CHUNK.pack(len(piece), len(packed)), packed]
    return b"".join(parts)


def _read_header(view: memoryview) -> _Plan:
    if len(view) < _HEADER.size:
        _refuse("it is shorter than a header")
    magic, version, codec, num_axes, name_length = _HEADER.unpack_from(view)
    if magic != MAGIC or version != VERSION:
        _refuse("it does not begin as version 1 of the format does")
    if codec not in _BLOSC_CODECS:
        _refuse(f"codec {codec} is unknown")
    if not 1 <= num_axes <= MAX_AXES:
        _refuse(f"it has {num_axes} axes")
    sides_at = _HEADER.size + name_length
    count_at = sides_at + 8 * num_axes
    if len(view) < count_at + _COUNT.size:
        _refuse("it ends within its header")
    name = bytes(view[_HEADER.size : sides_at]).decode("ascii", "replace")
    if name not in DTYPES:
        _refuse("its type is not a plain number")
    shape = struct.unpack_from(f"<{num_axes}q", view, sides_at)
    if min(shape) < 1:
        _refuse("a side is below 1")
    (num_chunks,) = _COUNT.unpack_from(view, count_at)
    dtype = np.dtype(name)
    num_bytes = math.prod(shape) * dtype.itemsize
    return _Plan(dtype, shape, codec, num_bytes, num_chunks, count_at + _COUNT.size)


def _check_budget(plan: _Plan, budget: ArrayBudget) -> None:
    if math.prod(plan.shape) > budget.voxels or plan.num_bytes > budget.bytes:
        message = (
            f"The array announces {math.prod(plan.shape)} values of {plan.dtype.name}; at most "
            f"{budget.voxels} in {budget.bytes} bytes fit."
        )
        raise ApiError(413, "too_large", message)
    if budget.shape is not None and plan.shape != budget.shape:
        message = f"The array must have the shape {budget.shape}, got {plan.shape}."
        raise ApiError(422, "bad_shape", message)
    if plan.num_chunks > MAX_CHUNKS:
        _refuse(f"it announces {plan.num_chunks} chunks")


def _walk(view: memoryview, plan: _Plan) -> Iterator[tuple[memoryview, int]]:
    """Yield each chunk with its length when decoded, all of which fill the array exactly."""
    at, written = plan.first, 0
    for _ in range(plan.num_chunks):
        if len(view) < at + _CHUNK.size:
            _refuse("it ends before its last chunk")
        length, sent = _CHUNK.unpack_from(view, at)
        at += _CHUNK.size
        if not 0 < length <= min(CHUNK_BYTES, plan.num_bytes - written) or (
            not _BLOSC_BYTES <= sent <= len(view) - at
        ):
            _refuse("a chunk announces another length than it can have")
        chunk = view[at : at + sent]
        _check_chunk(chunk, length, plan)
        yield chunk, length
        at += sent
        written += length
    if written != plan.num_bytes or at != len(view):
        _refuse("its chunks do not fill the array, or bytes follow them")


def _check_chunk(chunk: memoryview, length: int, plan: _Plan) -> None:
    _, _, flags, typesize, num_bytes, block, packed, filters = _BLOSC.unpack_from(chunk)
    is_consistent = (
        num_bytes == length
        and packed == len(chunk)
        and 0 < block <= max(num_bytes, 1)
        and 1 <= typesize <= _MAX_TYPESIZE
    )
    is_plain = (
        flags & _EXTENDED == _EXTENDED
        and (flags >> 5 == _BLOSC_CODECS[plan.codec] or (flags & _STORED and flags >> 5 == 0))
        and _FILTERS.issuperset(filters)
        and chunk[_BLOSC_BYTES - 1] in _SPECIAL
    )
    if not is_consistent or not is_plain:
        _refuse("the header of a chunk contradicts the message, or asks for what is not read")


def _refuse(why: str) -> NoReturn:
    message = f"The array is malformed: {why}; send it with the nnInteractive client."
    raise ApiError(400, "bad_array", message)


def _blosc2() -> Any:
    return import_module("blosc2")
