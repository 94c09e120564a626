"""Data sets in nnU-Net's layout: ``imagesTs/<case>_0000.nii.gz``, ``labelsTs/<case>.nii.gz``.

Source: documentation/dataset_format.md of github.com/MIC-DKFZ/nnUNet; ``dataset.json`` may be of
version 1 (values name structures) or 2 (structures name values, or lists of them: regions).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from fastsam3d.errors import DatasetError
from fastsam3d.eval.regions import label_regions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from fastsam3d.eval.regions import LabelRegion

CHANNEL = "_0000"
"""Only the first channel is evaluated: a segmenter sees one volume."""
IGNORED_NAME = "ignore"
BACKGROUND = 0


@dataclass(frozen=True, kw_only=True)
class NnunetDataset:
    """What ``dataset.json`` says.

    Attributes:
        name: Of the data set; empty if it has none.
        label_names: Structure name per label value, without the background.
        ignored: Label values of voxels that nobody labelled.
        regions: Every structure, if any of them is a list of values; else empty.
        file_ending: Of images and labels.
        licence: Of the data.
    """

    name: str = ""
    label_names: dict[int, str] = field(default_factory=dict[int, str])
    ignored: tuple[int, ...] = ()
    regions: tuple[LabelRegion, ...] = ()
    file_ending: str = ".nii.gz"
    licence: str = ""


def read_dataset_json(path: Path) -> NnunetDataset:
    """Read ``dataset.json``; a missing file leaves structures without names.

    Raises:
        DatasetError: The file is no JSON object, its labels are no mapping, or a list among them
            is no region.
    """
    if not path.is_file():
        return NnunetDataset()
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DatasetError(f"{path} is no JSON ({error}); correct it.") from error
    facts = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    labels = facts.get("labels")
    if not isinstance(labels, dict):
        raise DatasetError(f"{path} has no labels that map names and values; correct it.")
    given = cast("dict[str, Any]", labels)
    names = _label_names(given)
    ignored = tuple(value for value, name in names.items() if name == IGNORED_NAME)
    return NnunetDataset(
        name=str(facts.get("name", "")),
        label_names={v: name for v, name in names.items() if v > 0 and name != IGNORED_NAME},
        ignored=ignored,
        regions=label_regions(_regions(given, path), of=str(path), ignored=ignored),
        file_ending=str(facts.get("file_ending", ".nii.gz")),
        licence=str(facts.get("licence", facts.get("license", ""))),
    )


def find_pairs(
    root: Path, dataset: NnunetDataset, *, parts: Sequence[str]
) -> Iterator[tuple[str, Path, Path]]:
    """Yield case name, image and label of all cases that have both.

    Args:
        root: The data set's folder.
        dataset: From `read_dataset_json`.
        parts: "Ts", "Tr" or both.
    """
    for part in parts:
        ending = dataset.file_ending
        for image in sorted((root / f"images{part}").glob(f"*{ending}")):
            if image.name.startswith("."):
                continue  # macOS puts such shadows of real files into archives
            stem = image.name.removesuffix(ending)
            name = stem.removesuffix(CHANNEL)
            label = root / f"labels{part}" / f"{name}{ending}"
            # Version 1 stored images without a channel number; other channels have no label.
            if label.is_file():
                yield name, image, label


def _label_names(labels: dict[str, Any]) -> dict[int, str]:
    names: dict[int, str] = {}
    for key, value in labels.items():
        if isinstance(value, list):
            continue
        if key.isdigit():
            names[int(key)] = str(value)
        elif type(value) is int:
            names[value] = key
    return names


def _regions(labels: dict[str, Any], path: Path) -> dict[str, list[int]]:
    """Return the values of every structure if any is a list; else nothing.

    ``regions_class_order`` says how predictions are written as one label map; the truth needs none.
    """
    if not any(isinstance(value, list) for value in labels.values()):
        return {}
    regions: dict[str, list[int]] = {}
    for name, value in labels.items():
        values = cast("list[Any]", value if isinstance(value, list) else [value])
        are_whole = all(type(item) is int for item in values)
        if not are_whole or (name == IGNORED_NAME and isinstance(value, list)):
            raise DatasetError(
                f"{path} gives {name!r} the values {value!r}; a region is a list of whole numbers, "
                f"and {IGNORED_NAME!r} is one number."
            )
        if name != IGNORED_NAME and set(values) != {BACKGROUND}:
            regions[name] = values
    return regions
