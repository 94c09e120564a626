"""The native API over HTTP: sessions, volumes, requests, files; see docs/server-api.md."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from fastapi import APIRouter, Header, Path, Query, Request, Response, WebSocket

from fastsam3d.io import write_mask
from fastsam3d.server import native_ws, uploads
from fastsam3d.server.native_calls import Calls, to_json
from fastsam3d.server.native_messages import AnyCall, StudyVerb
from fastsam3d.server.room import in_thread
from fastsam3d.wire.volumes import volume_to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastsam3d.server.leases import Lease
    from fastsam3d.server.services import Services
    from fastsam3d.server.settings import ServerSettings

PREFIX: Final = "/api/v1"
MAX_READERS: Final = 2
"""Uploads that are read at a time; each may need several times its volume."""
MAX_TIME_POINT: Final = 100_000

Token = Annotated[str | None, Header(alias="X-Lease-Token", max_length=200)]
Time = Annotated[int | None, Query(ge=0, le=MAX_TIME_POINT)]
Series = Annotated[str | None, Query(max_length=64, pattern=r"^[0-9.]+$")]
FileName = Annotated[str, Query(max_length=4096)]
ObjectPath = Annotated[int, Path(ge=1, le=65_535)]
ExportFormat = Literal["nii.gz", "nii", "nrrd", "mha", "seg.nrrd"]
_BYTES: Final = "application/octet-stream"
_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}


def body_limit(path: str, settings: ServerSettings) -> int:
    """Return how many bytes of body a path may be sent."""
    is_small = path.startswith(PREFIX) and not path.endswith("/volume")
    return settings.max_message_bytes if is_small else settings.max_upload_bytes


def create_router(services: Services) -> APIRouter:
    """Return the routes of the native API."""
    calls = Calls(services)
    router = APIRouter(prefix=PREFIX, tags=["native"])
    _add_sessions(router, services)
    _add_volumes(router, services)
    _add_work(router, services, calls)
    _add_files(router, services)

    @router.websocket("/session/ws")
    async def socket(websocket: WebSocket) -> None:  # pyright: ignore[reportUnusedFunction]
        await native_ws.serve_socket(websocket, services, calls)

    return router


def describe_lease(services: Services, lease: Lease) -> dict[str, Any]:
    """Return what a client is told about its new session."""
    settings = services.settings
    return {
        "lease": lease.token,
        "idle_s": settings.idle_s,
        "liveness_s": settings.liveness_s,
        "model": services.host.facts.to_plain(),
        "limits": {
            "upload_bytes": settings.max_upload_bytes,
            "message_bytes": settings.max_message_bytes,
            "voxels": settings.max_voxels,
            "files": settings.max_files,
            "objects": settings.max_objects,
        },
    }


def _add_sessions(router: APIRouter, services: Services) -> None:
    async def create() -> dict[str, Any]:
        """Begin a session."""
        return describe_lease(services, services.leases.claim())

    async def delete(token: Token = None) -> Response:
        """End a session; ending it twice does nothing."""
        services.leases.release(token)
        return Response(status_code=204)

    async def heartbeat(token: Token = None) -> dict[str, float]:
        """Say that the client is still there."""
        lease = services.leases.get(token, is_work=False)
        return {"remaining_s": services.leases.remaining_s(lease)}

    router.post("/sessions", status_code=201)(create)
    router.delete("/session", status_code=204)(delete)
    router.post("/session/heartbeat")(heartbeat)


def _add_volumes(router: APIRouter, services: Services) -> None:
    readers = asyncio.Semaphore(MAX_READERS)
    read_with = services.readers

    async def take(lease: Lease, receive: Callable[[Any], Any], **which: Any) -> dict[str, Any]:
        with lease.room.in_use():
            async with uploads.scratch_folder() as folder:
                paths = await receive(folder)
                async with readers:
                    volume = await in_thread(lambda: uploads.read_upload(paths, read_with, **which))
            await lease.room.set_volume(volume)
            return await in_thread(uploads.describe_volume, volume)

    async def put(
        request: Request,
        name: FileName = "volume",  # noqa: ARG001 - for logs of proxies; content decides
        time: Time = None,
        token: Token = None,
    ) -> dict[str, Any]:
        """Start anew on the volume of one file, the body."""
        lease = services.leases.get(token)

        async def receive(folder: Any) -> Any:
            return [await uploads.receive_file(request, folder)]

        return await take(lease, receive, time=time)

    async def post(
        request: Request, series_uid: Series = None, time: Time = None, token: Token = None
    ) -> dict[str, Any]:
        """Start anew on the volume of several files: a DICOM series, or a header and its data."""
        lease = services.leases.get(token)

        async def receive(folder: Any) -> Any:
            return await uploads.receive_files(request, folder, services.settings.max_files)

        return await take(lease, receive, series_uid=series_uid, time=time)

    async def get(token: Token = None) -> Response:
        """Return the volume as uncompressed NIfTI-2."""
        room = services.leases.get(token).room
        with room.in_use():
            content = await in_thread(volume_to_bytes, room.volume)
        return Response(content, media_type=_BYTES)

    multipart = {
        "type": "object",
        "required": ["files"],
        "properties": {"files": {"type": "array", "items": _BINARY["schema"]}},
    }
    router.put("/session/volume", openapi_extra=_body({_BYTES: _BINARY}))(put)
    router.post(
        "/session/volume", openapi_extra=_body({"multipart/form-data": {"schema": multipart}})
    )(post)
    router.get("/session/volume.nii", response_class=Response)(get)


def _add_work(router: APIRouter, services: Services, calls: Calls) -> None:
    async def call(body: AnyCall, token: Token = None) -> dict[str, Any]:
        """Do what a WebSocket message would do, and wait for the answer."""
        room = services.leases.get(token).room
        return to_json(await calls.answer(calls.submit(room, body)), body.seq)

    async def study(token: Token = None) -> dict[str, Any]:
        """Describe all objects with their prompts."""
        room = services.leases.get(token).room
        answer = await calls.answer(calls.submit(room, StudyVerb(type="study.get")))
        return answer.done["result"]

    router.post("/session/call")(call)
    router.get("/session/study")(study)


def _add_files(router: APIRouter, services: Services) -> None:
    async def written(lease: Lease, name: str, write: Callable[[Any], None]) -> Response:
        with lease.room.in_use():
            async with uploads.scratch_folder() as folder:
                path = folder / name
                await in_thread(write, path)
                content = await in_thread(path.read_bytes)
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type=_BYTES, headers=headers)

    async def export(
        format: ExportFormat = "nii.gz",  # noqa: A002 - as it is called in the address
        token: Token = None,
    ) -> Response:
        """Return all objects in one file."""
        lease = services.leases.get(token)
        study = lease.room.study
        return await written(lease, f"segmentation.{format}", study.export)

    async def mask(object_id: ObjectPath, token: Token = None) -> Response:
        """Return one object on the volume's grid."""
        lease = services.leases.get(token)
        study = lease.room.study

        def write(path: Any) -> None:
            write_mask(study.mask(object_id), path)

        return await written(lease, "mask.nii.gz", write)

    router.get("/session/export", response_class=Response)(export)
    router.get("/session/objects/{object_id}/mask.nii.gz", response_class=Response)(mask)


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}
