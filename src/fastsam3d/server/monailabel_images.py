"""The images of MONAI Label's clients: one room for each, opened when it is asked for.

An image comes by an upload (a session of that protocol, whose id is a secret of its client) or by
its name from a place that keeps it (a PACS, a datastore). What is kept elsewhere can be opened
again, so the longest unused of these gives way when there are too many; uploads never do before
their time. All of it happens on the event loop's thread, so it takes no locks but the ones that
make two requests for one image wait for one opening.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastsam3d.server.errors import RETRY_LATER_S, ApiError
from fastsam3d.server.leases import MAX_TOKEN_CHARACTERS, TOKEN_BYTES
from fastsam3d.server.room import Room

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastsam3d.io.dicom_seg import SeriesHeaders
    from fastsam3d.server.services import Services
    from fastsam3d.volume import Volume


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A volume, and what is remembered with it.

    Attributes:
        volume: The volume.
        series: Headers of its slices where it came from a PACS.
    """

    volume: Volume
    series: SeriesHeaders | None = None


@dataclass(eq=False, kw_only=True)
class Image:
    """One image at hand.

    Attributes:
        room: Where it is worked on.
        opened: The volume and its origin.
        idle_s: It is closed after so long without work.
        is_upload: Whether its client alone has it, so that it cannot be opened again.
        used: When it was last worked on, in seconds of the shelf's clock.
        created_at: Seconds since 1970.
        used_at: As `created_at`, of the latest work.
    """

    room: Room
    opened: Opened
    idle_s: float
    is_upload: bool
    used: float
    created_at: float = field(default_factory=time.time)
    used_at: float = field(default_factory=time.time)


class ImageShelf:
    """All images at hand.

    Args:
        services: The parts of the server; ``settings.max_sessions`` images are held at a time.
        clock: Seconds that never run backwards; for tests.
    """

    def __init__(self, services: Services, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._services = services
        self._clock = clock
        # By digest: how long a look-up takes tells nothing about the ids of sessions.
        self._images: dict[bytes, Image] = {}
        self._opening: dict[bytes, asyncio.Lock] = {}

    def __len__(self) -> int:
        """Return the number of images at hand."""
        return len(self._images)

    async def add_upload(self, volume: Volume, idle_s: float | None = None) -> str:
        """Take an uploaded volume.

        Args:
            volume: The volume.
            idle_s: How long it may lie unused; at most, and by default, the server's idle time.

        Returns:
            Its id, a secret of 128 random bits.

        Raises:
            ApiError: 503 ``at_capacity`` or ``volumes_full``, 413 ``too_large``.
        """
        limit = self._services.settings.idle_s
        image_id = secrets.token_urlsafe(TOKEN_BYTES)
        chosen = limit if idle_s is None else min(idle_s, limit)
        await self._put(_upload_key(image_id), Opened(volume=volume), chosen, is_upload=True)
        return image_id

    def upload(self, image_id: str) -> Image:
        """Return an upload.

        Raises:
            ApiError: 404 ``session_not_found``.
        """
        image = self._find(_upload_key(image_id))
        if image is None:
            message = "There is no such session (any more); upload the image again."
            raise ApiError(404, "session_not_found", message)
        return image

    def remove_upload(self, image_id: str) -> None:
        """End an upload.

        Raises:
            ApiError: 404 ``session_not_found``.
        """
        self.upload(image_id)
        self._drop(_upload_key(image_id))

    async def kept(self, name: str, open_image: Callable[[], Awaitable[Opened]]) -> Image:
        """Return an image that is kept elsewhere.

        Args:
            name: What the place calls it.
            open_image: Gets it from there; called only if it is not at hand, and once for
                requests that come at the same time.

        Raises:
            ApiError: As `add_upload`, and what `open_image` raises.
        """
        key = _digest(f"kept {name}")
        lock = self._opening.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                found = self._find(key)
                if found is not None:
                    return found
                opened = await open_image()
                return await self._put(key, opened, self._services.settings.idle_s, is_upload=False)
        finally:
            if not lock.locked():
                self._opening.pop(key, None)

    def forget(self, name: str) -> None:
        """Drop an image that has changed where it is kept."""
        self._drop(_digest(f"kept {name}"))

    async def borrow(self, volume: Volume) -> Room:
        """Return a room for one request; its user closes it.

        Raises:
            ApiError: As `add_upload`.
        """
        room = Room(self._services.host, self._services.queue)
        try:
            await room.set_volume(volume)
        except BaseException:
            room.close()
            raise
        return room

    def reap(self) -> None:
        """Close what has lain unused for too long."""
        now = self._clock()
        for key, image in tuple(self._images.items()):
            if now - image.used > image.idle_s and not image.room.is_busy:
                self._drop(key)

    def close(self) -> None:
        """Close everything."""
        for key in tuple(self._images):
            self._drop(key)

    async def _put(self, key: bytes, opened: Opened, idle_s: float, *, is_upload: bool) -> Image:
        self._make_place()
        room = Room(self._services.host, self._services.queue)
        image = Image(
            room=room, opened=opened, idle_s=idle_s, is_upload=is_upload, used=self._clock()
        )
        # In its place before the engine has it, so that bounds hold for requests beside this one.
        self._images[key] = image
        try:
            await self._fill(image)
        except BaseException:
            self._drop(key)
            raise
        return image

    async def _fill(self, image: Image) -> None:
        while True:
            try:
                await image.room.set_volume(image.opened.volume)
            except ApiError as error:
                if error.code != "volumes_full" or not self._give_way(image):
                    raise
            else:
                return

    def _make_place(self) -> None:
        self.reap()
        limit = self._services.settings.max_sessions
        while len(self._images) >= limit:
            if not self._give_way():
                message = f"All {limit} images of the server are in use; try again later."
                headers = {"Retry-After": str(RETRY_LATER_S)}
                raise ApiError(503, "at_capacity", message, headers)

    def _give_way(self, new: Image | None = None) -> bool:
        """Close the longest unused image that can be opened again; return whether there was one."""
        free = [
            (image.used, key)
            for key, image in self._images.items()
            if not (image is new or image.is_upload or image.room.is_busy)
        ]
        if free:
            self._drop(min(free)[1])
        return bool(free)

    def _find(self, key: bytes) -> Image | None:
        self.reap()
        image = self._images.get(key)
        if image is not None:
            image.used, image.used_at = self._clock(), time.time()
        return image

    def _drop(self, key: bytes) -> None:
        image = self._images.pop(key, None)
        if image is not None:
            image.room.close()


def _upload_key(image_id: str) -> bytes:
    return _digest(f"upload {image_id[: MAX_TOKEN_CHARACTERS + 1]}")


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
