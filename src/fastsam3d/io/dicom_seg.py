"""Segmentations of a DICOM series as DICOM: one SEG object that refers to its slices.

Of kind BINARY, which every viewer that knows segmentations reads; each object is a segment with
its name, colour and codes. Needs ``fastsam3d[dicom]``. Source: highdicom writes the objects (DICOM
PS3.3 A.51).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pydicom

from fastsam3d.errors import VolumeWriteError
from fastsam3d.io.atomic import staged
from fastsam3d.io.dicom import find_stack
from fastsam3d.io.segmentation import Code, Terminology

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from numpy.typing import NDArray

    from fastsam3d.io.segmentation import Segment
    from fastsam3d.volume import Geometry, Mask

dicom: Any = pydicom  # Its annotations are not checkable.

SERIES_NUMBER: Final = 100
"""Of the series that is written; viewers sort by it."""
UNKNOWN: Final = Terminology(Code("SCT", "85756007", "Tissue"), Code("SCT", "85756007", "Tissue"))
"""What an object without codes is said to be, as 3D Slicer does."""


@dataclass(frozen=True)
class Algorithm:
    """What made a segmentation, together with the user.

    Attributes:
        name: Such as that of the weights.
        version: Of the program.
    """

    name: str = "fastsam3d"
    version: str = "unknown"


@dataclass(frozen=True, eq=False)
class SeriesHeaders:
    """What a segmentation must repeat of its series.

    Attributes:
        slices: Headers without pixels, k = 0 first.
        geometry: Of the volume that they hold.
    """

    slices: tuple[Any, ...]
    geometry: Geometry

    @classmethod
    def read(cls, folder: str | PathLike[str], series_uid: str | None = None) -> SeriesHeaders:
        """Read the headers of a folder's series; arguments and errors as `io.dicom.find_stack`."""
        paths, geometry = find_stack(Path(folder), series_uid)
        headers = tuple(dicom.dcmread(path, stop_before_pixels=True) for path in paths)
        for header in headers:
            header.remove_private_tags()
        return cls(headers, geometry)


def write_dicom_seg(
    layers: Sequence[Mask],
    segments: Sequence[Segment],
    series: SeriesHeaders,
    path: str | PathLike[str],
    *,
    algorithm: Algorithm | None = None,
) -> None:
    """Write objects as one DICOM SEG file.

    Args:
        layers: Label maps on the grid of the series; several only where objects overlap.
        segments: What the labels mean; all are written, in this order.
        series: Of the volume that was segmented.
        path: File to write; replaced if it exists.
        algorithm: What segmented.

    Raises:
        VolumeWriteError: Nothing is segmented, the label maps are not where the series is,
            its headers lack what DICOM requires, highdicom is not installed, or the system refused.
    """
    if not all(series.geometry.is_close(layer.geometry) for layer in layers):
        message = (
            f"Label maps must be on the grid of the series, {series.geometry}, got another; give "
            "the folder that the volume was read from."
        )
        raise VolumeWriteError(message)
    used = [int(k) for k in np.flatnonzero(_is_used(layers, segments))]
    if not used:
        message = "There is nothing to write, as no object has a voxel; segment something first."
        raise VolumeWriteError(message)
    slices = slice(used[0], used[-1] + 1)
    try:
        made = _make(layers, segments, series, slices, algorithm or Algorithm())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"Headers of the series lack what DICOM requires ({error}); export it again."
        raise VolumeWriteError(message) from error
    with staged(Path(path)) as scratch:
        made.save_as(scratch)


def _is_used(layers: Sequence[Mask], segments: Sequence[Segment]) -> NDArray[np.bool_]:
    labels = [[s.label for s in segments if s.layer == n] for n in range(len(layers))]
    parts = zip(layers, labels, strict=True)
    each = [np.isin(layer.array, given).any(axis=(0, 1)) for layer, given in parts]
    return np.any(each, axis=0)


def _make(
    layers: Sequence[Mask],
    segments: Sequence[Segment],
    series: SeriesHeaders,
    slices: slice,
    algorithm: Algorithm,
) -> Any:
    hd: Any = _highdicom()
    descriptions = [_describe(hd, n, s, algorithm) for n, s in enumerate(segments, 1)]
    # Slices first, then rows and columns, as DICOM has them; one channel a segment.
    channels = [layers[s.layer].array[:, :, slices] == s.label for s in segments]
    pixels = np.stack([channel.T for channel in channels], axis=-1)
    return hd.seg.Segmentation(
        source_images=list(series.slices[slices]),
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="fastsam3d",
        manufacturer_model_name=algorithm.name,
        software_versions=algorithm.version,
        device_serial_number="0",
        content_label="FASTSAM3D",
        series_description="Segmentation by fastsam3d",
    )


def _describe(hd: Any, number: int, segment: Segment, algorithm: Algorithm) -> Any:
    known = segment.terminology or UNKNOWN
    family = hd.sr.CodedConcept("123109", "DCM", "Artificial Intelligence")
    return hd.seg.SegmentDescription(
        segment_number=number,
        # DICOM holds 64 characters.
        segment_label=segment.name[:64],
        segmented_property_category=_concept(hd, known.category),
        segmented_property_type=_concept(hd, known.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm.name, family=family, version=algorithm.version
        ),
        tracking_id=f"fastsam3d segment {segment.label}",
        tracking_uid=hd.UID(),
        display_color=hd.color.CIELabColor.from_rgb(*segment.colour),
    )


def _concept(hd: Any, code: Code) -> Any:
    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning[:64])


def _highdicom() -> Any:
    try:
        return import_module("highdicom")
    except ImportError as error:
        message = "DICOM SEG needs highdicom; install it with: pip install 'fastsam3d[dicom]'"
        raise VolumeWriteError(message) from error
