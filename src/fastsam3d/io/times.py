"""Which volumes of a file with a time axis are wanted."""

from __future__ import annotations

from enum import Enum

from fastsam3d.errors import VolumeReadError


class Every(Enum):
    """All time points of a file."""

    TIME = "every time"


Times = int | Every | None
"""A time point from 0, all of them, or None where the file must hold one volume."""


def chosen_times(times: Times, shape: tuple[int, ...]) -> range:
    """Return the time points to read of a file.

    Args:
        times: What is wanted.
        shape: Of the file, time last.

    Raises:
        VolumeReadError: The file has several time points and none was chosen, or has no such one.
    """
    num_times = shape[-1]
    if times is Every.TIME:
        return range(num_times)
    if times is None:
        if num_times > 1:
            message = (
                f"Volume must be 3-D, got shape {shape}; choose a time point, "
                f"time=0 to time={num_times - 1}."
            )
            raise VolumeReadError(message)
        return range(1)
    if type(times) is not int or not 0 <= times < num_times:
        message = f"Time point must be 0 to {num_times - 1}, got {times!r}; choose one of them."
        raise VolumeReadError(message)
    return range(times, times + 1)
