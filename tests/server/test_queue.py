"""The engine's queue: one job at a time, in turn for every room, never without bound."""

import asyncio
import threading

import pytest

from fastsam3d.server.errors import ApiError
from fastsam3d.server.queue import EngineQueue


@pytest.fixture
def queue():
    made = EngineQueue(length=6, room_length=3, timeout_s=5.0)
    yield made
    made.close(5.0)


@pytest.fixture
def gate(queue):
    """Keep the engine busy until the gate is opened."""
    opened = threading.Event()
    begun = threading.Event()

    def hold():
        begun.set()
        opened.wait(5)

    queue.submit("gatekeeper", hold)
    assert begun.wait(5)
    yield opened
    opened.set()


def code_of(future):
    with pytest.raises(ApiError) as told:
        future.result(5)
    return told.value.code


def test_rooms_take_turns_and_each_keeps_its_order(queue, gate):
    done = []
    futures = [
        queue.submit(room, lambda room=room, n=n: done.append((room, n)))
        for room, n in [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2)]
    ]
    gate.set()
    for future in futures:
        future.result(5)
    assert done == [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 3)]


def test_neither_a_room_nor_all_of_them_wait_without_bound(queue, gate):
    for _ in range(3):
        queue.submit("a", int)
    with pytest.raises(ApiError) as told:
        queue.submit("a", int)
    assert (told.value.status, told.value.code) == (503, "busy")
    assert told.value.headers["Retry-After"] == "1"
    for _ in range(3):
        queue.submit("b", int)
    with pytest.raises(ApiError):
        queue.submit("c", int)
    gate.set()


def test_only_the_latest_waiting_job_of_the_same_key_is_superseded(queue, gate):
    told = []
    first = queue.submit("a", lambda: 1, "liver")
    other = queue.submit("b", lambda: 9, "liver")
    second = queue.submit("a", lambda: 2, "liver", lambda: told.append("second"))
    third = queue.submit("a", lambda: 3, "spleen")
    fourth = queue.submit("a", lambda: 4, "liver", lambda: told.append("fourth"))
    gate.set()
    assert code_of(first) == "superseded"
    assert [f.result(5) for f in (other, second, third, fourth)] == [9, 2, 3, 4]
    assert told == ["second"]


def test_a_failing_job_is_its_own_affair(queue):
    class KernelError(BaseException):
        pass

    def fail():
        raise KernelError

    with pytest.raises(RuntimeError, match="KernelError"):
        queue.submit("a", fail).result(5)
    assert queue.submit("b", lambda: 5).result(5) == 5


@pytest.mark.parametrize("work", [int, lambda: 1 / 0])
def test_whoever_hears_of_an_outcome_finds_the_room_at_rest(queue, gate, work):
    at_work = []
    future = queue.submit("a", work)
    future.add_done_callback(lambda _: at_work.append(queue.has_work("a")))
    assert queue.has_work("a")
    gate.set()
    queue.submit("b", int).result(5)
    assert at_work == [False]


def test_a_closed_rooms_jobs_fail_and_others_go_on(queue, gate):
    gone, kept = queue.submit("a", int), queue.submit("b", lambda: 7)
    queue.drop("a")
    gate.set()
    assert code_of(gone) == "session_closed"
    assert kept.result(5) == 7
    assert not queue.has_work("a")


def test_a_job_that_was_taken_back_never_runs(queue, gate):
    ran = []
    future = queue.submit("a", lambda: ran.append(1))
    assert future.cancel()
    gate.set()
    queue.submit("a", int).result(5)
    assert ran == []


def test_a_late_answer_is_an_error_and_the_engine_goes_on():
    queue = EngineQueue(timeout_s=0.05)
    opened = threading.Event()

    async def ask():
        with pytest.raises(ApiError) as told:
            await queue.run("a", lambda: opened.wait(5))
        opened.set()
        return told.value.status, told.value.code, await queue.run("a", lambda: 3)

    assert asyncio.run(ask()) == (504, "timeout", 3)
    assert queue.close(5.0)


def test_closing_ends_the_running_job_and_refuses_the_rest(queue, gate):
    waiting = queue.submit("a", int)
    closer = threading.Thread(target=queue.close, args=(5.0,))
    closer.start()
    assert code_of(waiting) == "stopping"
    with pytest.raises(ApiError, match="stopping"):
        queue.submit("a", int)
    gate.set()
    closer.join(5)
    assert not queue.is_alive
