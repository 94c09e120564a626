"""The figures of one evaluation, as they go into ``summary.json`` and every table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsam3d.errors import DatasetError
from fastsam3d.eval.curves import (
    BOX_ROUND,
    FAILURE_DICE,
    NOC_THRESHOLDS,
    WORSE_BY,
    Curves,
    arrange,
    figures,
)
from fastsam3d.eval.metrics import challenge_nsd, trapezoid_area
from fastsam3d.eval.statistics import (
    INTERVAL_PERCENT,
    Estimate,
    Macro,
    Place,
    estimate,
    macro_with_bootstrap,
    rank_correlation,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fastsam3d.eval.groups import SeenGroups
    from fastsam3d.eval.results import ResultRow
    from fastsam3d.eval.statistics import Floats

SUMMARY_FORMAT = 1
WORST_DECILE_PERCENT = 10


@dataclass(frozen=True, kw_only=True)
class Group:
    """Figures of some of the targets.

    Attributes:
        num_targets: How many there are.
        num_subjects: Of how many people.
        estimates: Macro mean and interval per figure, named as by `fastsam3d.eval.curves.figures`.
    """

    num_targets: int
    num_subjects: int
    estimates: dict[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Figures of one evaluation; means are over targets, then structures, then sources.

    Attributes:
        rounds: 1, 2, ... for clicks; a 0 in front stands for the round of a box.
        macro: Dice after each round.
        interval: 95 % bootstrap interval of each entry of `macro`, subjects redrawn within sources.
        by_source: Dice after each round per source.
        interval_by_source: Their intervals.
        by_structure: The same per source and structure.
        overall: All figures over all targets.
        sources: All figures per source.
        groups: All figures of seen and unseen sources and structures; empty without a table.
        failures: Share of all targets below `FAILURE_DICE` after the last round.
        worse_clicks: Share of prompts after a target's first that lowered Dice by more than
            `WORSE_BY`; 0 if there are none.
        noc_failures: Per threshold, the share of all targets that never reached it.
        undefined_hd95: Share of all targets without a surface distance after the last round.
        quality_correlation: Spearman's, of predicted quality and Dice over all prompted rounds;
            None where the quality is constant.
        timing_ms: "encode" (rounds that encoded) and "click" (rounds with a prompt), each with
            "p50" and "p95"; None where there are none.
        seeds: Only for several seeds, of the last Dice: "macro" per seed; "mean" and
            "worst_decile", macro means of each target's mean and 10th percentile over the seeds.
        challenge: Only for a box and two clicks or more: the CVPR 2025 challenge's own figures,
            means over cases.
        bootstrap: Draws and seed.
    """

    rounds: list[int]
    macro: list[float]
    interval: list[tuple[float, float]]
    by_source: dict[str, list[float]]
    interval_by_source: dict[str, list[tuple[float, float]]]
    by_structure: dict[str, dict[str, list[float]]]
    overall: Group
    sources: dict[str, Group]
    groups: dict[str, Group]
    failures: float
    worse_clicks: float
    noc_failures: dict[str, float]
    undefined_hd95: float
    quality_correlation: float | None
    timing_ms: dict[str, dict[str, float] | None]
    seeds: dict[str, Any] | None
    challenge: dict[str, Any] | None
    bootstrap: dict[str, int]

    @property
    def num_targets(self) -> dict[str, int]:
        """Targets per source."""
        return {source: of.num_targets for source, of in self.sources.items()}


def summarise(
    rows: Sequence[ResultRow], *, seed: int = 0, groups: SeenGroups | None = None
) -> Summary:
    """Compute all figures.

    Args:
        rows: Every target with the same rounds.
        seed: Of the bootstrap.
        groups: Which sources and structures were seen in training.

    Raises:
        DatasetError: There are no rows, or targets differ in their rounds.
    """
    curves = arrange(rows)
    named = figures(curves)
    # Dice after every round comes first, so that one bootstrap serves curves and figures alike.
    dice, names = curves.scores["dice"], list(named)
    values = np.column_stack([dice, *named.values()])
    whole = macro_with_bootstrap(curves.places, values, seed=seed)
    num_rounds = len(curves.rounds)
    steps = np.diff(dice, axis=1)[curves.prompted[:, 1:]]
    return Summary(
        rounds=curves.rounds,
        macro=_floats(whole.macro[:num_rounds]),
        interval=_intervals(whole.draws[:, :num_rounds]),
        by_source={s: _floats(m[:num_rounds]) for s, m in whole.by_source.items()},
        interval_by_source={
            s: _intervals(draws[:, :num_rounds]) for s, draws in whole.draws_by_source.items()
        },
        by_structure={
            s: {name: _floats(m[:num_rounds]) for name, m in of.items()}
            for s, of in whole.by_structure.items()
        },
        overall=_group(curves.places, whole.macro, whole.draws, names),
        sources=_source_groups(curves.places, whole, names),
        groups=_seen_groups(curves.places, values, names, groups, seed),
        failures=float((dice[:, -1] < FAILURE_DICE).mean()),
        worse_clicks=float((steps < -WORSE_BY).mean()) if steps.size else 0.0,
        noc_failures={
            f"noc{threshold * 100:.0f}": float(named[f"noc{threshold * 100:.0f}_failed"].mean())
            for threshold in NOC_THRESHOLDS
            if curves.num_clicks
        },
        undefined_hd95=float(np.isnan(curves.scores["hd95_mm"][:, -1]).mean()),
        quality_correlation=_quality_correlation(rows),
        timing_ms={
            "encode": _quantiles([row.encode_ms for row in rows if row.encode_ms > 0]),
            "click": _quantiles([row.click_ms for row in rows if row.prompt != "none"]),
        },
        seeds=_seed_spread(curves),
        challenge=_challenge(rows)
        if BOX_ROUND in curves.rounds and curves.num_clicks > 1
        else None,
        bootstrap={"draws": len(whole.draws), "seed": seed},
    )


def summary_to_json(summary: Summary) -> dict[str, Any]:
    """Return the content of ``summary.json``."""
    return {"format": SUMMARY_FORMAT, **asdict(summary)}


def summary_from_json(content: dict[str, Any]) -> Summary:
    """Make a summary of what `summary_to_json` returned.

    Raises:
        DatasetError: Another format, or something is missing.
    """
    if content.get("format") != SUMMARY_FORMAT:
        raise DatasetError(
            f"This summary has format {content.get('format')}, not {SUMMARY_FORMAT}; "
            "summarise the evaluation again."
        )
    given = {name: value for name, value in content.items() if name != "format"}
    try:
        given["interval"] = _pairs(given["interval"])
        given["interval_by_source"] = {s: _pairs(p) for s, p in given["interval_by_source"].items()}
        given["overall"] = _group_from_json(given["overall"])
        for name in ("sources", "groups"):
            given[name] = {key: _group_from_json(of) for key, of in given[name].items()}
        return Summary(**given)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"This summary is incomplete ({error}); make it again.") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def table(summary: Summary) -> str:
    """Return the figures as text: one line per source and the macro mean, Dice per round."""
    heads = ["box" if number == BOX_ROUND else f"@{number}" for number in summary.rounds]
    lines = [f"{'source':<20}{'targets':>8}" + "".join(f"{head:>8}" for head in heads)]
    for source, curve in summary.by_source.items():
        cells = "".join(f"{value:8.3f}" for value in curve)
        lines.append(f"{source:<20}{summary.num_targets[source]:>8}{cells}")
    total = summary.overall.num_targets
    lines.append(f"{'macro':<20}{total:>8}" + "".join(f"{v:8.3f}" for v in summary.macro))
    low = "".join(f"{a:8.3f}" for a, _ in summary.interval)
    high = "".join(f"{b:8.3f}" for _, b in summary.interval)
    lines += [f"{'  95 % from':<28}{low}", f"{'  to':<28}{high}"]
    encode, click = (summary.timing_ms[name] or {"p50": 0.0} for name in ("encode", "click"))
    lines.append(
        f"below {FAILURE_DICE} after the last click: {summary.failures:.1%}; "
        f"clicks that lowered Dice by more than {WORSE_BY}: {summary.worse_clicks:.1%}; "
        f"median encode {encode['p50']:.0f} ms, click {click['p50']:.0f} ms"
    )
    return "\n".join(lines)


def _group(places: Sequence[Place], means: Floats, draws: Floats, names: list[str]) -> Group:
    """Make a group of the last columns, which are the named figures."""
    skip = len(means) - len(names)
    return Group(
        num_targets=len(places),
        num_subjects=len({(place.source, place.subject) for place in places}),
        estimates={
            name: estimate(float(means[skip + n]), draws[:, skip + n])
            for n, name in enumerate(names)
        },
    )


def _source_groups(places: Sequence[Place], whole: Macro, names: list[str]) -> dict[str, Group]:
    return {
        source: _group(
            [place for place in places if place.source == source],
            means,
            whole.draws_by_source[source],
            names,
        )
        for source, means in whole.by_source.items()
    }


def _seen_groups(
    places: Sequence[Place],
    values: Floats,
    names: list[str],
    groups: SeenGroups | None,
    seed: int,
) -> dict[str, Group]:
    if groups is None:
        return {}
    belongs = [groups.of(place.source, place.structure) for place in places]
    result: dict[str, Group] = {}
    for name in sorted({name for pair in belongs for name in pair}):
        chosen = np.array([name in pair for pair in belongs])
        own = [place for place, is_chosen in zip(places, chosen, strict=True) if is_chosen]
        found = macro_with_bootstrap(own, values[chosen], seed=seed)
        result[name] = _group(own, found.macro, found.draws, names)
    return result


def _quality_correlation(rows: Sequence[ResultRow]) -> float | None:
    pairs = np.array([(row.quality, row.dice) for row in rows if row.prompt != "none"])
    return rank_correlation(pairs[:, 0], pairs[:, 1]) if len(pairs) else None


def _quantiles(times_ms: list[float]) -> dict[str, float] | None:
    if not times_ms:
        return None
    p50, p95 = np.percentile(times_ms, [50, 95])
    return {"p50": float(p50), "p95": float(p95)}


def _seed_spread(curves: Curves) -> dict[str, Any] | None:
    """Return how much the last Dice depends on the simulated user."""
    seeds = sorted({seed for *_, seed in curves.targets})
    if len(seeds) < 2:
        return None
    last = curves.scores["dice"][:, -1]
    by_target: dict[tuple[str, int, int], list[int]] = {}
    for number, (case, label, component, _) in enumerate(curves.targets):
        by_target.setdefault((case, label, component), []).append(number)
    places = [curves.places[numbers[0]] for numbers in by_target.values()]
    spread = [
        (last[of].mean(), np.percentile(last[of], WORST_DECILE_PERCENT))
        for of in by_target.values()
    ]
    mean, worst = _macro_only(places, np.array(spread))
    of_seed = np.array([seed for *_, seed in curves.targets])
    per_seed = {
        str(seed): _macro_only(
            [p for p, s in zip(curves.places, of_seed, strict=True) if s == seed],
            last[of_seed == seed][:, None],
        )[0]
        for seed in seeds
    }
    return {"macro": per_seed, "mean": mean, "worst_decile": worst}


def _macro_only(places: Sequence[Place], values: Floats) -> list[float]:
    return _floats(macro_with_bootstrap(places, values, draws=1).macro)


def _challenge(rows: Sequence[ResultRow]) -> dict[str, Any]:
    """Return the challenge's figures: classes are averaged within a case, cases within all."""
    cases: dict[tuple[str, str, int], dict[int, list[ResultRow]]] = {}
    for row in rows:
        of = cases.setdefault((row.source, row.case, row.seed), {})
        of.setdefault(row.round, []).append(row)
    found: dict[str, list[list[float]]] = {}
    for (source, _, _), rounds in cases.items():
        dsc, nsd = zip(
            *(_challenge_round(rounds[number]) for number in sorted(rounds)), strict=True
        )
        clicked = slice(1, None)  # the area leaves the box out, as boxes are optional there
        areas = [trapezoid_area(dsc[clicked]), trapezoid_area(nsd[clicked])]
        found.setdefault(source, []).append([*areas, dsc[-1], nsd[-1]])
    names = ("dsc_auc", "nsd_auc", "dsc_final", "nsd_final")

    def means(cases_of: list[list[float]]) -> dict[str, float]:
        return dict(zip(names, _floats(np.mean(cases_of, axis=0)), strict=True))

    every = [case for of in found.values() for case in of]
    return {
        "num_cases": len(every),
        **means(every),
        "by_source": {source: means(of) for source, of in found.items()},
    }


def _challenge_round(rows: Sequence[ResultRow]) -> tuple[float, float]:
    dsc = float(np.mean([row.dice for row in rows]))
    return dsc, challenge_nsd(dsc, float(np.mean([row.nsd_2mm for row in rows])))


def _group_from_json(content: dict[str, Any]) -> Group:
    estimates = {name: Estimate(**of) for name, of in content["estimates"].items()}
    return Group(
        num_targets=content["num_targets"],
        num_subjects=content["num_subjects"],
        estimates=estimates,
    )


def _pairs(content: list[list[float]]) -> list[tuple[float, float]]:
    return [(low, high) for low, high in content]


def _intervals(draws: Floats) -> list[tuple[float, float]]:
    low, high = np.percentile(draws, INTERVAL_PERCENT, axis=0)
    return list(zip(_floats(low), _floats(high), strict=True))


def _floats(values: Floats) -> list[float]:
    return [float(value) for value in values]
