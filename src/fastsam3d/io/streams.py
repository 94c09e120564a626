"""Bounded reading of untrusted files: sniffing, gzip, truncation and size limits.

Nothing is allocated before what a header announces has been held against a named limit and
against what the file on disk can possibly hold.
"""

from __future__ import annotations

import gzip
import mmap
import tempfile
import zlib
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, cast

from fastsam3d.errors import VolumeReadError, VolumeTooLargeError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

MAX_VOLUME_BYTES: Final = 8 * 2**30
"""Largest volume that is read, in bytes of voxels: four times a whole-body CT at 0.7 mm."""
MAX_INFLATION: Final = 1032
"""Deflate turns one byte into at most this many."""
GZIP_LEVEL: Final = 1
GZIP_MAGIC: Final = b"\x1f\x8b"
_limit = ContextVar("volume_limit", default=MAX_VOLUME_BYTES)
_HEAD_BYTES: Final = 4096
_CHUNK_BYTES: Final = 2**20
# Inflated data is made in pieces that fit the cache, straight into their place: asked for the whole
# at once, the gzip readers make it twice over. Of smaller ones there are more, and with each the
# reader takes Python's lock from whoever works beside it.
_PIECE_BYTES: Final = 2**20

_gzip_file: Any = gzip.GzipFile
_damaged_stream: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, zlib.error)
try:  # Optional: the same format, read twice and written ten times as fast as by zlib.
    from isal import igzip, isal_zlib
except ImportError:  # pragma: no cover - depends on the environment
    pass
else:
    _gzip_file = igzip.IGzipFile
    _damaged_stream = (*_damaged_stream, cast("type[Exception]", isal_zlib.error))

Format = Literal["nifti", "nrrd", "meta", "dicom"]
_FOREIGN = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"PK": "a ZIP archive",
    b"%PDF": "a PDF document",
    b"<": "an HTML or XML page",
    b"II*\0": "a TIFF picture",
    b"\x93NUMPY": "a numpy array",
    b"\x89HDF": "an HDF5 or MINC file",
    b"\x00\x00\x01\x00": "MGH or an icon",
}


@contextmanager
def volume_limit(max_bytes: int) -> Generator[None]:
    """Refuse volumes with more bytes of voxels within a block, in this thread or task only.

    Args:
        max_bytes: A lower bound than `MAX_VOLUME_BYTES`.
    """
    token = _limit.set(min(max_bytes, MAX_VOLUME_BYTES))
    try:
        yield
    finally:
        _limit.reset(token)


def sniff(path: Path) -> Format:
    """Tell the format of a file by its content.

    Args:
        path: An existing file; its name plays no part.

    Raises:
        VolumeReadError: The file is empty, damaged gzip, or none of the formats.
    """
    with open_inflated(path) as stream:
        head = bytes(fill(stream, bytearray(_HEAD_BYTES)))
    if not head:
        message = "File is empty; copy or export it again."
        raise VolumeReadError(message)
    header_size = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    if header_size & {348, 540}:
        return "nifti"
    if head.startswith(b"NRRD000"):
        return "nrrd"
    if b"ElementDataFile" in head and b"NDims" in head:
        return "meta"
    if head[128:132] == b"DICM":
        return "dicom"
    kinds = [kind for magic, kind in _FOREIGN.items() if head.lstrip().startswith(magic)]
    message = (
        f"Content must be NIfTI, NRRD, MetaImage or a DICOM folder, "
        f"got {kinds[0] if kinds else 'unknown bytes'}; convert the image first."
    )
    raise VolumeReadError(message)


def is_gzip(path: Path) -> bool:
    """Whether a file's content is gzip."""
    with path.open("rb") as stream:
        return stream.read(2) == GZIP_MAGIC


def open_inflated(path: Path) -> BinaryIO:
    """Open a file for reading, through gzip where its content (not its name) is gzip."""
    return cast("BinaryIO", _gzip_file(path, "rb")) if is_gzip(path) else path.open("rb")


def gzip_writer(raw: BinaryIO) -> BinaryIO:
    """Open a fast gzip stream into `raw`, without name or time: equal data gives equal files."""
    return cast("BinaryIO", _gzip_file("", "wb", GZIP_LEVEL, raw, mtime=0))


def fill(stream: BinaryIO, buffer: bytearray | memoryview) -> memoryview:
    """Read until `buffer` is full or the stream ends.

    Returns:
        The part of the buffer that was filled.

    Raises:
        VolumeReadError: The gzip stream is cut off or its checksum is wrong.
    """
    view = memoryview(buffer)
    reader = cast("Any", stream)
    filled = 0
    try:
        while filled < len(view) and (
            count := reader.readinto(view[filled : filled + _PIECE_BYTES])
        ):
            filled += count
    except _damaged_stream as error:
        message = f"Compressed data is damaged or truncated ({error}); copy or download it again."
        raise VolumeReadError(message) from error
    return view[:filled]


def fill_scratch(stream: BinaryIO, num_bytes: int) -> memoryview:
    """Read as `fill` into a file without a name, and return it mapped into memory.

    Only what is looked at later takes the process's memory, and the system may take that back. The
    file is in the folder for temporary files and is gone with the last look at it, however the
    process ends.

    Args:
        stream: As `fill`.
        num_bytes: How many bytes to read at most.

    Returns:
        What was read; it may be changed, which changes no file.

    Raises:
        VolumeReadError: As `fill`.
        OSError: The folder is full or may not be written.
    """
    piece = bytearray(_PIECE_BYTES)
    left = num_bytes
    with tempfile.TemporaryFile(prefix="fastsam3d-", buffering=0) as scratch:
        while left and (part := fill(stream, memoryview(piece)[: min(left, len(piece))])):
            while part:  # a file may take less than it was given
                written = cast("Any", scratch).write(part)
                part, left = part[written:], left - written
        if left == num_bytes:
            return memoryview(b"")
        return memoryview(mmap.mmap(scratch.fileno(), num_bytes - left, access=mmap.ACCESS_COPY))


def check_gzip(raw: BinaryIO, max_bytes: int) -> None:
    """Inflate a gzip stream from its current position to its end without keeping anything.

    Args:
        raw: Stream at the gzip magic.
        max_bytes: What the header announces; inflating stops beyond it.

    Raises:
        VolumeReadError: It is cut off, its checksum is wrong, or it holds more than announced.
    """
    buffer = bytearray(_CHUNK_BYTES)
    num_bytes = 0
    with _gzip_file(fileobj=raw) as stream:
        while num_bytes <= max_bytes and (count := len(fill(stream, buffer))):
            num_bytes += count
    if num_bytes > max_bytes:
        message = f"Data holds more than the {max_bytes} bytes that its header announces."
        raise VolumeReadError(message)


def check_announced(num_bytes: int, file_bytes: int, *, is_compressed: bool) -> None:
    """Hold what a header announces against the limit and the length of its file.

    Args:
        num_bytes: Announced bytes of voxels, as a Python integer (no overflow).
        file_bytes: Length of the file or files on disk.
        is_compressed: Whether the file may inflate (by at most `MAX_INFLATION`).

    Raises:
        VolumeTooLargeError: More than the limit.
        VolumeReadError: More than the file can hold.
    """
    limit = _limit.get()
    if num_bytes > limit:
        message = (
            f"Volume is too large, its header announces {num_bytes / 2**30:.1f} GiB and the limit "
            f"is {limit / 2**30:.3g} GiB; crop or resample it first."
        )
        raise VolumeTooLargeError(message)
    if num_bytes > file_bytes * (MAX_INFLATION if is_compressed else 1):
        message = (
            f"File is truncated, its header announces {num_bytes} bytes of voxels and "
            f"{file_bytes} bytes on disk cannot hold them; copy or download it again."
        )
        raise VolumeReadError(message)
