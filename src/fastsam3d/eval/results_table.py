"""The results block of the README or a model card, from committed JSON files and nothing else.

A small JSON file beside them says which runs are shown and in which words. Numbers inside its
sentences are placeholders, ``{{file.json:path.to.number:format}}``, so that none is typed by hand;
the format is Python's, or ``share`` for ".71".
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

from fastsam3d.errors import DatasetError
from fastsam3d.eval.curves import FAILURE_DICE
from fastsam3d.eval.outputs import Record, read_export, read_json

if TYPE_CHECKING:
    from pathlib import Path

    from fastsam3d.eval.summary import Group, Summary

START_MARK = "<!-- results:start -->"
END_MARK = "<!-- results:end -->"
MISSING = "-"
STRUCTURE_ROUNDS = (1, 3, 5)
_PLACEHOLDER = re.compile(r"\{\{([^:{}]+):([^:{}]+):([^{}]+)\}\}")
_KEYS = {"before": list, "columns": list, "runs": list, "after": list}


@dataclass(frozen=True, kw_only=True)
class ShownRun:
    """One row of the table, and possibly one per source below it.

    Attributes:
        file: Exported evaluation, beside the configuration.
        name: First cell, Markdown.
        bold: Whether the row stands out.
        sources: Words per source; sources named here get rows of their own, in this order.
        groups: Words per group of sources or structures, such as "source unseen"; rows likewise.
    """

    file: str
    name: str
    bold: bool
    sources: dict[str, str]
    groups: dict[str, str]


def render_results(config_path: Path) -> str:
    """Return the Markdown between the marks.

    Args:
        config_path: JSON with "before" and "after" (paragraphs), "columns" (pairs of head and
            figure, such as ["1 click", "dice@1"] or ["95 %", "dice@1:interval"]; figures are those
            of `fastsam3d.eval.curves.figures`) and "runs" (see `ShownRun`); a run with
            "structures" set to true is followed by a table of all its structures.

    Raises:
        DatasetError: A file is missing or damaged, or a figure or placeholder does not exist.
    """
    config = _read_config(config_path)
    folder = config_path.parent
    runs = [_shown_run(given, config_path) for given in config["runs"]]
    records = [(shown, read_export(folder / shown.file)) for shown in runs]
    # A figure that no run has needs no column.
    columns = [
        (str(head), str(figure))
        for head, figure in config["columns"]
        if any(_cell(record.summary.overall, str(figure)) != MISSING for _, record in records)
    ]
    heads = " | ".join(head for head, _ in columns)
    lines = [f"| | {heads} |", "|---" * (len(columns) + 1) + "|"]
    for shown, record in records:
        lines += _rows(shown, record, [figure for _, figure in columns])
    before, after = (
        [_wrapped(_fill(paragraph, folder)) for paragraph in config[part]]
        for part in ("before", "after")
    )
    files = ", ".join(f"`{folder.name}/{shown.file}`" for shown in runs)
    listed = _wrapped(f"Files: {files}; command, commit, device and date are in each.")
    structures = [
        _structure_table(read_json(folder / shown.file)["targets"], record.summary)
        for given, (shown, record) in zip(config["runs"], records, strict=True)
        if given.get("structures")
    ]
    return "\n\n".join([*before, "\n".join(lines), *structures, *after, listed])


def replace_results(text: str, block: str) -> str:
    """Return a document with everything between the marks replaced.

    Raises:
        DatasetError: The document does not have both marks once, in order.
    """
    head, start, rest = text.partition(START_MARK)
    _, end, tail = rest.partition(END_MARK)
    if not start or not end or START_MARK in tail or END_MARK in tail:
        raise DatasetError(f"The document must hold {START_MARK} and then {END_MARK}, once each.")
    return f"{head}{START_MARK}\n{block}\n{END_MARK}{tail}"


def share(value: float) -> str:
    """Write a number from 0 to 1 with two decimals and without the zero in front: ".71"."""
    return f"{value:.2f}".removeprefix("0")


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    for name, kind in _KEYS.items():
        if not isinstance(config.get(name), kind):
            raise DatasetError(f"{path} must hold a list named {name!r}; see its siblings.")
    return config


def _shown_run(given: dict[str, Any], path: Path) -> ShownRun:
    try:
        return ShownRun(
            file=given["file"],
            name=given["name"],
            bold=bool(given.get("bold", False)),
            sources=dict(given.get("sources", {})),
            groups=dict(given.get("groups", {})),
        )
    except (KeyError, TypeError) as error:
        raise DatasetError(f"A run in {path} has no {error}; give file and name.") from error


def _rows(shown: ShownRun, record: Record, figures: list[str]) -> list[str]:
    summary = record.summary
    name = shown.name + (" (oracle upper bound)" if record.is_oracle else "")
    rows = [_row(name, summary.overall, figures, bold=shown.bold)]
    for source, words in shown.sources.items():
        if source not in summary.sources:
            raise DatasetError(
                f"{shown.file} has no source {source!r}, only {list(summary.sources)}; correct it."
            )
        rows.append(
            _row(f"{source}, {words}" if words else source, summary.sources[source], figures)
        )
    for group, words in shown.groups.items():
        if group not in summary.groups:
            raise DatasetError(
                f"{shown.file} has no group {group!r}, only {list(summary.groups)}; correct it."
            )
        rows.append(_row(words or group, summary.groups[group], figures))
    return rows


def _structure_table(targets: list[dict[str, Any]], summary: Summary) -> str:
    """Return a table of Dice by structure, the best of each source first."""
    shown = [n for n in STRUCTURE_ROUNDS if n in summary.rounds]
    heads = " | ".join(f"{n} click{'s' * (n > 1)}" for n in shown)
    lines = [f"| source | structure | targets | {heads} | below .5 |"]
    lines.append("|---" * (len(shown) + 4) + "|")
    for source, structures in sorted(summary.by_structure.items()):
        for structure in sorted(structures, key=lambda name: -structures[name][-1]):
            last = [
                target["dice"][-1]
                for target in targets
                if target["case"].split("__")[0] == source and target["structure"] == structure
            ]
            dice = [share(structures[structure][summary.rounds.index(n)]) for n in shown]
            failed = sum(value < FAILURE_DICE for value in last)
            cells = [source, structure.replace("_", " "), str(len(last)), *dice, str(failed)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _row(name: str, group: Group, figures: list[str], *, bold: bool = False) -> str:
    mark = "**" if bold else ""
    cells = [f"{mark}{_cell(group, figure)}{mark}" for figure in figures]
    return "| " + " | ".join([f"{mark}{name}{mark}", *cells]) + " |"


def _cell(group: Group, figure: str) -> str:
    """Return one figure; ``dice@5:interval`` is its interval. A missing figure is "-"."""
    key, _, part = figure.partition(":")
    found = group.estimates.get(key)
    if found is None or found.value is None or found.low is None or found.high is None:
        return MISSING
    if part == "interval":
        low, high = _written(key, found.low), _written(key, found.high)
        return MISSING if found.low == found.high else f"{low} to {high}"
    return _written(key, found.value)


def _written(figure: str, value: float) -> str:
    is_share = figure.startswith(("dice@", "nsd_", "below_half")) or figure.endswith("_failed")
    return share(value) if is_share else f"{value:.1f}"


def _fill(paragraph: str, folder: Path) -> str:
    def number(match: re.Match[str]) -> str:
        file, keys, form = match.groups()
        found: Any = read_json(folder / file)
        try:
            value: Any = reduce(lambda held, key: held[_index(held, key)], keys.split("."), found)
            return share(value) if form == "share" else format(value, form)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DatasetError(f"{match.group()} cannot be filled in ({error!r}).") from error

    return _PLACEHOLDER.sub(number, paragraph)


def _wrapped(paragraph: str) -> str:
    return textwrap.fill(paragraph, 100, break_long_words=False, break_on_hyphens=False)


def _index(held: Any, key: str) -> str | int:
    return int(key) if isinstance(held, list) else key
