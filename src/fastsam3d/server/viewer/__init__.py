"""The web page: static files of this package, served as they are, with no build step and no node.

The page speaks the native API like any other client, so nothing here knows about sessions. Files
are looked up in a list made at start; no path of a request ever reaches the file system.

Source of ``static/niivue.umd.js``: @niivue/niivue 0.69.0 from npm, unchanged, BSD-2-Clause (its
licence is in NOTICE).
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from fastapi import FastAPI
    from starlette.requests import Request

PREFIX: Final = "/viewer/"
_INDEX: Final = "index.html"
_MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Checked on every load, so that a page never mixes files of two versions; unchanged ones are not
# sent again.
_CACHE: Final = "no-cache"
_COMPRESS_FROM: Final = 1024


@dataclass(frozen=True, kw_only=True)
class StaticFile:
    """A file of the page, ready to be sent.

    Attributes:
        content: As it lies in the package.
        compressed: The same in gzip.
        media_type: Of `content`.
        etag: Changes with `content`.
    """

    content: bytes
    compressed: bytes
    media_type: str
    etag: str


def is_static(path: str) -> bool:
    """Whether a path is one of the page's files, which anyone may read without a key."""
    return path == "/" or path.startswith(PREFIX)


def mount(app: FastAPI) -> None:
    """Serve the page at ``/`` and its files below ``/viewer/``."""
    static = read_static_files()

    async def index(request: Request) -> Response:
        return _answer(request, static[_INDEX])

    async def file(request: Request) -> Response:
        found = static.get(request.path_params["name"])
        return Response("Not found", 404) if found is None else _answer(request, found)

    app.add_route("/", index, include_in_schema=False)
    app.add_route(PREFIX + "{name:path}", file, include_in_schema=False)


def read_static_files() -> dict[str, StaticFile]:
    """Return all files of the page by their path below ``static``; about 3.5 MB."""
    return dict(_walk(files(__name__) / "static", ""))


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, StaticFile]]:
    found: list[tuple[str, StaticFile]] = []
    for item in folder.iterdir():
        if item.is_dir():
            found += _walk(item, f"{prefix}{item.name}/")
            continue
        suffix = item.name[item.name.rfind(".") :]
        if suffix in _MEDIA_TYPES:
            found.append((prefix + item.name, _read(item, _MEDIA_TYPES[suffix])))
    return found


def _read(item: Traversable, media_type: str) -> StaticFile:
    content = item.read_bytes()
    compressed = gzip.compress(content, 6, mtime=0) if len(content) > _COMPRESS_FROM else content
    etag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
    return StaticFile(content=content, compressed=compressed, media_type=media_type, etag=etag)


def _answer(request: Request, file: StaticFile) -> Response:
    headers = {"Cache-Control": _CACHE, "ETag": file.etag, "Vary": "Accept-Encoding"}
    if request.headers.get("If-None-Match") == file.etag:
        return Response(status_code=304, headers=headers)
    accepts_gzip = "gzip" in request.headers.get("Accept-Encoding", "")
    if accepts_gzip and file.compressed is not file.content:
        headers["Content-Encoding"] = "gzip"
        return Response(file.compressed, media_type=file.media_type, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
