"""Arrays that know where they are: checked once here, trusted everywhere else."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastsam3d.errors import GeometryError, VolumeReadError
from fastsam3d.volume.geometry import Geometry
from fastsam3d.volume.hounsfield import is_hounsfield

Modality = Literal["CT", "MR", "PET"]
MAX_LABEL = 65535


@dataclass(frozen=True)
class SourceHeader:
    """What a file said about its own geometry, kept to write results back unchanged.

    Opaque outside of `fastsam3d.io`: carry it from a volume to its mask (`Volume.new_mask`).

    Attributes:
        format: Which part of `fastsam3d.io` understands the payload.
        payload: The NIfTI header bytes, or ITK's spacing, origin and direction.
    """

    format: Literal["nifti", "itk"]
    payload: bytes | tuple[float, ...] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Volume:
    """Intensities on a voxel grid.

    Attributes:
        array: Integers or floats, shape (I, J, K), native byte order; any memory order (files
            store i fastest). Not copied, hence not to be changed afterwards.
        geometry: Where the voxels lie.
        modality: What the file says it is; None when it does not.
        source: Header of the file it came from, to write masks with the same header.

    Raises:
        GeometryError: The array is not 3-D or does not have the geometry's shape.
        VolumeReadError: The array is not of real numbers, or has NaN or infinite voxels.
    """

    array: NDArray[Any] = field(repr=False)
    geometry: Geometry
    modality: Modality | None = None
    source: SourceHeader | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check shape, dtype and finiteness."""
        _check_shape(self.array, self.geometry, "Volume")
        if self.array.dtype.kind not in "biuf":
            message = f"Volume must hold real numbers, got {self.array.dtype}; convert it first."
            raise VolumeReadError(message)
        _check_finite(self.array)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along i, j, k."""
        return self.geometry.shape

    @cached_property
    def is_hounsfield(self) -> bool:
        """Whether this is CT; see `fastsam3d.volume.hounsfield`."""
        return is_hounsfield(self.array, self.modality)

    def new_mask(self, array: NDArray[Any]) -> Mask:
        """Return a mask on this volume's grid that is written with this volume's header.

        Args:
            array: Labels, shape (I, J, K) of this volume.

        Raises:
            GeometryError: As `Mask`.
            VolumeReadError: As `Mask`.
        """
        return Mask(array, self.geometry, self.source)


@dataclass(frozen=True, eq=False)
class Mask:
    """Labels on a voxel grid; 0 is background.

    Attributes:
        array: uint8, shape (I, J, K); uint16 only when a label exceeds 255. Booleans, other
            integers and whole floats are converted.
        geometry: Where the voxels lie.
        source: Header of the volume's file, to write the mask with the same header.

    Raises:
        GeometryError: The array is not 3-D or does not have the geometry's shape.
        VolumeReadError: A value is not a whole number of 0 to 65535.
    """

    array: NDArray[Any] = field(repr=False)
    geometry: Geometry
    source: SourceHeader | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the shape and convert to the smallest label type."""
        _check_shape(self.array, self.geometry, "Mask")
        object.__setattr__(self, "array", _as_labels(self.array))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along i, j, k."""
        return self.geometry.shape


def _check_shape(array: NDArray[Any], geometry: Geometry, what: str) -> None:
    if array.ndim != 3:
        message = f"{what} must be 3-D, got shape {array.shape}; select one channel or time."
        raise GeometryError(message)
    if array.shape != geometry.shape:
        message = (
            f"{what} has shape {array.shape} but its geometry {geometry.shape}; "
            "give the array in i, j, k order."
        )
        raise GeometryError(message)


def _check_finite(array: NDArray[Any]) -> None:
    if array.dtype.kind != "f":
        return
    # One slab at a time, as they lie in memory: no boolean copy of the whole volume.
    slabs = np.moveaxis(array, int(np.argmax(np.abs(array.strides))), 0)
    num_bad = sum(int(np.count_nonzero(~np.isfinite(slab))) for slab in slabs)
    if num_bad:
        message = (
            f"Volume has {num_bad} of {array.size} voxels that are NaN or infinite; "
            "replace them (for example by the background) and try again."
        )
        raise VolumeReadError(message)


def _as_labels(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "b":
        return array.view(np.uint8)
    low, high = (array.min(), array.max()) if array.dtype.kind in "iuf" else (-1, -1)
    # The comparison is written so that NaN fails it.
    if not (low >= 0 and high <= MAX_LABEL) or (
        array.dtype.kind == "f" and bool(np.any(array != np.floor(array)))
    ):
        message = (
            f"Mask labels must be whole numbers of 0 to {MAX_LABEL}, "
            f"got {array.dtype} from {low} to {high}; threshold or relabel it first."
        )
        raise VolumeReadError(message)
    return array.astype(np.uint8 if high <= 255 else np.uint16)
