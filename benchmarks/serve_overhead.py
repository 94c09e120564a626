"""What the server adds to a click: the same clicks by a local session and through a server.

    python benchmarks/serve_overhead.py SCAN.nii.gz I,J,K --output benchmarks/serve_overhead.json

The server is a process of its own on loopback, with as many threads as the local session; both
answer the same clicks in turn. A click through the server holds everything that a program waits
for: the request, the queue, the answer, and the mask unpacked. `overhead_ms` is that round trip
less the server's own `encode_ms` and `click_ms`; what the engine's own process costs is in the
latter, and told by a run with ``--in-process``.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from serving import children, engine_pid, facts, own_mib, server, write

from fastsam3d.client import RemoteSession
from fastsam3d.errors import EngineCrashedError
from fastsam3d.io import read_volume
from fastsam3d.prompts import Point
from fastsam3d.session import Session

if TYPE_CHECKING:
    from fastsam3d.segmenter import Prediction
    from fastsam3d.volume import Volume

CRASHES = 3


def clicks(volume: Volume, first: list[int], count: int, rng: np.random.Generator) -> list[Point]:
    """Return the first click, then others around it, every third negative and farther away."""
    points = [Point.voxel(first)]
    for n in range(1, count):
        reach_mm = 25.0 if n % 3 == 0 else 6.0
        offset = rng.normal(size=3)
        offset *= reach_mm / np.linalg.norm(offset) / np.asarray(volume.geometry.spacing)
        at = np.clip(np.rint(np.add(first, offset)), 0, np.subtract(volume.shape, 1))
        points.append(Point.voxel(at.tolist(), positive=n % 3 != 0))
    return points


def timed(session: Any, point: Point) -> tuple[float, Prediction]:
    """Return milliseconds and the answer."""
    start = time.perf_counter()
    answer = session.add_point(point)
    return (time.perf_counter() - start) * 1e3, answer


def summary(values: list[float]) -> dict[str, float]:
    """Return the middle and the ninth decile."""
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 2),
        "p90": round(ordered[math.ceil(0.9 * len(ordered)) - 1], 2),
    }


def play(volume: Volume, first: list[int], args: argparse.Namespace, url: str) -> dict[str, Any]:
    """Give both the same clicks in turn, several times over."""
    rng = np.random.default_rng(0)
    local = Session.from_pretrained(args.model, device="cpu")
    direct: list[float] = []
    served: list[float] = []
    overhead: list[float] = []
    first_direct: list[float] = []
    first_served: list[float] = []
    equal = 0
    with RemoteSession(url) as remote:
        begun = time.perf_counter()
        remote.set_volume(volume)
        upload_ms = (time.perf_counter() - begun) * 1e3
        for _ in range(args.rounds):
            local.set_volume(volume)
            remote.set_volume(volume)
            for n, point in enumerate(clicks(volume, first, args.clicks, rng)):
                here_ms, here = timed(local, point)
                there_ms, there = timed(remote, point)
                equal += np.array_equal(here.mask.array, there.mask.array)
                (first_direct if n == 0 else direct).append(here_ms)
                (first_served if n == 0 else served).append(there_ms)
                overhead.append(there_ms - there.encode_ms - there.click_ms)
    return {
        "shape": list(volume.shape),
        "upload_ms": round(upload_ms, 1),
        "clicks": len(overhead),
        "equal_masks": equal,
        "first_click_direct_ms": summary(first_direct),
        "first_click_served_ms": summary(first_served),
        "click_direct_ms": summary(direct),
        "click_served_ms": summary(served),
        "overhead_ms": summary(overhead),
        "served_over_direct_p50": round(statistics.median(served) / statistics.median(direct), 3),
    }


def after_crash(volume: Volume, first: list[int], url: str, pid: int) -> float:
    """Return the milliseconds of a click whose engine has just ended: a start and an encoding."""
    with RemoteSession(url) as remote:
        remote.set_volume(volume)
        remote.add_point(Point.voxel(first))
        engine = engine_pid(pid)
        if engine is None:
            raise RuntimeError("The server has no process for its engine.")
        os.kill(engine, signal.SIGKILL)
        while not is_ended(engine):
            time.sleep(0.001)
        point, started = Point.voxel(np.add(first, 1).tolist()), time.perf_counter()
        try:
            remote.add_point(point)
        except EngineCrashedError:  # the server had not been told of the end yet
            remote.add_point(point)
        return (time.perf_counter() - started) * 1e3


def is_ended(pid: int) -> bool:
    """Whether a process has ended, though its parent has not looked yet (Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except OSError:
        return True


def main() -> None:
    """Run and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=Path)
    parser.add_argument("point", help="I,J,K of the first click")
    parser.add_argument("--model", default="hr_s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clicks", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--in-process", action="store_true", help="--no-engine-process")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record = facts() | {"model": args.model, "threads": args.threads, "scan": args.scan.parent.name}
    volume = read_volume(args.scan)
    first = [int(part) for part in args.point.split(",")]
    process = "--no-engine-process" if args.in_process else "--engine-process"
    record |= {"engine_process": not args.in_process}
    with server("--model", args.model, "--threads", str(args.threads), process) as (url, pid):
        record |= play(volume, first, args, url)
        record["memory_mib"] = {
            "server": round(own_mib(pid), 1),
            "children": [round(own_mib(child), 1) for child in children(pid)],
        }
        if not args.in_process:
            record["first_click_after_a_crash_ms"] = [
                round(after_crash(volume, first, url, pid), 1) for _ in range(CRASHES)
            ]
        write(record, args.output)


if __name__ == "__main__":
    main()
