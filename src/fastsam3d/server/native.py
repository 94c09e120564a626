"""The native API over HTTP: sessions, volumes, calls, files; see docs/server-api.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Header, Response

from fastsam3d.server.leases import Lease

if TYPE_CHECKING:
    from fastsam3d.server.services import Services
    from fastsam3d.server.settings import ServerSettings

PREFIX: Final = "/api/v1"
Token = Annotated[str | None, Header(alias="X-Lease-Token")]


def body_limit(path: str, settings: ServerSettings) -> int:
    """Return how many bytes of body a path may be sent."""
    is_small = path.startswith(PREFIX) and not path.endswith("/volume")
    return settings.max_message_bytes if is_small else settings.max_upload_bytes


def create_router(services: Services) -> APIRouter:
    """Return the routes of the native API."""
    router = APIRouter(prefix=PREFIX, tags=["native"])

    @router.post("/sessions", status_code=201)
    async def create_session() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Begin a session."""
        return describe_lease(services, services.leases.claim())

    @router.delete("/session", status_code=204)
    async def delete_session(  # pyright: ignore[reportUnusedFunction]
        token: Token = None,
    ) -> Response:
        """End a session; ending it twice does nothing."""
        services.leases.release(token)
        return Response(status_code=204)

    @router.post("/session/heartbeat")
    async def heartbeat(  # pyright: ignore[reportUnusedFunction]
        token: Token = None,
    ) -> dict[str, float]:
        """Say that the client is still there."""
        lease = services.leases.get(token, is_work=False)
        return {"remaining_s": services.leases.remaining_s(lease)}

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
