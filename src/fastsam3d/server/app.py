"""The application: one port, several protocols, one engine.

`create_app` puts the parts together; each protocol is a module of its own with one function that
returns its routes.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response

import fastsam3d
from fastsam3d.server import monailabel, native, nninteractive, viewer
from fastsam3d.server.errors import ApiError, install_handlers
from fastsam3d.server.host import ModelHost
from fastsam3d.server.leases import LeaseTable
from fastsam3d.server.metrics import Metrics
from fastsam3d.server.queue import EngineQueue
from fastsam3d.server.readers import Readers
from fastsam3d.server.room import Room
from fastsam3d.server.security import HEALTH_PATH, Guard
from fastsam3d.server.services import Services

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from fastsam3d.server.settings import ServerSettings

REAP_EVERY_S: Final = 5.0
ENGINE_STOP_SHARE: Final = 0.3
"""Of the time to stop; the rest is for requests in progress, see `run`."""


def create_app(settings: ServerSettings, host: ModelHost | None = None) -> FastAPI:
    """Make the application.

    Args:
        settings: What the operator decided.
        host: The model; by default the one that the settings name is loaded.

    Returns:
        The application; `app.state` has `services` and, for short, `settings`, `host`, `leases`
        and `queue`. Its engine's thread runs until the application is shut down.

    Raises:
        FastSAM3DError: As `ModelHost.load`.
    """
    services = create_services(settings, ModelHost.load(settings) if host is None else host)
    app = FastAPI(
        title="fastsam3d",
        version=fastsam3d.__version__,
        description="Interactive segmentation of 3-D medical volumes.",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.services = services
    for name in ("settings", "host", "leases", "queue"):
        setattr(app.state, name, getattr(services, name))
    install_handlers(app)
    _add_operator_routes(app, services)
    for protocol in (native, nninteractive, monailabel):
        app.include_router(protocol.create_router(services))
    viewer.mount(app)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.allowed_origins),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=["Content-Disposition", "X-Meta", "Retry-After"],
        )
    # Added last, hence first in line.
    app.add_middleware(
        Guard,
        services=services,
        is_static=viewer.is_static,
        body_limit=lambda path: native.body_limit(path, settings),
    )
    return app


def create_services(settings: ServerSettings, host: ModelHost) -> Services:
    """Start the engine's thread and put the shared parts together."""
    queue = EngineQueue(
        length=settings.queue_length,
        room_length=settings.session_queue_length,
        timeout_s=settings.predict_timeout_s,
        setup=host.set_up_thread,
    )
    leases = LeaseTable(
        lambda: Room(host, queue),
        max_sessions=settings.max_sessions,
        idle_s=settings.idle_s,
        liveness_s=settings.liveness_s,
    )
    metrics = Metrics()
    metrics.watch(leases, queue, host)
    return Services(
        settings=settings,
        host=host,
        queue=queue,
        leases=leases,
        metrics=metrics,
        readers=Readers(settings),
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    services: Services = app.state.services
    settings = services.settings
    await services.queue.run("warm-up", services.host.warm_up)
    reaper = asyncio.create_task(_reap(services))
    try:
        yield
    finally:
        reaper.cancel()
        services.leases.close()
        services.readers.close()
        await asyncio.to_thread(services.queue.close, ENGINE_STOP_SHARE * settings.shutdown_s)
        await asyncio.to_thread(services.host.close)


async def _reap(services: Services) -> None:
    while True:
        await asyncio.sleep(REAP_EVERY_S)
        services.leases.reap()
        with suppress(ApiError):  # A full queue tends to it by itself.
            services.queue.submit("tend", services.host.tend)


def _add_operator_routes(app: FastAPI, services: Services) -> None:
    @app.get(HEALTH_PATH, tags=["operator"])
    async def healthz() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Whether the server works; needs no key."""
        if not services.queue.is_alive or services.host.is_down:
            raise ApiError(503, "engine_down", "The engine has stopped; restart the server.")
        return {"ok": True}

    @app.get("/metrics", tags=["operator"], response_class=Response)
    async def metrics() -> Response:  # pyright: ignore[reportUnusedFunction]
        """Counters in Prometheus' text format."""
        text = services.metrics.to_text()
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
