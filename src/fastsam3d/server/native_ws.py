"""The native API over a WebSocket: requests are taken in order, answers sent when ready."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from fastsam3d.server.errors import ApiError
from fastsam3d.server.native_messages import Cancel, Hello, read_call
from fastsam3d.wire.frames import pack_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastsam3d.server.leases import Lease
    from fastsam3d.server.native_calls import Calls, Pending
    from fastsam3d.server.services import Services

HELLO_S: Final = 5.0
MAX_PENDING: Final = 64
_POLICY: Final = 1008


async def serve_socket(socket: WebSocket, services: Services, calls: Calls) -> None:
    """Serve one WebSocket until either side ends it."""
    await socket.accept()
    try:
        lease = await _greet(socket, services)
    except (ApiError, TimeoutError, WebSocketDisconnect, ValidationError, KeyError) as error:
        await _turn_away(socket, error, services)
        return
    await Connection(socket, services, calls, lease).serve()


async def _greet(socket: WebSocket, services: Services) -> Lease:
    text = await asyncio.wait_for(socket.receive_text(), HELLO_S)
    hello = Hello.model_validate_json(text)
    if not services.is_key(hello.key):
        raise ApiError(401, "unauthorized", "The server needs its API key in the first message.")
    lease = services.leases.get(hello.lease)
    await socket.send_text('{"type":"ready"}')
    return lease


async def _turn_away(socket: WebSocket, error: Exception, services: Services) -> None:
    if isinstance(error, WebSocketDisconnect):
        return
    if not isinstance(error, ApiError):
        text = f'The first message must be {{"type": "hello", …}} within {HELLO_S:g} seconds.'
        error = ApiError(422, "invalid_request", text)
    services.metrics.refusals.labels(code=error.code).inc()
    await socket.send_text(json.dumps({"type": "error", "seq": None, **error.to_plain()}))
    await socket.close(_POLICY, error.code)


class Connection:
    """One WebSocket of a session.

    Args:
        socket: Accepted and greeted.
        services: The parts of the server.
        calls: Takes its requests.
        lease: Whose it is.
    """

    def __init__(self, socket: WebSocket, services: Services, calls: Calls, lease: Lease) -> None:
        self._socket = socket
        self._services = services
        self._calls = calls
        self._lease = lease
        self._pending: dict[int, Pending] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # Requests taken whose answers are not sent: a client that does not read is not served on.
        self._slots = asyncio.Semaphore(MAX_PENDING)
        self._outbox: asyncio.Queue[tuple[Sequence[str | bytes], bool]] = asyncio.Queue()

    async def serve(self) -> None:
        """Take requests until the socket closes or the lease ends."""
        writer = asyncio.create_task(self._write())
        try:
            while True:
                await self._slots.acquire()
                text = await self._next_text()
                self._take(text)
        except (WebSocketDisconnect, RuntimeError):
            pass  # The client went away; what it waited for is taken back below.
        except ApiError as error:
            self._put([self._error(None, error)])
            await asyncio.wait_for(self._outbox.join(), HELLO_S)
            await self._socket.close(_POLICY, error.code)
        finally:
            for pending in self._pending.values():
                self._calls.cancel(pending)
            writer.cancel()

    async def _next_text(self) -> str:
        """Return the next request; while the connection stands, so does the lease's liveness."""
        while True:
            try:
                wait = self._services.settings.liveness_s / 3
                message = await asyncio.wait_for(self._socket.receive(), wait)
            except TimeoutError:
                self._services.leases.get(self._lease.token, is_work=False)
                continue
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1000))
            self._services.leases.get(self._lease.token)
            return message.get("text") or ""

    def _take(self, text: str) -> None:
        """Give a request its place; must not wait, so that requests stay in order."""
        seq: int | None = None
        try:
            call = read_call(text)
            seq = call.seq
            if isinstance(call, Cancel):
                pending = self._pending.get(call.seq)
                is_cancelled = pending is not None and self._calls.cancel(pending)
                done = {"type": "done", "seq": seq, "result": {"cancelled": is_cancelled}}
                self._put([json.dumps(done)], is_end=True)
                return
            loop = asyncio.get_running_loop()
            stages: list[str] = []

            def tell(stage: str) -> None:
                if stages[-1:] != [stage]:
                    stages.append(stage)
                    progress = json.dumps({"type": "progress", "seq": seq, "stage": stage})
                    loop.call_soon_threadsafe(self._put, (progress,))

            pending = self._calls.submit(self._lease.room, call, tell)
        # Whatever is wrong with a request is its sender's affair, not the connection's.
        except Exception as error:  # noqa: BLE001
            told = self._error(_seq_of(text, seq), self._calls.refused(error))
            self._put([told], is_end=True)
            return
        self._pending[call.seq] = pending
        task = asyncio.create_task(self._reply(call.seq, pending))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply(self, seq: int, pending: Pending) -> None:
        try:
            answer = await self._calls.answer(pending)
        except ApiError as error:
            self._put([self._error(seq, error)], is_end=True)
        else:
            messages: list[str | bytes] = [
                pack_frame({**header, "seq": seq}, payload) for header, payload in answer.masks
            ]
            messages.append(json.dumps({**answer.done, "seq": seq}))
            self._put(messages, is_end=True)
        finally:
            if self._pending.get(seq) is pending:
                del self._pending[seq]

    async def _write(self) -> None:
        while True:
            messages, is_end = await self._outbox.get()
            for message in messages:
                if isinstance(message, str):
                    await self._socket.send_text(message)
                else:
                    await self._socket.send_bytes(message)
            if is_end:
                self._slots.release()
            self._outbox.task_done()

    def _put(self, messages: Sequence[str | bytes], *, is_end: bool = False) -> None:
        self._outbox.put_nowait((messages, is_end))

    def _error(self, seq: int | None, error: Any) -> str:
        return json.dumps({"type": "error", "seq": seq, **error.to_plain()})


def _seq_of(text: str, seq: int | None) -> int | None:
    """Return the number of a request that may be malformed, so that its sender can tell which."""
    if seq is not None:
        return seq
    try:
        found = json.loads(text).get("seq")
    except (ValueError, AttributeError, RecursionError):
        return None
    return found if type(found) is int else None
