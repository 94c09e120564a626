"""What stands before every route: who may call, from which page, with how much, and headers.

One ASGI middleware that reads headers only, so that a refused request costs next to nothing. A page
of another origin, or a foreign name that was pointed at this machine (DNS rebinding), is refused
whatever it asks for; nothing but the health check and the viewer's own files is served without the
key.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from fastsam3d.server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from fastsam3d.server.services import Services

CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "font-src 'self'",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
HEALTH_PATH: Final = "/healthz"
MAX_RANGE_CHARACTERS: Final = 100


class IsPublic(Protocol):
    """Says whether a path is a file of the viewer."""

    def __call__(self, path: str) -> bool:
        """Return whether it is."""
        ...


class Guard:
    """The middleware.

    Args:
        app: What it guards.
        services: Settings and the key.
        is_static: Whether a path is a file that anyone may read with GET.
        body_limit: Bytes of the body that a path may be sent.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        services: Services,
        is_static: IsPublic,
        body_limit: Callable[[str], int],
    ) -> None:
        self._app = app
        self._services = services
        self._is_static = is_static
        self._body_limit = body_limit
        self._hosts = services.settings.hosts
        self._origins = frozenset(services.settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with a bounded body and with headers."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check(scope, headers)
        except ApiError as error:
            await self._refuse(error, scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        settings = self._services.settings
        body = BoundedBody(
            receive, self._body_limit(scope["path"]), settings.stall_timeout_s,
            settings.upload_timeout_s,
        )  # fmt: skip
        await self._app(scope, body, _with_headers(send))

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or _hostname(host) not in self._hosts:
            message = "The server does not go by that name; see allowed hosts in docs/server.md."
            raise ApiError(403, "host_not_allowed", message)
        for origin in headers.getlist("origin"):
            if origin not in self._origins and not _is_same(origin, host):
                message = "Pages of that origin may not use the server; see allowed origins."
                raise ApiError(403, "origin_not_allowed", message)
        if scope["type"] == "websocket":  # Its key comes in the first message.
            return
        if len(headers.get("range", "")) > MAX_RANGE_CHARACTERS:
            raise ApiError(416, "bad_range", "Ask for one range of bytes.")
        self._check_key(scope, headers)
        _check_length(headers, self._body_limit(scope["path"]))

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        path, method = scope["path"], scope["method"]
        if path == HEALTH_PATH or method == "OPTIONS":
            return
        if method in {"GET", "HEAD"} and self._is_static(path):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if not self._services.is_key(key.strip() if scheme.lower() == "bearer" else None):
            message = "The server needs its API key: Authorization: Bearer KEY."
            raise ApiError(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})

    async def _refuse(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        self._services.metrics.refusals.labels(code=error.code).inc()
        if scope["type"] == "websocket":
            # Before it is accepted, closing makes the handshake fail with 403.
            await send({"type": "websocket.close", "code": 1008, "reason": error.code})
            return
        # The body was not read: the connection cannot be used again.
        headers = {**error.headers, "Connection": "close"}
        reply = JSONResponse(error.to_plain(), error.status, headers)
        await reply(scope, receive, _with_headers(send))


class BoundedBody:
    """Receives a body of at most so many bytes, within so much time.

    Args:
        receive: Receives without bounds.
        max_bytes: Of the whole body.
        stall_s: Longest pause.
        total_s: Longest time from the first part to the last.
    """

    def __init__(self, receive: Receive, max_bytes: int, stall_s: float, total_s: float) -> None:
        self._receive = receive
        self._left = max_bytes
        self._stall_s, self._total_s = stall_s, total_s
        self._deadline: float | None = None
        self._is_done = False

    async def __call__(self) -> Message:
        """Return the next part.

        Raises:
            ApiError: 413 ``too_large``, 408 ``too_slow``.
        """
        if self._is_done:  # What follows is the client going away, whenever that is.
            return await self._receive()
        now = asyncio.get_running_loop().time()
        if self._deadline is None:
            self._deadline = now + self._total_s
        try:
            wait = min(self._stall_s, self._deadline - now)
            message = await asyncio.wait_for(self._receive(), max(wait, 0.0))
        except TimeoutError:
            message = "The upload came too slowly and was given up; try a faster connection."
            raise ApiError(408, "too_slow", message, {"Connection": "close"}) from None
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            self._is_done = not message.get("more_body", False)
            if self._left < 0:
                raise _too_large()
        return message


def _check_length(headers: Headers, limit: int) -> None:
    values = headers.getlist("content-length")
    if not values:
        return
    if len(values) > 1 or not values[0].isascii() or not values[0].isdigit():
        raise ApiError(400, "bad_request", "Content-Length must be one whole number.")
    if len(values[0]) > 18 or int(values[0]) > limit:
        raise _too_large()


def _too_large() -> ApiError:
    message = "The body is larger than the server takes; see the limits in docs/server.md."
    return ApiError(413, "too_large", message, {"Connection": "close"})


def _hostname(host: str) -> str:
    """Return the name in a Host header, without port and brackets; "" if it is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return ""
    is_plain = parts.netloc == host and "@" not in host and not parts.path
    return (parts.hostname or "") if is_plain else ""


def _is_same(origin: str, host: str) -> bool:
    """Whether a page came from this server, by the name that it is called by now."""
    scheme, _, rest = origin.partition("://")
    return scheme in {"http", "https"} and rest.lower() == host.lower()


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return send_with_headers
