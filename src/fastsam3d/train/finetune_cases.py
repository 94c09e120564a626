"""From a folder of a user's cases to a training pack and a list of cases held out of it.

Which cases are held out depends on the seed and the subjects' names, never on what the files hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsam3d.errors import ConfigError, DatasetError
from fastsam3d.eval.folders import CaseFile, find_cases, fingerprint
from fastsam3d.model.checkpoint import write_atomically
from fastsam3d.train.finetune import UNSPECIFIED
from fastsam3d.train.held_out import check_measurable
from fastsam3d.train.pack import read_index
from fastsam3d.train.pack_writer import PackConfig, RawCase, pack_cases

PACK_FILE = "finetune_pack.npz"
SPLIT_FILE = "split.json"
# What finding and measuring objects loads when it is first used.
PACK_NEEDS = {"edt": "edt", "cc3d": "connected-components-3d"}
# No other modality goes that far below zero; air in CT is about -1000 HU.
CT_BELOW = -500.0


@dataclass(frozen=True, kw_only=True)
class CaseOptions:
    """What to take from a folder, and what to write on the card about it.

    Attributes:
        split: Only the cases of this split of the folder's manifest.
        held_out: Share of the subjects that is kept for validation, 0 for none.
        seed: Of the choice of these subjects.
        modality: Of the images, such as ``CT`` or ``MR T1``; by default CT is told by its air.
        licence: Of the data; by default what the folder says, else ``unspecified``.
    """

    split: str | None = None
    held_out: float = 0.2
    seed: int = 1
    modality: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise DatasetError(
                f"The held-out share must be from 0 to below 1, got {self.held_out}; 0.2 is usual."
            )


@dataclass(frozen=True, kw_only=True)
class PreparedCases:
    """A pack to train on and what was kept from it.

    Attributes:
        pack: The training pack.
        train: The cases in it.
        held_out: The cases for validation.
    """

    pack: Path
    train: tuple[CaseFile, ...]
    held_out: tuple[CaseFile, ...]


def prepare_cases(path: Path, output: Path, options: CaseOptions) -> PreparedCases:
    """Find a user's cases, hold some out and pack the others into `output`.

    A pack of the same cases and options that lies there already is kept.

    Args:
        path: ``<case>/image.nii.gz`` and ``label.nii.gz``, or an nnU-Net folder, of which only
            imagesTr and labelsTr are used; see `fastsam3d.eval.folders.find_cases`.
        output: Gets ``finetune_pack.npz``, its ``.json`` and ``split.json``.
        options: Which cases, how many are held out.

    Raises:
        ConfigError: A package that writing needs is not installed.
        DatasetError: There is no labelled case, too few to hold any out, or one is inconsistent.
        VolumeReadError: A file is damaged.
        CheckpointError: The folder cannot be written.
    """
    missing = [package for module, package in PACK_NEEDS.items() if find_spec(module) is None]
    if missing:
        msg = (
            f"Writing a pack needs {' and '.join(missing)}; "
            "install them with: pip install 'fastsam3d[train]'."
        )
        raise ConfigError(msg)
    is_nnunet = (path / "imagesTr").is_dir()
    cases = find_cases(path, split="Tr" if is_nnunet else options.split)
    train, held_out = split_cases(cases, share=options.held_out, seed=options.seed)
    pack = output / PACK_FILE
    record = {
        "cases_sha256": fingerprint(cases),
        "seed": options.seed,
        "modality": options.modality,
        "licence": options.licence,
        "train": [case.name for case in train],
        "held_out": [case.name for case in held_out],
    }
    prepared = PreparedCases(pack=pack, train=train, held_out=held_out)
    if _is_packed(output, record):
        return prepared
    check_measurable(held_out)
    output.mkdir(parents=True, exist_ok=True)
    (output / SPLIT_FILE).unlink(missing_ok=True)  # it vouches for the pack: written last
    pack_cases(_raw_cases(train, options), pack, config=PackConfig(has_supervoxels=False))
    if not any("label" in entry for entry in read_index(pack)["cases"]):
        raise DatasetError(f"No training case of {path} has a label above 0; check the label maps.")
    write_atomically(output / SPLIT_FILE, json.dumps(record, indent=1).encode())
    return prepared


def split_cases(
    cases: Sequence[CaseFile], *, share: float, seed: int
) -> tuple[tuple[CaseFile, ...], tuple[CaseFile, ...]]:
    """Return the cases to train on and those held out, whole subjects on one side.

    Args:
        cases: All cases.
        share: Share of the subjects to hold out; at least one where it is above 0.
        seed: Of the choice.

    Raises:
        DatasetError: There are too few subjects.
    """
    subjects = sorted({case.subject for case in cases})
    count = max(1, round(share * len(subjects))) if share > 0 else 0
    if count >= len(subjects):
        msg = (
            f"Holding out {count} of {len(subjects)} subjects leaves none to train on; "
            "add cases, or hold out none and name other cases for validation."
        )
        raise DatasetError(msg)
    order: list[int] = np.random.default_rng(seed).permutation(len(subjects)).tolist()
    chosen = {subjects[number] for number in order[:count]}
    train = tuple(case for case in cases if case.subject not in chosen)
    return train, tuple(case for case in cases if case.subject in chosen)


def _is_packed(output: Path, record: dict[str, Any]) -> bool:
    path = output / SPLIT_FILE
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != record:
        return False
    read_index(output / PACK_FILE)
    return True


def _raw_cases(cases: Sequence[CaseFile], options: CaseOptions) -> Iterator[RawCase]:
    for found in cases:
        yield _raw_case(found, options)


def _raw_case(found: CaseFile, options: CaseOptions) -> RawCase:
    case = found.read()
    labels = np.where(np.isin(case.labels, case.ignored), 0, case.labels).astype(case.labels.dtype)
    reorder = case.volume.geometry.canonical_reorder()
    image = np.ascontiguousarray(reorder.apply(case.volume.array))
    names = "; ".join(f"{value}={name}" for value, name in sorted(case.label_names.items()))
    row = {
        "case": case.name,
        "provenance": case.source,
        "modality": options.modality or case.volume.modality or _guessed_modality(image),
        "body_part": UNSPECIFIED,
        "license": options.licence or case.licence or UNSPECIFIED,
        "label_names": names,
    }
    return RawCase(
        row=row,
        spacing=case.volume.geometry.reorient(reorder).spacing,
        image=image,
        labels=np.ascontiguousarray(reorder.apply(labels)),
    )


def _guessed_modality(image: NDArray[Any]) -> str:
    return "CT" if float(image.min()) < CT_BELOW else UNSPECIFIED
