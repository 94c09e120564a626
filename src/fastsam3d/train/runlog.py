"""Reading a run's ``log.jsonl``, finished or still growing.

The training loop writes one line now and then and knows nothing of who reads; progress bars and
TensorBoard files are fed from here, by a thread or by another process. Standard library only.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, cast

LOG_FILE = "log.jsonl"
POLL_SECONDS = 0.5

LogLine = dict[str, Any]
Observer = Callable[[LogLine], None]


def read_log(path: Path) -> list[LogLine]:
    """Return the lines of a log as one curve.

    A run that was resumed repeats the steps after its checkpoint: the later lines count. A last
    line without an end is not one yet.

    Args:
        path: The ``log.jsonl`` of a run; a missing file is an empty log.

    Returns:
        Lines with rising ``step``.
    """
    curve: list[LogLine] = []
    if path.is_file():
        for line in _whole_lines(path.read_text(encoding="utf-8")):
            while curve and curve[-1]["step"] >= line["step"]:
                curve.pop()
            curve.append(line)
    return curve


class LogFollower:
    """Hand every new line of a growing log to observers while a block runs.

    Lines that were there before the block are left out.

    Args:
        path: The ``log.jsonl`` of a run; it need not exist yet.
        observers: Called with each line, in a thread.
    """

    def __init__(self, path: Path, *observers: Observer) -> None:
        self._path, self._observers = path, observers
        self._offset = path.stat().st_size if path.is_file() else 0
        self._rest = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: Exception | None = None

    def __enter__(self) -> LogFollower:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Hand over the last lines; an observer's error is raised unless the block failed."""
        self._stop.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop.wait(POLL_SECONDS):
                self._read_on()
            self._read_on()
        except Exception as error:  # noqa: BLE001 - raised in the block's thread by `__exit__`
            self._error = error

    def _read_on(self) -> None:
        if not self._path.is_file():
            return
        with self._path.open(encoding="utf-8") as file:
            file.seek(self._offset)
            text = self._rest + file.read()
            self._offset = file.tell()
        ended, _, self._rest = text.rpartition("\n")
        for line in _whole_lines(ended + "\n"):
            for observer in self._observers:
                observer(line)


class Throughput:
    """ROIs per second between two log lines."""

    def __init__(self) -> None:
        self._before: LogLine | None = None

    def update(self, line: LogLine) -> float | None:
        """Return the rate since the line before; None for a first line and after a restart."""
        before, self._before = self._before, line
        if before is None or line["seconds"] <= before["seconds"]:
            return None
        return (line["rois"] - before["rois"]) / (line["seconds"] - before["seconds"])


def _whole_lines(text: str) -> Iterator[LogLine]:
    for line in text.split("\n")[:-1]:
        if line.strip():
            yield cast("LogLine", json.loads(line))
