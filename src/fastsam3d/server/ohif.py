"""The OHIF page that MONAI Label ships, and the images that it shows, from this server's address.

Off unless the operator names the folder of the page; its files are not ours and do not come with
this package. The page reads images through ``/proxy/dicom``, which passes on reading requests of
known forms to the configured PACS and nothing else. Files are looked up in a list made at start; no
path of a request reaches the file system.
"""

from __future__ import annotations

import mimetypes
import re
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response, StreamingResponse

from fastsam3d.errors import ConfigError
from fastsam3d.server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    import httpx2

    from fastsam3d.server.dicomweb import DicomWeb

PAGE: Final = "/ohif/"
PROXY: Final = "/proxy/dicom/"
MAX_FILES: Final = 2000
MAX_QUERY_CHARACTERS: Final = 4096
# The page evaluates code that it makes and WebAssembly, and has styles in its elements.
_POLICY: Final = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' blob: data:",
        "font-src 'self' data:",
        "connect-src 'self' blob: data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
# A look-ahead for the length; dots only between numbers, so that no segment is "..".
_UID: Final = r"(?=[0-9.]{1,64}(?:/|$))[0-9]+(?:\.[0-9]+)*"
_PATH: Final = re.compile(
    rf"(?:studies|series|instances"
    rf"|studies/{_UID}(?:/(?:series|instances|metadata))?"
    rf"|studies/{_UID}/series/{_UID}(?:/(?:instances|metadata|rendered|thumbnail))?"
    rf"|studies/{_UID}/series/{_UID}/instances/{_UID}"
    rf"(?:/(?:metadata|rendered|thumbnail|frames/[0-9,]{{1,100}}(?:/rendered)?))?)"
)
_PASSED_ON: Final = ("content-type", "content-length")


def create_router(page: Path, pacs: DicomWeb) -> APIRouter:
    """Return the routes of the page and of its images.

    Args:
        page: Folder of the page, ``monailabel/endpoints/static/ohif`` of that package.
        pacs: Where the images are.

    Raises:
        ConfigError: There is no such page.
    """
    files = _find_files(page)
    router = APIRouter(include_in_schema=False)

    @router.get(PAGE + "{name:path}")
    async def page_file(name: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Send a file; the page's own addresses are all answered with its index."""
        known = name in files
        if not known and "." in name.rpartition("/")[2]:
            raise ApiError(404, "not_found", "The page has no such file.")
        path = files[name if known else "index.html"]
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
        return FileResponse(path, media_type=kind, headers=headers)

    @router.get(PROXY + "{service}/{path:path}")
    async def images(  # pyright: ignore[reportUnusedFunction]
        service: str, path: str, request: Request
    ) -> Response:
        """Pass a reading request on to the PACS."""
        query = request.url.query
        is_known = service in {"qido", "wado"} and _PATH.fullmatch(path) is not None
        if not is_known or len(query) > MAX_QUERY_CHARACTERS:
            message = "The proxy passes reading requests of DICOMweb on, and nothing else."
            raise ApiError(403, "not_passed_on", message)
        accept = request.headers.get("accept", "*/*")
        return await _pass_on(pacs, path, accept, query)

    return router


async def _pass_on(pacs: DicomWeb, path: str, accept: str, query: str) -> Response:
    stack = AsyncExitStack()
    # Entered here, so that an unreachable service is an error reply; left when the body is sent.
    reply = await stack.enter_async_context(pacs.get(path, {"Accept": accept}, query))
    headers = {name: reply.headers[name] for name in _PASSED_ON if name in reply.headers}
    return StreamingResponse(_body(reply, stack), reply.status_code, headers)


async def _body(reply: httpx2.Response, stack: AsyncExitStack) -> AsyncGenerator[bytes]:
    async with stack:
        async for chunk in reply.aiter_raw():
            yield chunk


def _find_files(page: Path) -> dict[str, Path]:
    files = {
        path.relative_to(page).as_posix(): path
        for path in page.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    if not 0 < len(files) <= MAX_FILES or "index.html" not in files:
        message = (
            "The OHIF folder must hold its page, index.html and what belongs to it; give "
            "monailabel/endpoints/static/ohif of an installed monailabel."
        )
        raise ConfigError(message)
    return files
