"""Telling from intensities whether a scan is CT in Hounsfield units; only numpy is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_AIR_HU: Final = -1100.0
MOST_AIR_HU: Final = -700.0
MIN_AIR_SHARE: Final = 0.05
# So many voxels along an axis say how much air there is.
_SAMPLES = 64


def is_hounsfield(array: NDArray[Any], modality: str | None) -> bool:
    """Return whether intensities are Hounsfield units.

    What says nothing about its modality counts as CT if 5 % of it is air, near -1000: other scans
    have no such values, or few of them where resampling overshot.

    Args:
        array: Intensities, any shape.
        modality: What the file says, such as ``"CT"`` or ``"MR"``; None when it does not.
    """
    if modality is not None:
        return modality == "CT"
    sample = array[tuple(slice(None, None, max(1, n // _SAMPLES)) for n in array.shape)]
    is_air = (sample >= LEAST_AIR_HU) & (sample <= MOST_AIR_HU)
    return bool(np.mean(is_air) >= MIN_AIR_SHARE)
