"""The report of an evaluation: one HTML page that needs nothing else, and its pictures as files."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from fastsam3d.eval import report_page, report_plots
from fastsam3d.eval.evaluation import CASES_FILE
from fastsam3d.eval.outputs import read_output
from fastsam3d.eval.results import read_json_lines
from fastsam3d.eval.snapshot import load_snapshot, snapshot_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fastsam3d.eval.results import ResultRow, Target
    from fastsam3d.eval.snapshot import Snapshot
    from fastsam3d.eval.summary import Summary

SNAPSHOT_FOLDER = "snapshots"
REPORT_FILE = "report.html"
OVERLAYS_PER_RANK = 3


def write_report(output_dir: Path) -> Path:
    """Write ``report.html``, ``curves.png``, ``distribution.png`` and ``montage.png``.

    Args:
        output_dir: Holds ``results.jsonl``, ``summary.json``, ``run.json`` and, where the
            evaluation kept them, ``snapshots/``.

    Returns:
        The path of the page. It makes no request: pictures and styles are inside.

    Raises:
        DatasetError: A file is missing or damaged.
        ConfigError: matplotlib or Jinja2 is not installed.
    """
    record, rows = read_output(output_dir)
    run, summary = record.run, record.summary
    last = last_rows(rows)
    ranked = rank_targets(last)
    snapshots = _snapshots(output_dir / SNAPSHOT_FOLDER, ranked)
    pictures = _pictures(summary, last, ranked, snapshots)
    for name, figure in pictures.items():
        if record.is_oracle:
            report_plots.mark(figure, "oracle upper bound")
        _replace(output_dir / name, report_plots.to_png(figure))
    columns = report_page.main_columns(summary)
    heads, structures = report_page.structure_tables(summary)
    light_or_dark = report_plots.THEMED
    curves = report_plots.draw_curves(summary, light_or_dark)
    spread = report_plots.draw_distribution(_dice_by_source(last), light_or_dark)
    page = report_page.render_page(
        {
            **report_page.head_of_page(run, summary),
            "columns": [column.head for column in columns],
            "main_rows": report_page.main_rows(summary, columns),
            "curves_svg": report_page.safe(report_plots.to_svg(curves, "curves")),
            "distribution_svg": report_page.safe(report_plots.to_svg(spread, "distribution")),
            "reliability": report_page.reliability(summary),
            "montage": _montage(ranked, snapshots),
            "truth_colour": report_plots.TRUTH_COLOUR,
            "mask_colour": report_plots.MASK_COLOUR,
            "structure_columns": heads,
            "structures": structures,
            "failures": report_page.failure_rows(last),
            "skipped": _skipped(output_dir / CASES_FILE),
            "facts": list(report_page.run_facts(run)),
            "definitions": report_page.DEFINITIONS,
        }
    )
    path = output_dir / REPORT_FILE
    _replace(path, page.encode())
    return path


def last_rows(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Return the last round of every target, in the order of their first rows."""
    found: dict[Target, ResultRow] = {}
    for row in rows:
        before = found.get(row.target)
        if before is None or row.round > before.round:
            found[row.target] = row
    return list(found.values())


def rank_targets(last: Sequence[ResultRow]) -> dict[str, list[ResultRow]]:
    """Choose targets by the rank of their Dice alone; names break ties.

    Args:
        last: The last row of every target.

    Returns:
        "best", "median" and "worst", up to `OVERLAYS_PER_RANK` each, none twice; with few targets
        the worst come first, then the best.
    """
    ordered = sorted(last, key=lambda row: (row.dice, row.target))
    share = min(OVERLAYS_PER_RANK, -(-len(ordered) // 3))
    worst = ordered[:share]
    best = ordered[max(share, len(ordered) - share) :]
    between = ordered[len(worst) : len(ordered) - len(best)]
    start = max(0, (len(between) - share) // 2)
    return {"best": best[::-1], "median": between[start : start + share], "worst": worst}


def _skipped(path: Path) -> list[dict[str, str]]:
    """Return the cases that could not be read, with their reasons."""
    lines = read_json_lines(path)
    return [
        {"case": str(line["case"]), "reason": str(line["skipped"])}
        for line in lines
        if line["skipped"] is not None
    ]


def _snapshots(folder: Path, ranked: dict[str, list[ResultRow]]) -> dict[Target, Snapshot]:
    chosen = [row.target for rows in ranked.values() for row in rows]
    paths = {target: folder / snapshot_name(target) for target in chosen}
    return {target: load_snapshot(path) for target, path in paths.items() if path.is_file()}


def _montage(
    ranked: dict[str, list[ResultRow]], snapshots: dict[Target, Snapshot]
) -> list[dict[str, Any]]:
    return [
        {"title": title.capitalize(), "overlays": [_overlay(row, snapshots) for row in rows]}
        for title, rows in ranked.items()
        if rows
    ]


def _overlay(row: ResultRow, snapshots: dict[Target, Snapshot]) -> dict[str, str]:
    image = ""
    if row.target in snapshots:
        figure = report_plots.draw_overlay(snapshots[row.target], report_plots.LIGHT)
        png = report_plots.to_png(figure, for_page=True)
        image = "data:image/png;base64," + base64.b64encode(png).decode()
    facts = f"Dice {row.dice:.2f}, NSD 2 mm {row.nsd_2mm:.2f}, {row.truth_ml:.3g} ml"
    structure = f"{row.structure}{report_page.target_suffix(row)}"
    return {"image": image, "case": row.case, "structure": structure, "facts": facts}


def _pictures(
    summary: Summary,
    last: Sequence[ResultRow],
    ranked: dict[str, list[ResultRow]],
    snapshots: dict[Target, Snapshot],
) -> dict[str, Any]:
    figures = {
        "curves.png": report_plots.draw_curves(summary, report_plots.LIGHT),
        "distribution.png": report_plots.draw_distribution(
            _dice_by_source(last), report_plots.LIGHT
        ),
    }
    rows = [
        (
            title,
            [
                (f"{row.structure}, {row.case}, Dice {row.dice:.2f}", snapshots[row.target])
                for row in chosen
                if row.target in snapshots
            ],
        )
        for title, chosen in ranked.items()
    ]
    rows = [(title, overlays) for title, overlays in rows if overlays]
    if rows:
        figures["montage.png"] = report_plots.draw_montage(rows)
    return figures


def _dice_by_source(last: Sequence[ResultRow]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in last:
        found.setdefault(row.source, []).append(row.dice)
    return found


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(content)
    partial.replace(path)
