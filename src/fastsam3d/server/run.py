"""How the application is put on a port: one process, one event loop, bounded protocol parsers."""

from __future__ import annotations

import asyncio
import math
import socket
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fastsam3d.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

    from fastsam3d.server.settings import ServerSettings

MAX_HEADER_BYTES: Final = 64 * 1024
MAX_CONNECTIONS: Final = 512
HEADER_S: Final = 10.0
"""A connection whose request has not begun properly by then is closed."""
KEEP_ALIVE_S: Final = 20
_DRAIN_SHARE: Final = 0.7  # of the time to stop is for requests, the rest for the engine


class Server(uvicorn.Server):
    """A server that tells when it can be reached.

    Args:
        config: Of `server_config`.
        on_ready: Called with the port.
    """

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[int], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell."""
        await super().startup(sockets)
        if self.started:
            self._on_ready(self.servers[0].sockets[0].getsockname()[1])


def bind(settings: ServerSettings) -> socket.socket:
    """Take the address, before a model is loaded for nothing.

    Raises:
        ConfigError: It cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server((str(address[0]), settings.port), family=family)
    except OSError as error:
        message = (
            f"Cannot listen on {settings.host}, port {settings.port} ({error.strerror or error}); "
            "choose another --port (0 takes a free one), or stop what runs there."
        )
        raise ConfigError(message) from error


def run(app: FastAPI, taken: socket.socket, on_ready: Callable[[int], None]) -> None:
    """Serve until a signal; requests in progress may end within the settings' `shutdown_s`.

    Args:
        app: Of `create_app`.
        taken: Of `bind`.
        on_ready: Called with the port when the model is warm and the server can be reached.
    """
    Server(server_config(app), on_ready).run(sockets=[taken])


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
        "http": PatientH11,
        "h11_max_incomplete_event_size": MAX_HEADER_BYTES,
        "ws": "websockets-sansio",
        "ws_max_size": settings.max_message_bytes,
        # Inflating what strangers send costs more than it saves on masks, which are small.
        "ws_per_message_deflate": False,
        "limit_concurrency": MAX_CONNECTIONS,
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": math.ceil(_DRAIN_SHARE * settings.shutdown_s),
        "server_header": False,
        "date_header": False,
        "proxy_headers": False,
        "access_log": False,
        "log_level": log_level,
    }
    return uvicorn.Config(app, **options)


class PatientH11(H11Protocol):
    """HTTP that waits for the head of a request, but not for ever."""

    _timer: asyncio.TimerHandle | None = None
    _is_upgraded = False

    def connection_made(self, transport: Any) -> None:
        """Begin to wait."""
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        """Wait on only while a head is incomplete."""
        super().data_received(data)
        if not self._is_waiting():
            self._disarm()
        elif self._timer is None:
            self._arm()

    def handle_websocket_upgrade(self, event: Any) -> None:
        """A WebSocket has its own clock: its first message."""
        self._is_upgraded = True
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._disarm()
        super().connection_lost(exc)

    def _is_waiting(self) -> bool:
        cycle: Any = self.cycle
        return not self._is_upgraded and (cycle is None or bool(cycle.response_complete))

    def _arm(self) -> None:
        self._timer = self.loop.call_later(HEADER_S, self._give_up)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self._is_waiting():
            self.transport.close()
