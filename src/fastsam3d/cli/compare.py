"""``fastsam3d compare``: is B better than A, target by target."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fastsam3d.cli.usage import Flag

if TYPE_CHECKING:
    from fastsam3d.eval.comparison import Comparison, Difference


def compare(
    a: Path,
    b: Path,
    /,
    *,
    shared: Flag = False,
    json: Flag = False,
) -> None:
    """Compare two evaluations of the same targets: B less A, with 95 % intervals.

    Args:
        a: Output folder of `fastsam3d evaluate`.
        b: Another.
        shared: Compare the targets that both have, in place of refusing runs with others.
        json: Print one JSON object.
    """
    from fastsam3d.eval.comparison import compare_runs

    found = compare_runs(a, b, shared=shared)
    if json:
        print(json_module.dumps(found.to_json()))
        return
    console = Console()
    console.print(f"A: {found.names[0]}\nB: {found.names[1]}", highlight=False, markup=False)
    if found.is_oracle:
        console.print("ORACLE UPPER BOUND: no user gets these figures.", style="bold yellow")
    console.print(overall_table(found))
    console.print(source_table(found))
    if any(found.left_out):
        console.print(f"Left out: {found.left_out[0]} targets of A, {found.left_out[1]} of B.")


def overall_table(found: Comparison) -> Table:
    """Lay out all figures over all targets."""
    table = Table(title=f"All sources, {found.num_targets} targets", title_justify="left")
    for head in ("figure", "A", "B", "B - A", "95 % interval"):
        table.add_column(head, justify="left" if head == "figure" else "right")
    for name, one in found.overall.items():
        table.add_row(name, *_cells(one))
    return table


def source_table(found: Comparison) -> Table:
    """Lay out the last Dice per source."""
    last = [name for name in found.overall if name.startswith("dice@")][-1]
    table = Table(title=f"{last} by source", title_justify="left")
    for head in ("source", "targets", "A", "B", "B - A", "95 % interval"):
        table.add_column(head, justify="left" if head == "source" else "right")
    for source, of in found.sources.items():
        table.add_row(source, str(found.targets_by_source[source]), *_cells(of[last]))
    return table


def _cells(one: Difference) -> tuple[str, ...]:
    by = one.difference
    interval, style = "-", ""
    if by.low is not None and by.high is not None and by.low != by.high:
        interval = f"{by.low:+.3f} to {by.high:+.3f}"
        style = "bold" if by.low > 0 or by.high < 0 else ""
    change = _number(by.value, "+.3f")
    return (
        _number(one.first, ".3f"),
        _number(one.second, ".3f"),
        f"[{style}]{change}[/]" if style else change,
        interval,
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
