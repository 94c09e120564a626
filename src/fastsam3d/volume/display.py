"""How slices are shown to people: sides of the picture, and intensities shown as black and white.

The patient's right is on the left of the picture, anterior and superior are up; sagittal slices
look to the left of the picture. Only numpy is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from fastsam3d.volume.hounsfield import is_hounsfield

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


class Plane(NamedTuple):
    """How one slice is shown: axes of the RAS-ordered grid and the letters at its borders."""

    name: str
    normal: int
    column: int
    row: int
    letters: tuple[str, str, str, str]
    """Left, right, top, bottom."""


PLANES: Final = (
    Plane("axial", normal=2, column=0, row=1, letters=("R", "L", "A", "P")),
    Plane("coronal", normal=1, column=0, row=2, letters=("R", "L", "S", "I")),
    Plane("sagittal", normal=0, column=1, row=2, letters=("A", "P", "S", "I")),
)


def display_window(
    array: Array, inside: NDArray[np.bool_], modality: str | None
) -> tuple[float, float]:
    """Choose the intensities shown as black and white.

    CT uses the usual Hounsfield windows, by what the structure is made of: lung, bone or soft
    tissue. PET starts at zero. Everything else spans the 1st to 99.5th percentile of the voxels
    that are neither zero nor the lowest, which are background. What is CT: see
    `hounsfield.is_hounsfield`.

    Args:
        array: Intensities, any shape.
        inside: The structure, bool, same shape; may be empty.
        modality: ``"CT"``, ``"MR"``, ``"PET"`` or None.

    Returns:
        The black and the white intensity, black < white.
    """
    if is_hounsfield(array, modality):
        typical = float(np.median(array[inside])) if inside.any() else 40.0
        if typical < -400:
            return -1350.0, 150.0
        return (-450.0, 1050.0) if typical > 220 else (-160.0, 240.0)
    sample = array[tuple(slice(None, None, 3 if n > 24 else 1) for n in array.shape)]
    if modality == "PET":
        low, high = 0.0, float(np.percentile(sample, 99.8))
    else:
        signal = sample[(sample != 0) & (sample != sample.min())]
        low, high = map(float, np.percentile(signal if signal.size else sample, [1.0, 99.5]))
        if low == high:  # one signal value: black is the background
            low = float(sample.min())
    return low, high if high > low else low + 1.0
