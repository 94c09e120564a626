"""Data sets in nnU-Net's layout: ``imagesTs/<case>_0000.nii.gz``, ``labelsTs/<case>.nii.gz``.

Source: documentation/dataset_format.md of github.com/MIC-DKFZ/nnUNet; ``dataset.json`` may be of
version 1 (values name structures) or 2 (structures name values).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from fastsam3d.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

CHANNEL = "_0000"
"""Only the first channel is evaluated: a segmenter sees one volume."""
IGNORED_NAME = "ignore"


@dataclass(frozen=True, kw_only=True)
class NnunetDataset:
    """What ``dataset.json`` says.

    Attributes:
        name: Of the data set; empty if it has none.
        label_names: Structure name per label value, without the background.
        ignored: Label values of voxels that nobody labelled.
        file_ending: Of images and labels.
        licence: Of the data.
    """

    name: str = ""
    label_names: dict[int, str] = field(default_factory=dict[int, str])
    ignored: tuple[int, ...] = ()
    file_ending: str = ".nii.gz"
    licence: str = ""


def read_dataset_json(path: Path) -> NnunetDataset:
    """Read ``dataset.json``; a missing file leaves structures without names.

    Raises:
        DatasetError: The file is no JSON object, or its labels are no mapping.
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
    names = _label_names(cast("dict[str, Any]", labels))
    return NnunetDataset(
        name=str(facts.get("name", "")),
        label_names={v: name for v, name in names.items() if v > 0 and name != IGNORED_NAME},
        ignored=tuple(v for v, name in names.items() if name == IGNORED_NAME),
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
        if key.isdigit():
            names[int(key)] = str(value)
        elif type(value) is int:
            names[value] = key
        # Regions (lists of values) are unions of labels that are evaluated by themselves.
    return names
