"""NRRD and MetaImage files through SimpleITK, checked before any pixel is read.

The only module (with `dicom`) that knows SimpleITK: its images are LPS and its numpy arrays
k, j, i; both end here.
"""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import SimpleITK

from fastsam3d.errors import VolumeReadError, VolumeWriteError
from fastsam3d.io.streams import GZIP_MAGIC, check_announced, check_gzip
from fastsam3d.io.times import chosen_times
from fastsam3d.volume import Geometry, SourceHeader, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from fastsam3d.io.times import Times

sitk: Any = SimpleITK  # Its annotations are not checkable.

_READERS: Final = {"nrrd": "NrrdImageIO", "meta": "MetaImageIO"}
_HEADER_BYTES: Final = 64 * 1024
_HEADER_END: Final = re.compile(rb"\r?\n\r?\n")
_DATA_FILE: Final = re.compile(
    rb"^[ \t]*(?:data ?file[ \t]*:|ElementDataFile[ \t]*=)[ \t]*([^\r\n]*)", re.MULTILINE | re.I
)


def read_itk(path: Path, kind: Literal["nrrd", "meta"], times: Times = None) -> tuple[Volume, ...]:
    """Read volumes of one NRRD or MetaImage file, with its detached data file if it has one.

    Args:
        path: The file, or the header (.nhdr, .mhd) of a pair.
        kind: Format, found by content.
        times: Which volumes along the fourth axis, see `times.chosen_times`.

    Returns:
        The volumes in the file's voxel order and dtype.

    Raises:
        VolumeReadError: Not scalar, no such time point, damaged, truncated, too large or not
            finite.
        GeometryError: The geometry is singular, NaN or has bad voxel sizes.
    """
    data_path = _data_path(path)
    try:
        reader: Any = sitk.ImageFileReader()
        reader.SetImageIO(_READERS[kind])
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        shape, *grid = _checked_grid(reader, path.stat().st_size + data_path.stat().st_size)
        chosen = chosen_times(times, shape)
        geometry = Geometry.from_itk(shape[:3], *grid)
        if kind == "nrrd":
            num_bytes = math.prod(shape) * _bits_per_voxel(reader) // 8
            _check_gzip(data_path, num_bytes, is_detached=data_path != path)
        image: Any = reader.Execute()
    except RuntimeError as error:
        message = f"Data is damaged or truncated ({_reason(error, path)}); copy or export it again."
        raise VolumeReadError(message) from error
    array: NDArray[Any] = sitk.GetArrayFromImage(image).T
    array = array.reshape(shape, order="F")
    source = SourceHeader("itk", tuple(value for part in grid for value in part))
    return tuple(Volume(array[..., time], geometry, source=source) for time in chosen)


def write_itk(
    path: Path,
    array: NDArray[Any],
    geometry: Geometry,
    source: SourceHeader | None,
    *,
    is_compressed: bool = True,
) -> None:
    """Write one NRRD or MetaImage file (and its data file for .nhdr and .mhd).

    Args:
        path: File to write; the suffix gives the format.
        array: Data of shape (I, J, K).
        geometry: Grid of the data.
        source: When it is ITK's own description of `geometry`, its numbers are kept.
        is_compressed: Whether the voxels are.

    Raises:
        VolumeWriteError: SimpleITK could not write.
    """
    image: Any = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    _write_image(path, image, geometry, source, is_compressed=is_compressed)


def write_itk_layers(
    path: Path,
    layers: Sequence[NDArray[Any]],
    geometry: Geometry,
    source: SourceHeader | None,
    fields: Mapping[str, str],
) -> None:
    """Write label maps as components of one compressed NRRD file with fields of one's own.

    Args:
        path: File to write.
        layers: Data of shape (I, J, K), all of one dtype.
        geometry: Grid of the data.
        source: As `write_itk`.
        fields: Key-value pairs of the header.

    Raises:
        VolumeWriteError: SimpleITK could not write.
    """
    stacked = layers[0].T if len(layers) == 1 else np.stack([layer.T for layer in layers], axis=-1)
    image: Any = sitk.GetImageFromArray(np.ascontiguousarray(stacked), isVector=len(layers) > 1)
    for key, value in fields.items():
        image.SetMetaData(key, value)
    if len(layers) > 1:
        # ITK counts axes from the first spatial one; Slicer takes "vector" for directions.
        image.SetMetaData("NRRD_kinds[-1]", "list")
    _write_image(path, image, geometry, source)


def _write_image(
    path: Path,
    image: Any,
    geometry: Geometry,
    source: SourceHeader | None,
    *,
    is_compressed: bool = True,
) -> None:
    _, spacing, origin, direction = geometry.to_itk()
    if source is not None and isinstance(source.payload, tuple):
        kept = source.payload
        if Geometry.from_itk(geometry.shape, kept[:3], kept[3:6], kept[6:]) == geometry:
            spacing, origin, direction = kept[:3], kept[3:6], kept[6:]
    try:
        image.SetSpacing(spacing)
        image.SetOrigin(origin)
        image.SetDirection(direction)
        sitk.WriteImage(image, str(path), useCompression=is_compressed, compressionLevel=1)
    except RuntimeError as error:
        message = (
            f"SimpleITK could not write the file ({_reason(error, path)}); check disk and name."
        )
        raise VolumeWriteError(message) from error


def _data_path(path: Path) -> Path:
    """Return the file that holds the voxels; refuse one outside of the header's folder."""
    with path.open("rb") as stream:
        found = _DATA_FILE.search(_HEADER_END.split(stream.read(_HEADER_BYTES), 1)[0])
    name = found[1].decode("utf-8", "replace").strip() if found else "LOCAL"
    if name.upper() == "LOCAL":
        return path
    data_path = path.parent / name
    if name.upper().startswith("LIST") or "%" in name or data_path.parent != path.parent:
        message = (
            f"Voxels must lie in one file beside the header, got {name!r}; "
            "convert the volume to a single .nrrd or .mha file."
        )
        raise VolumeReadError(message)
    if not data_path.is_file():
        message = f"Data file {name!r} named by the header is missing; put it beside the header."
        raise VolumeReadError(message)
    return data_path


def _check_gzip(path: Path, num_bytes: int, *, is_detached: bool) -> None:
    """Inflate the voxels of a NRRD file once for their checksum, which teem does not look at."""
    with path.open("rb") as raw:
        head = b"" if is_detached else raw.read(_HEADER_BYTES)
        end = _HEADER_END.search(head)
        raw.seek(end.end() if end else 0)
        if raw.read(2) == GZIP_MAGIC:
            raw.seek(-2, os.SEEK_CUR)
            check_gzip(raw, num_bytes)


def _checked_grid(
    reader: Any, file_bytes: int
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Return size (with time), and spacing, origin and direction in 3-D, after checks."""
    size = [int(value) for value in reader.GetSize()]
    pixel = str(sitk.GetPixelIDValueAsString(reader.GetPixelID()))
    components = int(reader.GetNumberOfComponents())
    if components != 1 or "complex" in pixel:
        message = f"Voxels must be one real number each, got {components} x {pixel}; split it."
        raise VolumeReadError(message)
    if len(size) < 2 or min(size) < 1 or any(n > 1 for n in size[4:]):
        message = f"Volume must be 3-D and not empty, got shape {tuple(size)}; select one volume."
        raise VolumeReadError(message)
    check_announced(math.prod(size) * _bits_per_voxel(reader) // 8, file_bytes, is_compressed=True)
    num_axes, num_kept = len(size), min(len(size), 3)
    spacing, origin, direction = np.ones(3), np.zeros(3), np.eye(3)
    spacing[:num_kept] = reader.GetSpacing()[:3]
    origin[:num_kept] = reader.GetOrigin()[:3]
    axes = np.asarray(reader.GetDirection(), dtype=np.float64).reshape(num_axes, num_axes)
    direction[:num_kept, :num_kept] = axes[:3, :3]
    return (
        (*size, 1, 1)[:4],
        tuple(spacing.tolist()),
        tuple(origin.tolist()),
        tuple(direction.ravel().tolist()),
    )


def _bits_per_voxel(reader: Any) -> int:
    name = str(sitk.GetPixelIDValueAsString(reader.GetPixelID()))  # Such as "16-bit signed integer"
    digits = name.partition("-")[0]
    return int(digits) if digits.isdigit() else 64


def _reason(error: RuntimeError, path: Path) -> str:
    """Return the last line of ITK's report, which says what happened, without the folder."""
    report = str(error).replace(f"{path.parent}{os.sep}", "")
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    # MetaImage's "Reason" is the C library's last error, often "Success".
    told = [line for line in lines if not line.startswith("Reason:")]
    return told[-1].rpartition(": ")[2] if told else "no reason given"
