"""Many clients at once for minutes: no error, no mask of another, flat memory.

    python benchmarks/serve_soak.py --sessions 50 --minutes 10 --output benchmarks/serve_soak.json

Each client has a phantom of its own and plays it in rounds, as an impatient user would: clicks, a
box, undo, reset, a new session now and then. The mask after every step is held against that of a
local session that played the same steps alone, bit for bit. The phantoms lie in memory as a volume
read from a file does, since resampling rounds by memory order.
`--kill-every` ends the engine's process now and then, as a crash would: requests in it are told so
and asked again, and no mask may differ for that. `--model` is a name or a .safetensors file; a
small model makes for more clicks a minute.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from serving import engine_pid, facts, resident_mib, server, write

from fastsam3d.client import RemoteSession
from fastsam3d.errors import EngineCrashedError, ServerBusyError
from fastsam3d.prompts import Box, Point
from fastsam3d.session import Session
from fastsam3d.volume import Geometry, Volume

SIDE = 48
NUM_PHANTOMS = 4
SAMPLE_S = 2.0
LATER_STEPS = 3

Step = tuple[str, tuple[int, ...]]


@dataclass
class Tally:
    """What happened, over all clients."""

    answers: int = 0
    busy: int = 0
    crashed: int = 0
    kills: int = 0
    sessions: int = 0
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def phantom(number: int) -> Volume:
    """Return two bright balls on noise, at places of their own."""
    rng = np.random.default_rng(number)
    grid = np.moveaxis(np.indices((SIDE,) * 3), 0, -1)
    array = rng.normal(0, 20, (SIDE,) * 3)
    for centre in ((14, 14, 14 + number), (30, 32, 30 - number)):
        array[np.linalg.norm(grid - centre, axis=-1) < 6 + number % 4] += 1000
    return Volume(
        np.asfortranarray(array, np.float32), Geometry(array.shape, np.diag([1.5, 1.5, 1.5, 1.0]))
    )


def script(number: int, rng: random.Random) -> list[Step]:
    """Return the steps of one round; few enough kinds that a local session can know them all."""
    return [first_step(number), *(rng.choice(later_steps(number)) for _ in range(LATER_STEPS))]


def first_step(number: int) -> Step:
    """Return the click that every round begins with."""
    return ("positive", (14, 14, 14 + number))


def later_steps(number: int) -> list[Step]:
    """Return what may follow."""
    return [
        ("positive", (15, 13, 15 + number)),
        ("negative", (30, 32, 30 - number)),
        ("box", (5, 5, 5 + number, 24, 24, 24 + number)),
        ("undo", ()),
    ]


def apply(session: Any, step: Step) -> Any:
    """Do one step; the answer, or None where nothing is left to answer."""
    kind, at = step
    if kind == "undo":
        return session.undo()
    if kind == "box":
        return session.add_box(Box.voxel(at[:3], at[3:]))
    return session.add_point(Point.voxel(at, positive=kind == "positive"))


class Expected:
    """Masks of a local session by phantom and steps, all worked out before the clients begin.

    Answers follow from the prompts in force, so they are kept by those.
    """

    def __init__(self, model: str, volumes: list[Volume]) -> None:
        self._session = Session.from_pretrained(model, device="cpu")
        self._known: dict[tuple[int, tuple[Step, ...]], bytes] = {}
        for number, volume in enumerate(volumes):
            self._session.set_volume(volume)
            self._learn(number, (first_step(number),))

    def _learn(self, number: int, steps: tuple[Step, ...]) -> None:
        self._session.reset()
        for step in steps:
            answer = apply(self._session, step)
        self._known[number, steps] = packed(answer)
        if len(steps) <= LATER_STEPS:
            for step in later_steps(number):
                if step[0] != "undo":
                    self._learn(number, (*steps, step))

    def mask(self, number: int, steps: tuple[Step, ...]) -> bytes:
        """Return the packed mask after steps, none of which is an undo."""
        return self._known[number, steps]


def packed(answer: Any) -> bytes:
    """Return a whole mask as bits; nothing where there is no answer."""
    return b"" if answer is None else np.packbits(answer.mask.array).tobytes()


def client(
    number: int, url: str, volumes: list[Volume], expected: Expected, tally: Tally, until: float
) -> None:
    """Play rounds until the time is over."""
    rng = random.Random(number)  # noqa: S311 - reproducible, not secret
    which = number % NUM_PHANTOMS
    while time.monotonic() < until:
        try:
            with RemoteSession(url) as session:
                with tally.lock:
                    tally.sessions += 1
                session.set_volume(volumes[which])
                for _ in range(rng.randint(2, 6)):
                    play_round(session, which, rng, expected, tally)
                    session.reset()
                    time.sleep(rng.random() * 0.2)
                    if time.monotonic() > until:
                        break
        except ServerBusyError:
            with tally.lock:
                tally.busy += 1
            time.sleep(0.5)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
            with tally.lock:
                tally.errors.append(f"{type(error).__name__}: {error} ({error.__cause__})")
            time.sleep(0.5)


def persist(session: RemoteSession, step: Step, tally: Tally) -> Any:
    """Do one step, again where the engine ended within it."""
    while True:
        try:
            return apply(session, step)
        except EngineCrashedError:
            with tally.lock:
                tally.crashed += 1


def play_round(
    session: RemoteSession, which: int, rng: random.Random, expected: Expected, tally: Tally
) -> None:
    """Play one script and compare every answer."""
    done: tuple[Step, ...] = ()
    for step in script(which, rng):
        if step[0] == "undo" and len(done) < 2:
            continue
        done = done[:-1] if step[0] == "undo" else (*done, step)
        start = time.perf_counter()
        answer = persist(session, step, tally)
        took_ms = (time.perf_counter() - start) * 1e3
        told, alone = packed(answer), expected.mask(which, done)
        with tally.lock:
            tally.answers += 1
            if told != alone:
                differ = num_different(told, alone)
                tally.wrong.append(f"phantom {which}, {done}: {differ} voxels")
            tally.latencies_ms.append(took_ms)


def num_different(told: bytes, alone: bytes) -> int:
    """Return in how many voxels two packed masks differ."""
    bits = [np.unpackbits(np.frombuffer(mask, np.uint8)) for mask in (told, alone)]
    return int(np.count_nonzero(bits[0] != bits[1]))


def soak(args: argparse.Namespace, url: str, pid: int) -> dict[str, Any]:
    """Run all clients and watch the server's memory."""
    volumes = [phantom(number) for number in range(NUM_PHANTOMS)]
    expected, tally = Expected(args.model, volumes), Tally()
    until = time.monotonic() + 60 * args.minutes
    threads = [
        threading.Thread(target=client, args=(n, url, volumes, expected, tally, until))
        for n in range(args.sessions)
    ]
    for thread in threads:
        thread.start()
    memory: list[float] = []
    kill_at = time.monotonic() + args.kill_every if args.kill_every else math.inf
    while any(thread.is_alive() for thread in threads):
        memory.append(resident_mib(pid))
        time.sleep(SAMPLE_S)
        if time.monotonic() > kill_at and (engine := engine_pid(pid)):
            os.kill(engine, signal.SIGKILL if tally.kills % 2 else signal.SIGSEGV)
            tally.kills += 1
            kill_at = time.monotonic() + args.kill_every
    third = max(1, len(memory) // 3)
    middle, last = memory[third : 2 * third] or memory, memory[-third:]
    ordered = sorted(tally.latencies_ms) or [0.0]
    return {
        "sessions_at_a_time": args.sessions,
        "minutes": args.minutes,
        "sessions_in_all": tally.sessions,
        "answers": tally.answers,
        "wrong_masks": len(tally.wrong),
        "first_wrong": tally.wrong[:5],
        "refused_as_busy": tally.busy,
        "engine_kills": tally.kills,
        "requests_told_of_a_crash": tally.crashed,
        "errors": len(tally.errors),
        "first_errors": tally.errors[:5],
        "latency_ms_p50": round(statistics.median(ordered), 1),
        "latency_ms_p99": round(ordered[int(0.99 * (len(ordered) - 1))], 1),
        "memory_mib_middle_third": round(statistics.median(middle), 1),
        "memory_mib_last_third": round(statistics.median(last), 1),
        "memory_mib_peak": round(max(memory), 1),
        "memory_growth": round(statistics.median(last) / statistics.median(middle) - 1, 4),
    }


def main() -> None:
    """Run and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--model", default="hr_s")
    parser.add_argument("--kill-every", type=float, default=0.0, metavar="S")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record = facts() | {"model": Path(args.model).stem, "threads": args.threads}
    words = ("--model", args.model, "--threads", str(args.threads))
    with server(*words, "--max-sessions", str(args.sessions)) as (url, pid):
        write(record | soak(args, url, pid), args.output)


if __name__ == "__main__":
    main()
