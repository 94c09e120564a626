"""Turn rows into figures: means over targets, then structures, then sources; JSON and a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsam3d.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fastsam3d.eval.runner import Row

FAILURE_DICE = 0.5
WORSE_BY = 0.01
BOOTSTRAP_DRAWS = 500


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Figures of one evaluation.

    Attributes:
        macro: Dice after click 1, 2, ...: mean over sources of the mean over structures of the
            mean over targets.
        interval: 95 % bootstrap interval of each entry of `macro`, cases redrawn within sources.
        by_source: The same means per source.
        by_structure: The same per source and structure.
        num_targets: Targets per source.
        failures: Share of all targets below `FAILURE_DICE` after the last click.
        worse_clicks: Share of clicks after the first that lowered Dice by more than `WORSE_BY`.
        encode_ms: Median over clicks that encoded.
        click_ms: Median over clicks.
    """

    macro: list[float]
    interval: list[tuple[float, float]]
    by_source: dict[str, list[float]]
    by_structure: dict[str, dict[str, list[float]]]
    num_targets: dict[str, int]
    failures: float
    worse_clicks: float
    encode_ms: float
    click_ms: float


def summarise(rows: Sequence[Row], *, seed: int = 0) -> Summary:
    """Compute all figures.

    Args:
        rows: From `fastsam3d.eval.runner.run`; every target has the same number of clicks.
        seed: Of the bootstrap.

    Raises:
        DatasetError: There are no rows, or targets differ in their numbers of clicks.
    """
    curves = _curves(rows)
    structures = _by_structure(curves)
    by_source = {s: _mean(list(of.values())) for s, of in structures.items()}
    every = np.array([curve for _, _, _, curve in curves])
    steps = np.diff(every, axis=1)
    encoded = [row.encode_ms for row in rows if row.encode_ms > 0]
    clicked = [row.click_ms for row in rows if row.position is not None]
    return Summary(
        macro=_mean(list(by_source.values())),
        interval=_interval(curves, seed),
        by_source=by_source,
        by_structure=structures,
        num_targets={s: sum(c[0] == s for c in curves) for s in by_source},
        failures=float((every[:, -1] < FAILURE_DICE).mean()),
        worse_clicks=float((steps < -WORSE_BY).mean()) if steps.size else 0.0,
        encode_ms=float(np.median(encoded)) if encoded else 0.0,
        click_ms=float(np.median(clicked)) if clicked else 0.0,
    )


def table(summary: Summary) -> str:
    """Return the figures as text: one line per source and the macro mean, Dice per click."""
    clicks = range(1, len(summary.macro) + 1)
    lines = [f"{'source':<20}{'targets':>8}" + "".join(f"{'@' + str(c):>8}" for c in clicks)]
    for source, curve in summary.by_source.items():
        cells = "".join(f"{value:8.3f}" for value in curve)
        lines.append(f"{source:<20}{summary.num_targets[source]:>8}{cells}")
    total = sum(summary.num_targets.values())
    lines.append(f"{'macro':<20}{total:>8}" + "".join(f"{v:8.3f}" for v in summary.macro))
    low = "".join(f"{a:8.3f}" for a, _ in summary.interval)
    high = "".join(f"{b:8.3f}" for _, b in summary.interval)
    lines += [f"{'  95 % from':<28}{low}", f"{'  to':<28}{high}"]
    lines.append(
        f"below {FAILURE_DICE} after the last click: {summary.failures:.1%}; "
        f"clicks that lowered Dice by more than {WORSE_BY}: {summary.worse_clicks:.1%}; "
        f"median encode {summary.encode_ms:.0f} ms, click {summary.click_ms:.0f} ms"
    )
    return "\n".join(lines)


def write_json(
    path: Path, summary: Summary, rows: Sequence[Row], provenance: dict[str, Any]
) -> None:
    """Write everything to a file, whole or not at all.

    Args:
        path: The file; its folder is made.
        summary: The figures.
        rows: Kept in full, so that figures can be recomputed.
        provenance: Command, commit, device, date, seed, model.
    """
    content = {
        "provenance": provenance,
        "summary": asdict(summary),
        "rows": [asdict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(path)


Curve = tuple[str, str, str, list[float]]


def _curves(rows: Sequence[Row]) -> list[Curve]:
    """Return (source, structure, case, Dice per click) of each target."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row.case, row.label), []).append(row)
    lengths = {len(of) for of in found.values()}
    if len(lengths) != 1:
        raise DatasetError(
            f"Targets need one common number of clicks, got {sorted(lengths) or 'no rows'}."
        )
    ordered = [sorted(of, key=lambda row: row.round) for of in found.values()]
    return [(of[0].source, of[0].structure, of[0].case, [r.dice for r in of]) for of in ordered]


def _by_structure(curves: Sequence[Curve]) -> dict[str, dict[str, list[float]]]:
    groups: dict[str, dict[str, list[list[float]]]] = {}
    for source, structure, _, curve in curves:
        groups.setdefault(source, {}).setdefault(structure, []).append(curve)
    return {s: {name: _mean(of) for name, of in names.items()} for s, names in groups.items()}


def _mean(curves: list[list[float]]) -> list[float]:
    return [float(v) for v in np.mean(np.array(curves), axis=0)]


def _macro(curves: Sequence[Curve]) -> list[float]:
    structures = _by_structure(curves)
    return _mean([_mean(list(of.values())) for of in structures.values()])


def _interval(curves: Sequence[Curve], seed: int) -> list[tuple[float, float]]:
    rng = np.random.default_rng(seed)
    cases: dict[str, dict[str, list[Curve]]] = {}
    for curve in curves:
        cases.setdefault(curve[0], {}).setdefault(curve[2], []).append(curve)
    draws: list[list[float]] = []
    for _ in range(BOOTSTRAP_DRAWS):
        drawn: list[Curve] = []
        for of in cases.values():
            groups = list(of.values())
            picks = [int(pick) for pick in rng.integers(len(groups), size=len(groups))]
            drawn.extend(curve for pick in picks for curve in groups[pick])
        draws.append(_macro(drawn))
    low, high = np.percentile(np.array(draws), [2.5, 97.5], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
