"""How the application is put on a port: one process, one event loop, bounded protocol parsers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import uvicorn

if TYPE_CHECKING:
    from fastapi import FastAPI

    from fastsam3d.server.settings import ServerSettings

MAX_HEADER_BYTES: Final = 64 * 1024
MAX_CONNECTIONS: Final = 512
KEEP_ALIVE_S: Final = 20


def server_config(app: FastAPI, *, log_level: str = "warning") -> uvicorn.Config:
    """Return how uvicorn runs an app of `create_app`.

    Args:
        app: The application.
        log_level: Of uvicorn's own log.
    """
    settings: ServerSettings = app.state.settings
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        # Pure Python, and strict about lengths and sizes of headers.
        "http": "h11",
        "h11_max_incomplete_event_size": MAX_HEADER_BYTES,
        "ws": "websockets-sansio",
        "ws_max_size": settings.max_message_bytes,
        # Inflating what strangers send costs more than it saves on masks, which are small.
        "ws_per_message_deflate": False,
        "limit_concurrency": MAX_CONNECTIONS,
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": math.ceil(settings.shutdown_s),
        "server_header": False,
        "date_header": False,
        "proxy_headers": False,
        "access_log": False,
        "log_level": log_level,
    }
    return uvicorn.Config(app, **options)
