"""Plain records out of pickled bytes, without unpickling.

The CVPR 2025 challenge stores boxes and clicks as numpy arrays of Python objects, that is as
pickle, which may run anything. Here an interpreter knows the few pickle instructions that make
lists, dictionaries, words and numbers, and numpy's arrays and scalars as words without a meaning:
it holds no reference to anything that could be called.
"""

from __future__ import annotations

import io
import pickletools
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

MAX_NODES = 200_000
MAX_DEPTH = 8

_NUMBER_CODES = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"})
_GLOBALS = {
    (module, name): kind
    for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
    for name, kind in (
        ("_reconstruct", "array"),
        ("scalar", "scalar"),
        ("dtype", "dtype"),
        ("ndarray", "class"),
    )
}


class Refusal(Exception):  # noqa: N818 - becomes a DatasetError that names the file
    """What a file holds that it must not hold."""


@dataclass(eq=False)
class _Made:
    """Something that numpy would make: an array, a scalar, a dtype, or a class of these."""

    kind: str
    arguments: tuple[Any, ...] = ()
    state: Any = None


@dataclass
class _Budget:
    nodes: int

    def spend(self) -> None:
        self.nodes -= 1
        if self.nodes < 0:
            raise Refusal(f"has a record of more than {MAX_NODES} parts")


class _Interpreter:
    """A stack machine for the instructions that build plain data."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        if name in _PUSH_ARGUMENT:
            self.stack.append(argument)
        elif name in _PUSH_NEW:
            self.stack.append(_PUSH_NEW[name]())
        elif name in _TUPLE_SIZES:
            self._make_tuple(_TUPLE_SIZES[name])
        elif name in {"GLOBAL", "STACK_GLOBAL"}:
            self._find(name, argument)
        elif name in _OTHERS:
            getattr(self, _OTHERS[name])(argument)
        elif name not in _IGNORED:
            raise Refusal(f"has a record with the instruction {name}")

    def _pop_marked(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _make_tuple(self, size: int) -> None:
        start = len(self.stack) - size
        if start < 0:
            raise IndexError
        items = tuple(self.stack[start:])
        del self.stack[start:]
        self.stack.append(items)

    def _find(self, name: str, argument: Any) -> None:
        if name == "GLOBAL":
            module, _, attribute = str(argument).partition(" ")
        else:
            attribute, module = self.stack.pop(), self.stack.pop()
        kind = _GLOBALS.get((str(module), str(attribute)))
        if kind is None:
            raise Refusal(f"asks for {module}.{attribute}")
        self.stack.append(_Made(kind))

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def tuple_to_mark(self, _: Any) -> None:
        self.stack.append(tuple(self._pop_marked()))

    def append(self, _: Any) -> None:
        item = self.stack.pop()
        _expect(self.stack[-1], list).append(item)

    def appends(self, _: Any) -> None:
        items = self._pop_marked()
        _expect(self.stack[-1], list).extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _expect(self.stack[-1], dict)[_expect(key, str)] = value

    def set_items(self, _: Any) -> None:
        items = self._pop_marked()
        target = _expect(self.stack[-1], dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_expect(key, str)] = value

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def put(self, argument: Any) -> None:
        self.memo[int(argument)] = self.stack[-1]

    def get(self, argument: Any) -> None:
        self.stack.append(self.memo[int(argument)])

    def reduce(self, _: Any) -> None:
        arguments = _expect(self.stack.pop(), tuple)
        made = _expect(self.stack.pop(), _Made)
        self.stack.append(_Made(made.kind, arguments))

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        _expect(self.stack[-1], _Made).state = state


_PUSH_ARGUMENT = frozenset(
    {
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "SHORT_BINBYTES",
        "BINBYTES",
    }
)
_PUSH_NEW: dict[str, Any] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_TUPLE_SIZES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = frozenset({"PROTO", "FRAME", "STOP"})
_OTHERS = {
    "MARK": "mark",
    "TUPLE": "tuple_to_mark",
    "APPEND": "append",
    "APPENDS": "appends",
    "SETITEM": "set_item",
    "SETITEMS": "set_items",
    "MEMOIZE": "memoize",
    "BINPUT": "put",
    "LONG_BINPUT": "put",
    "BINGET": "get",
    "LONG_BINGET": "get",
    "REDUCE": "reduce",
    "BUILD": "build",
}


def _expect(value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind):
        raise Refusal(f"has a record with {type(value).__name__} in place of {kind.__name__}")
    return value


def parse_records(content: bytes) -> Any:
    """Return what a pickled numpy array of objects holds, without unpickling it.

    Args:
        content: What follows the header of a .npy member of objects.

    Returns:
        Lists, dictionaries, words and numbers, copied so that nothing is shared.

    Raises:
        Refusal: The content is damaged, too large, or holds or asks for anything else.
    """
    machine = _Interpreter()
    try:
        for instruction, argument, _ in pickletools.genops(io.BytesIO(content)):
            machine.run(instruction.name, argument)
        (value,) = machine.stack
        return _as_plain(value, _Budget(MAX_NODES), depth=0)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise Refusal("has a damaged record") from error


def _as_plain(value: Any, budget: _Budget, *, depth: int) -> Any:
    """Turn what numpy would make into lists and numbers; copies, so that shares are counted."""
    budget.spend()
    if depth > MAX_DEPTH:
        raise Refusal(f"has a record deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {key: _as_plain(item, budget, depth=depth + 1) for key, item in items}
    if isinstance(value, (list, tuple)):
        parts = cast("list[Any]", value)
        return [_as_plain(item, budget, depth=depth + 1) for item in parts]
    if isinstance(value, _Made):
        return _as_plain(_made_value(value), budget, depth=depth + 1)
    raise Refusal(f"has a record with {type(value).__name__}")


def _made_value(made: _Made) -> Any:
    """Return the value of a numpy scalar, or the nested lists of an array."""
    if made.kind == "scalar":
        dtype, content = made.arguments
        return np.frombuffer(_expect(content, bytes), dtype=_number_type(dtype), count=1)[0].item()
    if made.kind != "array":
        raise Refusal("has a record with a lone type")
    state: tuple[Any, ...] = _expect(made.state, tuple)
    shape, dtype, content = state[1], state[2], state[-1]
    if isinstance(content, bytes):
        return np.frombuffer(content, dtype=_number_type(dtype)).reshape(shape).tolist()
    items = _expect(content, list)
    if shape != (len(items),):
        raise Refusal(f"has a record of shape {shape}")
    return items


def _number_type(made: Any) -> np.dtype[Any]:
    arguments = _expect(made, _Made).arguments
    code = arguments[0] if arguments else None
    if code not in _NUMBER_CODES:
        raise Refusal(f"has a record with numbers of type {code!r}")
    state = made.state
    order = cast("tuple[Any, ...]", state)[1] if isinstance(state, tuple) else "|"
    return np.dtype(code).newbyteorder(">" if order == ">" else "<")
