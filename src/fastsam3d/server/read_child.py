"""Reads volumes in a child process, where what a file does to its reader stays."""

from __future__ import annotations

import math
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Loaded at the start: no upload waits for them, and the limits count from what they take.
import pydicom  # noqa: F401  # pyright: ignore[reportUnusedImport]
import SimpleITK  # noqa: F401  # pyright: ignore[reportUnusedImport]

from fastsam3d.io import read_mask, read_volume
from fastsam3d.io.streams import volume_limit
from fastsam3d.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def create(options: dict[str, Any]) -> Reader:
    """Make the reader; see `Reader`."""
    return Reader(**options)


class Reader:
    """A `child_main.Handler` that reads one file or folder after another.

    Args:
        memory_bytes: Address space beyond what the process takes at the start.
        cpu_s: Seconds of computing for one file; beyond it the system ends the process.
    """

    def __init__(self, memory_bytes: int, cpu_s: int) -> None:
        self._cpu_s = cpu_s
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        self.facts: dict[str, Any] = {}

    def answer(
        self, request: dict[str, Any], arrays: Sequence[NDArray[Any]]
    ) -> tuple[dict[str, Any], Sequence[NDArray[Any]]]:
        """Read what the request names."""
        del arrays
        self._allow_cpu()
        with volume_limit(request["max_bytes"]):
            path = Path(request["path"])
            if request["is_mask"]:
                found = read_mask(path)
            else:
                found = read_volume(path, series_uid=request["series_uid"], time=request["time"])
        reply = {
            "affine": found.geometry.affine.tolist(),
            "modality": found.modality if isinstance(found, Volume) else None,
            # Of what is read here only ITK's files have one, and theirs are numbers.
            "header": None if found.source is None else found.source.payload,
        }
        return reply, [found.array]

    def notice(self, request: dict[str, Any]) -> None:
        """There is nothing to take note of."""

    def _allow_cpu(self) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = math.ceil(used.ru_utime + used.ru_stime + self._cpu_s)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
