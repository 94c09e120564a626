import json
from pathlib import Path

import pytest

from fastsam3d.errors import DatasetError
from fastsam3d.eval.report import summarise, table, write_json
from fastsam3d.eval.runner import Row


def _rows(case: str, structure: str, *curve: float) -> list[Row]:
    return [
        Row(
            case=case,
            source=case.split("__", maxsplit=1)[0],
            label=hash(structure) % 100,
            structure=structure,
            voxels=99,
            round=number,
            dice=value,
            position=(1, 2, 3),
            positive=True,
            encode_ms=100.0 if number == 1 else 0.0,
            click_ms=10.0,
            spacing_mm=1.5,
            quality=0.5,
        )
        for number, value in enumerate(curve, start=1)
    ]


ROWS = [
    *_rows("a__1", "liver", 0.8, 0.9),
    *_rows("a__2", "liver", 0.6, 0.7),
    *_rows("a__1", "spleen", 0.1, 0.2),
    *_rows("b__1", "tumour", 0.5, 0.4),
]


def test_macro_is_over_targets_then_structures_then_sources() -> None:
    summary = summarise(ROWS)
    assert summary.by_source["a"] == pytest.approx([(0.7 + 0.1) / 2, (0.8 + 0.2) / 2])
    assert summary.by_source["b"] == pytest.approx([0.5, 0.4])
    assert summary.macro == pytest.approx([0.45, 0.45])
    assert summary.by_structure["a"]["liver"] == pytest.approx([0.7, 0.8])
    assert summary.num_targets == {"a": 3, "b": 1}


def test_failures_and_harmful_clicks_are_counted_and_the_last_click_decides() -> None:
    summary = summarise(ROWS)
    assert summary.failures == pytest.approx(2 / 4)
    assert summary.worse_clicks == pytest.approx(1 / 4)
    assert summary.encode_ms == 100.0
    assert summary.click_ms == 10.0


def test_the_interval_holds_the_mean_and_repeats_with_the_seed() -> None:
    summary = summarise(ROWS, seed=3)
    for (low, high), mean in zip(summary.interval, summary.macro, strict=True):
        assert low <= mean <= high
    assert summary.interval == summarise(ROWS, seed=3).interval


def test_targets_with_unequal_numbers_of_clicks_are_refused() -> None:
    with pytest.raises(DatasetError, match="common number"):
        summarise([*ROWS, *_rows("c__1", "x", 0.5)])
    with pytest.raises(DatasetError, match="no rows"):
        summarise([])


def test_the_table_names_sources_and_the_json_keeps_rows_and_provenance(tmp_path: Path) -> None:
    summary = summarise(ROWS)
    text = table(summary)
    assert [line.split()[0] for line in text.splitlines()[:4]] == ["source", "a", "b", "macro"]
    path = tmp_path / "out" / "dev.json"
    write_json(path, summary, ROWS, {"seed": 0, "command": "x"})
    content = json.loads(path.read_text())
    assert content["provenance"]["command"] == "x"
    assert len(content["rows"]) == len(ROWS)
    assert content["summary"]["macro"] == pytest.approx(summary.macro)
    assert [p.name for p in path.parent.iterdir()] == ["dev.json"]
