"""Which images of MONAI Label's clients are at hand, for how long, and which give way."""

import asyncio

import pytest

from fastsam3d.server.app import create_services
from fastsam3d.server.errors import ApiError
from fastsam3d.server.monailabel_images import ImageShelf, Opened
from fastsam3d.server.settings import ServerSettings
from tests.server.conftest import toy_host
from tests.session.phantoms import ball_volume

VOLUME = ball_volume(shape=(8, 8, 8), centre_mm=(4, 4, 4), radius_mm=2)


class Place:
    """Keeps images, and counts how often one is opened."""

    def __init__(self):
        self.opened = []

    def opens(self, name):
        async def open_image():
            self.opened.append(name)
            await asyncio.sleep(0)
            return Opened(volume=VOLUME)

        return open_image


def with_shelf(play, **options):
    """Run `play(shelf, place, clock)` with a clock that the test turns."""
    clock = [0.0]
    settings = ServerSettings(**({"max_sessions": 2, "idle_s": 100.0} | options))
    services = create_services(settings, toy_host(settings))
    shelf = ImageShelf(services, clock=lambda: clock[0])
    try:
        asyncio.run(play(shelf, Place(), clock))
    finally:
        shelf.close()
        services.queue.close()
    assert len(shelf) == 0


def test_an_image_that_is_kept_elsewhere_is_opened_once():
    async def play(shelf, place, _):
        both = await asyncio.gather(*(shelf.kept("a", place.opens("a")) for _ in range(5)))
        assert len(set(map(id, both))) == 1
        assert place.opened == ["a"]
        shelf.forget("a")
        await shelf.kept("a", place.opens("a"))
        assert place.opened == ["a", "a"]

    with_shelf(play)


def test_the_longest_unused_of_the_kept_images_gives_way():
    async def play(shelf, place, clock):
        for name in ("a", "b"):
            clock[0] += 1
            await shelf.kept(name, place.opens(name))
        clock[0] += 1
        await shelf.kept("a", place.opens("a"))
        await shelf.kept("c", place.opens("c"))
        await shelf.kept("a", place.opens("a"))
        assert place.opened == ["a", "b", "c"]
        assert len(shelf) == 2

    with_shelf(play)


def test_uploads_never_give_way_before_their_time():
    async def play(shelf, place, clock):
        first, second = [await shelf.add_upload(VOLUME) for _ in range(2)]
        with pytest.raises(ApiError, match="in use"):
            await shelf.add_upload(VOLUME)
        with pytest.raises(ApiError, match="in use"):
            await shelf.kept("a", place.opens("a"))
        clock[0] = 60
        shelf.upload(first)
        clock[0] = 101
        await shelf.add_upload(VOLUME)
        shelf.upload(first)
        with pytest.raises(ApiError, match="upload the image again"):
            shelf.upload(second)

    with_shelf(play)


def test_an_image_without_use_is_closed_and_its_room_too():
    async def play(shelf, place, clock):
        image = await shelf.kept("a", place.opens("a"))
        clock[0] = 101
        shelf.reap()
        assert len(shelf) == 0
        assert image.room.is_closed

    with_shelf(play)


def test_kept_images_give_way_where_memory_is_short():
    async def play(shelf, place, _):
        await shelf.kept("a", place.opens("a"))
        await shelf.kept("b", place.opens("b"))
        assert len(shelf) == 1
        upload = await shelf.add_upload(VOLUME)
        assert len(shelf) == 1
        shelf.upload(upload)
        with pytest.raises(ApiError, match="fill the server"):
            await shelf.kept("a", place.opens("a"))

    with_shelf(play, max_open_voxels=VOLUME.array.size + 1, max_sessions=9)


def test_an_image_that_cannot_be_opened_leaves_nothing():
    async def play(shelf, place, _):
        async def fail():
            raise ApiError(502, "pacs_failed", "no")

        with pytest.raises(ApiError, match="no"):
            await shelf.kept("a", fail)
        assert len(shelf) == 0
        await shelf.kept("a", place.opens("a"))
        with pytest.raises(ApiError, match="at most"):
            await shelf.add_upload(ball_volume(shape=(9, 9, 9)))
        assert len(shelf) == 1

    with_shelf(play, max_voxels=8**3)
