"""Prompts as plain values that JSON can hold, exact to the last bit, and back.

What comes in may come from anyone: constructors check the numbers, this module the sizes.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import numpy as np

from fastsam3d.errors import GeometryError, PromptError
from fastsam3d.prompts.drawn import Lasso, Scribble, SliceBox
from fastsam3d.prompts.painted import Painted
from fastsam3d.prompts.types import Box, MaskPrompt, Point
from fastsam3d.volume import Geometry

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastsam3d.prompts.frames import Frame

    WriteMask = Callable[[MaskPrompt], dict[str, Any]]
    ReadMask = Callable[[dict[str, Any]], MaskPrompt]

Prompt = Point | Box | SliceBox | Scribble | Lasso | Painted | MaskPrompt

MAX_JSON_CHARACTERS: Final = 64 * 2**20
MAX_MASK_VOXELS: Final = 2**31
_MALFORMED: Final = (KeyError, TypeError, ValueError, OverflowError, GeometryError)


def load_json(text: str) -> Any:
    """Parse JSON that may come from anyone.

    Raises:
        PromptError: Not JSON, too long, too deep, or with NaN or infinite numbers.
    """
    if len(text) > MAX_JSON_CHARACTERS:
        message = f"Prompt JSON has {len(text)} characters; at most {MAX_JSON_CHARACTERS} fit."
        raise PromptError(message)
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        message = f"Prompt text is not JSON ({error}); write it with to_json."
        raise PromptError(message) from error


def prompt_to_plain(prompt: Prompt, write_mask: WriteMask | None = None) -> dict[str, Any]:
    """Return a prompt as numbers, strings, lists and dicts.

    Args:
        prompt: The prompt.
        write_mask: Writes the voxels of a mask prompt, or of what was painted, elsewhere and
            returns what finds them; by default they become runs.
    """
    if isinstance(prompt, Point):
        position, positive = list(prompt.position), prompt.positive
        return {"type": "point", "frame": prompt.frame, "at": position, "positive": positive}
    if isinstance(prompt, Scribble):
        return {
            "type": "scribble",
            "frame": prompt.frame,
            "path": [list(vertex) for vertex in prompt.path],
            "positive": prompt.positive,
            "radius_mm": prompt.radius_mm,
            "axis": prompt.axis,
        }
    if isinstance(prompt, Lasso):
        return {
            "type": "lasso",
            "frame": prompt.frame,
            "outline": [list(vertex) for vertex in prompt.outline],
            "axis": prompt.axis,
            "positive": prompt.positive,
        }
    if isinstance(prompt, MaskPrompt | Painted):
        return _voxels_to_plain(prompt, write_mask)
    start, stop = list(prompt.start), list(prompt.stop)
    plain = {"type": "box", "frame": prompt.frame, "start": start, "stop": stop}
    return plain if isinstance(prompt, Box) else plain | {"type": "slice_box", "axis": prompt.axis}


def _voxels_to_plain(prompt: MaskPrompt | Painted, write_mask: WriteMask | None) -> dict[str, Any]:
    if isinstance(prompt, Painted):
        mask = _voxels_to_plain(prompt.mask, write_mask)
        given = {"positive": prompt.positive, "lasso_axis": prompt.lasso_axis}
        return {"type": "painted", "mask": mask} | given
    choice = {"answer": True} if prompt.is_answer else {}
    if write_mask is not None:
        return write_mask(prompt) | {"type": "mask"} | choice
    geometry = prompt.geometry
    return {
        "type": "mask",
        "shape": list(geometry.shape),
        "affine": geometry.affine.tolist(),
        "runs": _encode_runs(prompt),
    } | choice


def prompt_from_plain(item: Any, read_mask: ReadMask | None = None) -> Prompt:
    """Make a prompt of what `prompt_to_plain` returned.

    Args:
        item: Parsed JSON, which may come from anyone.
        read_mask: Finds what `write_mask` wrote; held to raise `PromptError` or `ValueError`.

    Raises:
        PromptError: It is malformed.
    """
    try:
        kind = item["type"]
        if kind == "mask":
            mask = _read_mask(item) if read_mask is None else read_mask(item)
            return mask.as_answer() if item.get("answer") is True else mask
        if kind == "painted":
            mask = (_read_mask if read_mask is None else read_mask)(item["mask"])
            positive, axis = item["positive"], item["lasso_axis"]
            return Painted.of_mask(mask, positive=positive, lasso_axis=axis)
        if kind not in _READERS:
            known = ", ".join((*_READERS, "mask", "painted"))
            message = f"Prompt type must be one of {known}, got {kind!r}; correct it."
            raise PromptError(message)
        return _READERS[kind](item)
    except _MALFORMED as error:
        message = f"Prompt JSON is malformed ({error!r}); write it with to_json."
        raise PromptError(message) from error


def _read_point(item: dict[str, Any]) -> Prompt:
    return Point(item["at"], cast("Frame", item["frame"]), item["positive"])


def _read_box(item: dict[str, Any]) -> Prompt:
    return Box(item["start"], item["stop"], cast("Frame", item["frame"]))


def _read_slice_box(item: dict[str, Any]) -> Prompt:
    return SliceBox(item["start"], item["stop"], item["axis"], cast("Frame", item["frame"]))


def _read_scribble(item: dict[str, Any]) -> Prompt:
    frame = cast("Frame", item["frame"])
    return Scribble(item["path"], frame, item["positive"], item["radius_mm"], item["axis"])


def _read_lasso(item: dict[str, Any]) -> Prompt:
    return Lasso(item["outline"], item["axis"], cast("Frame", item["frame"]), item["positive"])


def _read_mask(item: dict[str, Any]) -> MaskPrompt:
    geometry = Geometry(item["shape"], item["affine"])
    return MaskPrompt(_decode_runs(item["runs"], geometry), geometry)


_READERS: Final[dict[str, Callable[[dict[str, Any]], Prompt]]] = {
    "point": _read_point,
    "box": _read_box,
    "slice_box": _read_slice_box,
    "scribble": _read_scribble,
    "lasso": _read_lasso,
}


def _encode_runs(prompt: MaskPrompt) -> list[int]:
    """Return lengths of runs, i fastest; background first (possibly of length 0)."""
    array = prompt.array
    flat = np.concatenate([[False], array.ravel(order="F"), [not array[-1, -1, -1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return cast("list[int]", np.diff(ends, prepend=0).tolist())


def _decode_runs(runs: list[int], geometry: Geometry) -> np.ndarray[Any, np.dtype[np.bool_]]:
    num_voxels = math.prod(geometry.shape)
    if num_voxels > MAX_MASK_VOXELS:
        message = f"Mask prompt has a grid of {geometry.shape}; at most 2^31 voxels fit."
        raise PromptError(message)
    lengths = [length for length in runs if type(length) is int and 0 <= length <= num_voxels]
    if len(lengths) != len(runs) or sum(lengths) != num_voxels:
        message = f"Mask runs must fill {num_voxels} voxels, got another sum."
        raise PromptError(message)
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(geometry.shape, order="F")


def _refuse_constant(name: str) -> NoReturn:
    message = f"{name} is not a number"
    raise ValueError(message)
