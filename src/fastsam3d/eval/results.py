"""Rows of an evaluation on disk: one JSON line per target and round, safe against a kill.

A target is one (case, label, component, seed). All rows of a target are appended by one write, so
that a kill leaves whole targets, and at worst a part of the last one: a line without its end is
ignored by `read_rows` and cut off by the next `append_rows`. Needs the standard library only.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from fastsam3d.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Target = tuple[str, int, int, int]
"""Case name, label value, component, seed."""


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """The mask of one target after one round, scored against the truth on the file's own grid.

    Attributes:
        case: Case name.
        subject: Who was scanned; several cases may share a subject.
        source: Provenance group of the case.
        label: Label value of the structure; for a region of several values a number from 65536.
        component: 0 = the whole structure, else 1..n: its 26-connected parts, largest first.
        structure: Name of the structure.
        seed: Of the simulated user.
        round: 1 for the first click; 0 after a box.
        prompt: What the round gave: "point", "box" or "none" (no mistake was left, the protocol
            skips it, or the time was over).
        position: Voxel i, j, k of the click in the file's grid; None without a click.
        positive: Whether the click was on the structure; None without a click.
        dice: Overlap with the truth.
        nsd_1mm: Normalised surface Dice at a tolerance of 1 mm.
        nsd_2mm: The same at 2 mm.
        hd95_mm: 95th percentile of surface distances; None where one mask is empty (undefined).
        truth_ml: Volume of the truth.
        mask_ml: Volume of the mask.
        encode_ms: Cutting and encoding in this round, as the segmenter reports it.
        click_ms: Wall time of this round's answer less `encode_ms`.
        spacing_mm: Side of the voxels in which the model saw the ROI; 0 if it has none.
        quality: The model's own estimate of the mask's IoU.
    """

    case: str
    subject: str
    source: str
    label: int
    component: int
    structure: str
    seed: int
    round: int
    prompt: str
    position: tuple[int, int, int] | None
    positive: bool | None
    dice: float
    nsd_1mm: float
    nsd_2mm: float
    hd95_mm: float | None
    truth_ml: float
    mask_ml: float
    encode_ms: float
    click_ms: float
    spacing_mm: float
    quality: float

    @property
    def target(self) -> Target:
        """What the row is about; rows of one target differ in `round`."""
        return (self.case, self.label, self.component, self.seed)


_NAMES = frozenset(field.name for field in fields(ResultRow))
_TEXTS = frozenset({"case", "subject", "source", "structure", "prompt"})
_WHOLE = frozenset({"label", "component", "seed", "round"})
_OPTIONAL = frozenset({"position", "positive", "hd95_mm"})


def append_rows(path: Path, rows: Iterable[ResultRow]) -> None:
    """Append rows by one write and wait until they are on disk.

    A half line at the end, left by a kill, is cut off first. One process writes a file at a time.

    Args:
        path: The .jsonl file; made if absent.
        rows: All rows of one target (or of several).

    Raises:
        DatasetError: The system refused to write.
        ValueError: A number is not finite.
    """
    append_json_lines(path, [asdict(row) for row in rows])


def read_rows(path: Path) -> list[ResultRow]:
    """Read all whole rows, in the order written; a last line without its end is ignored.

    Args:
        path: The .jsonl file; an absent file has no rows.

    Raises:
        DatasetError: A line that has its end is not a row.
    """
    lines = read_json_lines(path)
    return [_parse(line, f"{path} line {number}") for number, line in enumerate(lines, start=1)]


def append_json_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append JSON objects as `append_rows` appends rows.

    Raises:
        DatasetError: The system refused to write.
        ValueError: A number is not finite.
    """
    content = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()
    try:
        with path.open("a+b") as stream:
            _cut_half_line(stream.fileno())
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise DatasetError(f"Could not write {path}: {error.strerror}; free the disk.") from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON objects as `read_rows` reads rows.

    Raises:
        DatasetError: A line that has its end is not a JSON object.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DatasetError(f"Could not read {path}: {error.strerror}.") from error
    records: list[dict[str, Any]] = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            record: Any = json.loads(line)
        except ValueError as error:
            raise DatasetError(
                f"{path} line {number} is not JSON; remove the file and run again."
            ) from error
        if not isinstance(record, dict):
            raise DatasetError(f"{path} line {number} is no JSON object; run the evaluation again.")
        records.append(cast("dict[str, Any]", record))
    return records


def _cut_half_line(descriptor: int) -> None:
    end = os.lseek(descriptor, 0, os.SEEK_END)
    keep = end
    while keep > 0:
        start = max(0, keep - 65536)
        os.lseek(descriptor, start, os.SEEK_SET)
        found = os.read(descriptor, keep - start).rfind(b"\n")
        if found >= 0:
            keep = start + found + 1
            break
        keep = start
    if keep != end:
        os.ftruncate(descriptor, keep)


def _parse(given: dict[str, Any], where: str) -> ResultRow:
    if given.keys() != _NAMES:
        raise DatasetError(f"{where} has not the fields of a result row; run the evaluation again.")
    for name, value in given.items():
        if not _fits(name, value):
            raise DatasetError(f"{where} has {name} = {value!r}; run the evaluation again.")
    if given["position"] is not None:
        given["position"] = tuple(given["position"])
    return ResultRow(**given)


def _fits(name: str, value: object) -> bool:
    if value is None:
        return name in _OPTIONAL
    if name in _TEXTS:
        return isinstance(value, str)
    if name in _WHOLE:
        return type(value) is int
    if name == "positive":
        return isinstance(value, bool)
    if name == "position":
        items = cast("list[object]", value) if isinstance(value, list) else []
        return len(items) == 3 and all(type(item) is int for item in items)
    return type(value) in (int, float)
