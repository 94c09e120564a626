"""The log of an object's prompts: everything the user did, in order, nothing lost.

The log is a list of operations and the number of those in force. Undo and redo move that number;
the prompts follow from the operations in force, and the mask from the prompts. So taking prompt k
back is the same as never having given it, and a log that went through JSON gives the same mask.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Self

from fastsam3d.errors import PromptError
from fastsam3d.prompts.plain import Prompt, load_json, prompt_from_plain, prompt_to_plain
from fastsam3d.prompts.prompt_set import PromptSet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastsam3d.prompts.plain import ReadMask, WriteMask

LOG_VERSION: Final = 1
MAX_OPERATIONS: Final = 20_000


@dataclass(frozen=True)
class LogEntry:
    """A prompt in a log.

    Attributes:
        id: Its name in the log, from 1; never given twice.
        prompt: What the user gave.
    """

    id: int
    prompt: Prompt


@dataclass(frozen=True)
class AddPrompts:
    """Prompts were given, all at once."""

    entries: tuple[LogEntry, ...]


@dataclass(frozen=True)
class RemovePrompts:
    """Prompts were taken back, whenever they had been given."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class EditPrompt:
    """A prompt was replaced; it keeps its place and its id."""

    entry: LogEntry


Operation = AddPrompts | RemovePrompts | EditPrompt


@dataclass(frozen=True)
class PromptLog:
    """What was done to the prompts of one object; every change makes a new log.

    Attributes:
        operations: Everything done, oldest first, with what was undone and may be redone.
        position: How many of them are in force.
        next_id: Name of the next prompt.

    Raises:
        PromptError: Too many operations, or some that contradict each other.

    Example:
        >>> from fastsam3d.prompts import Point
        >>> log = PromptLog().add(Point.voxel((1, 2, 3))).add(Point.voxel((4, 5, 6)))
        >>> [entry.id for entry in log.remove(1).entries]
        [2]
        >>> log.remove(1).undo().prompts == log.prompts
        True
    """

    operations: tuple[Operation, ...] = ()
    position: int = 0
    next_id: int = 1

    def __post_init__(self) -> None:
        """Check that the operations follow from each other."""
        if len(self.operations) > MAX_OPERATIONS:
            message = f"A log holds at most {MAX_OPERATIONS} operations; start a new object."
            raise PromptError(message)
        if not 0 <= self.position <= len(self.operations):
            message = f"Log of {len(self.operations)} operations has no position {self.position}."
            raise PromptError(message)
        _fold(self.operations, self.next_id)

    @cached_property
    def entries(self) -> tuple[LogEntry, ...]:
        """The prompts in force with their ids, oldest first."""
        kept = _fold(self.operations[: self.position], self.next_id)
        return tuple(LogEntry(key, prompt) for key, prompt in kept.items())

    @property
    def prompts(self) -> PromptSet:
        """The prompts in force, oldest first."""
        return PromptSet(tuple(entry.prompt for entry in self.entries))

    @property
    def can_undo(self) -> bool:
        """Whether an operation is in force."""
        return self.position > 0

    @property
    def can_redo(self) -> bool:
        """Whether an operation was undone and nothing was done since."""
        return self.position < len(self.operations)

    def __len__(self) -> int:
        """Return the number of prompts in force."""
        return len(self.entries)

    def prompt(self, entry_id: int) -> Prompt:
        """Return the prompt in force of an id.

        Raises:
            PromptError: There is none.
        """
        for entry in self.entries:
            if entry.id == entry_id:
                return entry.prompt
        message = f"There is no prompt {entry_id}; there are {[e.id for e in self.entries]}."
        raise PromptError(message)

    def add(self, *prompts: Prompt) -> Self:
        """Return the log with prompts given, as one operation; the last has id `next_id - 1`."""
        entries = tuple(LogEntry(self.next_id + n, prompt) for n, prompt in enumerate(prompts))
        return self._do(AddPrompts(entries), next_id=self.next_id + len(prompts))

    def remove(self, *entry_ids: int) -> Self:
        """Return the log with prompts taken back, as one operation.

        Raises:
            PromptError: There is no such prompt.
        """
        for entry_id in entry_ids:
            self.prompt(entry_id)
        return self._do(RemovePrompts(tuple(dict.fromkeys(entry_ids))))

    def edit(self, entry_id: int, prompt: Prompt) -> Self:
        """Return the log with a prompt replaced; it keeps its place and id.

        Raises:
            PromptError: There is no such prompt.
        """
        self.prompt(entry_id)
        return self._do(EditPrompt(LogEntry(entry_id, prompt)))

    def clear(self) -> Self:
        """Return the log with all prompts taken back, as one operation."""
        return self.remove(*(entry.id for entry in self.entries))

    def undo(self) -> Self:
        """Return the log without its latest operation, which can be redone.

        Raises:
            PromptError: No operation is in force.
        """
        if not self.can_undo:
            message = "There is nothing to undo in this log; add a prompt first."
            raise PromptError(message)
        return replace(self, position=self.position - 1)

    def redo(self) -> Self:
        """Return the log with the operation that was undone last.

        Raises:
            PromptError: Nothing was undone, or something was done since.
        """
        if not self.can_redo:
            message = "There is nothing to redo in this log; undo something first."
            raise PromptError(message)
        return replace(self, position=self.position + 1)

    def to_json(self) -> str:
        """Return the log as JSON text, exact to the last bit."""
        return json.dumps(self.to_plain(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make a log of JSON text, which may come from anyone.

        Raises:
            PromptError: Not JSON, too long, of another version, or malformed.
        """
        return cls.from_plain(load_json(text))

    def to_plain(self, write_mask: WriteMask | None = None) -> dict[str, Any]:
        """Return the log as numbers, strings, lists and dicts; see `plain.prompt_to_plain`."""
        return {
            "version": LOG_VERSION,
            "operations": [_operation_to_plain(item, write_mask) for item in self.operations],
            "position": self.position,
            "next_id": self.next_id,
        }

    @classmethod
    def from_plain(cls, plain: Any, read_mask: ReadMask | None = None) -> Self:
        """Make a log of what `to_plain` returned.

        Args:
            plain: Parsed JSON, which may come from anyone.
            read_mask: See `plain.prompt_from_plain`.

        Raises:
            PromptError: Of another version, or malformed.
        """
        try:
            if plain["version"] != LOG_VERSION:
                message = f"Prompt log must be version {LOG_VERSION}, got {plain['version']!r}."
                raise PromptError(message)
            operations = tuple(
                _operation_from_plain(item, read_mask) for item in plain["operations"]
            )
            position, next_id = _whole(plain["position"]), _whole(plain["next_id"])
        except (KeyError, TypeError, ValueError) as error:
            message = f"Prompt log is malformed ({error!r}); write it with PromptLog.to_json."
            raise PromptError(message) from error
        return cls(operations, position, next_id)

    def _do(self, operation: Operation, *, next_id: int | None = None) -> Self:
        return replace(
            self,
            operations=(*self.operations[: self.position], operation),
            position=self.position + 1,
            next_id=self.next_id if next_id is None else next_id,
        )


def _fold(operations: tuple[Operation, ...], next_id: int) -> Mapping[int, Prompt]:
    """Return the prompts after operations by id, in order."""
    kept: dict[int, Prompt] = {}
    used: set[int] = set()
    for operation in operations:
        if isinstance(operation, AddPrompts):
            for entry in operation.entries:
                if entry.id in used or not 0 < entry.id < next_id:
                    raise PromptError(f"Prompt log gives the id {entry.id} twice or too late.")
                used.add(entry.id)
                kept[entry.id] = entry.prompt
            continue
        ids = operation.ids if isinstance(operation, RemovePrompts) else (operation.entry.id,)
        missing = [entry_id for entry_id in ids if entry_id not in kept]
        if missing:
            raise PromptError(f"Prompt log changes prompts {missing}, which are not there.")
        if isinstance(operation, RemovePrompts):
            kept = {key: prompt for key, prompt in kept.items() if key not in ids}
        else:
            kept[operation.entry.id] = operation.entry.prompt
    return kept


def _operation_to_plain(operation: Operation, write_mask: WriteMask | None) -> dict[str, Any]:
    if isinstance(operation, AddPrompts):
        entries = [_entry_to_plain(entry, write_mask) for entry in operation.entries]
        return {"do": "add", "entries": entries}
    if isinstance(operation, RemovePrompts):
        return {"do": "remove", "ids": list(operation.ids)}
    return {"do": "edit", "entry": _entry_to_plain(operation.entry, write_mask)}


def _operation_from_plain(plain: Any, read_mask: ReadMask | None) -> Operation:
    kind = plain["do"]
    if kind == "add":
        return AddPrompts(tuple(_entry_from_plain(item, read_mask) for item in plain["entries"]))
    if kind == "remove":
        return RemovePrompts(tuple(_whole(item) for item in plain["ids"]))
    if kind == "edit":
        return EditPrompt(_entry_from_plain(plain["entry"], read_mask))
    message = f"Log operation must be add, remove or edit, got {kind!r}; correct it."
    raise PromptError(message)


def _entry_to_plain(entry: LogEntry, write_mask: WriteMask | None) -> dict[str, Any]:
    return {"id": entry.id, "prompt": prompt_to_plain(entry.prompt, write_mask)}


def _entry_from_plain(plain: Any, read_mask: ReadMask | None) -> LogEntry:
    prompt = prompt_from_plain(plain["prompt"], read_mask)
    return LogEntry(_whole(plain["id"]), prompt)


def _whole(value: object) -> int:
    if type(value) is not int:
        message = f"{value!r} is not a whole number"
        raise ValueError(message)
    return value
