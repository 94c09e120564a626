"""Which sources and structures a model has met in training: a small table given by the user.

A CSV with the columns ``source``, ``structure`` (``*`` = every other one of the source),
``source_seen`` and ``structure_seen`` (yes or no); further columns are notes.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastsam3d.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

ANY_STRUCTURE = "*"
UNLISTED = "not listed"
_COLUMNS = ("source", "structure", "source_seen", "structure_seen")
_WORDS = {"yes": "seen", "no": "unseen"}


@dataclass(frozen=True, kw_only=True)
class SeenGroups:
    """Names of the groups that a target belongs to.

    Attributes:
        rules: Per (source, structure): "seen" or "unseen" of the source and of the structure.
    """

    rules: dict[tuple[str, str], tuple[str, str]]

    def of(self, source: str, structure: str) -> tuple[str, str]:
        """Return the two groups of a target, such as ("source seen", "structure unseen")."""
        rule = self.rules.get((source, structure), self.rules.get((source, ANY_STRUCTURE)))
        of_source, of_structure = rule or (UNLISTED, UNLISTED)
        return f"source {of_source}", f"structure {of_structure}"


def read_groups(path: Path) -> SeenGroups:
    """Read the table.

    Raises:
        DatasetError: The file is missing, a column is, or a cell is neither yes nor no.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"Could not read {path} ({error}); give a CSV file.") from error
    rules: dict[tuple[str, str], tuple[str, str]] = {}
    for number, row in enumerate(rows, start=2):
        source, structure, *seen = ((row.get(name) or "").strip() for name in _COLUMNS)
        if not source or not structure or not all(word in _WORDS for word in seen):
            raise DatasetError(
                f"{path} line {number} must have source, structure, and yes or no in source_seen "
                f"and structure_seen, got {[source, structure, *seen]}."
            )
        rules[source, structure] = (_WORDS[seen[0]], _WORDS[seen[1]])
    return SeenGroups(rules=rules)
