"""A value with a past and a future: what undo and redo are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

from fastsam3d.errors import SessionStateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastsam3d.session.object_mask import ObjectMask

MAX_UNDO: Final = 200
MAX_UNDO_BYTES: Final = 2**30

State = TypeVar("State")


class UndoStack(Generic[State]):
    """The states of something, of which one is current.

    The latest `MAX_UNDO` changes can be taken back; fewer where their masks would take more than
    `MAX_UNDO_BYTES`, but always one.

    Args:
        state: The first one; states are immutable and share what they have in common.
        masks_of: Names the masks that a state holds.
    """

    def __init__(self, state: State, masks_of: Callable[[State], Iterable[ObjectMask]]) -> None:
        self.current = state
        self._masks_of = masks_of
        self._past: list[State] = []
        self._future: list[State] = []

    @property
    def can_undo(self) -> bool:
        """Whether there is a change to take back."""
        return bool(self._past)

    @property
    def can_redo(self) -> bool:
        """Whether there is a change to bring back."""
        return bool(self._future)

    def push(self, state: State) -> None:
        """Make a state the current one."""
        past = [*self._past[-MAX_UNDO + 1 :], self.current]
        self._past = past[self._first_affordable(past) :]
        self._future = []
        self.current = state

    def _first_affordable(self, past: list[State]) -> int:
        seen: set[int] = set()
        num_bytes = 0
        for index in range(len(past) - 1, -1, -1):
            for mask in self._masks_of(past[index]):
                if id(mask) not in seen:
                    seen.add(id(mask))
                    num_bytes += mask.array.nbytes
            if num_bytes > MAX_UNDO_BYTES:
                return min(index + 1, len(past) - 1)
        return 0

    def undo(self) -> None:
        """Go back to the state before.

        Raises:
            SessionStateError: There is none.
        """
        if not self._past:
            message = f"There is nothing to undo (at most {MAX_UNDO} changes are kept)."
            raise SessionStateError(message)
        self._future.append(self.current)
        self.current = self._past.pop()

    def redo(self) -> None:
        """Go forth to the state that was undone last.

        Raises:
            SessionStateError: There is none.
        """
        if not self._future:
            message = "There is nothing to redo; undo something first."
            raise SessionStateError(message)
        self._past.append(self.current)
        self.current = self._future.pop()
