"""The ordered, immutable set of prompts of one object, and its JSON form."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, cast

import numpy as np

from fastsam3d.errors import GeometryError, PromptError
from fastsam3d.prompts.types import Box, Frame, MaskPrompt, Point
from fastsam3d.volume import Geometry

if TYPE_CHECKING:
    from collections.abc import Iterator

Prompt = Point | Box | MaskPrompt

JSON_VERSION: Final = 1
MAX_PROMPTS: Final = 10_000
MAX_JSON_CHARACTERS: Final = 64 * 2**20
MAX_MASK_VOXELS: Final = 2**31


@dataclass(frozen=True)
class PromptSet:
    """Prompts in the order in which they were given; every change makes a new set.

    Attributes:
        prompts: The prompts, oldest first.

    Raises:
        PromptError: More than `MAX_PROMPTS`, or something that is not a prompt.

    Example:
        >>> prompts = PromptSet().add(Point.voxel((1, 2, 3))).add(Box.voxel((0, 0, 0), (4, 4, 4)))
        >>> len(prompts.without_last())
        1
    """

    prompts: tuple[Prompt, ...] = ()

    def __post_init__(self) -> None:
        """Check kind and number."""
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if len(self.prompts) > MAX_PROMPTS:
            message = f"At most {MAX_PROMPTS} prompts fit, got {len(self.prompts)}; give fewer."
            raise PromptError(message)
        for prompt in cast("tuple[Any, ...]", self.prompts):
            if not isinstance(prompt, Prompt):
                message = f"Prompt must be a Point, Box or MaskPrompt, got {type(prompt).__name__}."
                raise PromptError(message)

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        """Iterate over the prompts, oldest first."""
        return iter(self.prompts)

    @property
    def points(self) -> tuple[Point, ...]:
        """All points, oldest first."""
        return tuple(prompt for prompt in self.prompts if isinstance(prompt, Point))

    @property
    def boxes(self) -> tuple[Box, ...]:
        """All boxes, oldest first."""
        return tuple(prompt for prompt in self.prompts if isinstance(prompt, Box))

    @property
    def mask(self) -> MaskPrompt | None:
        """The latest mask prompt; None without one, or when it marks no voxel."""
        masks = [prompt for prompt in self.prompts if isinstance(prompt, MaskPrompt)]
        return masks[-1] if masks and not masks[-1].is_empty else None

    def add(self, *prompts: Prompt) -> Self:
        """Return the set with prompts appended."""
        return type(self)((*self.prompts, *prompts))

    def without_last(self) -> Self:
        """Return the set without the latest prompt.

        Raises:
            PromptError: The set is empty.
        """
        return self.without(len(self.prompts) - 1)

    def without(self, index: int) -> Self:
        """Return the set without the prompt at `index` (0 is the oldest).

        Raises:
            PromptError: There is no such prompt.
        """
        if not 0 <= index < len(self.prompts):
            message = f"There is no prompt {index} to remove, the set holds {len(self.prompts)}."
            raise PromptError(message)
        return type(self)(self.prompts[:index] + self.prompts[index + 1 :])

    def to_voxel(self, geometry: Geometry) -> Self:
        """Return the set in the voxel frame of a volume, order kept.

        Where points contradict each other in one voxel, only the latest counts.

        Raises:
            PromptError: A prompt lies outside of the volume or on another grid.
        """
        moved = [prompt.to_voxel(geometry) for prompt in self.prompts]
        latest = {_voxel_of(p): p.positive for p in moved if isinstance(p, Point)}
        kept = [
            prompt
            for prompt in moved
            if not isinstance(prompt, Point) or prompt.positive == latest[_voxel_of(prompt)]
        ]
        return type(self)(tuple(kept))

    def to_json(self) -> str:
        """Return the set as JSON text, exact to the last bit."""
        prompts = [_to_plain(prompt) for prompt in self.prompts]
        return json.dumps({"version": JSON_VERSION, "prompts": prompts}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make a set of JSON text, which may come from anyone.

        Args:
            text: What `to_json` returned.

        Raises:
            PromptError: Not JSON, too long, of another version, or a malformed prompt.
        """
        if len(text) > MAX_JSON_CHARACTERS:
            message = f"Prompt JSON has {len(text)} characters; at most {MAX_JSON_CHARACTERS} fit."
            raise PromptError(message)
        try:
            plain = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            message = f"Prompt text is not JSON ({error}); write it with PromptSet.to_json."
            raise PromptError(message) from error
        try:
            if plain["version"] != JSON_VERSION:
                message = f"Prompt JSON must be version {JSON_VERSION}, got {plain['version']!r}."
                raise PromptError(message)
            return cls(tuple(_from_plain(item) for item in plain["prompts"]))
        except (KeyError, TypeError, ValueError, OverflowError, GeometryError) as error:
            message = f"Prompt JSON is malformed ({error!r}); write it with PromptSet.to_json."
            raise PromptError(message) from error


def _voxel_of(point: Point) -> tuple[int, ...]:
    return tuple(math.floor(value + 0.5) for value in point.position)


def _to_plain(prompt: Prompt) -> dict[str, Any]:
    if isinstance(prompt, Point):
        position, positive = list(prompt.position), prompt.positive
        return {"type": "point", "frame": prompt.frame, "at": position, "positive": positive}
    if isinstance(prompt, Box):
        start, stop = list(prompt.start), list(prompt.stop)
        return {"type": "box", "frame": prompt.frame, "start": start, "stop": stop}
    geometry = prompt.geometry
    return {
        "type": "mask",
        "shape": list(geometry.shape),
        "affine": geometry.affine.tolist(),
        "runs": _encode_runs(prompt),
    }


def _from_plain(item: dict[str, Any]) -> Prompt:
    kind = item["type"]
    if kind == "point":
        return Point(item["at"], cast("Frame", item["frame"]), item["positive"])
    if kind == "box":
        return Box(item["start"], item["stop"], cast("Frame", item["frame"]))
    if kind == "mask":
        geometry = Geometry(item["shape"], item["affine"])
        return MaskPrompt(_decode_runs(item["runs"], geometry), geometry)
    message = f"Prompt type must be point, box or mask, got {kind!r}; correct it."
    raise PromptError(message)


def _encode_runs(prompt: MaskPrompt) -> list[int]:
    """Return lengths of runs, i fastest; background first (possibly of length 0)."""
    flat = np.concatenate([[False], prompt.array.ravel(order="F"), [not prompt.array[-1, -1, -1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return cast("list[int]", np.diff(ends, prepend=0).tolist())


def _decode_runs(runs: list[int], geometry: Geometry) -> np.ndarray[Any, np.dtype[np.bool_]]:
    num_voxels = math.prod(geometry.shape)
    lengths = [length for length in runs if type(length) is int and 0 <= length <= num_voxels]
    if len(lengths) != len(runs) or sum(lengths) != num_voxels or num_voxels > MAX_MASK_VOXELS:
        message = f"Mask runs must fill {num_voxels} voxels (at most 2^31), got another sum."
        raise PromptError(message)
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(geometry.shape, order="F")


def _refuse_constant(name: str) -> NoReturn:
    message = f"{name} is not a number"
    raise ValueError(message)
