"""Overlap of a mask with the truth; the rule for empty masks is stated here and nowhere else.

Two empty masks agree perfectly (1); one empty mask beside a non-empty one scores 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastsam3d.errors import DatasetError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def dice(mask: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the Dice overlap of two masks of one shape, non-zero inside.

    Raises:
        DatasetError: The shapes differ.
    """
    if mask.shape != truth.shape:
        raise DatasetError(
            f"Mask has shape {mask.shape} and truth {truth.shape}; put both on one grid."
        )
    inside, wanted = mask != 0, truth != 0
    total = int(np.count_nonzero(inside)) + int(np.count_nonzero(wanted))
    if total == 0:
        return 1.0
    return 2.0 * int(np.count_nonzero(inside & wanted)) / total


def volume_ml(mask: NDArray[Any], spacing: tuple[float, float, float]) -> float:
    """Return the volume of a mask in millilitres; spacing in mm."""
    return int(np.count_nonzero(mask)) * float(np.prod(spacing)) / 1000.0
