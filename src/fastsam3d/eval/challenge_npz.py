"""Read .npz files of strangers: numbers and plain records, within a budget, and nothing is run.

Sizes are checked against the budget and against the archive before memory is taken. numpy's own
pickle reader is never used; see `fastsam3d.eval.challenge_records`.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastsam3d.errors import DatasetError
from fastsam3d.eval.challenge_records import MAX_NODES, Refusal, parse_records

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from numpy.typing import NDArray

MAX_BYTES = 8 * 2**30
"""Default budget for all arrays of a file together."""
MAX_MEMBERS = 64
MAX_AXES = 4
MAX_RECORD_BYTES = 4 * 2**20


def read_npz(
    path: Path,
    *,
    arrays: Collection[str],
    records: Collection[str] = (),
    max_bytes: int = MAX_BYTES,
) -> dict[str, Any]:
    """Read the members of a .npz file that are wanted and there; others are not looked at.

    Args:
        path: The file.
        arrays: Members that hold numbers.
        records: Members that hold lists and dictionaries of words and numbers.
        max_bytes: Budget for the wanted members, decompressed.

    Returns:
        Read-only arrays, and records as plain Python values, by name.

    Raises:
        DatasetError: Missing, damaged, larger than the budget, or holding anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _wanted_members(archive, {*arrays, *records}, max_bytes)
            return {
                name: _read_member(archive, member, is_record=name in records)
                for name, member in members.items()
            }
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist; check the path.") from error
    except Refusal as error:
        raise DatasetError(f"{path.name} {error}; it is not a file of the challenge.") from error
    # zipfile and zlib report damage in many ways; numpy's header reader adds ValueError.
    except (OSError, EOFError, ValueError, NotImplementedError, RuntimeError, MemoryError) as error:
        raise DatasetError(f"{path.name} is no sound .npz file ({error}); get it again.") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(f"{path.name} is damaged ({error}); get it again.") from error


def _wanted_members(
    archive: zipfile.ZipFile, names: set[str], max_bytes: int
) -> dict[str, zipfile.ZipInfo]:
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise Refusal(f"has {len(members)} members")
    wanted: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name not in names or name == member.filename:
            continue
        if name in wanted:
            raise Refusal(f"has {name} twice")
        wanted[name] = member
    total = sum(member.file_size for member in wanted.values())
    if total > max_bytes:
        raise Refusal(f"holds {total} bytes, more than the budget of {max_bytes}")
    return wanted


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, *, is_record: bool) -> Any:
    with archive.open(member) as stream:
        return _read_record(stream, member) if is_record else _read_array(stream, member)


class _Header(NamedTuple):
    """What a member says about itself, and the number of bytes that follow."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]
    payload: int


def _read_header(stream: IO[bytes], member: zipfile.ZipInfo) -> _Header:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise Refusal(f"has {member.filename} in format {version}")
    if any(side < 0 for side in shape) or len(shape) > MAX_AXES:
        raise Refusal(f"has {member.filename} of shape {shape}")
    return _Header(shape, is_fortran, dtype, member.file_size - stream.tell())


def _read_array(stream: IO[bytes], member: zipfile.ZipInfo) -> NDArray[Any]:
    header = _read_header(stream, member)
    if header.dtype.kind not in "biuf":
        raise Refusal(f"has {member.filename} of type {header.dtype}, which is no number")
    return _read_payload(stream, header)


def _read_payload(stream: IO[bytes], header: _Header) -> NDArray[Any]:
    size = math.prod(header.shape) * header.dtype.itemsize
    if size != header.payload:
        raise Refusal(f"says {header.shape} of {header.dtype} but has {header.payload} bytes of it")
    content = stream.read(size)
    if len(content) != size:
        raise Refusal(f"ends after {len(content)} of {size} bytes")
    array = np.frombuffer(content, dtype=header.dtype)
    array = array.reshape(header.shape, order="F" if header.is_fortran else "C")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _read_record(stream: IO[bytes], member: zipfile.ZipInfo) -> Any:
    if member.file_size > MAX_RECORD_BYTES:
        raise Refusal(f"has {member.filename} of {member.file_size} bytes")
    header = _read_header(stream, member)
    if max((*header.shape, 0)) > MAX_NODES:
        raise Refusal(f"has {member.filename} of shape {header.shape}")
    # numpy stores lists of equal length as numbers or words.
    if header.dtype.kind in "biufU":
        return _read_payload(stream, header).tolist()
    if header.dtype != np.dtype(object):
        raise Refusal(f"has {member.filename} of type {header.dtype}")
    return parse_records(stream.read(header.payload))
