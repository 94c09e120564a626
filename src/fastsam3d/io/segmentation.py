"""Segmentations of many objects in files that other programs read with names and colours.

``.seg.nrrd`` is what 3D Slicer opens as a segmentation, overlapping objects included; every other
format of `write_mask` gets the label map, and beside it ``NAME.labels.json`` with what it cannot
hold.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fastsam3d.errors import ConfigError, VolumeWriteError
from fastsam3d.io.atomic import staged
from fastsam3d.io.write import SUFFIXES, check_target, write_mask
from fastsam3d.volume import Mask

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from numpy.typing import NDArray

Colour = tuple[int, int, int]

SLICER_SUFFIX: Final = ".seg.nrrd"
MAX_NAME: Final = 200
_CONTEXT: Final = "Segmentation category and type - 3D Slicer General Anatomy list"
_ANATOMIC_CONTEXT: Final = "Anatomic codes - DICOM master list"


@dataclass(frozen=True)
class Code:
    """A coded concept, as DICOM writes it.

    Attributes:
        scheme: Coding scheme, such as "SCT" for SNOMED CT.
        value: Code in that scheme.
        meaning: For people.

    Raises:
        ConfigError: A part is empty, long, or holds a character that files use between parts.
    """

    scheme: str
    value: str
    meaning: str

    def __post_init__(self) -> None:
        """Refuse what could not be written."""
        for part in (self.scheme, self.value, self.meaning):
            check_text(part, "Code")


@dataclass(frozen=True)
class Terminology:
    """What an object is.

    Attributes:
        category: Kind of thing, such as an anatomical structure.
        type: The thing.
        modifier: Such as its side; None without.

    Example:
        >>> Terminology(
        ...     Code("SCT", "123037004", "Anatomical Structure"), Code("SCT", "10200004", "Liver")
        ... ).type.meaning
        'Liver'
    """

    category: Code
    type: Code
    modifier: Code | None = None


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One object in a file.

    Attributes:
        label: Its value in the label map of its layer, 1 to 65535.
        name: For people.
        colour: Red, green, blue, 0 to 255.
        terminology: What it is; None where nobody said.
        layer: Which of the label maps holds it.
    """

    label: int
    name: str
    colour: Colour
    terminology: Terminology | None = None
    layer: int = 0


def check_text(text: object, what: str) -> None:
    """Refuse text that file headers cannot carry.

    Raises:
        ConfigError: Not text, empty, too long, or with control characters or separators.
    """
    if (
        not isinstance(text, str)
        or not 0 < len(text) <= MAX_NAME
        or not text.isprintable()
        or any(mark in text for mark in "^~|")
    ):
        message = (
            f"{what} must be 1 to {MAX_NAME} printable characters without ^, ~ and |, "
            f"got {text!r}; shorten or rename it."
        )
        raise ConfigError(message)


def write_segmentation(
    layers: Sequence[Mask], segments: Sequence[Segment], path: str | PathLike[str]
) -> None:
    """Write objects with their names, colours and codes.

    Args:
        layers: Label maps on one grid; several only where objects overlap.
        segments: What the labels mean.
        path: ``.seg.nrrd``, or one of `SUFFIXES`; replaced if it exists.

    Raises:
        VolumeWriteError: No layer or several grids, an unknown suffix, several layers in a format
            that holds one, no such folder, or the system refused; nothing is left.
    """
    if not layers or any(layer.geometry != layers[0].geometry for layer in layers):
        message = f"A segmentation needs label maps on one grid, got {len(layers)}; make one."
        raise VolumeWriteError(message)
    target = check_target(path)
    if target.name.endswith(SLICER_SUFFIX):
        with staged(target) as scratch:
            _write_slicer(scratch, layers, segments)
        return
    if len(layers) > 1:
        message = (
            f"Cannot write {target.name!r}: objects overlap and this format holds one label per "
            f"voxel; write {SLICER_SUFFIX}, or let one object win."
        )
        raise VolumeWriteError(message)
    with staged(labels_path(target)) as scratch:
        plain = {"labels": [_segment_to_plain(segment) for segment in segments]}
        scratch.write_text(json.dumps(plain, indent=1, ensure_ascii=False), encoding="utf-8")
        write_mask(layers[0], target)


def labels_path(path: Path) -> Path:
    """Return where the names of a label map are written."""
    stem = path.name
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    return path.with_name(f"{stem}.labels.json")


def _segment_to_plain(segment: Segment) -> dict[str, Any]:
    plain = asdict(segment)
    del plain["layer"]
    return plain


def _write_slicer(path: Path, layers: Sequence[Mask], segments: Sequence[Segment]) -> None:
    from fastsam3d.io.itk import write_itk_layers  # noqa: PLC0415 - SimpleITK takes 0.3 s to load

    fields = {
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for number, segment in enumerate(segments):
        array = layers[segment.layer].array
        fields |= {f"Segment{number}_{key}": value for key, value in _slicer_fields(segment, array)}
    dtype = np.result_type(*(layer.array.dtype for layer in layers))
    arrays = [layer.array.astype(dtype, copy=False) for layer in layers]
    write_itk_layers(path, arrays, layers[0].geometry, layers[0].source, fields)


def _slicer_fields(segment: Segment, array: NDArray[Any]) -> list[tuple[str, str]]:
    red, green, blue = (f"{value / 255:.6g}" for value in segment.colour)
    tags = "Segmentation.Status:inprogress|"
    if segment.terminology is not None:
        tags += f"TerminologyEntry:{_terminology_entry(segment.terminology)}|"
    return [
        ("ID", f"Segment_{segment.label}"),
        ("Name", segment.name),
        ("NameAutoGenerated", "0"),
        ("Color", f"{red} {green} {blue}"),
        ("ColorAutoGenerated", "0"),
        ("LabelValue", str(segment.label)),
        ("Layer", str(segment.layer)),
        ("Extent", _extent(array == segment.label)),
        ("Tags", tags),
    ]


def _terminology_entry(terminology: Terminology) -> str:
    parts = [_CONTEXT, *map(_code, (terminology.category, terminology.type, terminology.modifier))]
    return "~".join([*parts, _ANATOMIC_CONTEXT, _code(None), _code(None)])


def _code(code: Code | None) -> str:
    return "^^" if code is None else f"{code.scheme}^{code.value}^{code.meaning}"


def _extent(inside: NDArray[np.bool_]) -> str:
    """Return the first and last voxel along i, j, k; an empty extent ends before it starts."""
    ends: list[int] = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        hits = np.flatnonzero(inside.any(axis=others))
        ends += [int(hits[0]), int(hits[-1])] if len(hits) else [0, -1]
    return " ".join(map(str, ends))
