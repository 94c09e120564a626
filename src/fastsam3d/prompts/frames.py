"""Coordinates and their frames: what every kind of prompt is made of.

Voxel frame: array index i, j, k of the volume's file, voxel centres at integers. World frames:
millimetres, "RAS" or "LPS". Axes count in the frame of their prompt: 0, 1, 2 are i, j, k, or x, y,
z (so that axis 2 of a world prompt is the axial one).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import numpy as np

from fastsam3d.errors import PromptError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from fastsam3d.volume import Geometry

Frame = Literal["voxel", "RAS", "LPS"]
WorldFrame = Literal["RAS", "LPS"]
Triple = tuple[float, float, float]

FRAMES: Final = ("voxel", "RAS", "LPS")
LPS_TO_RAS: Final = (-1.0, -1.0, 1.0)
ROUNDING_VOXELS: Final = 1e-4
"""Noise that millimetres through a float32 header carry, in voxels; ties are decided by it."""
MAX_COORDINATE: Final = 1e9
"""Voxels or millimetres; what is further away can only be a mistake."""
MAX_VERTICES: Final = 10_000
"""Of one scribble or lasso."""


def as_triple(values: Iterable[float], what: str) -> Triple:
    """Check that values are three finite numbers.

    Raises:
        PromptError: They are not.
    """
    given: list[Any] = list(cast("Iterable[Any]", values))
    is_numeric = all(
        isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        for value in given
    )
    if len(given) != 3 or not is_numeric:
        message = f"{what} must have three numbers, got {given}; give i,j,k or x,y,z."
        raise PromptError(message)
    try:
        numbers = [float(value) for value in given]
    except OverflowError:
        numbers = [math.inf]
    if not all(abs(number) <= MAX_COORDINATE for number in numbers):
        message = f"{what} must have finite coordinates below 1e9, got {given}; correct them."
        raise PromptError(message)
    return numbers[0], numbers[1], numbers[2]


def as_vertices(values: Iterable[Iterable[float]], what: str, at_least: int) -> tuple[Triple, ...]:
    """Check that values are a sensible number of triples.

    Raises:
        PromptError: Too few, too many, or not three finite numbers each.
    """
    vertices = tuple(as_triple(value, what) for value in values)
    if not at_least <= len(vertices) <= MAX_VERTICES:
        message = (
            f"{what} must have {at_least} to {MAX_VERTICES} vertices, got {len(vertices)}; "
            "draw it again."
        )
        raise PromptError(message)
    return vertices


def check_frame(frame: str) -> None:
    """Refuse what is not a frame.

    Raises:
        PromptError: It is none of `FRAMES`.
    """
    if frame not in FRAMES:
        message = f"Frame must be one of {', '.join(FRAMES)}, got {frame!r}; choose one."
        raise PromptError(message)


def check_world(frame: str) -> None:
    """Refuse what is not a world frame.

    Raises:
        PromptError: It is neither RAS nor LPS.
    """
    if frame not in {"RAS", "LPS"}:
        message = f"World frame must be RAS or LPS, got {frame!r}; choose one."
        raise PromptError(message)


def check_sign(value: object, what: str) -> None:
    """Refuse a sign that is not a boolean.

    Raises:
        PromptError: It is not.
    """
    if not isinstance(value, bool):
        message = f"{what} sign must be True or False, got {value!r}; correct it."
        raise PromptError(message)


def check_axis(axis: object, what: str) -> None:
    """Refuse an axis that is not 0, 1 or 2.

    Raises:
        PromptError: It is not.
    """
    if type(axis) is not int or axis not in {0, 1, 2}:
        message = f"{what} axis must be 0, 1 or 2 of its frame, got {axis!r}; correct it."
        raise PromptError(message)


def to_voxels(
    positions: Sequence[Triple] | NDArray[np.float64], frame: Frame, geometry: Geometry
) -> NDArray[np.float64]:
    """Return positions of a frame in voxels of a volume, float64 (N, 3), unbounded."""
    at = np.asarray(positions, dtype=np.float64).reshape(-1, 3)
    if frame == "voxel":
        return at
    return geometry.world_to_voxel(at * LPS_TO_RAS if frame == "LPS" else at)


def voxel_axis(axis: int, frame: Frame, geometry: Geometry) -> int:
    """Return the array axis that an axis of a frame is, or is nearest to."""
    return axis if frame == "voxel" else geometry.canonical_reorder().permutation[axis]


def nearest_voxels(positions: NDArray[np.float64]) -> NDArray[np.int64]:
    """Round voxel coordinates; what lies half-way goes up, whatever noise it carries."""
    return np.floor(positions + 0.5 + ROUNDING_VOXELS).astype(np.int64)


def centres_between(low: float, high: float) -> tuple[int, int]:
    """Return the half-open range of integers between two numbers, at least the nearest one."""
    start = math.ceil(low - ROUNDING_VOXELS)
    stop = math.floor(high + ROUNDING_VOXELS) + 1
    nearest = math.floor((low + high) / 2 + 0.5)
    return (start, stop) if start < stop else (nearest, nearest + 1)
