"""NIfTI files, in and out: header checks first, then exactly the announced bytes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from fastsam3d.errors import VolumeReadError
from fastsam3d.io.nifti_header import DTYPE_NAMES, byte_order, make_header, read_header
from fastsam3d.io.streams import (
    check_announced,
    fill,
    fill_scratch,
    gzip_writer,
    is_gzip,
    open_inflated,
)
from fastsam3d.io.times import chosen_times
from fastsam3d.volume import SourceHeader, Volume

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from fastsam3d.io.nifti_header import NiftiHeader
    from fastsam3d.io.times import Times
    from fastsam3d.volume import Geometry

MAX_TRAILING_BYTES: Final = 4096
"""Some writers pad a file to a block; more data than this means that the header is wrong."""
WRITABLE_DTYPES: Final = frozenset(np.dtype(name) for name in DTYPE_NAMES.values())
MIN_SCRATCH_BYTES: Final = 2**25
"""Smaller volumes are always read into memory."""
_SKIP_BYTES: Final = 2**20
# Of arrays with k fastest, this many bytes lie side by side in a line of the cache.
_SLICES_AT_ONCE: Final = 64


def read_nifti(path: Path, times: Times = None, *, in_scratch: bool = False) -> tuple[Volume, ...]:
    """Read volumes of one NIfTI file.

    Args:
        path: File of NIfTI-1 or -2, plain or gzip, in either byte order.
        times: Which volumes along the fourth axis, see `times.chosen_times`.
        in_scratch: As `read.read_volume`.

    Returns:
        The volumes in the file's voxel order and dtype (float32 where the header scales the
        values), each with the header of a 3-D file in `source`.

    Raises:
        VolumeReadError: Not scalar, no such time point, damaged, truncated, too large or not
            finite.
        GeometryError: The header's geometry is singular, NaN or has bad voxel sizes.
    """
    with open_inflated(path) as stream:
        header = read_header(stream)
        chosen = chosen_times(times, (*header.geometry.shape, header.num_times))
        num_bytes = math.prod(header.geometry.shape) * header.dtype.itemsize
        total = num_bytes * header.num_times
        check_announced(total, path.stat().st_size, is_compressed=is_gzip(path))
        _skip(stream, header.offset - len(header.raw))
        num_before = _skip(stream, chosen.start * num_bytes)
        wanted = num_bytes * len(chosen)
        if in_scratch and wanted >= MIN_SCRATCH_BYTES and _is_kept_as_stored(header):
            data = fill_scratch(stream, wanted)
        else:
            data = fill(stream, np.empty(wanted, dtype=np.uint8).data)
        num_after = _skip(stream, (header.num_times - chosen.stop) * num_bytes)
        num_read = num_before + len(data) + num_after
        if num_read < total:
            message = (
                f"File is truncated, got {num_read} of the {total} bytes of voxels that its "
                "header announces; copy or download it again."
            )
            raise VolumeReadError(message)
        _check_end(stream, total)
    flat = np.frombuffer(data, dtype=header.dtype).reshape(len(chosen), -1)
    return tuple(_volume(part, header) for part in flat)


def _is_kept_as_stored(header: NiftiHeader) -> bool:
    # Other volumes are computed as a whole, and checking floats looks at every voxel.
    is_scaled = (header.slope, header.intercept) != (1.0, 0.0)
    return header.dtype.isnative and header.dtype.kind in "iu" and not is_scaled


def _volume(flat: NDArray[Any], header: NiftiHeader) -> Volume:
    array = flat.reshape(header.geometry.shape, order="F")
    array = array.astype(header.dtype.newbyteorder("="), copy=False)
    if (header.slope, header.intercept) != (1.0, 0.0):
        # An overflow gives infinity, which Volume refuses with a sentence.
        with np.errstate(over="ignore", invalid="ignore"):
            array = array.astype(np.float32) * np.float32(header.slope)
            array += np.float32(header.intercept)
    return Volume(array, header.geometry, source=SourceHeader("nifti", header.raw))


def write_nifti(
    path: Path, array: NDArray[Any], geometry: Geometry, source: SourceHeader | None
) -> None:
    """Write one NIfTI file; gzip when its name ends with ".gz".

    Args:
        path: File to write.
        array: Data of shape (I, J, K), of a dtype in `WRITABLE_DTYPES`.
        geometry: Grid of the data.
        source: Header to keep, see `nifti_header.make_header`.
    """
    header = make_header(geometry, array.dtype, source)
    with path.open("wb") as raw:
        if path.suffix == ".gz":
            with gzip_writer(raw) as stream:
                _write_voxels(stream, header, array)
        else:
            _write_voxels(raw, header, array)


def _write_voxels(stream: BinaryIO, header: bytes, array: NDArray[Any]) -> None:
    """Write the header and the voxels, i fastest, a few slices at a time."""
    stream.write(header)
    dtype = array.dtype.newbyteorder(byte_order(header))
    for first in range(0, array.shape[2], _SLICES_AT_ONCE):
        slices = array[:, :, first : first + _SLICES_AT_ONCE].T
        stored = np.ascontiguousarray(slices.astype(dtype, copy=False))
        stream.write(stored.reshape(-1).view(np.uint8).data)


def _skip(stream: BinaryIO, num_bytes: int) -> int:
    """Read and forget; return how many bytes there were."""
    left = num_bytes
    while left > 0 and (count := len(fill(stream, bytearray(min(left, _SKIP_BYTES))))):
        left -= count
    return num_bytes - left


def _check_end(stream: BinaryIO, num_bytes: int) -> None:
    """Read on to the end, which also makes gzip check its CRC; refuse hidden data."""
    if len(fill(stream, bytearray(MAX_TRAILING_BYTES + 1))) > MAX_TRAILING_BYTES:
        message = (
            f"File holds more than the {num_bytes} bytes of voxels that its header announces; "
            "the header is wrong, export the volume again."
        )
        raise VolumeReadError(message)
