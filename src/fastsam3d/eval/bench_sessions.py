"""What a click costs when many sessions share one model, and whether they get in each other's way.

Sessions take turns in one thread, a click each, as the rooms of a server with waiting clicks do.
Each has a volume of its own size and noise, so that an answer that belongs to another one would not
go unnoticed.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fastsam3d.eval.bench_phantom import ball_centres, now, since, synthesise
from fastsam3d.prompts import Point

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastsam3d.eval.bench_phantom import Shape
    from fastsam3d.segmenter import Prediction
    from fastsam3d.session import Predictor, Session
    from fastsam3d.volume import Volume

# The first click of each session, three more on its ball and one beside it.
TURNS: Final = 5
_QUANTITIES: Final = ("first_ms", "first_cpu_ms", "later_ms", "later_cpu_ms")


def time_sessions(
    predictor: Predictor,
    counts: Sequence[int],
    rounds: int,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Return the times of a click by the number of sessions that share a predictor.

    Every session first plays its clicks alone, untimed. The numbers of sessions then take turns.

    Args:
        predictor: Runs the model for all of them.
        counts: Numbers of sessions, each at least 1.
        rounds: Timed rounds for each number.
        say: Called with a line of progress.

    Returns:
        A row per number: ``sessions``, medians ``first_ms``, ``first_cpu_ms``, ``later_ms`` and
        ``later_cpu_ms`` of one click, ``turn_ms`` of one later click by each session, which is what
        the last one waits if all click at once, ``answers`` compared, ``mismatches`` among them,
        and ``samples``.
    """
    say(f"{max(counts, default=0)} sessions, each alone")
    volumes = [own_volume(n) for n in range(max(counts, default=0))]
    alone = [_play_alone(predictor, n, volume) for n, volume in enumerate(volumes)]
    rows: list[dict[str, Any]] = [
        {"sessions": count, "answers": 0, "mismatches": 0, "samples": []} for count in counts
    ]
    for number in range(1, rounds + 1):
        for row in rows:
            count: int = row["sessions"]
            say(f"round {number} of {rounds}: {count} sessions")
            times, answers = _play_together(predictor, volumes[:count])
            row["samples"].append(times)
            row["answers"] += count * TURNS
            row["mismatches"] += count_mismatches(answers, alone)
    for row in rows:
        for name in (*_QUANTITIES, "turn_ms"):
            row[name] = median(value for sample in row["samples"] for value in sample[name])
    return rows


def own_volume(n: int) -> Volume:
    """Return the volume of the n-th session, unlike that of any of the others."""
    return synthesise(_own_shape(n), seed=n)


def own_click(n: int, turn: int) -> Point:
    """Return what the n-th session clicks in a turn: on its ball, in the third turn beside it."""
    i, j, k = ball_centres(_own_shape(n), 1)[0]
    if turn == 2:
        return Point.voxel((i + 18 + n % 3, j, k), positive=False)
    return Point.voxel((i + n % 3 - 1, j + 2 * turn - 4, k + turn))


def count_mismatches(
    answers: Sequence[Sequence[Prediction]], alone: Sequence[Sequence[Prediction]]
) -> int:
    """Return how many answers are not the same to the voxel.

    Args:
        answers: By session and turn.
        alone: The same, of at least as many sessions.
    """
    return sum(
        not _is_same(found, wanted)
        for session, expected in zip(answers, alone, strict=False)
        for found, wanted in zip(session, expected, strict=True)
    )


def _own_shape(n: int) -> Shape:
    return (144 + 8 * (n % 4), 144 + 8 * (n // 4), 144)


def _is_same(found: Prediction, wanted: Prediction) -> bool:
    return found.region == wanted.region and np.array_equal(found.region_mask, wanted.region_mask)


def _play_alone(predictor: Predictor, n: int, volume: Volume) -> list[Prediction]:
    session = _new_session(predictor)
    session.set_volume(volume)
    return [session.add(own_click(n, turn)) for turn in range(TURNS)]


def _play_together(
    predictor: Predictor, volumes: Sequence[Volume]
) -> tuple[dict[str, list[float]], list[list[Prediction]]]:
    sessions = [_new_session(predictor) for _ in volumes]
    answers: list[list[Prediction]] = [[] for _ in volumes]
    times: dict[str, list[float]] = {name: [] for name in (*_QUANTITIES, "turn_ms")}
    for turn in range(TURNS):
        begin = now()
        for n, session in enumerate(sessions):
            before = now()
            if turn == 0:
                session.set_volume(volumes[n])
            answers[n].append(session.add(own_click(n, turn)))
            for name, value in since(before, "later_" if turn else "first_").items():
                times[name].append(value)
        if turn:
            times["turn_ms"].append(since(begin, "")["ms"])
    return times, answers


def _new_session(predictor: Predictor) -> Session:
    from fastsam3d.session import Session  # noqa: PLC0415 - heavy

    return Session(predictor)
