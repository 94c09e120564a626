"""Multipart forms of MONAI Label, in and out, with bounds; no name from a client becomes a path."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastapi import Request, Response
from starlette.datastructures import UploadFile

from fastsam3d.io.dicom_seg import SeriesHeaders
from fastsam3d.prompts import MaskPrompt
from fastsam3d.server.errors import ApiError
from fastsam3d.server.monailabel_images import Opened

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Sequence

    from fastsam3d.server.readers import Readers
    from fastsam3d.volume import Volume

MAX_FIELDS: Final = 16
MAX_FIELD_BYTES: Final = 2**20
FILE_TYPE: Final = "application/octet-stream"
_DICOM_MAGIC: Final = slice(128, 132)


@dataclass(frozen=True, kw_only=True)
class Form:
    """The fields of one request.

    Attributes:
        texts: Plain fields by name; of several of one name the first.
        files: Files by field name.
    """

    texts: dict[str, str]
    files: dict[str, list[UploadFile]]

    def file(self, *names: str) -> UploadFile | None:
        """Return the first file of the first of some fields that has one."""
        return next((self.files[name][0] for name in names if name in self.files), None)


@asynccontextmanager
async def read_form(request: Request, *, max_files: int) -> AsyncGenerator[Form]:
    """Read a request's form; its files last as long as the block.

    Args:
        request: A request without form has no fields.
        max_files: More are refused.

    Yields:
        The form.

    Raises:
        HTTPException: 400: broken, or with too many or too long parts.
    """
    options: dict[str, int] = {
        "max_files": max_files, "max_fields": MAX_FIELDS, "max_part_size": MAX_FIELD_BYTES,
    }  # fmt: skip
    async with request.form(**options) as given:
        texts: dict[str, str] = {}
        files: dict[str, list[UploadFile]] = {}
        for name, value in given.multi_items():
            if isinstance(value, UploadFile):
                files.setdefault(name, []).append(value)
            else:
                texts.setdefault(name, value)
        yield Form(texts=texts, files=files)


@contextmanager
def scratch_copy(files: Sequence[UploadFile]) -> Generator[Path]:
    """Copy uploads to a scratch folder under names of our own.

    Args:
        files: One file of any format, or the slices of a DICOM series.

    Yields:
        The file, or the folder of a series.
    """
    with tempfile.TemporaryDirectory(prefix="fastsam3d-") as scratch:
        folder = Path(scratch) / "series"
        folder.mkdir()
        for number, file in enumerate(files):
            with (folder / f"{number:06d}").open("wb") as out:
                file.file.seek(0)
                shutil.copyfileobj(file.file, out, 2**20)
        only = folder / f"{0:06d}"
        yield only if len(files) == 1 and not _is_dicom(only) else folder


def load_volume(files: Sequence[UploadFile], readers: Readers) -> Volume:
    """Read an uploaded volume; takes a while, so not for the event loop.

    Raises:
        ApiError: 400 ``no_file``.
        FastSAM3DError: It is no volume that we read.
    """
    if not files:
        raise ApiError(400, "no_file", "The request must hold a file; send one.")
    with scratch_copy(files) as path:
        return readers.volume(path)


def load_series(folder: Path, readers: Readers) -> Opened:
    """Read a DICOM series that lies alone in a folder; not for the event loop.

    Raises:
        FastSAM3DError: Its slices do not form one regular stack.
    """
    return Opened(volume=readers.volume(folder), series=SeriesHeaders.read(folder))


def load_mask(file: UploadFile, readers: Readers) -> MaskPrompt:
    """Read an uploaded label map; takes a while, so not for the event loop.

    Raises:
        FastSAM3DError: It is none.
    """
    with scratch_copy([file]) as path:
        mask = readers.mask(path)
    return MaskPrompt(mask.array, mask.geometry)


def multipart_reply(params: dict[str, Any], name: str, content: bytes) -> Response:
    """Return a label map and what is said about it, in one reply.

    Args:
        params: Plain values.
        name: File name for the client; a plain one of our own.
        content: The file.
    """
    # Random, so that no content can hold it.
    boundary = f"fastsam3d-{secrets.token_hex(16)}"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\n'
        f"Content-Type: application/json\r\n\r\n{json.dumps(params)}\r\n"
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        f"Content-Type: {FILE_TYPE}\r\n\r\n"
    )
    body = b"".join((head.encode(), content, f"\r\n--{boundary}--\r\n".encode()))
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")


def file_reply(name: str, content: bytes, media_type: str = FILE_TYPE) -> Response:
    """Return a file.

    Args:
        name: As `multipart_reply`.
        content: The file.
        media_type: Of the file.
    """
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=media_type, headers=headers)


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(_DICOM_MAGIC.stop)[_DICOM_MAGIC] == b"DICM"
