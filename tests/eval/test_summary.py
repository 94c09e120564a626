"""Every figure of a summary on rows whose answer can be worked out by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastsam3d.errors import DatasetError
from fastsam3d.eval.groups import SeenGroups, read_groups
from fastsam3d.eval.summary import (
    summarise,
    summary_from_json,
    summary_to_json,
    table,
    write_json,
)
from tests.eval.rows import curve

ROWS = [
    *curve("a__1", "liver", 0.8, 0.9),
    *curve("a__2", "liver", 0.6, 0.7),
    *curve("a__1", "spleen", 0.1, 0.2),
    *curve("b__1", "tumour", 0.5, 0.4),
]


def test_macro_is_over_targets_then_structures_then_sources() -> None:
    summary = summarise(ROWS)

    assert summary.by_source["a"] == pytest.approx([(0.7 + 0.1) / 2, (0.8 + 0.2) / 2])
    assert summary.by_source["b"] == pytest.approx([0.5, 0.4])
    assert summary.macro == pytest.approx([0.45, 0.45])
    assert summary.by_structure["a"]["liver"] == pytest.approx([0.7, 0.8])
    assert summary.num_targets == {"a": 3, "b": 1}
    assert summary.overall.num_subjects == 3
    assert summary.overall.estimates["dice@2"].value == pytest.approx(0.45)
    assert summary.sources["a"].estimates["nsd_1mm@2"].value == pytest.approx(0.25)


def test_failures_and_harmful_clicks_are_counted_and_the_last_click_decides() -> None:
    summary = summarise(ROWS)

    assert summary.failures == pytest.approx(2 / 4)
    assert summary.worse_clicks == pytest.approx(1 / 4)
    assert summary.timing_ms["encode"] == {"p50": 100.0, "p95": 100.0}
    assert summary.timing_ms["click"]["p50"] == pytest.approx(25.0)


def test_rounds_without_a_prompt_are_no_clicks() -> None:
    idle = [replace(row, prompt="none", click_ms=0.0) for row in curve("a__1", "x", 1.0, 1.0)[1:]]
    summary = summarise([*curve("a__1", "x", 1.0), *idle, *curve("a__1", "y", 0.5, 0.4)])

    assert summary.worse_clicks == 1.0
    assert summary.timing_ms["click"]["p50"] == pytest.approx(20.0)


def test_clicks_to_a_threshold_are_counted_and_failures_apart() -> None:
    rows = [
        *curve("a__1", "x", 0.5, 0.81, 0.7),  # two clicks to .80, never to .85
        *curve("a__1", "y", 0.9, 0.9, 0.9),  # one click to all
    ]
    summary = summarise(rows)
    estimates = summary.overall.estimates

    assert estimates["noc80"].value == pytest.approx((2 + 1) / 2)
    assert estimates["noc85"].value == pytest.approx((3 + 1) / 2)
    assert estimates["noc90"].value == pytest.approx((3 + 1) / 2)
    assert summary.noc_failures == {"noc80": 0.0, "noc85": 0.5, "noc90": 0.5}


def test_the_number_of_clicks_is_capped_at_twenty() -> None:
    late = [0.1] * 21 + [0.95]
    estimates = summarise(curve("a__1", "x", *late)).overall.estimates

    assert estimates["noc80"].value == 20
    assert estimates["noc80_failed"].value == 1
    assert estimates["dice@10"].value == pytest.approx(0.1)
    assert estimates["dice@22"].value == pytest.approx(0.95)


def test_areas_are_trapezoids_over_clicks() -> None:
    estimates = summarise(curve("a__1", "x", 0.0, 0.5, 1.0, 1.0, 1.0)).overall.estimates

    assert estimates["auc_dice"].value == pytest.approx(0.25 + 0.75 + 1 + 1)
    assert "auc_dice" not in summarise(curve("a__1", "x", 0.3)).overall.estimates


def test_an_undefined_distance_is_left_out_and_counted() -> None:
    summary = summarise([*curve("a__1", "x", 0.0), *curve("a__1", "y", 0.9)])

    assert summary.overall.estimates["hd95_mm@1"].value == pytest.approx(1.0)
    assert summary.undefined_hd95 == 0.5
    nothing = summarise(curve("a__1", "x", 0.0)).overall.estimates["hd95_mm@1"]
    assert (nothing.value, nothing.low, nothing.high) == (None, None, None)


def test_quality_is_ranked_against_dice() -> None:
    assert summarise(ROWS).quality_correlation == pytest.approx(1.0)
    assert summarise(curve("a__1", "x", 0.3, 0.6, quality=0.0)).quality_correlation is None


def test_the_interval_holds_the_mean_and_repeats_with_the_seed() -> None:
    summary = summarise(ROWS, seed=3)

    for (low, high), mean in zip(summary.interval, summary.macro, strict=True):
        assert low <= mean <= high
    assert summary == summarise(ROWS, seed=3)
    assert summary.bootstrap == {"draws": 2000, "seed": 3}


def test_a_box_round_is_no_click_and_brings_the_figures_of_the_challenge() -> None:
    rows = [
        *curve("a__1", "x", 0.9, 0.1, 0.3, 0.5, 0.7, 0.9, first_round=0),
        *curve("a__1", "y", 0.9, 0.1, 0.1, 0.5, 0.7, 0.7, first_round=0),
    ]
    summary = summarise(rows)
    estimates = summary.overall.estimates

    assert summary.rounds == [0, 1, 2, 3, 4, 5]
    assert estimates["dice@box"].value == pytest.approx(0.9)
    assert estimates["noc80"].value == pytest.approx((5 + 5) / 2)
    assert summary.challenge is not None
    # Means over the classes: .1, .2, .5, .7, .8; surfaces count only above .2.
    assert summary.challenge["dsc_auc"] == pytest.approx(0.15 + 0.35 + 0.6 + 0.75)
    assert summary.challenge["nsd_auc"] == pytest.approx(0.0 + 0.25 + 0.6 + 0.75)
    assert summary.challenge["dsc_final"] == pytest.approx(0.8)
    assert summary.challenge["num_cases"] == 1
    assert summarise(ROWS).challenge is None


def test_several_seeds_give_mean_and_worst_decile() -> None:
    values = [0.5, 0.6, 0.7, 0.8, 0.9]
    rows = [r for seed, v in enumerate(values) for r in curve("a__1", "x", v, seed=seed)]
    seeds = summarise(rows).seeds

    assert seeds is not None
    assert seeds["macro"] == pytest.approx(dict(zip("01234", values, strict=True)))
    assert seeds["mean"] == pytest.approx(0.7)
    assert seeds["worst_decile"] == pytest.approx(np.percentile(values, 10))
    assert summarise(ROWS).seeds is None


def test_groups_follow_the_table_of_what_was_seen(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text(
        "source,structure,source_seen,structure_seen,note\n"
        "a,*,yes,no,other people\na,liver,yes,yes,\n"
    )
    groups = summarise(ROWS, groups=read_groups(path)).groups

    assert {name: of.num_targets for name, of in groups.items()} == {
        "source not listed": 1,
        "source seen": 3,
        "structure not listed": 1,
        "structure seen": 2,
        "structure unseen": 1,
    }
    assert groups["structure seen"].estimates["dice@2"].value == pytest.approx(0.8)
    assert summarise(ROWS).groups == {}


@pytest.mark.parametrize("line", ["a,*,maybe,no", "a,,yes,no", "a,*,yes"])
def test_a_table_that_cannot_be_understood_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "groups.csv"
    path.write_text(f"source,structure,source_seen,structure_seen\n{line}\n")
    with pytest.raises(DatasetError, match="line 2 must have"):
        read_groups(path)
    with pytest.raises(DatasetError, match="give a CSV"):
        read_groups(tmp_path / "absent.csv")


def test_an_exact_rule_comes_before_the_rule_for_all() -> None:
    groups = SeenGroups(rules={("a", "*"): ("seen", "unseen"), ("a", "x"): ("seen", "seen")})

    assert groups.of("a", "x") == ("source seen", "structure seen")
    assert groups.of("a", "y") == ("source seen", "structure unseen")


def test_targets_with_unequal_numbers_of_clicks_are_refused() -> None:
    with pytest.raises(DatasetError, match="common number"):
        summarise([*ROWS, *curve("c__1", "x", 0.5)])
    with pytest.raises(DatasetError, match="no rows"):
        summarise([])


def test_a_summary_survives_the_disk(tmp_path: Path) -> None:
    summary = summarise(ROWS, groups=SeenGroups(rules={}))
    path = tmp_path / "out" / "summary.json"
    write_json(path, summary_to_json(summary))

    assert summary_from_json(json.loads(path.read_text())) == summary
    assert [p.name for p in path.parent.iterdir()] == ["summary.json"]
    with pytest.raises(DatasetError, match="format None"):
        summary_from_json({})
    with pytest.raises(DatasetError, match="incomplete"):
        summary_from_json({"format": 1})


def test_the_table_names_sources_and_rounds() -> None:
    lines = table(summarise(ROWS)).splitlines()

    assert [line.split()[0] for line in lines[:4]] == ["source", "a", "b", "macro"]
    assert lines[0].split()[-2:] == ["@1", "@2"]
    assert "50.0%" in lines[-1]
