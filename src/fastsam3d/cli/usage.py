"""Turning the words of a command line into prompts.

Only syntax is judged here. Whether a point lies inside the volume is for the layers below, whose
modules are imported inside the functions so that ``--help`` stays quick.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from fastsam3d.prompts import Box, Point, PromptSet

# Coordinates may start with a minus sign, which must not be mistaken for an option.
Coordinates = Annotated[
    tuple[str, ...],
    Parameter(negative="", allow_leading_hyphen=True, show_default=False, metavar="I,J,K"),
]

# An option that is there or not, without a --no- twin.
Flag = Annotated[bool, Parameter(negative="")]


class UsageError(Exception):
    """The command line cannot be understood; the message says how to write it."""


@Parameter(name="*", group="Prompts")
@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """What the user points at.

    Attributes:
        point: A place inside the structure, I,J,K (voxel indices of the file) or X,Y,Z (mm with
            --space world). May be given several times.
        negative: A place outside the structure, written like --point. May be given several times.
        box: I0,J0,K0,I1,J1,K1: first voxel and the voxel after the last, or two opposite corners
            in mm with --space world.
        space: Whether the numbers are voxel indices or millimetres.
        frame: Axis convention of millimetres: RAS (Slicer, nibabel) or LPS (ITK, DICOM). Needed
            with --space world.
    """

    point: Coordinates = ()
    negative: Coordinates = ()
    box: Annotated[
        str | None, Parameter(allow_leading_hyphen=True, metavar="I0,J0,K0,I1,J1,K1")
    ] = None
    space: Literal["voxel", "world"] = "voxel"
    frame: Literal["RAS", "LPS"] | None = None

    def to_prompt_set(self) -> PromptSet:
        """Parse every prompt, in the order box, points, negatives: from coarse to fine.

        Returns:
            The prompts in the frame that they were written in.

        Raises:
            UsageError: Nothing points at the structure, or a coordinate cannot be read.
            PromptError: A prompt is well written but impossible, such as an empty box.
        """
        from fastsam3d.prompts import PromptSet

        if not self.point and self.box is None:
            raise UsageError("Nothing to segment: give at least one --point I,J,K or a --box.")
        if self.space == "world" and self.frame is None:
            raise UsageError("--space world needs --frame RAS (Slicer, nibabel) or --frame LPS.")
        if self.space == "voxel" and self.frame is not None:
            raise UsageError("--frame is for --space world; voxel indices have no frame.")
        prompts = PromptSet()
        if self.box is not None:
            prompts = prompts.add(self._box(self.box))
        for text in self.point:
            prompts = prompts.add(self._point("--point", text, positive=True))
        for text in self.negative:
            prompts = prompts.add(self._point("--negative", text, positive=False))
        return prompts

    def _point(self, option: str, text: str, *, positive: bool) -> Point:
        from fastsam3d.prompts import Point

        if self.frame is None:
            i, j, k = parse_voxels(option, text, count=3)
            return Point.voxel((i, j, k), positive=positive)
        x, y, z = parse_numbers(option, text, count=3)
        return Point.world((x, y, z), frame=self.frame, positive=positive)

    def _box(self, text: str) -> Box:
        from fastsam3d.prompts import Box

        if self.frame is None:
            i0, j0, k0, i1, j1, k1 = parse_voxels("--box", text, count=6)
            return Box.voxel((i0, j0, k0), (i1, j1, k1))
        x0, y0, z0, x1, y1, z1 = parse_numbers("--box", text, count=6)
        return Box.world((x0, y0, z0), (x1, y1, z1), frame=self.frame)


def parse_numbers(option: str, text: str, *, count: int) -> tuple[float, ...]:
    """Read comma-separated numbers.

    Args:
        option: Name of the option, for the message.
        text: What the user wrote, such as ``"-12.5,3,40"``.
        count: How many numbers there must be.

    Returns:
        Exactly `count` finite numbers.

    Raises:
        UsageError: Another number of values, or something that is no finite number.
    """
    message = f"{option} needs {count} numbers separated by commas, got {text!r}."
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(message) from None
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise UsageError(message)
    return numbers


def parse_voxels(option: str, text: str, *, count: int) -> tuple[int, ...]:
    """Read comma-separated voxel indices.

    Args:
        option: Name of the option, for the message.
        text: What the user wrote, such as ``"120,98,40"``.
        count: How many indices there must be.

    Returns:
        Exactly `count` whole numbers.

    Raises:
        UsageError: As `parse_numbers`, or a number that is not whole.
    """
    numbers = parse_numbers(option, text, count=count)
    if not all(number.is_integer() for number in numbers):
        raise UsageError(
            f"{option} takes whole voxel indices, got {text!r}; millimetres need --space world."
        )
    return tuple(int(number) for number in numbers)
