"""One thread does all model work, in turn for everybody.

The event loop stays free to read and answer while the engine computes. Rooms take turns, one job
each; within a room jobs run in the order in which they came. Nothing waits without bound.

Lock order: `_wake` (a condition) guards the waiting jobs; no other lock is taken while it is held,
and no job runs under it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from operator import methodcaller
from typing import TYPE_CHECKING, Any, TypeVar

from fastsam3d.server.errors import RETRY_SOON_S, ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T")


@dataclass(eq=False)
class _Job:
    room: Hashable
    work: Callable[[], Any]
    key: Hashable | None
    future: Future[Any]
    came: float = field(default_factory=time.perf_counter)


class EngineQueue:
    """Runs jobs of many rooms in one thread.

    Args:
        length: Jobs that may wait, over all rooms.
        room_length: Jobs of one room that may wait.
        timeout_s: A job without a result by then is answered with an error; if it has begun it
            still runs to its end, and the room's next one waits for it.
        setup: Called once in the thread, before the first job.
    """

    def __init__(
        self,
        *,
        length: int = 256,
        room_length: int = 32,
        timeout_s: float = 120.0,
        setup: Callable[[], None] | None = None,
    ) -> None:
        self.length, self.room_length, self.timeout_s = length, room_length, timeout_s
        self._setup = setup
        self._wake = threading.Condition()
        self._waiting: OrderedDict[Hashable, deque[_Job]] = OrderedDict()
        self._num_waiting = 0
        self._running: _Job | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return the number of jobs that wait."""
        return self._num_waiting

    @property
    def is_alive(self) -> bool:
        """Whether jobs are being done."""
        return self._thread.is_alive() and not self._is_closed

    def has_work(self, room: Hashable) -> bool:
        """Whether a job of a room waits or runs."""
        with self._wake:
            running = self._running
            return room in self._waiting or (running is not None and running.room == room)

    def submit(
        self,
        room: Hashable,
        work: Callable[[], T],
        supersede_key: Hashable | None = None,
        on_supersede: Callable[[], None] | None = None,
    ) -> Future[T]:
        """Let a job wait for its turn.

        Args:
            room: Whose job it is; compared by equality.
            work: Called without arguments in the engine's thread.
            supersede_key: Takes the place of the room's latest waiting job if that has the same
                key; that one then fails with `ApiError` ``superseded`` and never runs.
            on_supersede: Called before the job can begin, if it takes another's place.

        Returns:
            What will hold the result; cancelling it takes a waiting job out.

        Raises:
            ApiError: 503 ``busy`` when too many jobs wait, or ``stopping``.
        """
        job = _Job(room, work, supersede_key, Future())
        with self._wake:
            if self._is_closed:
                raise ApiError(503, "stopping", "The server is stopping; try again later.")
            jobs = self._waiting.get(room, deque())
            old = jobs[-1] if jobs and supersede_key is not None else None
            if old is not None and old.key == supersede_key:
                jobs[-1] = job
                if on_supersede is not None:
                    on_supersede()
            else:
                old = None
                if self._num_waiting >= self.length or len(jobs) >= self.room_length:
                    message = "Too many requests wait for the engine; try again in a moment."
                    raise ApiError(503, "busy", message, {"Retry-After": str(RETRY_SOON_S)})
                jobs.append(job)
                self._waiting[room] = jobs
                self._num_waiting += 1
            self._wake.notify()
        if old is not None and old.future.set_running_or_notify_cancel():
            message = "A newer request on the same object took this one's place; see its answer."
            old.future.set_exception(ApiError(409, "superseded", message))
        return job.future

    async def run(
        self, room: Hashable, work: Callable[[], T], supersede_key: Hashable | None = None
    ) -> T:
        """Return the result of a job, see `submit`.

        Raises:
            ApiError: As `submit`; 504 ``timeout``; 409 ``superseded``; 410 ``session_closed``.
        """
        return await self.result(self.submit(room, work, supersede_key))

    async def result(self, future: Future[T]) -> T:
        """Wait for what `submit` returned, without keeping the event loop from other things.

        Raises:
            ApiError: 504 ``timeout``; 409 ``cancelled``; 410 ``session_closed``.
        """
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.timeout_s)
        except TimeoutError:
            message = f"The engine had no answer within {self.timeout_s:g} s; try again later."
            raise ApiError(504, "timeout", message) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not future.cancelled() or (task is not None and task.cancelling()):
                raise
            raise ApiError(409, "cancelled", "The request was taken back.") from None

    def drop(self, room: Hashable) -> None:
        """Forget the waiting jobs of a room, which then fail with 410 ``session_closed``."""
        with self._wake:
            jobs = self._waiting.pop(room, deque[_Job]())
            self._num_waiting -= len(jobs)
        for job in jobs:
            _fail(job, ApiError(410, "session_closed", "The session was closed; begin a new one."))

    def close(self, timeout_s: float = 10.0) -> bool:
        """Take no more jobs, fail those that wait, and let the running one end.

        Returns:
            Whether it ended in time.
        """
        with self._wake:
            self._is_closed = True
            waiting = [job for jobs in self._waiting.values() for job in jobs]
            self._waiting.clear()
            self._num_waiting = 0
            self._wake.notify_all()
        for job in waiting:
            _fail(job, ApiError(503, "stopping", "The server is stopping; try again later."))
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        if self._setup is not None:
            self._setup()
        while (job := self._next()) is not None:
            tell = _run(job.work) if job.future.set_running_or_notify_cancel() else None
            # Before the outcome is told: whoever hears of it must find the room at rest.
            with self._wake:
                self._running = None
            if tell is not None:
                tell(job.future)
            del tell
            del job  # A finished job must not keep a room's memory until the next one comes.

    def _next(self) -> _Job | None:
        with self._wake:
            while not self._waiting and not self._is_closed:
                self._wake.wait()
            if self._is_closed:
                return None
            room, jobs = next(iter(self._waiting.items()))
            job = jobs.popleft()
            self._num_waiting -= 1
            if jobs:
                self._waiting.move_to_end(room)
            else:
                del self._waiting[room]
            self._running = job
            return job


def _run(work: Callable[[], Any]) -> Callable[[Future[Any]], None]:
    """Do a job's work; return what tells its outcome to a future."""
    try:
        result = work()
    # Whatever a job raises is its client's affair, never the other rooms'.
    except BaseException as error:  # noqa: BLE001
        # No local name: the error would hold this frame, and this frame the error.
        return methodcaller("set_exception", _catchable(error))
    return methodcaller("set_result", result)


def _catchable(error: BaseException) -> Exception:
    """Return an error that ends a request; an event loop would end itself on some others."""
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(f"A job ended with {type(error).__name__}.")
    wrapped.__cause__ = error
    return wrapped


def _fail(job: _Job, error: Exception) -> None:
    if job.future.set_running_or_notify_cancel():
        job.future.set_exception(error)
