"""Reading volumes: the format is found by content, the geometry is checked before pixels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastsam3d.errors import GeometryError, VolumeReadError
from fastsam3d.io.nifti import read_nifti
from fastsam3d.io.streams import sniff
from fastsam3d.io.times import Every, chosen_times
from fastsam3d.volume import Mask

if TYPE_CHECKING:
    from os import PathLike

    from fastsam3d.io.times import Times
    from fastsam3d.volume import Volume


def read_volume(
    path: str | PathLike[str],
    *,
    series_uid: str | None = None,
    time: int | None = None,
    in_scratch: bool = False,
) -> Volume:
    """Read one 3-D scalar volume.

    NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd) or a folder of one DICOM
    series; whatever the name says, the content decides. Trailing axes of length 1 are dropped;
    a 2-D image becomes one slice of 1 mm.

    Args:
        path: File, or DICOM folder.
        series_uid: SeriesInstanceUID to read of a folder that holds several.
        time: Time point to read of a 4-D file, from 0; a DICOM folder holds one volume.
        in_scratch: Whether the voxels may lie in a nameless file in the folder for temporary files
            that is mapped into memory, so that only those looked at take memory. Done for large
            NIfTI files of integers where that folder has room; the values are the same.

    Returns:
        Voxels in the file's own i, j, k order and dtype (float32 where the file scales them,
        native byte order), geometry in RAS+ millimetres, modality if the file tells it.

    Raises:
        VolumeReadError: Missing, damaged, truncated, too large, empty, RGB, NaN, 4-D without a
            time point chosen, or a DICOM series with missing, doubled or differing slices.
        GeometryError: Singular, NaN or otherwise impossible geometry.
    """
    return _read_named(Path(path), series_uid, time, in_scratch=in_scratch)[0]


def read_time_points(path: str | PathLike[str]) -> tuple[Volume, ...]:
    """Read all volumes of a 4-D file, in the order of time.

    Args:
        path: NIfTI, NRRD or MetaImage; a 3-D file has one time point.

    Returns:
        As `read_volume`, all on one grid.

    Raises:
        VolumeReadError: As `read_volume`.
        GeometryError: As `read_volume`.
    """
    return _read_named(Path(path), None, Every.TIME)


def _read_named(
    path: Path, series_uid: str | None, times: Times, *, in_scratch: bool = False
) -> tuple[Volume, ...]:
    try:
        return _read(path, series_uid, times, in_scratch=in_scratch)
    except (GeometryError, VolumeReadError) as error:
        message = f"Cannot read {path.name!r}: {error}"
        raise type(error)(message) from error


def read_mask(path: str | PathLike[str]) -> Mask:
    """Read a label map.

    Args:
        path: As `read_volume`.

    Returns:
        Labels as uint8, or uint16 where one exceeds 255.

    Raises:
        VolumeReadError: As `read_volume`, or a value is not a whole number of 0 to 65535.
        GeometryError: As `read_volume`.
    """
    volume = read_volume(path)
    try:
        return volume.new_mask(volume.array)
    except VolumeReadError as error:
        message = f"Cannot read {Path(path).name!r} as a mask: {error}"
        raise VolumeReadError(message) from error


def _read(
    path: Path, series_uid: str | None, times: Times, *, in_scratch: bool
) -> tuple[Volume, ...]:
    # SimpleITK and pydicom are loaded only for the formats that need them: 0.3 s each.
    if path.is_dir():
        from fastsam3d.io.dicom import read_series  # noqa: PLC0415

        volume = read_series(path, series_uid)
        chosen_times(times, (*volume.shape, 1))
        return (volume,)
    if not path.is_file():
        message = "No such file or folder; check the path."
        raise VolumeReadError(message)
    try:
        kind = sniff(path)
        if kind == "nifti":
            return _read_nifti(path, times, in_scratch=in_scratch)
        if kind == "dicom":
            message = "One DICOM file is not a volume; give the folder of its series."
            raise VolumeReadError(message)
        from fastsam3d.io.itk import read_itk  # noqa: PLC0415

        return read_itk(path, kind, times)
    except OSError as error:
        message = f"The system refused to read it ({error.strerror or error}); check its rights."
        raise VolumeReadError(message) from error


def _read_nifti(path: Path, times: Times, *, in_scratch: bool) -> tuple[Volume, ...]:
    try:
        return read_nifti(path, times, in_scratch=in_scratch)
    except OSError:
        if not in_scratch:
            raise
        # No room, or no right to write there: memory will do.
        return read_nifti(path, times)
