"""One DICOM series folder in: every header is checked before any pixel is decoded.

General readers accept series with missing, doubled or differing slices and smear the spacing;
here each such series is refused with the UID of the slice at fault. Pixels come from GDCM (in
SimpleITK), slice by slice, so that a rescale that differs per slice (PET) is honoured.
"""

from __future__ import annotations

import logging
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pydicom
import SimpleITK
from pydicom.errors import InvalidDicomError

from fastsam3d.errors import VolumeReadError
from fastsam3d.io.streams import check_announced
from fastsam3d.volume import Geometry, Modality, Volume

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Float64Array = NDArray[np.float64]

# Annotations of both are not checkable.
sitk: Any = SimpleITK
dicom: Any = pydicom
logger = logging.getLogger(__name__)

MAX_FILES: Final = 20_000
MAX_HEADER_VALUE_BYTES: Final = 64 * 1024
"""Larger values (private tags) are left in the file."""
DICOMDIR_CLASS: Final = "1.2.840.10008.1.3.10"
DEFLATED_SYNTAX: Final = "1.2.840.10008.1.2.1.99"
NATIVE_SYNTAXES: Final = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
ORIENTATION_TOLERANCE: Final = 1e-3
"""Largest difference between direction cosines of one series; headers are rounded decimals."""
STEP_TOLERANCE: Final = 0.02
"""Largest deviation of a slice from its place, as a fraction of the slice distance."""
MODALITIES: Final[dict[str, Modality]] = {"CT": "CT", "MR": "MR", "PT": "PET"}
_TAGS: Final = [
    "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "Rows", "Columns",
    "BitsAllocated", "SamplesPerPixel", "NumberOfFrames", "PixelSpacing", "SliceThickness",
    "ImagePositionPatient", "ImageOrientationPatient",
]  # fmt: skip
_UNREADABLE: Final = (
    AttributeError, EOFError, KeyError, LookupError, NotImplementedError, OverflowError,
    RecursionError, TypeError, ValueError, struct.error,
)  # fmt: skip


@dataclass(frozen=True)
class _Slice:
    """Checked facts of one file; positions in LPS millimetres."""

    path: Path
    uid: str
    size: tuple[int, int]  # columns (i), rows (j)
    spacing: tuple[float, float]  # along i, along j
    thickness: float
    position: tuple[float, ...]
    orientation: tuple[float, ...]


def read_series(folder: Path, series_uid: str | None = None) -> Volume:
    """Read the series of a DICOM folder (not of its subfolders).

    Args:
        folder: Folder of single-frame files; files that are not DICOM are ignored.
        series_uid: SeriesInstanceUID to read where there are several.

    Returns:
        The volume, slices ordered along the slice normal, in real (rescaled) values; the
        modality if it is CT, MR or PET.

    Raises:
        VolumeReadError: No series, several series, or slices that do not form one regular stack.
        GeometryError: Position or orientation is not finite or singular.
    """
    datasets = _choose_series(_read_headers(folder), series_uid)
    slices = _checked_stack(datasets)
    geometry = _stack_geometry(slices)
    array = _read_pixels(slices)
    modality = MODALITIES.get(str(datasets[0][1].get("Modality", "")))
    return Volume(array, geometry, modality)


def find_stack(folder: Path, series_uid: str | None = None) -> tuple[tuple[Path, ...], Geometry]:
    """Return the files of a series in the order of the volume's last axis, k = 0 first.

    Args:
        folder: As `read_series`.
        series_uid: As `read_series`.

    Returns:
        The files, and the geometry of the volume that they hold.

    Raises:
        VolumeReadError: As `read_series`, but for the pixels, which are not read.
        GeometryError: As `read_series`.
    """
    slices = _checked_stack(_choose_series(_read_headers(folder), series_uid))
    return tuple(item.path for item in slices), _stack_geometry(slices)


def _checked_stack(datasets: list[tuple[Path, Any]]) -> list[_Slice]:
    slices = [_checked_slice(path, dataset) for path, dataset in datasets]
    for item in slices[1:]:
        _check_same(slices[0], item)
    return _sorted_stack(slices)


def _read_headers(folder: Path) -> list[tuple[Path, Any]]:
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    if len(paths) > MAX_FILES:
        message = f"Folder must hold at most {MAX_FILES} files, got {len(paths)}; split it."
        raise VolumeReadError(message)
    headers: list[tuple[Path, Any]] = []
    for path in paths:
        dataset = _read_one_header(path)
        if dataset is None or dataset.file_meta.get("MediaStorageSOPClassUID") == DICOMDIR_CLASS:
            continue
        if "SeriesInstanceUID" not in dataset:
            message = f"DICOM file {path.name!r} belongs to no series; copy or export it again."
            raise VolumeReadError(message)
        headers.append((path, dataset))
    if not headers:
        message = "Folder holds no DICOM series; give the folder that holds the slices themselves."
        raise VolumeReadError(message)
    return headers


def _read_one_header(path: Path) -> Any:
    try:
        meta: Any = dicom.filereader.read_file_meta_info(path)
        # Reading a deflated file inflates all of it, without a bound.
        if str(meta.get("TransferSyntaxUID", "")) == DEFLATED_SYNTAX:
            message = f"{path.name!r} is deflated DICOM of unknown size; decompress it first."
            raise VolumeReadError(message)
        return dicom.dcmread(
            path,
            stop_before_pixels=True,
            specific_tags=_TAGS,
            defer_size=MAX_HEADER_VALUE_BYTES,
        )
    except InvalidDicomError:
        return None
    except (OSError, *_UNREADABLE) as error:
        message = f"DICOM file {path.name!r} is damaged ({error}); copy or export it again."
        raise VolumeReadError(message) from error


def _choose_series(headers: list[tuple[Path, Any]], series_uid: str | None) -> list[Any]:
    series: dict[str, list[tuple[Path, Any]]] = {}
    for path, dataset in headers:
        series.setdefault(str(dataset.SeriesInstanceUID), []).append((path, dataset))
    if series_uid is None and len(series) == 1:
        return headers
    if series_uid in series:
        return series[series_uid]
    listed = "; ".join(
        f"{uid} ({items[0][1].get('Modality', '?')}, "
        f"{items[0][1].get('SeriesDescription', 'no description')}, {len(items)} files)"
        for uid, items in series.items()
    )
    problem = (
        f"Folder holds {len(series)} series"
        if series_uid is None
        else f"Folder does not hold series {series_uid!r}"
    )
    message = f"{problem}, got {listed}; pass the series_uid of one or move it to its own folder."
    raise VolumeReadError(message)


def _checked_slice(path: Path, dataset: Any) -> _Slice:
    uid = str(dataset.get("SOPInstanceUID", path.name))
    frames, samples = dataset.get("NumberOfFrames") or 1, dataset.get("SamplesPerPixel") or 1
    if int(frames) != 1 or int(samples) != 1:
        message = (
            f"Slices must be one grey frame each, got {frames} frames of {samples} samples in "
            f"{uid}; convert the series to NIfTI first."
        )
        raise VolumeReadError(message)
    try:
        item = _Slice(
            path=path,
            uid=uid,
            size=(int(dataset.Columns), int(dataset.Rows)),
            spacing=(float(dataset.PixelSpacing[1]), float(dataset.PixelSpacing[0])),
            thickness=float(dataset.get("SliceThickness") or 1.0),
            position=tuple(float(value) for value in dataset.ImagePositionPatient),
            orientation=tuple(float(value) for value in dataset.ImageOrientationPatient),
        )
    except _UNREADABLE as error:
        message = (
            f"Slice {uid} lacks a usable geometry ({error}); position, orientation, PixelSpacing, "
            "Rows and Columns are needed, export the series again."
        )
        raise VolumeReadError(message) from error
    _check_numbers(item)
    _check_length(item, dataset)
    return item


def _check_numbers(item: _Slice) -> None:
    numbers = (*item.position, *item.orientation, *item.spacing, item.thickness)
    rows = np.reshape(item.orientation, (-1, 3)) if len(item.orientation) == 6 else np.zeros((2, 3))
    is_orthonormal = np.allclose(rows @ rows.T, np.eye(2), atol=ORIENTATION_TOLERANCE)
    is_positive = min(*item.spacing, item.thickness, *item.size) > 0
    if len(item.position) != 3 or not np.isfinite(numbers).all():
        problem = f"position {item.position}"
    elif not is_orthonormal:
        problem = f"ImageOrientationPatient {item.orientation}"
    elif not is_positive:
        problem = f"size {item.size}, PixelSpacing {item.spacing}, thickness {item.thickness}"
    else:
        return
    message = f"Slice {item.uid} has an impossible geometry, got {problem}; export it again."
    raise VolumeReadError(message)


def _check_length(item: _Slice, dataset: Any) -> None:
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    num_bytes = math.prod(item.size) * int(dataset.get("BitsAllocated") or 16) // 8
    try:
        check_announced(
            num_bytes, item.path.stat().st_size, is_compressed=syntax not in NATIVE_SYNTAXES
        )
    except VolumeReadError as error:
        message = f"Slice {item.uid}: {error}"
        raise VolumeReadError(message) from error


def _check_same(first: _Slice, item: _Slice) -> None:
    if item.size != first.size:
        problem = f"size {item.size} beside {first.size}"
    elif not np.allclose(item.spacing, first.spacing, rtol=1e-4):
        problem = f"PixelSpacing {item.spacing} beside {first.spacing}"
    elif not np.allclose(item.orientation, first.orientation, atol=ORIENTATION_TOLERANCE):
        problem = f"orientation {item.orientation} beside {first.orientation}"
    else:
        return
    message = (
        f"All slices of a series must have one size and orientation, got {problem} in "
        f"slice {item.uid}; remove it (a localiser?) from the folder."
    )
    raise VolumeReadError(message)


def _normal(item: _Slice) -> Float64Array:
    normal = np.cross(item.orientation[:3], item.orientation[3:])
    return normal / np.linalg.norm(normal)


def _sorted_stack(slices: list[_Slice]) -> list[_Slice]:
    """Sort along the normal; refuse doubled, missing and irregular slices."""
    normal = _normal(slices[0])
    ordered = sorted(slices, key=lambda item: float(normal @ item.position))
    if len(ordered) < 2:
        return ordered
    depths = np.array([normal @ item.position for item in ordered])
    steps = np.diff(depths)
    usual = float(np.median(steps))
    doubled = np.flatnonzero(steps <= max(STEP_TOLERANCE * usual, 1e-4))
    if doubled.size:
        first, second = ordered[int(doubled[0])], ordered[int(doubled[0]) + 1]
        message = (
            f"Slices {first.uid} and {second.uid} have one position {second.position}; "
            "keep one time point, echo or copy of each slice."
        )
        raise VolumeReadError(message)
    irregular = np.flatnonzero(np.abs(steps - usual) > STEP_TOLERANCE * usual)
    if irregular.size:
        index = int(irregular[0])
        word = "missing" if steps[index] > usual else "irregular"
        message = (
            f"A slice is {word} after {ordered[index].uid}, got a step of {steps[index]:.3f} mm "
            f"where the others have {usual:.3f} mm; export the whole series again."
        )
        raise VolumeReadError(message)
    return ordered


def _stack_geometry(slices: Sequence[_Slice]) -> Geometry:
    first, last = slices[0], slices[-1]
    lps = np.eye(4)
    lps[:3, 0] = np.multiply(first.orientation[:3], first.spacing[0])
    lps[:3, 1] = np.multiply(first.orientation[3:], first.spacing[1])
    lps[:3, 2] = _normal(first) * first.thickness
    lps[:3, 3] = first.position
    if len(slices) > 1:
        lps[:3, 2] = np.subtract(last.position, first.position) / (len(slices) - 1)
        _check_line(slices, lps[:3, 2])
    geometry = Geometry((*first.size, len(slices)), np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)
    tilt = float(geometry.direction[:, 2] @ np.cross(*geometry.direction[:, :2].T))
    if abs(tilt) < 1.0 - ORIENTATION_TOLERANCE:
        logger.warning("DICOM series has a tilted gantry; its sheared grid is kept as it is.")
    return geometry


def _check_line(slices: Sequence[_Slice], step: Float64Array) -> None:
    positions = np.array([item.position for item in slices])
    expected = positions[0] + np.arange(len(slices))[:, None] * step
    distance = np.linalg.norm(positions - expected, axis=1)
    worst = int(distance.argmax())
    # Twice the tolerance of one step: both of its ends may be rounded.
    if distance[worst] > max(2 * STEP_TOLERANCE * float(np.linalg.norm(step)), 0.01):
        message = (
            f"Slices must lie on one line, got slice {slices[worst].uid} {distance[worst]:.3f} mm "
            "off it; export the series again."
        )
        raise VolumeReadError(message)


def _read_pixels(slices: Sequence[_Slice]) -> NDArray[Any]:
    num_voxels = math.prod(slices[0].size) * len(slices)
    check_announced(num_voxels * 4, num_voxels * 4, is_compressed=False)
    planes = [_read_plane(item) for item in slices]
    # Slices may differ in type: one with slope 1 is integer, one with slope 0.7 is not.
    dtypes = {plane.dtype for plane in planes}
    dtype = np.float32 if np.dtype(np.float32) in dtypes else np.result_type(*dtypes)
    array = np.empty((*slices[0].size, len(slices)), dtype=dtype, order="F")
    for index, plane in enumerate(planes):
        array[:, :, index] = plane
    return array


def _read_plane(item: _Slice) -> NDArray[Any]:
    try:
        image: Any = sitk.ReadImage(str(item.path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        message = f"Pixels of slice {item.uid} cannot be decoded ({reason}); decompress them first."
        raise VolumeReadError(message) from error
    plane: NDArray[Any] = sitk.GetArrayFromImage(image).T
    if plane.shape != (*item.size, 1):
        message = f"Slice {item.uid} must have shape {item.size}, got {plane.shape} decoded."
        raise VolumeReadError(message)
    # GDCM rescales to float64: twice the memory that the values' own precision needs.
    return plane[:, :, 0].astype(np.float32 if plane.dtype.kind == "f" else plane.dtype)
