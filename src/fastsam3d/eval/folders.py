"""Find evaluation cases without reading them: our folders, nnU-Net's, the challenge's, a case pack.

A `CaseFile` is small and travels between processes; `CaseFile.read` reads one case, once.
"""

from __future__ import annotations

import csv
import hashlib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fastsam3d.errors import DatasetError
from fastsam3d.eval.cases import (
    EvalCase,
    check_case_pack,
    entry_names,
    entry_regions,
    load_case,
    parse_label_names,
    read_case,
)
from fastsam3d.eval.nnunet import find_pairs, read_dataset_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastsam3d.eval.challenge import SpacingOrder
    from fastsam3d.eval.regions import LabelRegion, RegionTable

Kind = Literal["volumes", "challenge", "pack"]
IMAGE_FILE = "image.nii.gz"
LABEL_FILE = "label.nii.gz"
LABELLED = "image+label"
"""What the manifest's optional column ``kind`` says of cases that can be evaluated."""


@dataclass(frozen=True, kw_only=True)
class CaseFile:
    """Where a case is and what is known about it before it is read.

    Attributes:
        name: Case name, unique in a run.
        subject: Who was scanned; by default the case itself.
        source: Provenance group.
        kind: How to read it.
        image: File of the image, or the case pack.
        label: File of the truth; None where it is in `image`.
        label_names: Structure name per label value.
        ignored: Label values that are no structures.
        regions: Its structures where they are unions of labels; empty: every label is one.
        licence: Of the data.
        number: Place in the case pack.
        spacing_order: Of a challenge file.
    """

    name: str
    subject: str
    source: str
    kind: Kind
    image: Path
    label: Path | None = None
    label_names: dict[int, str] = field(default_factory=dict[int, str])
    ignored: tuple[int, ...] = ()
    regions: tuple[LabelRegion, ...] = ()
    licence: str = ""
    number: int = 0
    spacing_order: SpacingOrder = "xyz"

    def read(self) -> EvalCase:
        """Read the case.

        Raises:
            DatasetError: Image and truth do not fit together, or there is no truth.
            VolumeReadError: A file is damaged.
            GeometryError: A file's geometry is impossible.
        """
        if self.kind == "pack":
            case = load_case(self.image, self.number)
            return replace(case, subject=self.subject, regions=self.regions)
        if self.kind == "challenge":
            return self._read_challenge()
        assert self.label is not None, "found as a pair"  # noqa: S101 - own invariant
        case = read_case(self.image, self.label, self.name)
        return replace(
            case,
            subject=self.subject,
            source=self.source,
            label_names=self.label_names,
            ignored=self.ignored,
            regions=self.regions,
            licence=self.licence,
        )

    def _read_challenge(self) -> EvalCase:
        from fastsam3d.eval.challenge import read_challenge  # noqa: PLC0415 - for its files only

        found = read_challenge(self.image, truth=self.label, spacing_order=self.spacing_order)
        if found.labels is None:
            raise DatasetError(
                f"{self.image.name} has no truth (gts); give the folder of the truth files."
            )
        values = [int(value) for value in np.unique(found.labels) if value > 0]
        # Prompts are stored in the order of the truth's values.
        boxes = dict(zip(values, found.boxes or (), strict=False))
        return EvalCase(
            name=self.name,
            subject=self.subject,
            source=self.source,
            volume=found.volume,
            labels=found.labels,
            label_names=self.label_names,
            regions=self.regions,
            boxes=boxes,
            licence=self.licence,
        )


def find_cases(
    path: Path,
    *,
    split: str | None = None,
    truth: Path | None = None,
    subject_pattern: str | None = None,
    spacing_order: SpacingOrder = "xyz",
    regions: RegionTable | None = None,
) -> list[CaseFile]:
    """Find the cases of a folder or pack, in the order of their names (of the pack).

    Args:
        path: A folder of ``<case>/image.nii.gz`` and ``label.nii.gz`` (or of splits of such
            folders), with an optional ``manifest.csv`` in it or beside it (columns case, split,
            kind, source, subject, label_names, license, all but the first optional); an nnU-Net
            folder; a folder of challenge .npz files; or a case pack (.npz beside its .json).
        split: Only the cases of this split: of the manifest, or "Ts" or "Tr" of an nnU-Net folder.
        truth: Folder of ``<case>.npz`` with ``gts``, for challenge files without.
        subject_pattern: A regular expression; what it finds in a case name is its subject, where
            the manifest names none.
        spacing_order: Of challenge files.
        regions: Which sources have regions, in place of those of an nnU-Net folder or pack.

    Raises:
        DatasetError: There is no case, a case name occurs twice, the pattern is none, or regions
            do not fit the cases.
    """
    if path.is_file():
        found = _pack_cases(path)
    elif not path.is_dir():
        raise DatasetError(f"{path} does not exist; check the path of the cases.")
    elif any((path / f"images{part}").is_dir() for part in ("Ts", "Tr")):
        found, split = list(_nnunet_cases(path, split)), None
    elif any(path.glob("*.npz")):
        found = list(_challenge_cases(path, truth, spacing_order))
    else:
        found = list(_volume_cases(path))
    found = _with_manifest(found, path, split)
    if not found:
        raise DatasetError(
            f"No labelled case in {path}{f' of split {split!r}' if split else ''}; give a folder "
            "of <case>/image.nii.gz with label.nii.gz, an nnU-Net folder, .npz files or a pack."
        )
    names = [case.name for case in found]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DatasetError(f"Case {doubled[0]} occurs twice in {path}; choose one --split.")
    if regions is not None:
        found = [
            replace(case, regions=own or case.regions)
            for case, own in zip(found, regions.assign(found), strict=True)
        ]
    return _with_subjects(found, subject_pattern)


def fingerprint(cases: list[CaseFile]) -> str:
    """Return a hash of the cases' names, file sizes and regions, to notice other data."""
    digest = hashlib.sha256()
    for case in cases:
        sizes = [path.stat().st_size for path in (case.image, case.label) if path is not None]
        digest.update(f"{case.name} {case.number} {sizes}\n".encode())
        for region in case.regions:
            digest.update(f"{region.label} {region.name} {list(region.values)}\n".encode())
    return digest.hexdigest()


def _volume_cases(path: Path) -> Iterator[CaseFile]:
    images = sorted([*path.glob(f"*/{IMAGE_FILE}"), *path.glob(f"*/*/{IMAGE_FILE}")])
    for image in images:
        label = image.with_name(LABEL_FILE)
        if label.is_file():
            name = image.parent.name
            yield CaseFile(
                name=name,
                subject="",
                source=_source(name, path.name),
                kind="volumes",
                image=image,
                label=label,
            )


def _nnunet_cases(path: Path, split: str | None) -> Iterator[CaseFile]:
    if split not in {None, "Ts", "Tr"}:
        raise DatasetError(f"An nnU-Net folder has splits Ts and Tr, got {split!r}; choose one.")
    dataset = read_dataset_json(path / "dataset.json")
    pairs = find_pairs(path, dataset, parts=("Ts", "Tr") if split is None else (split,))
    for name, image, label in pairs:
        yield CaseFile(
            name=name,
            subject="",
            source=_source(name, dataset.name or path.name),
            kind="volumes",
            image=image,
            label=label,
            label_names=dataset.label_names,
            ignored=dataset.ignored,
            regions=dataset.regions,
            licence=dataset.licence,
        )


def _challenge_cases(
    path: Path, truth: Path | None, spacing_order: SpacingOrder
) -> Iterator[CaseFile]:
    for image in sorted(path.glob("*.npz")):
        label = None if truth is None else truth / image.name
        if label is not None and not label.is_file():
            raise DatasetError(f"{label} is missing; every .npz file needs its truth there.")
        # CT_AbdomenAtlas_0001: modality and data set come first in the challenge's names.
        parts = image.stem.split("_")
        source = "_".join(parts[:2]) if len(parts) > 2 else path.name
        yield CaseFile(
            name=image.stem,
            subject="",
            source=_source(image.stem, source),
            kind="challenge",
            image=image,
            label=label,
            spacing_order=spacing_order,
        )


def _pack_cases(path: Path) -> list[CaseFile]:
    entries = check_case_pack(path)
    return [
        CaseFile(
            name=entry["case"],
            subject=entry.get("subject", ""),
            source=entry["source"],
            kind="pack",
            image=path,
            number=number,
            label_names=entry_names(entry),
            regions=entry_regions(entry),
            licence=entry["licence"],
        )
        for number, entry in enumerate(entries)
    ]


def _source(name: str, otherwise: str) -> str:
    return name.split("__", maxsplit=1)[0] if "__" in name else otherwise


def _with_manifest(cases: list[CaseFile], path: Path, split: str | None) -> list[CaseFile]:
    """Add what a manifest says; cases that it does not name, or not in the split, are left out."""
    manifest = _find_manifest(path, {case.name for case in cases})
    if manifest is None:
        if split is None:
            return cases
        return [case for case in cases if case.image.parent.parent.name == split]
    rows = {(row.get("split"), row["case"]): row for row in manifest}
    found: list[CaseFile] = []
    for case in cases:
        folder = case.image.parent.parent.name
        row = rows.get((folder, case.name)) or rows.get((split, case.name))
        if row is None and split is None:
            row = next((row for (_, name), row in rows.items() if name == case.name), None)
        is_wanted = row is not None and split in {None, row.get("split")}
        if row is not None and is_wanted and row.get("kind", LABELLED) == LABELLED:
            found.append(_with_row(case, row))
    return found


def _find_manifest(path: Path, names: set[str]) -> list[dict[str, str]] | None:
    """Return the rows of a manifest in the folder, or of one beside it that names the cases."""
    if path.is_file():
        return None
    for folder in (path, path.resolve().parent):
        manifest = folder / "manifest.csv"
        if not manifest.is_file():
            continue
        with manifest.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        if rows and "case" in rows[0] and names & {row["case"] for row in rows}:
            return rows
        if folder == path:
            raise DatasetError(f"{manifest} names no case of its folder in a column 'case'.")
    return None


def _with_row(case: CaseFile, row: dict[str, str]) -> CaseFile:
    named = parse_label_names(row.get("label_names") or "")
    source = row.get("source") or case.source
    return replace(
        case,
        subject=row.get("subject") or "",
        source=case.source if "__" in case.name else source,
        label_names={**case.label_names, **named},
        licence=row.get("license") or case.licence,
    )


def _with_subjects(cases: list[CaseFile], pattern: str | None) -> list[CaseFile]:
    try:
        compiled = re.compile(pattern) if pattern else None
    except re.error as error:
        raise DatasetError(
            f"Subject pattern {pattern!r} is no regular expression ({error})."
        ) from error
    result: list[CaseFile] = []
    for case in cases:
        subject = case.subject
        if not subject:
            hit = compiled.search(case.name) if compiled else None
            subject = f"{case.source}/{hit.group()}" if hit else case.name
        result.append(replace(case, subject=subject))
    return result
