"""Writing results: whole or not at all, on exactly the geometry of the input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastsam3d.errors import VolumeWriteError
from fastsam3d.io.atomic import staged
from fastsam3d.io.nifti import WRITABLE_DTYPES, write_nifti

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

    from fastsam3d.volume import Geometry, Mask, SourceHeader, Volume

SUFFIXES: Final = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


def write_mask(mask: Mask, path: str | PathLike[str]) -> None:
    """Write a mask: uint8, or uint16 where a label exceeds 255.

    The file appears under its name only when it is complete. Geometry is that of the mask;
    when the mask remembers the header of its volume's file (`Volume.new_mask`) and goes to the
    same format, forms, codes and units are kept bit by bit.

    Args:
        mask: Labels and geometry.
        path: Target in an existing folder, with one of `SUFFIXES`; replaced if it exists.

    Raises:
        VolumeWriteError: Unknown suffix, no such folder, or the system refused; nothing is left.
    """
    _write(mask.array, mask.geometry, mask.source, path)


def write_volume(volume: Volume, path: str | PathLike[str], *, is_compressed: bool = True) -> None:
    """Write intensities in their own dtype; otherwise as `write_mask`.

    Args:
        volume: Integers or floats; float16 and booleans have no file format.
        path: As `write_mask`.
        is_compressed: Whether NRRD and MetaImage files are; for readers that cannot inflate. Of
            NIfTI files the suffix says it.

    Raises:
        VolumeWriteError: As `write_mask`, or the dtype has no file format.
    """
    _write(volume.array, volume.geometry, volume.source, path, is_compressed=is_compressed)


def check_target(path: str | PathLike[str]) -> Path:
    """Check that a file could be written, before any work is done for it.

    Args:
        path: As `write_mask`.

    Returns:
        The path.

    Raises:
        VolumeWriteError: Unknown suffix, or the folder does not exist.
    """
    target = Path(path)
    if not target.name.endswith(SUFFIXES) or target.name in SUFFIXES:
        message = f"Cannot write {target.name!r}: the name must end with {', '.join(SUFFIXES)}."
        raise VolumeWriteError(message)
    if not target.parent.is_dir():
        message = f"Cannot write {target.name!r}: its folder does not exist; create it first."
        raise VolumeWriteError(message)
    if target.is_dir():
        message = f"Cannot write {target.name!r}: a folder has that name; choose another."
        raise VolumeWriteError(message)
    return target


def _write(
    array: NDArray[Any],
    geometry: Geometry,
    source: SourceHeader | None,
    path: str | PathLike[str],
    *,
    is_compressed: bool = True,
) -> None:
    target = check_target(path)
    if array.dtype.newbyteorder("=") not in WRITABLE_DTYPES:
        message = (
            f"Cannot write {target.name!r}: no file format holds {array.dtype}; "
            "convert to float32 or an integer type."
        )
        raise VolumeWriteError(message)
    with staged(target) as path_to_write:
        _encode(path_to_write, array, geometry, source, is_compressed=is_compressed)


def _encode(
    path: Path,
    array: NDArray[Any],
    geometry: Geometry,
    source: SourceHeader | None,
    *,
    is_compressed: bool,
) -> None:
    if path.name.endswith((".nii", ".nii.gz")):
        write_nifti(path, array, geometry, source)
        return
    from fastsam3d.io.itk import write_itk  # noqa: PLC0415 - SimpleITK takes 0.3 s to load

    write_itk(path, array, geometry, source, is_compressed=is_compressed)
