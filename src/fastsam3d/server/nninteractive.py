"""The nnInteractive protocol, version 2: what its published client sends, answered by our model.

Coordinates are indices of the array as the client sent it. Arrays travel as `nninteractive_arrays`
reads and writes them, metadata as JSON in the header ``X-Meta``. Sessions are leases as everywhere
in the server: 410 when one is unknown, 503 with ``Retry-After`` when all are taken.
"""

from __future__ import annotations

import asyncio
import json
import math
import mmap
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from fastsam3d.server import nninteractive_messages as messages
from fastsam3d.server.errors import ApiError, to_api_error
from fastsam3d.server.nninteractive_arrays import load_codec, pack_array
from fastsam3d.server.nninteractive_desk import Change, Desk, desk_of
from fastsam3d.server.room import in_thread
from fastsam3d.server.uploads import receive_file, scratch_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fastsam3d.prompts import Prompt
    from fastsam3d.server.leases import Lease
    from fastsam3d.server.room import Room
    from fastsam3d.server.services import Services
    from fastsam3d.server.settings import ServerSettings
    from fastsam3d.session import Study
    from fastsam3d.volume import Volume

META: Final = "X-Meta"
LEASE: Final = "X-Lease-Token"
MAX_JSON_BYTES: Final = messages.MAX_META_CHARACTERS
MASK_OVERHEAD_BYTES: Final = 64 * 1024
"""What a mask that cannot be compressed takes beyond a byte for each voxel."""
MAX_READERS: Final = 2
"""Images that are read at a time."""
_BYTES: Final = "application/octet-stream"
_LOST: Final = frozenset({"timeout", "cancelled"})


class _Route(APIRoute):
    """A route whose errors say ``detail`` too, which the protocol's clients show."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Return what answers a request."""
        answer = super().get_route_handler()

        async def told(request: Request) -> Response:
            try:
                return await answer(request)
            except ClientDisconnect:
                raise
            except Exception as error:  # noqa: BLE001 - as the handlers of the application do
                known = to_api_error(error)
                body = known.to_plain() | {"detail": known.message}
                return JSONResponse(body, known.status, known.headers)

        return told


def create_router(services: Services) -> APIRouter:
    """Return the routes of the protocol.

    Args:
        services: The parts of the server.
    """
    router = APIRouter(tags=["nninteractive"], route_class=_Route)
    _add_leases(router, services)
    _add_image(router, services)
    _add_prompts(router, services)
    _add_painted(router, services)
    _add_steps(router, services)
    return router


def capabilities(license_name: str) -> dict[str, Any]:
    """Return what clients may ask for; channels are those that the protocol's own model has."""
    kinds = ("points", "bbox2d", "bbox3d", "scribble", "lasso")
    return {
        "supported_interactions": dict.fromkeys(kinds, True),
        "channel_mapping": {
            "initial_seg": 0,
            "bbox2d": [1, 2],
            "bbox3d": [1, 2],
            "lasso": [1, 2],
            "points": [3, 4],
            "scribble": [5, 6],
        },
        "num_interaction_channels": 7,
        "supports_initial_label": True,
        "supports_zero_shot_label_refinement": False,
        "preferred_scribble_thickness": [1, 1, 1],
        "interaction_decay": 1.0,
        "patch_size": [128, 128, 128],
        "do_autozoom": True,
        "inference_session_version": 2,
        "license": license_name,
        "supports_undo": True,
    }


def _add_leases(router: APIRouter, services: Services) -> None:
    leases = services.leases

    @router.post("/claim")
    async def claim() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Begin a session."""
        await in_thread(load_codec)
        return {
            "lease_token": leases.claim().token,
            "idle_timeout_seconds": leases.idle_s,
            "liveness_timeout_seconds": leases.liveness_s,
            "max_sessions": leases.max_sessions,
        }

    @router.get("/capabilities")
    async def told() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Say what can be asked for."""
        return capabilities(services.host.facts.license)

    @router.post("/heartbeat")
    async def beat(request: Request) -> dict[str, float]:  # pyright: ignore[reportUnusedFunction]
        """Say that the client is still there; tells what is left of the idle time."""
        lease = leases.get(request.headers.get(LEASE), is_work=False)
        return {"remaining_seconds": leases.idle_left_s(lease)}

    @router.get("/lease_status")
    async def status(request: Request) -> dict[str, float]:  # pyright: ignore[reportUnusedFunction]
        """Tell what is left of the idle time, and touch no clock."""
        lease = leases.find(request.headers.get(LEASE))
        return {
            "remaining_seconds": leases.idle_left_s(lease),
            "idle_timeout_seconds": leases.idle_s,
        }

    @router.post("/release")
    async def release(request: Request) -> dict[str, bool]:  # pyright: ignore[reportUnusedFunction]
        """End a session; ending it twice does nothing."""
        leases.release(request.headers.get(LEASE))
        return {"released": True}


def _add_image(router: APIRouter, services: Services) -> None:
    readers = asyncio.Semaphore(MAX_READERS)
    settings = services.settings

    @router.post("/set_image")
    async def set_image(request: Request) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Start anew on an image, (C, X, Y, Z)."""
        lease = _lease(services, request)
        meta = messages.parse_meta(request.headers.get(META))
        with lease.room.in_use():
            async with scratch_folder() as folder:
                path = await receive_file(request, folder)
                async with readers:
                    volume = await in_thread(_read_image, path, meta, settings)
            await lease.room.set_volume(volume)
        channels = len(getattr(volume, "channels", (volume,)))
        return {"original_image_shape": [channels, *volume.shape]}

    @router.post("/set_target_buffer")
    async def set_buffer(request: Request) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Announce the array that the client keeps the mask in; it is empty."""
        room = _lease(services, request).room
        shape, dtype = messages.read_buffer(await _json(request), settings)

        def work() -> None:
            if room.num_voxels and room.volume.shape != shape:
                messages.bad(f"shape must be the image's {room.volume.shape}, got {shape}")
            desk_of(room).set_buffer(dtype)

        await room.run(work)
        return {}

    @router.post("/set_do_autozoom")
    async def set_autozoom(request: Request) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Take the wish; our model follows an object that leaves its view anyway."""
        _lease(services, request)
        messages.read_flag(await _json(request), "do_autozoom")
        return {}


def _add_prompts(router: APIRouter, services: Services) -> None:
    async def give(request: Request, read: Callable[[dict[str, Any], Volume], Prompt]) -> Response:
        room = _lease(services, request).room
        meta = await _json(request)
        is_answered = messages.read_flag(meta, "run_prediction", default=True)
        prompt = read(meta, room.volume)
        return await _run(
            request, room, lambda desk, study: desk.give(study, prompt, is_answered=is_answered)
        )

    @router.post("/add_point_interaction", response_class=Response)
    async def point(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Add a point."""
        return await give(request, lambda meta, _: messages.read_point(meta))

    @router.post("/add_bbox_interaction", response_class=Response)
    async def box(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Add a box, in 3-D or on a slice."""
        return await give(request, lambda meta, v: messages.read_box(meta, v.geometry))


def _add_painted(router: APIRouter, services: Services) -> None:
    async def give(request: Request, *, is_lasso: bool) -> Response:
        room = _lease(services, request).room
        meta = messages.parse_meta(request.headers.get(META))
        is_answered = messages.read_flag(meta, "run_prediction", default=True)
        positive = messages.read_flag(meta, "include_interaction")
        geometry = room.volume.geometry
        region = messages.mask_region(meta, geometry)
        body = await _body(request, math.prod(geometry.shape) + MASK_OVERHEAD_BYTES)

        def read() -> Prompt | None:
            mask = messages.read_mask(body, region, geometry)
            if is_lasso:
                return messages.to_area(mask, region, positive=positive)
            return messages.to_stroke(mask, positive=positive)

        with room.in_use():
            prompt = await in_thread(read)
        return await _run(
            request, room, lambda desk, study: desk.give(study, prompt, is_answered=is_answered)
        )

    @router.post("/add_scribble_interaction", response_class=Response)
    async def scribble(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Add a painted stroke."""
        return await give(request, is_lasso=False)

    @router.post("/add_lasso_interaction", response_class=Response)
    async def lasso(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Add an area of a slice."""
        return await give(request, is_lasso=True)

    @router.post("/add_initial_seg_interaction", response_class=Response)
    async def initial(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Forget all prompts and go on from a mask."""
        room = _lease(services, request).room
        meta = messages.parse_meta(request.headers.get(META))
        is_answered = messages.read_flag(meta, "run_prediction", default=False)
        geometry = room.volume.geometry
        body = await _body(request, math.prod(geometry.shape) + MASK_OVERHEAD_BYTES)
        with room.in_use():
            mask = await in_thread(messages.read_mask, body, geometry.region, geometry)
        return await _run(
            request, room, lambda desk, study: desk.start_from(study, mask, is_answered=is_answered)
        )


def _add_steps(router: APIRouter, services: Services) -> None:
    @router.post("/predict", response_class=Response)
    async def predict(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Answer the prompts that wait."""
        room = _lease(services, request).room
        await _json(request)
        return await _run(request, room, Desk.answer)

    @router.post("/undo", response_class=Response)
    async def undo(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Take the latest prompt or initial segmentation back."""
        room = _lease(services, request).room
        await _json(request)
        return await _run(request, room, Desk.undo)

    @router.post("/reset_interactions")
    async def reset(request: Request) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Forget all prompts; the image stays."""
        room = _lease(services, request).room
        await _json(request)
        _ = room.volume
        await room.run(lambda: desk_of(room).reset(room.study))
        return {}


def _lease(services: Services, request: Request) -> Lease:
    return services.leases.get(request.headers.get(LEASE))


async def _json(request: Request) -> dict[str, Any]:
    return messages.parse_meta(await _body(request, MAX_JSON_BYTES))


async def _body(request: Request, max_bytes: int) -> bytes:
    """Return the body of a request.

    Raises:
        ApiError: 413 ``too_large``.
    """
    parts: list[bytes] = []
    left = max_bytes
    async for part in request.stream():
        left -= len(part)
        if left < 0:
            message = f"The body holds more than the {max_bytes} bytes that make sense here."
            raise ApiError(413, "too_large", message, {"Connection": "close"})
        parts.append(part)
    return b"".join(parts)


async def _run(request: Request, room: Room, work: Callable[[Desk, Study], Change]) -> Response:
    """Do something at the desk, in the engine's thread, and tell what changed."""
    _ = room.volume  # Says at once that there is none.

    def job() -> Change:
        return work(desk_of(room), room.study)

    try:
        change = await room.run(job)
    except ApiError as error:
        if error.code in _LOST:
            desk_of(room).is_certain = False
        raise
    if await request.is_disconnected():
        desk_of(room).is_certain = False
    return await _reply(change)


async def _reply(change: Change) -> Response:
    meta: dict[str, Any] = {"ran_prediction": change.has_run, "bbox": None}
    content = b""
    if change.part is not None:
        region = change.region
        meta["bbox"] = [list(pair) for pair in zip(region.start, region.stop, strict=True)]
        meta |= {"dtype": change.part.dtype.name, "shape": list(change.part.shape)}
        content = await in_thread(pack_array, change.part)
    headers = {META: json.dumps(meta, separators=(",", ":"))}
    return Response(content, media_type=_BYTES, headers=headers)


def _read_image(path: Path, meta: dict[str, Any], settings: ServerSettings) -> Volume:
    with path.open("rb") as file:
        # Closed with its last reference: an error still refers to it.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return messages.read_image(memoryview(mapped), meta, settings)
