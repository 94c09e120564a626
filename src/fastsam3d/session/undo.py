"""A value with a past and a future: what undo and redo are made of."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from fastsam3d.errors import SessionStateError

MAX_UNDO: Final = 200

State = TypeVar("State")


class UndoStack(Generic[State]):
    """The states of something, of which one is current.

    Args:
        state: The first one; states are immutable and share what they have in common.
    """

    def __init__(self, state: State) -> None:
        self.current = state
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
        """Make a state the current one; at most `MAX_UNDO` earlier ones are kept."""
        self._past = [*self._past[-MAX_UNDO + 1 :], self.current]
        self._future = []
        self.current = state

    def undo(self) -> None:
        """Go back to the state before.

        Raises:
            SessionStateError: There is none.
        """
        if not self._past:
            message = f"There is nothing to undo (the latest {MAX_UNDO} changes are kept)."
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
