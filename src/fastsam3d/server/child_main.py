"""The other end of `child.Child`: answers requests until its parent is gone.

``python -m fastsam3d.server.child_main LINK_FD IN_FD OUT_FD MODULE:FUNCTION OPTIONS``
"""

from __future__ import annotations

import importlib
import json
import resource
import signal
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fastsam3d.errors import FastSAM3DError
from fastsam3d.server.arena import Arena

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Handler(Protocol):
    """What answers in the child."""

    @property
    def facts(self) -> dict[str, Any]:
        """What the parent is told at the start, as JSON holds it."""
        ...

    def answer(
        self, request: dict[str, Any], arrays: Sequence[NDArray[Any]]
    ) -> tuple[dict[str, Any], Sequence[NDArray[Any]]]:
        """Answer a request; the arrays given are valid until this returns."""
        ...

    def notice(self, request: dict[str, Any]) -> None:
        """Take note of what wants no answer."""
        ...


def main(words: Sequence[str]) -> None:
    """Serve one parent; `words` are those of the module's command line."""
    link = Connection(int(words[0]))
    into, out = Arena(int(words[1])), Arena(int(words[2]))
    # The parent decides when we end: running work may end on its stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        # Where memory is short the system ends us rather than the server, which holds the sessions.
        Path("/proc/self/oom_score_adj").write_text("500")
    with suppress(EOFError, OSError):
        handler = _start(link, words[3], json.loads(words[4]))
        while handler is not None:
            _serve(link, into, out, handler)


def _start(link: Connection, target: str, options: dict[str, Any]) -> Handler | None:
    module, _, function = target.partition(":")
    try:
        handler: Handler = getattr(importlib.import_module(module), function)(options)
        facts = handler.facts
    # Whatever goes wrong is for the parent to tell.
    except Exception as error:  # noqa: BLE001
        _send(link, {"error": _told(error)})
        return None
    _send(link, {"value": facts})
    return handler


def _serve(link: Connection, into: Arena, out: Arena, handler: Handler) -> None:
    message: dict[str, Any] = json.loads(link.recv_bytes())
    if "notice" in message:
        handler.notice(message["notice"])
        return
    try:
        value, arrays = handler.answer(message["request"], into.read(message["arrays"]))
        reply = {"value": value, "arrays": out.write(arrays)}
    except Exception as error:  # noqa: BLE001
        reply = {"error": _told(error)}
    _send(link, reply)


def _told(error: Exception) -> tuple[str, str]:
    """Return the kind and the message of an error; where it is not ours, log where it came from."""
    if isinstance(error, FastSAM3DError):
        return type(error).__name__, str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return MemoryError.__name__, str(error)
    traceback.print_exception(error)
    return type(error).__name__, str(error)


def _send(link: Connection, message: dict[str, Any]) -> None:
    link.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
