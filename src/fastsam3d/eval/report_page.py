"""The words and numbers of a report: what every table of the page holds, ready to be shown."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastsam3d.errors import ConfigError
from fastsam3d.eval.curves import FAILURE_DICE, NOC_CAP, WORSE_BY
from fastsam3d.eval.outputs import model_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastsam3d.eval.results import ResultRow
    from fastsam3d.eval.statistics import Estimate
    from fastsam3d.eval.summary import Group, Summary

TEMPLATE = Path(__file__).with_name("report_page.html")
ORACLE = (
    "Oracle upper bound: this protocol uses the truth for more than the places of clicks, so no "
    "user gets these figures. They are for comparison with published ones only."
)
UNKNOWN = "-"

DEFINITIONS = (
    ("Dice", "Shared volume over mean volume; 1 if both masks are empty, 0 if one is."),
    (
        "NSD 1 mm, 2 mm",
        "Share of both surfaces, by area, that lies within the tolerance of the other; surface "
        "elements and areas as in google-deepmind/surface-distance. 1 if both are empty, 0 if one "
        "is.",
    ),
    (
        "HD95",
        "The larger of the two distances within which 95 % of one surface's area lies from the "
        "other; undefined, and left out, where one mask is empty.",
    ),
    (
        "AUC",
        "Area under the figure over clicks 1, 2, … by trapezoid; at most the number of clicks "
        "less one, 4 for five clicks.",
    ),
    (
        "NoC@80, 85, 90",
        "Clicks until Dice first reaches .80, .85, .90; a target that never does counts with the "
        f"number of clicks made, {NOC_CAP} at most, and as a failure.",
    ),
    (
        "Interval",
        "2.5th to 97.5th percentile of the figure over redrawn subjects; all targets of a subject "
        "stay together, sources keep their numbers of subjects.",
    ),
    ("Results", "Masks on the file's own voxel grid; the last result counts unless stated."),
)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the main table."""

    head: str
    figure: str
    decimals: int = 2


def render_page(context: dict[str, Any]) -> str:
    """Fill the page; every value is escaped unless it is marked as safe.

    Raises:
        ConfigError: Jinja2 is not installed.
    """
    try:
        jinja2: Any = import_module("jinja2")
    except ImportError as error:
        raise ConfigError(
            'The report needs matplotlib and Jinja2; run pip install "fastsam3d[eval]".'
        ) from error
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    return str(environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(context))


def safe(markup: str) -> Any:
    """Mark markup that we drew ourselves as not to be escaped."""
    return import_module("markupsafe").Markup(markup)


def head_of_page(run: dict[str, Any], summary: Summary) -> dict[str, Any]:
    """Return title, protocol, warning and the key figures."""
    protocol = run["protocol"]
    overall = summary.overall
    seeds = f", {len(summary.seeds['macro'])} simulated users" if summary.seeds else ""
    last = summary.rounds[-1]
    click = summary.timing_ms["click"]
    tiles = [(f"Dice@{n}", shown(overall.estimates.get(f"dice@{n}"))) for n in (1, 3, 5)]
    tiles = [tile for tile in tiles if tile[1] != UNKNOWN]
    if last not in {1, 3, 5}:
        tiles.append((f"Dice@{last}", shown(overall.estimates[f"dice@{last}"])))
    tiles += [
        (f"NSD 2 mm@{last}", shown(overall.estimates[f"nsd_2mm@{last}"])),
        ("targets below .5", f"{summary.failures:.0%}"),
        ("median click", f"{click['p50']:.0f} ms" if click else UNKNOWN),
    ]
    return {
        "title": model_name(run),
        "protocol_label": protocol["label"],
        "oracle": ORACLE if protocol["is_oracle"] else "",
        "size": (
            f"{overall.num_targets} targets of {overall.num_subjects} subjects from "
            f"{len(summary.sources)} source{'' if len(summary.sources) == 1 else 's'}{seeds}"
        ),
        "tiles": [{"name": name, "value": value} for name, value in tiles],
        "draws": f"{summary.bootstrap['draws']:,}",
    }


def main_columns(summary: Summary) -> list[Column]:
    """Return the figures that the evaluation has, in the order of the table."""
    last = summary.rounds[-1]
    estimates = summary.overall.estimates
    dice = [name for name in estimates if name.startswith("dice@")]
    wanted = [Column(head=name.replace("dice", "Dice"), figure=name) for name in dice]
    wanted += [
        Column(head=f"NSD 1 mm@{last}", figure=f"nsd_1mm@{last}"),
        Column(head=f"NSD 2 mm@{last}", figure=f"nsd_2mm@{last}"),
        Column(head=f"HD95@{last}, mm", figure=f"hd95_mm@{last}", decimals=1),
        Column(head="AUC Dice", figure="auc_dice"),
        *(Column(head=f"NoC@{n}", figure=f"noc{n}", decimals=1) for n in (80, 85, 90)),
    ]
    return [column for column in wanted if column.figure in estimates]


def main_rows(summary: Summary, columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Return the rows of the main table: all, every source, seen and unseen groups."""

    def row(name: str, group: Group, *, is_all: bool = False) -> dict[str, Any]:
        cells = [
            {
                "value": shown(group.estimates.get(c.figure), c.decimals),
                "interval": span(group.estimates.get(c.figure), c.decimals),
            }
            for c in columns
        ]
        return {
            "name": name,
            "targets": group.num_targets,
            "subjects": group.num_subjects,
            "cells": cells,
            "is_all": is_all,
        }

    rows = [row("all sources", summary.overall, is_all=True)]
    rows += [row(name, group) for name, group in summary.sources.items()]
    if summary.groups:
        rows.append({"heading": "what training has seen"})
        rows += [row(name, group) for name, group in summary.groups.items()]
    return rows


def reliability(summary: Summary) -> list[dict[str, str]]:
    """Return the figures that are no means of targets."""
    rows = [
        ("targets below .5", f"{summary.failures:.1%}", "after the last click, of all targets"),
        (
            "clicks that lowered Dice",
            f"{summary.worse_clicks:.1%}",
            f"by more than {WORSE_BY}, of all prompts after a target's first",
        ),
    ]
    rows += [
        (f"never reached .{name[3:]}", f"{share:.1%}", "of all targets")
        for name, share in summary.noc_failures.items()
    ]
    correlation = summary.quality_correlation
    rows += [
        ("without HD95", f"{summary.undefined_hd95:.1%}", "one mask was empty at the end"),
        (
            "predicted quality",
            UNKNOWN if correlation is None else f"{correlation:.2f}",
            "Spearman's correlation with Dice over all prompts",
        ),
    ]
    for name, note in (("encode", "prompts that encoded"), ("click", "the rest of every prompt")):
        times = summary.timing_ms[name]
        value = f"{times['p50']:.0f} / {times['p95']:.0f} ms" if times else UNKNOWN
        rows.append((f"{name}, p50 / p95", value, note))
    rows += _seed_rows(summary) + _challenge_rows(summary)
    return [{"name": name, "value": value, "note": note} for name, value, note in rows]


def structure_tables(summary: Summary) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the heads and, per source, the rows of the table of structures, worst first."""
    heads = ["box" if number == 0 else f"@{number}" for number in summary.rounds]
    tables: list[dict[str, Any]] = []
    for source, curves in summary.by_structure.items():
        rows = [
            {
                "name": name,
                "cells": [f"{value:.2f}" for value in curve],
                "percent": f"{100 * curve[-1]:.1f}",
                "is_bad": curve[-1] < FAILURE_DICE,
            }
            for name, curve in sorted(curves.items(), key=lambda item: item[1][-1])
        ]
        value = f"{summary.by_source[source][-1]:.2f}"
        tables.append({"name": source, "value": value, "rows": rows})
    return heads, tables


def failure_rows(last: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """Return all failed targets, worst first.

    Args:
        last: The last row of every target.
    """
    failed = sorted((row for row in last if row.dice < FAILURE_DICE), key=lambda r: r.dice)
    return [
        {
            "case": row.case,
            "structure": f"{row.structure}{target_suffix(row)}",
            "cells": [
                f"{row.dice:.2f}",
                f"{row.nsd_2mm:.2f}",
                UNKNOWN if row.hd95_mm is None else f"{row.hd95_mm:.1f}",
                f"{row.truth_ml:.3g}",
                f"{row.mask_ml:.3g}",
            ],
        }
        for row in failed
    ]


def target_suffix(row: ResultRow) -> str:
    """Return what tells targets of one structure apart, such as " part 2, user 4"."""
    part = f" part {row.component}" if row.component else ""
    return part + (f", user {row.seed}" if row.seed else "")


def run_facts(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Return the facts of a run as flat pairs; nested names are joined by dots."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from run_facts(cast("dict[str, Any]", value), f"{prefix}{name}.")
        elif isinstance(value, list) and all(isinstance(v, dict) for v in cast("list[Any]", value)):
            for number, one in enumerate(cast("list[dict[str, Any]]", value)):
                yield from run_facts(one, f"{prefix}{name}.{number}.")
        else:
            text = (
                ", ".join(map(str, cast("list[Any]", value))) if isinstance(value, list) else value
            )
            yield f"{prefix}{name}".replace("_", " "), str(text)


def shown(of: Estimate | None, decimals: int = 2) -> str:
    """Return a mean as text."""
    return UNKNOWN if of is None or of.value is None else f"{of.value:.{decimals}f}"


def span(of: Estimate | None, decimals: int = 2) -> str:
    """Return an interval as text; empty without one, or where no redraw changes anything."""
    if of is None or of.low is None or of.high is None or of.low == of.high:
        return ""
    return f"{of.low:.{decimals}f}\u2013{of.high:.{decimals}f}"


def _seed_rows(summary: Summary) -> list[tuple[str, str, str]]:
    if summary.seeds is None:
        return []
    per_seed = summary.seeds["macro"].values()
    return [
        (
            "simulated users",
            f"{summary.seeds['mean']:.2f}",
            f"mean of the last Dice; {min(per_seed):.2f} to {max(per_seed):.2f} between users",
        ),
        (
            "worst decile of users",
            f"{summary.seeds['worst_decile']:.2f}",
            "last Dice at each target's 10th percentile over users",
        ),
    ]


def _challenge_rows(summary: Summary) -> list[tuple[str, str, str]]:
    if summary.challenge is None:
        return []
    note = f"as the CVPR 2025 challenge computes it, mean of {summary.challenge['num_cases']} cases"
    names = {"dsc_auc": "DSC AUC", "nsd_auc": "NSD AUC", "dsc_final": "DSC", "nsd_final": "NSD"}
    return [
        (f"challenge {name}", f"{summary.challenge[key]:.3f}", note) for key, name in names.items()
    ]
