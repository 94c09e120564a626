"""What the benchmarks of sessions share: targets played in many processes, and records.

With one worker everything runs in this process. With more, they are forked after the cases are
read, so that these lie in memory once; each makes its own session. The parent must not have
touched an accelerator before. Needs torch, numpy and scipy.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shlex
import sys
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastsam3d.eval.provenance import cpu_name, git_commit
from fastsam3d.session import Session

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    Row = dict[str, Any]
    Play = Callable[[Session, Any], list[Row]]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where to play: weights, device, processes, GPUs, and after how long to begin nothing new."""

    model: str
    device: str
    workers: int
    gpus: int
    seconds: float

    @classmethod
    def of(cls, options: argparse.Namespace) -> Machine:
        """Return what `add_options` gathered."""
        return cls(
            model=options.model,
            device=options.device,
            workers=options.workers,
            gpus=options.gpus,
            seconds=options.seconds,
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `Machine`, and that of the commit."""
    parser.add_argument("--model", default="hr_s")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=1, help="workers take turns among so many")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no job after this")
    parser.add_argument("--commit", default=None, help="of the sources, where git is absent")


def play_jobs(play: Play, jobs: Sequence[Any], machine: Machine) -> list[Row]:
    """Play all jobs and return their rows, in the order of the jobs.

    Args:
        play: Plays one job in a session that may hold any volume. A job that fails leaves a row
            with its "error".
        jobs: What to play; long ones first, so that no worker ends much later than the others.
        machine: Where.
    """
    deadline = time.monotonic() + machine.seconds
    found: dict[int, list[Row]] = {}
    for number, rows in _played(play, jobs, machine, deadline):
        found[number] = rows
        for row in rows:
            sys.stderr.write(json.dumps(row) + "\n")
    if len(found) < len(jobs):
        sys.stderr.write(f"{len(jobs) - len(found)} jobs were left out for want of time\n")
    return [row for number in sorted(found) for row in found[number]]


def show(session: Session, case: Any) -> None:
    """Start anew on a case, without prompts; its volume is given only where it is not there yet."""
    try:
        is_shown = session.volume is case.volume
    except Exception:  # noqa: BLE001 - there is none yet
        is_shown = False
    if is_shown:
        session.reset()
    else:
        session.set_volume(case.volume)


def record(script: str, options: argparse.Namespace) -> Row:
    """Return what a record says about where its figures come from."""
    # Where files lay says nothing about a run.
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    here = git_commit(Path(__file__).parent) if options.commit is None else options.commit
    device = cpu_name()
    if options.device == "cuda":
        device = f"{options.gpus} x {torch.cuda.get_device_name()}, {device}"
    return {
        "command": shlex.join(["python", f"benchmarks/{script}", *words]),
        "commit": here,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "workers": options.workers,
        "threads": 1,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _played(
    play: Play, jobs: Sequence[Any], machine: Machine, deadline: float
) -> Iterator[tuple[int, list[Row]]]:
    if machine.workers < 2:
        _begin(play, jobs, machine, deadline, None)
        yield from (one for one in map(_play_one, range(len(jobs))) if one is not None)
        return
    context = multiprocessing.get_context("fork")
    turn = context.Value("i", 0)
    arguments = (play, jobs, machine, deadline, turn)
    with context.Pool(min(machine.workers, len(jobs)), _begin, arguments) as pool:
        answers = pool.imap_unordered(_play_one, range(len(jobs)))
        yield from (one for one in answers if one is not None)


_here: Row = {}


def _begin(
    play: Play, jobs: Sequence[Any], machine: Machine, deadline: float, turn: Any | None
) -> None:
    if turn is not None and machine.gpus > 1:
        with turn.get_lock():
            number, turn.value = turn.value, turn.value + 1
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number % machine.gpus)
    torch.set_num_threads(1)
    session = Session.from_pretrained(machine.model, device=machine.device)
    _here.update(play=play, jobs=jobs, deadline=deadline, session=session)


def _play_one(number: int) -> tuple[int, list[Row]] | None:
    if time.monotonic() > _here["deadline"]:
        return None
    try:
        return number, _here["play"](_here["session"], _here["jobs"][number])
    except Exception as error:  # noqa: BLE001 - the other jobs go on, and the record says so
        return number, [{"error": f"{error!r}", "trace": traceback.format_exc()}]
