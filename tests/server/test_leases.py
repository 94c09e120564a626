"""Leases: 128 secret bits, two clocks, nothing left behind."""

import pytest

from fastsam3d.server.errors import ApiError
from fastsam3d.server.leases import LeaseTable


class FakeRoom:
    is_busy = False
    is_closed = False

    def close(self):
        self.is_closed = True


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def leases(clock):
    return LeaseTable(FakeRoom, max_sessions=2, idle_s=100, liveness_s=10, clock=clock)


def is_expired(leases, token):
    try:
        leases.find(token)
    except ApiError as error:
        return (error.status, error.code) == (410, "session_expired")
    return False


def test_tokens_are_long_and_never_the_same(clock):
    leases = LeaseTable(FakeRoom, max_sessions=200, clock=clock)
    tokens = {leases.claim().token for _ in range(200)}
    assert len(tokens) == 200
    assert min(map(len, tokens)) >= 22


def test_a_full_table_says_when_to_come_again(leases):
    first = leases.claim()
    leases.claim()
    with pytest.raises(ApiError) as told:
        leases.claim()
    assert (told.value.status, told.value.code) == (503, "at_capacity")
    assert told.value.headers == {"Retry-After": "10"}
    assert leases.release(first.token)
    assert leases.claim().room is not first.room


def test_a_silent_client_loses_its_room_and_a_beating_one_keeps_it(leases, clock):
    silent, beating = leases.claim(), leases.claim()
    for _ in range(4):
        clock.now += 4
        leases.get(beating.token, is_work=False)
    assert is_expired(leases, silent.token)
    assert silent.room.is_closed
    assert not is_expired(leases, beating.token)


def test_beating_alone_does_not_keep_a_room_for_ever(leases, clock):
    lease = leases.claim()
    for _ in range(26):
        clock.now += 4
        leases.reap()
        if is_expired(leases, lease.token):
            break
        leases.get(lease.token, is_work=False)
    assert lease.room.is_closed
    assert clock.now == pytest.approx(1104)


def test_a_room_at_work_is_not_taken_away(leases, clock):
    lease = leases.claim()
    lease.room.is_busy = True
    clock.now += 1000
    assert leases.reap() == 0
    lease.room.is_busy = False
    assert leases.reap() == 1
    assert lease.room.is_closed


def test_releasing_twice_is_releasing_once(leases):
    lease = leases.claim()
    assert leases.release(lease.token)
    assert not leases.release(lease.token)
    assert lease.room.is_closed


@pytest.mark.parametrize("token", [None, "", "x", "A" * 22, "é\udcff", "A" * 10_000])
def test_a_guess_opens_nothing(leases, token):
    leases.claim()
    assert is_expired(leases, token)


def test_what_remains_is_the_shorter_clock(leases, clock):
    lease = leases.claim()
    clock.now += 3
    assert leases.remaining_s(lease) == pytest.approx(7)
    clock.now += 6
    leases.get(lease.token, is_work=False)
    assert leases.remaining_s(lease) == pytest.approx(10)
