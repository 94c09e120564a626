"""A process of our own for what may crash, hang or take too much, seen from the server.

The child is this Python with `child_main`; it answers one request at a time. Requests and replies
are JSON over a socket pair and arrays in an `Arena` for each direction. Nothing is unpickled, so a
child that was taken over by what it reads cannot take over the server through its replies.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Final, cast

from fastsam3d import errors
from fastsam3d.server.arena import Arena

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

START_S: Final = 120.0
_STOP_S: Final = 2.0


class ChildDiedError(Exception):
    """The child has ended, or was ended because it did not answer.

    Args:
        why: For people, as the end of a sentence.
    """

    def __init__(self, why: str) -> None:
        super().__init__(f"The process {why}.")
        self.why = why


class Child:
    """One child process; for one thread at a time.

    It starts at once and is waited for by `facts` or the first `call`.

    Args:
        target: What answers, as ``module:function``. The function takes `options` and returns an
            object as `child_main.Handler`.
        options: For the target, as JSON holds them.
    """

    def __init__(self, target: str, options: dict[str, Any]) -> None:
        here, there = socket.socketpair()
        self._to, self._from = Arena(), Arena()
        fds = (there.fileno(), self._to.fd, self._from.fd)
        words = (*map(str, fds), target, json.dumps(options))
        # -P: a folder that the server happens to be started in holds no modules of ours.
        self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            [sys.executable, "-P", "-m", "fastsam3d.server.child_main", *words],
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            # Ctrl+C is for the server, which lets running work end.
            start_new_session=True,
        )
        there.close()
        self._link = Connection(here.detach())
        self._facts: dict[str, Any] | None = None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def has_started(self) -> bool:
        """Whether the target was heard of."""
        return self._facts is not None

    @property
    def facts(self) -> dict[str, Any]:
        """What the target tells about itself; waits for the start.

        Raises:
            FastSAM3DError: What the target raised as it started.
            ChildDiedError: It ended, or took too long.
        """
        if self._facts is None:
            self._facts = cast("dict[str, Any]", _value(self._receive(START_S)))
        return self._facts

    def call(
        self, request: dict[str, Any], arrays: Sequence[NDArray[Any]] = (), *, timeout_s: float
    ) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """Ask, and wait for the answer.

        Args:
            request: As JSON holds it.
            arrays: Of any types that numpy has.
            timeout_s: The child is killed if it has no answer by then.

        Returns:
            The reply, and its arrays: views, valid until the next call.

        Raises:
            FastSAM3DError: What the target raised.
            MemoryError: The target had none left.
            ChildDiedError: It ended, or took too long.
        """
        _ = self.facts
        self._send({"request": request, "arrays": self._to.write(arrays)})
        message = self._receive(timeout_s)
        value = cast("dict[str, Any]", _value(message))
        return value, self._from.read(message["arrays"])

    def forget(self) -> None:
        """Give back the memory of the latest answer, whose arrays must not be used any more."""
        self._from.clear()

    def tell(self, request: dict[str, Any]) -> None:
        """Say something that has no answer.

        Raises:
            ChildDiedError: The child has ended.
        """
        self._send({"notice": request})

    def kill(self) -> None:
        """End the process now, whatever it does; once or more."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process, if it is idle in its own time, and give its memory back."""
        if self._link.closed:
            return
        self._link.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._to.close()
        self._from.close()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._link.send_bytes(json.dumps(message).encode())
        except OSError:
            raise self._died() from None

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        try:
            if not self._link.poll(timeout_s):
                self.kill()
                raise ChildDiedError(f"had no answer within {timeout_s:g} s and was stopped")
            return json.loads(self._link.recv_bytes())
        except (EOFError, OSError):
            raise self._died() from None

    def _died(self) -> ChildDiedError:
        # The socket may close a moment before the process can be waited for.
        deadline = time.monotonic() + _STOP_S
        while (code := self._process.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.005)
        if code is None:
            self.kill()
            return ChildDiedError("closed its connection and was stopped")
        return ChildDiedError(f"ended ({_name_of(code)})")


def _value(message: dict[str, Any]) -> Any:
    """Return the value of a reply, or raise the error that it tells of."""
    if "error" not in message:
        return message["value"]
    kind, text = message["error"]
    if kind == MemoryError.__name__:
        raise MemoryError(text)
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, errors.FastSAM3DError):
        raise known(text)
    raise RuntimeError(f"{kind} in a child process: {text}")


def _name_of(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
