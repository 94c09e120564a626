"""The ordered, immutable set of prompts of one object, and its JSON form."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, cast

from fastsam3d.errors import PromptError
from fastsam3d.prompts.plain import Prompt, load_json, prompt_from_plain, prompt_to_plain
from fastsam3d.prompts.types import Box, MaskPrompt, Point

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastsam3d.volume import Geometry

JSON_VERSION: Final = 1
MAX_PROMPTS: Final = 10_000


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
                kinds = "Point, Box, SliceBox, Scribble, Lasso, Painted or MaskPrompt"
                message = f"Prompt must be a {kinds}, got {type(prompt).__name__}."
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
        prompts = [prompt_to_plain(prompt) for prompt in self.prompts]
        return json.dumps({"version": JSON_VERSION, "prompts": prompts}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make a set of JSON text, which may come from anyone.

        Args:
            text: What `to_json` returned.

        Raises:
            PromptError: Not JSON, too long, of another version, or a malformed prompt.
        """
        plain = load_json(text)
        try:
            version, items = plain["version"], list(plain["prompts"])
        except (KeyError, TypeError) as error:
            message = f"Prompt JSON is malformed ({error!r}); write it with PromptSet.to_json."
            raise PromptError(message) from error
        if version != JSON_VERSION:
            message = f"Prompt JSON must be version {JSON_VERSION}, got {version!r}."
            raise PromptError(message)
        return cls(tuple(prompt_from_plain(item) for item in items))


def _voxel_of(point: Point) -> tuple[int, ...]:
    return tuple(math.floor(value + 0.5) for value in point.position)
