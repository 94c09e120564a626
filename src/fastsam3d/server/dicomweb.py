"""Series from a PACS over DICOMweb: from the one service that the operator named, nothing else.

A client gives a SeriesInstanceUID, never an address. Requests go to paths below the configured
root only; redirects are not followed, addresses in replies are not read, proxies of the
environment are not used. What comes back is bounded before it is kept.

Needs ``fastsam3d[dicom]``. Source of the requests and forms: DICOM PS3.18, QIDO-RS and WADO-RS.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast
from urllib.parse import urlsplit

import httpx2
from python_multipart.multipart import MultipartParser, parse_options_header

from fastsam3d.errors import ConfigError
from fastsam3d.server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from python_multipart.multipart import MultipartCallbacks

CONNECT_S: Final = 10.0
READ_S: Final = 60.0
"""Longest pause of the service within a reply."""
MAX_FOUND_BYTES: Final = 2**20
"""Of the reply to a query for one series."""
_UID: Final = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_STUDY_TAG: Final = "0020000D"
_DICOM_PARTS: Final = 'multipart/related; type="application/dicom"; transfer-syntax=*'


class DicomWeb:
    """One DICOMweb service.

    Args:
        root: Its address, such as ``http://127.0.0.1:8042/dicom-web``; may hold a user and a
            password.
        max_bytes: Of one series as it is sent.
        max_files: Slices of one series.
        transport: How requests travel; for tests.

    Raises:
        ConfigError: The root is no http or https address.
    """

    def __init__(
        self,
        root: str,
        *,
        max_bytes: int,
        max_files: int,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        parts = urlsplit(root)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
            message = "The DICOMweb root must look like http://host:8042/dicom-web; correct it."
            raise ConfigError(message)
        self._root = root.rstrip("/")
        self._max_bytes, self._max_files = max_bytes, max_files
        self._transport = transport

    async def fetch_series(self, series_uid: str, folder: Path) -> int:
        """Get the slices of a series.

        Args:
            series_uid: From a client.
            folder: Where the files are written, under names of our own.

        Returns:
            The number of files.

        Raises:
            ApiError: 404 ``image_not_found``, 413 ``too_large``, 502 ``pacs_failed``.
        """
        study_uid = await self._study_of(series_uid)
        path = f"studies/{study_uid}/series/{series_uid}"
        async with self.get(path, {"Accept": _DICOM_PARTS}) as reply:
            _check_found(reply)
            kind, options = parse_options_header(reply.headers.get("content-type", ""))
            if kind != b"multipart/related" or not options.get(b"boundary"):
                raise _failed("sent no multipart reply")
            with closing(_Parts(folder, self._max_files, options[b"boundary"])) as parts:
                async for chunk in _bounded(reply, self._max_bytes):
                    parts.feed(chunk)
                return parts.finish()

    @asynccontextmanager
    async def get(
        self, path: str, headers: Mapping[str, str], query: str = ""
    ) -> AsyncGenerator[httpx2.Response]:
        """Ask the service; the reply's body is not read yet.

        Args:
            path: Below the root; of checked parts only.
            headers: Of the request.
            query: Percent-encoded.

        Raises:
            ApiError: 502 ``pacs_failed``: not reachable, or too slow.
        """
        url = f"{self._root}/{path}{'?' if query else ''}{query}"
        # Bodies are taken as they are sent: an inflated one has no known size.
        sent = {"Accept-Encoding": "identity", **headers}
        timeout = httpx2.Timeout(READ_S, connect=CONNECT_S)
        try:
            async with (
                httpx2.AsyncClient(
                    transport=self._transport, timeout=timeout, trust_env=False
                ) as client,
                client.stream("GET", url, headers=sent) as reply,
            ):
                if reply.headers.get("content-encoding", "identity") != "identity":
                    raise _failed("compressed its reply, which was not asked for")
                yield reply
        except httpx2.HTTPError as error:
            raise _failed("did not answer") from error

    async def _study_of(self, series_uid: str) -> str:
        if not is_uid(series_uid):
            raise _not_found()
        query = f"SeriesInstanceUID={series_uid}&limit=2"
        async with self.get("series", {"Accept": "application/dicom+json"}, query) as reply:
            if reply.status_code == 204:
                raise _not_found()
            _check_found(reply)
            body = b"".join([chunk async for chunk in _bounded(reply, MAX_FOUND_BYTES)])
        try:
            found: list[Any] = json.loads(body)
            if found == []:
                raise _not_found()
            study_uid = cast("object", found[0][_STUDY_TAG]["Value"][0])
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise _failed("sent no list of series") from error
        if not isinstance(study_uid, str) or not is_uid(study_uid):
            raise _failed("named no study of the series")
        return study_uid


class _Parts:
    """Writes the parts of a multipart reply to files, one each.

    Args:
        folder: Where to.
        max_files: More are refused.
        boundary: Between the parts.

    Raises:
        ApiError: 502 ``pacs_failed``: the boundary is too long.
    """

    def __init__(self, folder: Path, max_files: int, boundary: bytes) -> None:
        self._folder, self._max_files = folder, max_files
        self._file: BinaryIO | None = None
        self._num_done = 0
        self._is_complete = False
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._complete,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except ValueError as error:
            raise _failed("sent a broken multipart reply") from error

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            ApiError: 502 ``pacs_failed``: not well formed; 413 ``too_large``.
        """
        try:
            self._parser.write(chunk)
        except ValueError as error:
            raise _failed("sent a broken multipart reply") from error

    def finish(self) -> int:
        """Return the number of files.

        Raises:
            ApiError: 502 ``pacs_failed``: the reply ended early.
        """
        if not self._is_complete or not self._num_done:
            raise _failed("ended its reply early")
        return self._num_done

    def _begin(self) -> None:
        if self._num_done >= self._max_files:
            raise _too_large()
        self._file = (self._folder / f"{self._num_done:06d}").open("wb")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])

    def _end(self) -> None:
        self.close()
        self._num_done += 1

    def _complete(self) -> None:
        self._is_complete = True

    def close(self) -> None:
        """Close the file of a part that has not ended."""
        if self._file is not None:
            self._file.close()
        self._file = None


def is_uid(text: str) -> bool:
    """Whether a text is a DICOM UID."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


async def _bounded(reply: httpx2.Response, max_bytes: int) -> AsyncGenerator[bytes]:
    left = max_bytes
    async for chunk in reply.aiter_raw():
        left -= len(chunk)
        if left < 0:
            raise _too_large()
        yield chunk


def _check_found(reply: httpx2.Response) -> None:
    if reply.status_code == 404:
        raise _not_found()
    if reply.status_code != 200:
        raise _failed(f"answered {reply.status_code}")


def _not_found() -> ApiError:
    message = "Neither the server nor its PACS has an image of that name; check the UID."
    return ApiError(404, "image_not_found", message)


def _too_large() -> ApiError:
    message = "The series is larger than the server takes; see the limits in docs/server.md."
    return ApiError(413, "too_large", message)


def _failed(what: str) -> ApiError:
    return ApiError(502, "pacs_failed", f"The PACS {what}; tell who runs it, or try again later.")
