"""Change fields of a run's config by ``key=value`` texts, checked against the fields' types."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from fastsam3d.errors import ConfigError
from fastsam3d.train.config import RunConfig

_Config = TypeVar("_Config", bound=RunConfig)


def override(config: _Config, assignments: Iterable[str]) -> _Config:
    """Return a config with some fields changed, later assignments last.

    Args:
        config: Where to start from.
        assignments: Texts such as ``ema=0.999``, ``generator.num_real=9``, ``compile=false``,
            ``num_steps=none`` or ``generator.object_share=0.1,0.9``.

    Returns:
        The changed config; its own checks have run.

    Raises:
        ConfigError: A text has no ``=``, a key is unknown, or a value is of another type or range.
    """
    for assignment in assignments:
        key, found, text = assignment.partition("=")
        if not found or not key.strip():
            msg = f"A setting is written key=value, got {assignment!r}; for example ema=0.999."
            raise ConfigError(msg)
        config = _replaced(config, key.strip().split("."), text.strip(), key.strip())
    return config


def _replaced(part: Any, path: list[str], text: str, key: str) -> Any:
    name, rest = path[0], path[1:]
    names = [item.name for item in fields(part)]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names
        prefix = key[: len(key) - len(".".join(path))]
        known = ", ".join(prefix + n for n in near)
        msg = f"No setting is called {key!r}; did you mean {known}?"
        raise ConfigError(msg)
    value = getattr(part, name)
    if rest and not is_dataclass(value):
        msg = f"Setting {key!r} goes too deep: {name} is a plain value; leave out .{rest[0]}."
        raise ConfigError(msg)
    if rest:
        return replace(part, **{name: _replaced(value, rest, text, key)})
    if is_dataclass(value):
        inner = ", ".join(f"{key}.{item.name}" for item in fields(value)[:3])
        msg = f"Setting {key!r} is a group; set one of its fields, such as {inner}."
        raise ConfigError(msg)
    kinds = get_type_hints(part.__class__)
    return replace(part, **{name: _parsed(text, kinds[name], key)})


def _parsed(text: str, kind: Any, key: str) -> Any:
    """Read a value of the annotated type, strictly: a whole number is a float, not the reverse."""
    try:
        return _converted(_words(text, kind), kind)
    except ValueError:
        wanted = getattr(kind, "__name__", None) if not get_args(kind) else str(kind)
        msg = f"Setting {key} must be of type {wanted}, got {text!r}; write it like its default."
        raise ConfigError(msg) from None


def _words(text: str, kind: Any) -> Any:
    if get_origin(kind) is tuple and not text.startswith("["):
        text = f"[{text.strip('()')}]"
    lowered = {"none": None, "true": True, "false": False}
    if text.lower() in lowered:
        return lowered[text.lower()]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _converted(value: Any, kind: Any) -> Any:
    options = get_args(kind)
    if get_origin(kind) is UnionType:
        if value is None and NoneType in options:
            return None
        return _converted(value, next(option for option in options if option is not NoneType))
    if get_origin(kind) is tuple:
        if type(value) is not list:
            raise ValueError(kind)
        items = cast("list[Any]", value)
        kinds = options[:1] * len(items) if options[-1] is Ellipsis else options
        if len(items) != len(kinds):
            raise ValueError(kind)
        return tuple(_converted(item, k) for item, k in zip(items, kinds, strict=True))
    if kind is float and type(value) is int:
        return float(value)
    if kind is str and type(value) in (int, float):
        return str(value)
    if type(value) is not kind:
        raise ValueError(kind)
    return value
