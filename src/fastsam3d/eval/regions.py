"""Structures that are unions of label values, as tumours are scored: whole, core, enhancing.

nnU-Net's ``dataset.json`` has them as lists of values. For any cases a table given by the user says
the same: a CSV with the columns ``source`` (``*`` = every source without rows of its own),
``region`` and ``labels`` (names or values of labels, ``;`` between them); further columns are
notes. Regions are a case's structures in place of its single labels, and may overlap.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastsam3d.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from fastsam3d.eval.folders import CaseFile

ANY_SOURCE = "*"
FIRST_UNION = 1 << 16
"""What unions are numbered from: above every value of a uint16 label map."""
_COLUMNS = ("source", "region", "labels")


@dataclass(frozen=True, kw_only=True)
class LabelRegion:
    """One structure that is the union of label values.

    Attributes:
        name: Of the structure.
        values: Its label values, ascending.
        label: What stands for it in results: the value of a single one, for several a number from
            `FIRST_UNION`.
    """

    name: str
    values: tuple[int, ...]
    label: int


@dataclass(frozen=True, kw_only=True)
class RegionTable:
    """Which regions the cases of a source have.

    Attributes:
        rules: Per source, per region: names or values of labels, as written.
    """

    rules: dict[str, dict[str, tuple[str, ...]]]

    def of(self, case: CaseFile) -> tuple[LabelRegion, ...]:
        """Return the regions of a case; none if its source has no rows.

        Raises:
            DatasetError: The case does not know a label, a label is background or ignored, or two
                regions are the same.
        """
        rules = self.rules.get(case.source, self.rules.get(ANY_SOURCE, {}))
        named = {
            region: [value for item in items for value in _values(item, case, region)]
            for region, items in rules.items()
        }
        return label_regions(named, of=case.name, ignored=case.ignored)

    def assign(self, cases: Sequence[CaseFile]) -> list[tuple[LabelRegion, ...]]:
        """Return the regions of every case.

        Raises:
            DatasetError: As from `of`, or no case is of a source of the table.
        """
        found = [self.of(case) for case in cases]
        if cases and not any(found):
            sources = sorted({case.source for case in cases})
            raise DatasetError(
                f"The regions are of source {' and '.join(self.rules)}, the cases of "
                f"{' and '.join(sources)}; name one of those, or {ANY_SOURCE} for all."
            )
        return found


def label_regions(
    named: Mapping[str, Iterable[int]], *, of: str, ignored: Sequence[int] = ()
) -> tuple[LabelRegion, ...]:
    """Number regions: single values first, ascending, then unions as they are given.

    Args:
        named: Label values per region.
        of: What has them, for messages.
        ignored: Label values that are no structures.

    Raises:
        DatasetError: A region is empty or holds background or an ignored value, or two hold the
            same values.
    """
    seen: dict[tuple[int, ...], str] = {}
    for name, given in named.items():
        values = tuple(sorted(set(given)))
        if not values:
            raise DatasetError(f"Region {name!r} of {of} has no label; name at least one.")
        if values[0] < 1 or set(values) & set(ignored):
            raise DatasetError(
                f"Region {name!r} of {of} holds background or an ignored label, got values "
                f"{list(values)}; leave it out."
            )
        if values in seen:
            raise DatasetError(
                f"Regions {seen[values]!r} and {name!r} of {of} are both the values "
                f"{list(values)}; keep one."
            )
        seen[values] = name
    singles = sorted(values for values in seen if len(values) == 1)
    unions = [values for values in seen if len(values) > 1]
    return (
        *(LabelRegion(name=seen[one], values=one, label=one[0]) for one in singles),
        *(
            LabelRegion(name=seen[values], values=values, label=number)
            for number, values in enumerate(unions, start=FIRST_UNION)
        ),
    )


def read_regions(path: Path) -> RegionTable:
    """Read the table.

    Raises:
        DatasetError: The file is missing or has no rows, a cell is empty, or a region of a source
            occurs twice.
    """
    try:
        # Spreadsheets put a byte order mark in front.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"Could not read {path} ({error}); give a CSV file.") from error
    if not rows:
        raise DatasetError(f"{path} has no region; give rows of {', '.join(_COLUMNS)}.")
    rules: dict[str, dict[str, tuple[str, ...]]] = {}
    for number, row in enumerate(rows, start=2):
        source, region, labels = ((row.get(name) or "").strip() for name in _COLUMNS)
        items = tuple(item.strip() for item in labels.split(";") if item.strip())
        if not source or not region or not items:
            raise DatasetError(
                f"{path} line {number} must have source, region and at least one of labels, got "
                f"{[source, region, labels]}."
            )
        regions = rules.setdefault(source, {})
        if region in regions:
            raise DatasetError(
                f"{path} line {number} has region {region!r} of {source} again; keep one row of it."
            )
        regions[region] = items
    return RegionTable(rules=rules)


def _values(item: str, case: CaseFile, region: str) -> list[int]:
    """Return the values that a name means, or the one that is written."""
    known = {value: name for value, name in case.label_names.items() if value not in case.ignored}
    if item.isdecimal():
        in_regions = {value for one in case.regions for value in one.values}
        if not known or int(item) in {0, *known, *case.ignored, *in_regions}:
            return [int(item)]
    found = [value for value, name in known.items() if name == item]
    if not found:
        names = ", ".join(f"{value}={name}" for value, name in known.items())
        raise DatasetError(
            f"Region {region!r} has label {item!r}, but {case.name} has "
            f"{'only ' + names if names else 'no names of labels'}; correct the table of regions "
            "or label_names of the manifest."
        )
    return found
