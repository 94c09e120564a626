"""Spread cases over processes.

Processes are spawned (a fork of a process that runs torch may hang), each with its share of the
threads. A worker ends itself when its parent is gone, so that a killed run leaves nobody behind.

State and order: the parent puts all tasks into one queue and takes events from another; a worker
takes a task when it has finished the one before. Nothing is shared but the two queues.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

from fastsam3d.errors import DatasetError
from fastsam3d.eval.playing import play_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastsam3d.eval.playing import CaseTask, Event
    from fastsam3d.eval.runner import ClickSegmenter

POLL_SECONDS = 0.5
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def play_in_processes(
    tasks: list[CaseTask], make_segmenter: Callable[[], ClickSegmenter], jobs: int
) -> Iterator[Event]:
    """Play cases in several processes.

    Args:
        tasks: What to play.
        make_segmenter: Picklable; called once in each process.
        jobs: Number of processes.

    Yields:
        Events in the order in which they happen.

    Raises:
        DatasetError: A process died, for example for want of memory.
        Exception: Whatever a process raised, with its own type.
    """
    context = multiprocessing.get_context("spawn")
    pending: Any = context.Queue()
    events: Any = context.Queue()
    for task in tasks:
        pending.put(task)
    for _ in range(jobs):
        pending.put(None)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    arguments = (pending, events, make_segmenter)
    workers = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(jobs)]
    try:
        with _thread_limit(threads):
            for worker in workers:
                worker.start()
        yield from _take(events, workers)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
        for each in (pending, events):
            each.cancel_join_thread()
            each.close()


def _take(events: Any, workers: list[Any]) -> Iterator[Event]:
    """Yield events until every worker has said that it is done."""
    num_working = len(workers)
    while num_working:
        try:
            event = events.get(timeout=POLL_SECONDS)
        except queue.Empty:
            codes = [worker.exitcode for worker in workers]
            dead = [code for code in codes if code not in {None, 0}]
            if dead or None not in codes:
                raise DatasetError(
                    f"A worker process died with code {(dead or codes)[0]} (memory?); run again "
                    "with fewer jobs, which goes on where this run stopped."
                ) from None
            continue
        if event is None:
            num_working -= 1
        elif isinstance(event, BaseException):
            raise event
        else:
            yield event


def _work(pending: Any, events: Any, make_segmenter: Callable[[], ClickSegmenter]) -> None:
    # An interrupt goes to the whole group; the parent ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    try:
        segmenter = make_segmenter()
        while (task := pending.get()) is not None:
            for event in play_task(segmenter, task):
                events.put(event)
        events.put(None)
    except Exception as error:  # noqa: BLE001 - raised again in the parent
        events.put(_portable(error))


def _end_with_parent() -> None:
    """Watch the parent from a thread: after a kill -9 nobody else would end this process."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _thread_limit(threads: int) -> Generator[None, None, None]:
    """Limit the threads of processes started in the block, unless the user has said otherwise.

    Numerical libraries, torch among them, read these variables when they are first imported.
    """
    absent = [name for name in THREAD_VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(absent, str(threads)))
    try:
        yield
    finally:
        for name in absent:
            os.environ.pop(name, None)


def _portable(error: Exception) -> Exception:
    """Return the error with its traceback as a note, in a form that reaches the parent."""
    text = "".join(traceback.format_exception(error))
    try:
        error.add_note(f"In a worker process:\n{text}")
        pickle.dumps(error)
    except (TypeError, AttributeError, pickle.PicklingError):
        return RuntimeError(text)
    return error
