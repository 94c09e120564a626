"""What is clicked on when volumes are timed: noise with bright balls in known places; the clock.

Balls are 20 mm across, on a grid of 0.8 x 0.8 x 1 mm, and the same around the middle whatever the
volume's size.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.volume import Volume

Shape = tuple[int, int, int]

SPACING_MM: Final = (0.8, 0.8, 1.0)
BALL_MM: Final = 20.0


def synthesise(shape: Shape, *, seed: int = 0, objects: int = 1) -> Volume:
    """Return noise with bright balls, int16, i fastest, as CT files have it.

    Args:
        shape: Voxels.
        seed: Of the noise; the same around the middle for every shape.
        objects: Balls, side by side along i, the first in the middle.
    """
    from fastsam3d.volume import Geometry, Volume  # noqa: PLC0415

    noise = np.random.default_rng(seed).normal(40.0, 20.0, (128, 128, 128)).astype(np.int16)
    array = np.empty(shape, np.int16, order="F")
    # The noise repeats, and its phase is that of the middle.
    near = [(np.arange(side) - side // 2) % 128 for side in shape]
    plane = np.ix_(near[0], near[1])
    for k, source in enumerate(near[2]):
        array[:, :, k] = noise[:, :, source][plane]
    for centre in ball_centres(shape, objects):
        _add_ball(array, centre)
    return Volume(array, Geometry(shape, np.diag([*SPACING_MM, 1.0])))


def ball_centres(shape: Shape, count: int) -> list[Shape]:
    """Return the middles of balls, voxels, the first in the middle of the volume."""
    i, j, k = (side // 2 for side in shape)
    pitch = math.ceil(1.5 * BALL_MM / SPACING_MM[0])
    columns = max(1, shape[0] // pitch)
    rows = max(1, shape[1] // pitch)
    return [
        ((i + n % columns * pitch) % shape[0], (j + n // columns % rows * pitch) % shape[1], k)
        for n in range(count)
    ]


def now() -> tuple[float, float]:
    """Return wall clock and processor time of this process, seconds."""
    return time.perf_counter(), time.process_time()


def since(before: tuple[float, float], prefix: str) -> dict[str, float]:
    """Return the times since, milliseconds.

    Args:
        before: What `now` returned.
        prefix: Of the names ``ms`` and ``cpu_ms``.
    """
    wall, cpu = (1e3 * (after - then) for after, then in zip(now(), before, strict=True))
    return {f"{prefix}ms": wall, f"{prefix}cpu_ms": cpu}


def _add_ball(array: NDArray[np.int16], centre: Shape) -> None:
    squares: list[NDArray[np.float64]] = []
    box: list[slice] = []
    for middle, spacing, side in zip(centre, SPACING_MM, array.shape, strict=True):
        far = math.ceil(BALL_MM / 2 / spacing)
        first, stop = max(0, middle - far), min(side, middle + far + 1)
        box.append(slice(first, stop))
        offsets_mm = (np.arange(first, stop, dtype=np.float64) - middle) * spacing
        squares.append(np.square(offsets_mm))
    inside = squares[0][:, None, None] + squares[1][:, None] + squares[2] < (BALL_MM / 2) ** 2
    array[tuple(box)] += np.where(inside, 200, 0).astype(np.int16)
