"""Volumes on their way in: bytes to files of our own naming, files to a volume, all of it bounded.

No name that a client sends ever becomes part of a path.
"""

from __future__ import annotations

import re
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from fastsam3d.errors import GeometryError, VolumeReadError
from fastsam3d.io.streams import is_gzip, sniff
from fastsam3d.server.errors import ApiError
from fastsam3d.server.room import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from fastapi import Request

    from fastsam3d.server.readers import Readers
    from fastsam3d.volume import Volume

_WRITE_BYTES: Final = 2**20
_SUFFIXES: Final = {"nifti": ".nii", "nrrd": ".nrrd", "meta": ".mha", "dicom": ".dcm"}
_DETACHED: Final = {"nrrd": ".nhdr", "meta": ".mhd"}
_DATA_LINE: Final = re.compile(
    rb"^([ \t]*(?:data ?file[ \t]*:|ElementDataFile[ \t]*=)[ \t]*)([^\r\n]*)", re.MULTILINE | re.I
)
_HEADER_BYTES: Final = 64 * 1024
_SAMPLE_STEP: Final = 500_000
_PREFIX: Final = re.compile(r"^Cannot read '[^']*': ")


@asynccontextmanager
async def scratch_folder() -> AsyncGenerator[Path]:
    """Give a folder of the server's own, which is gone afterwards."""
    folder = await in_thread(lambda: tempfile.TemporaryDirectory(prefix="fastsam3d-"))
    try:
        yield Path(folder.name)
    finally:
        await in_thread(folder.cleanup)


async def receive_file(request: Request, folder: Path) -> Path:
    """Write the body of a request to a file.

    Raises:
        ApiError: As `security.BoundedBody`; 400 ``bad_request`` where it is empty.
    """
    path = folder / "upload"
    num_bytes = 0
    with path.open("wb") as file:
        buffer = bytearray()
        async for chunk in request.stream():
            buffer += chunk
            if len(buffer) >= _WRITE_BYTES:
                num_bytes += len(buffer)
                await in_thread(file.write, buffer)
                buffer = bytearray()
        file.write(buffer)
        num_bytes += len(buffer)
    if not num_bytes:
        raise ApiError(400, "bad_request", "The body is empty; send the bytes of one file.")
    return path


async def receive_files(request: Request, folder: Path, max_files: int) -> list[Path]:
    """Write the files of a multipart body to numbered files, one at a time.

    Raises:
        ApiError: As `receive_file`; 400 ``bad_request`` where it is malformed, 413
            ``too_many_files``.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise ApiError(415, "unsupported_type", "Send multipart/form-data with fields `files`.")
    parts = _Parts(folder, max_files)
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        message = f"The multipart body is malformed ({error}); send it again."
        raise ApiError(400, "bad_request", message) from None
    finally:
        parts.close()
    if not parts.is_complete or not parts.paths:
        message = "The multipart body has no end or no files; send fields named `files`."
        raise ApiError(400, "bad_request", message)
    return parts.paths


class _Parts:
    """Writes the parts of a multipart body that have a file name, in order."""

    def __init__(self, folder: Path, max_files: int) -> None:
        self.paths: list[Path] = []
        self.is_complete = False
        self._folder = folder
        self._max_files = max_files
        self._file: BinaryIO | None = None
        self._num_parts = 0

    def callbacks(self) -> Any:
        """Return what the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_part_end": self.close,
            "on_end": self._end,
        }

    def close(self) -> None:
        """End the current part."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > self._max_files:
            message = f"An upload holds at most {self._max_files} files; send one series."
            raise ApiError(413, "too_many_files", message)
        path = self._folder / f"{self._num_parts:06d}"
        self.paths.append(path)
        self._file = path.open("wb")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])

    def _end(self) -> None:
        self.is_complete = True


def read_upload(
    paths: list[Path],
    readers: Readers,
    *,
    series_uid: str | None = None,
    time: int | None = None,
) -> Volume:
    """Read the volume of an upload.

    Args:
        paths: One file, the pair of a header and its data, or the slices of a series; alone in
            their folder.
        readers: Read it.
        series_uid: Which of several DICOM series.
        time: Which time point of a 4-D file.

    Raises:
        ApiError: 415 ``unsupported_type``.
        VolumeReadError: As `Readers.volume`.
        GeometryError: As `Readers.volume`.
    """
    source = _placed(paths)
    try:
        return readers.volume(source, series_uid=series_uid, time=time)
    except (VolumeReadError, GeometryError) as error:
        # The name is ours and would tell the client nothing.
        raise type(error)(_PREFIX.sub("", str(error))) from error


def _placed(paths: list[Path]) -> Path:
    """Give files the names that readers expect; return what to read."""
    if len(paths) > 2:
        return paths[0].parent
    kinds = [_kind(path) for path in paths]
    known = [kind for kind in kinds if kind is not None]
    if not known:
        message = "The content is no NIfTI, NRRD, MetaImage or DICOM; convert the image first."
        raise ApiError(415, "unsupported_type", message)
    if "dicom" in known:
        return paths[0].parent
    if len(paths) == 1:
        return paths[0].rename(paths[0].with_name("volume" + _SUFFIXES[known[0]]))
    index = next(n for n, kind in enumerate(kinds) if kind is not None)
    header, data = paths[index], paths[1 - index]
    if kinds[index] not in _DETACHED:
        message = "Several files must be one DICOM series, or one header and its data file."
        raise ApiError(415, "unsupported_type", message)
    return _placed_pair(header, data, _DETACHED[str(kinds[index])])


def _placed_pair(header: Path, data: Path, suffix: str) -> Path:
    """Let a header name its data file by the name that we gave it."""
    text = header.read_bytes()
    if len(text) > _HEADER_BYTES or not _DATA_LINE.search(text):
        message = "The header is too long or names no data file; send .mhd with .raw, or one .mha."
        raise VolumeReadError(message)
    placed = data.rename(data.with_name("data.raw.gz" if is_gzip(data) else "data.raw"))
    found = header.with_name("volume" + suffix)
    found.write_bytes(_DATA_LINE.sub(rb"\g<1>" + placed.name.encode(), text, count=1))
    return found


def _kind(path: Path) -> str | None:
    try:
        return sniff(path)
    except VolumeReadError:
        return None


def describe_volume(volume: Volume) -> dict[str, Any]:
    """Return what a client is told about its volume."""
    sample = volume.array.ravel(order="K")
    sample = sample[:: max(1, sample.size // _SAMPLE_STEP)]
    low, high = np.percentile(sample, (1, 99)).tolist()
    return {
        "shape": list(volume.shape),
        "spacing": list(volume.geometry.spacing),
        "affine": volume.geometry.affine.tolist(),
        "intensity": {
            "min": float(volume.array.min()),
            "max": float(volume.array.max()),
            "p1": low,
            "p99": high,
        },
        "modality": volume.modality,
    }
