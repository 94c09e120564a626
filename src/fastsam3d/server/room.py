"""One tenant's workplace: a volume, its study, and a place in the engine's queue.

A room's study is touched by the engine's thread only; everything else by the event loop's.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from fastsam3d.server.errors import ApiError
from fastsam3d.session import Study

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Hashable
    from concurrent.futures import Future

    from fastsam3d.server.host import ModelHost
    from fastsam3d.server.queue import EngineQueue
    from fastsam3d.session import Session
    from fastsam3d.volume import Volume

T = TypeVar("T")


class Room:
    """One session of the server.

    Args:
        host: Makes the room's session.
        queue: Does its work.

    Attributes:
        extra: Where protocols keep what they need to remember, by their own names.
    """

    def __init__(self, host: ModelHost, queue: EngineQueue) -> None:
        self._host = host
        self._queue = queue
        self._session: Session | None = host.new_session()
        self._study: Study | None = None
        self._volume: Volume | None = None
        self._num_guests = 0
        self.extra: dict[str, Any] = {}

    @property
    def is_closed(self) -> bool:
        """Whether the session has ended."""
        return self._session is None

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self._num_guests > 0 or self._queue.has_work(self)

    @property
    def session(self) -> Session:
        """The session that answers prompts.

        Raises:
            ApiError: 410 ``session_closed``.
        """
        if self._session is None:
            raise ApiError(410, "session_closed", "The session was closed; begin a new one.")
        return self._session

    @property
    def volume(self) -> Volume:
        """The volume.

        Raises:
            ApiError: 410 ``session_closed``, 409 ``no_volume``.
        """
        return self._with_volume(self._volume)

    @property
    def study(self) -> Study:
        """The study of the volume; for jobs of `run` only.

        Raises:
            ApiError: 410 ``session_closed``, 409 ``no_volume``.
        """
        return self._with_volume(self._study)

    @property
    def num_voxels(self) -> int:
        """Voxels of the volume; 0 without one."""
        return 0 if self._volume is None else self._volume.array.size

    @property
    def embedding_bytes(self) -> int:
        """Memory of the session's embeddings."""
        session = self._session
        return 0 if session is None else session.embeddings.num_bytes

    def drop_embeddings(self) -> None:
        """Forget the session's embeddings, which will be computed again when needed."""
        session = self._session
        if session is not None:
            session.embeddings.clear()

    @contextmanager
    def in_use(self) -> Generator[None]:
        """Keep the room from being reaped while a request that has no job is answered."""
        self._num_guests += 1
        try:
            yield
        finally:
            self._num_guests -= 1

    async def set_volume(self, volume: Volume) -> None:
        """Start anew on a volume, with an empty study.

        Raises:
            ApiError: As `run`.
        """
        self._host.check_room_for(self, volume)

        def start() -> None:
            self._study = Study(self.session, volume)
            self._volume = volume
            self.extra.clear()

        await self.run(start)

    async def run(self, work: Callable[[], T], supersede_key: Hashable | None = None) -> T:
        """Do something with the study in the engine's thread, one job of the room at a time.

        Args:
            work: What to do.
            supersede_key: See `EngineQueue.submit`.

        Raises:
            ApiError: 410 ``session_closed``, 409 ``superseded``, 503 ``busy``, 504 ``timeout``.
        """
        return await self._queue.result(self.submit(work, supersede_key))

    def submit(
        self,
        work: Callable[[], T],
        supersede_key: Hashable | None = None,
        on_supersede: Callable[[], None] | None = None,
    ) -> Future[T]:
        """Take a place in the queue at once; await it with `result`. See `EngineQueue.submit`."""
        _ = self.session

        def job() -> T:
            _ = self.session  # It may have ended while the job waited.
            with self._host.at_work(self):
                return work()

        return self._queue.submit(self, job, supersede_key, on_supersede)

    async def result(self, future: Future[T]) -> T:
        """Wait for what `submit` returned; see `EngineQueue.result`."""
        return await self._queue.result(future)

    def close(self) -> None:
        """End the session: waiting jobs fail, a running one ends for nothing."""
        self._host.forget(self)
        self._session = self._study = self._volume = None
        self.extra = {}
        self._queue.drop(self)

    def _with_volume(self, value: T | None) -> T:
        _ = self.session
        if value is None:
            message = "There is no volume yet; upload one first."
            raise ApiError(409, "no_volume", message)
        return value


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Run what reads or writes files beside the event loop, not in the engine's thread."""
    return await asyncio.to_thread(function, *args)
