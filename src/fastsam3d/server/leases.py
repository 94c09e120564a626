"""Who may use which room, and for how long: two clocks for each client.

The idle clock runs since the latest work, the liveness clock since the latest sign of life. All of
it happens on the event loop's thread, so it takes no locks.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastsam3d.server.errors import RETRY_LATER_S, ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastsam3d.server.room import Room

logger = logging.getLogger(__name__)

TOKEN_BYTES: Final = 16
MAX_TOKEN_CHARACTERS: Final = 128


@dataclass(eq=False, kw_only=True)
class Lease:
    """The right of one client to one room.

    Attributes:
        token: The secret that proves it; 128 random bits, URL-safe.
        room: The room.
        worked: When it last did something, in seconds of the table's clock.
        seen: When its client was last heard of.
    """

    token: str
    room: Room
    worked: float
    seen: float


class LeaseTable:
    """All leases.

    Args:
        new_room: Makes a room.
        max_sessions: Leases at a time.
        idle_s: See `ServerSettings`.
        liveness_s: See `ServerSettings`.
        clock: Seconds that never run backwards; for tests.
    """

    def __init__(
        self,
        new_room: Callable[[], Room],
        *,
        max_sessions: int = 16,
        idle_s: float = 600.0,
        liveness_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._new_room = new_room
        self.max_sessions, self.idle_s, self.liveness_s = max_sessions, idle_s, liveness_s
        self._clock = clock
        # By digest: how long a look-up takes tells nothing about the tokens.
        self._leases: dict[bytes, Lease] = {}

    def __len__(self) -> int:
        """Return the number of leases."""
        return len(self._leases)

    @property
    def rooms(self) -> tuple[Room, ...]:
        """The rooms in use."""
        return tuple(lease.room for lease in self._leases.values())

    def claim(self) -> Lease:
        """Give a new client a room.

        Raises:
            ApiError: 503 ``at_capacity``.
        """
        self.reap()
        if len(self._leases) >= self.max_sessions:
            message = f"All {self.max_sessions} sessions of the server are in use; try again later."
            raise ApiError(503, "at_capacity", message, {"Retry-After": str(RETRY_LATER_S)})
        now = self._clock()
        token = secrets.token_urlsafe(TOKEN_BYTES)
        lease = Lease(token=token, room=self._new_room(), worked=now, seen=now)
        self._leases[_digest(token)] = lease
        return lease

    def get(self, token: str | None, *, is_work: bool = True) -> Lease:
        """Return the lease of a token and restart its clocks.

        Args:
            token: From the client; None where it sent none.
            is_work: Whether the idle clock restarts too, not only the liveness clock.

        Raises:
            ApiError: 410 ``session_expired``: no such lease, or none any more.
        """
        lease = self.find(token)
        lease.seen = self._clock()
        if is_work:
            lease.worked = lease.seen
        return lease

    def find(self, token: str | None) -> Lease:
        """Return the lease of a token without touching its clocks; see `get`."""
        given = "" if token is None or len(token) > MAX_TOKEN_CHARACTERS else token
        lease = self._leases.get(_digest(given))
        if lease is None or not hmac.compare_digest(lease.token.encode(), given.encode()):
            raise _expired()
        if self._is_over(lease):
            self._close(lease)
            raise _expired()
        return lease

    def remaining_s(self, lease: Lease) -> float:
        """Return how long a lease lasts without another sign of life."""
        now = self._clock()
        idle, live = self.idle_s - (now - lease.worked), self.liveness_s - (now - lease.seen)
        return max(0.0, min(idle, live))

    def idle_left_s(self, lease: Lease) -> float:
        """Return how long a lease lasts without more work."""
        return max(0.0, self.idle_s - (self._clock() - lease.worked))

    def release(self, token: str | None) -> bool:
        """End a lease; ending it twice does nothing.

        Returns:
            Whether there was one.
        """
        try:
            self._close(self.find(token))
        except ApiError:
            return False
        return True

    def reap(self) -> int:
        """End the leases whose clocks have run out; return how many."""
        over = [lease for lease in self._leases.values() if self._is_over(lease)]
        for lease in over:
            self._close(lease)
        return len(over)

    def close(self) -> None:
        """End all leases."""
        for lease in tuple(self._leases.values()):
            self._close(lease)

    def _is_over(self, lease: Lease) -> bool:
        if lease.room.is_busy:  # Its client waits for an answer.
            return False
        now = self._clock()
        return now - lease.worked > self.idle_s or now - lease.seen > self.liveness_s

    def _close(self, lease: Lease) -> None:
        self._leases.pop(_digest(lease.token), None)
        lease.room.close()
        logger.info("A session ended; %d are left.", len(self._leases))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _expired() -> ApiError:
    message = "The server knows no such session (any more); begin a new one."
    return ApiError(410, "session_expired", message)
