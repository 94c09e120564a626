"""One session's connection to a server: HTTP for the volume, a WebSocket for everything else."""

from __future__ import annotations

import itertools
import json
from contextlib import ExitStack, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit, urlunsplit

from fastsam3d.client.errors import to_error
from fastsam3d.errors import ConfigError, LeaseExpiredError, ServerUnreachableError, WireError
from fastsam3d.wire.frames import unpack_frame

if TYPE_CHECKING:
    from types import ModuleType

MAX_REPLY_BYTES: Final = 2**28
API: Final = "/api/v1"

Frames = list[tuple[dict[str, Any], memoryview]]


class Transport:
    """A session on a server.

    Args:
        url: Root of the server, such as ``http://127.0.0.1:1527``.
        api_key: Where the server needs one.
        timeout_s: Longest wait for an answer.

    Raises:
        ConfigError: The address is none, or a package of ``fastsam3d[client]`` is missing.
        ServerUnreachableError: Nobody answers.
        ServerBusyError: All sessions are in use.
        WireError: The key is wrong, or the answer is not that of a fastsam3d server.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 120.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            message = f"A server's address looks like http://127.0.0.1:1527, got {url!r}."
            raise ConfigError(message)
        self.url = url.rstrip("/")
        self._key, self._timeout_s = api_key, timeout_s
        self._urllib3 = _require("urllib3")
        self._http: Any = self._urllib3.PoolManager(
            timeout=self._urllib3.Timeout(connect=min(10.0, timeout_s), read=timeout_s),
            retries=False,
        )
        self._socket: Any = None
        self._open = ExitStack()  # What holds the socket; closing it closes the socket.
        self._seq = itertools.count(1)
        self._lease: str | None = None
        self.welcome: dict[str, Any] = self.request("POST", "/sessions")
        self._lease = str(self.welcome.get("lease", ""))

    def request(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        """Make a REST call and return its JSON.

        Raises:
            FastSAM3DError: As the server says.
            ServerUnreachableError: Nobody answers.
        """
        headers = {"Content-Type": "application/octet-stream"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        if self._lease is not None:
            headers["X-Lease-Token"] = self._lease
        try:
            reply = self._http.request(method, self.url + API + path, body=body, headers=headers)
        except self._urllib3.exceptions.HTTPError as error:
            raise self._unreachable(error) from error
        if reply.status == 204:
            return {}
        try:
            found: object = json.loads(reply.data)
        except ValueError:
            found = None
        if reply.status >= 400 or not isinstance(found, dict):
            raise to_error(found)
        return cast("dict[str, Any]", found)

    def call(self, **message: Any) -> tuple[dict[str, Any], Frames]:
        """Make a request over the WebSocket.

        Args:
            message: The request, without `seq`.

        Returns:
            The closing message, and the masks that came before it.

        Raises:
            FastSAM3DError: As the server says.
            ServerUnreachableError: The connection broke; what was asked for may have been done.
        """
        seq = next(self._seq)
        frames: Frames = []
        try:
            if self._socket is None:
                self._socket = self._greet()
            self._socket.send(json.dumps({**message, "seq": seq}, allow_nan=False))
            while True:
                reply = self._socket.recv(timeout=self._timeout_s)
                if isinstance(reply, bytes):
                    header, payload = unpack_frame(reply)
                    if header.get("seq") == seq:
                        frames.append((header, payload))
                    continue
                found: dict[str, Any] = json.loads(reply)
                if found.get("type") == "error" and found.get("seq") in {seq, None}:
                    raise to_error(found)
                if found.get("type") == "done" and found.get("seq") == seq:
                    return found, frames
        except (OSError, TimeoutError, _closed()) as error:
            self._drop_socket()
            raise self._unreachable(error) from error
        except LeaseExpiredError:
            self._drop_socket()
            raise

    def close(self) -> None:
        """End the session, if the server can be reached."""
        self._drop_socket()
        if self._lease:
            # Otherwise it is gone already, or will end by its clocks.
            with suppress(WireError):
                self.request("DELETE", "/session")
            self._lease = ""
        self._http.clear()

    def _greet(self) -> Any:
        client: Any = _require("websockets.sync.client")
        scheme = {"http": "ws", "https": "wss"}[urlsplit(self.url).scheme]
        address = urlunsplit((scheme, *urlsplit(self.url + API + "/session/ws")[1:]))
        self._drop_socket()
        socket = self._open.enter_context(
            client.connect(
                address,
                open_timeout=min(10.0, self._timeout_s),
                compression=None,
                max_size=MAX_REPLY_BYTES,
                proxy=None,
            )
        )
        hello = {"type": "hello", "lease": self._lease}
        socket.send(json.dumps(hello if self._key is None else hello | {"key": self._key}))
        reply = json.loads(socket.recv(timeout=self._timeout_s))
        if reply.get("type") != "ready":
            self._drop_socket()
            raise to_error(reply)
        return socket

    def _drop_socket(self) -> None:
        self._socket = None
        self._open.close()

    def _unreachable(self, error: Exception) -> ServerUnreachableError:
        message = (
            f"No answer from {self.url} ({type(error).__name__}); check that "
            "`fastsam3d serve` is running there and that the address is right."
        )
        return ServerUnreachableError(message)


def _closed() -> type[Exception]:
    return cast("type[Exception]", _require("websockets.exceptions").WebSocketException)


def _require(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        message = f"{module.partition('.')[0]} is missing; pip install 'fastsam3d[client]'."
        raise ConfigError(message) from error
