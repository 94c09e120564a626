import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastsam3d.errors import DatasetError
from fastsam3d.eval.results import ResultRow, append_rows, read_rows
from tests.eval.rows import curve


def make_row(**changes: Any) -> ResultRow:
    return replace(curve("a__1", "liver", 0.5)[0], **changes)


def test_rows_come_back_as_they_were_in_the_order_written(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    first = [make_row(round=1), make_row(round=2, position=None, positive=None, hd95_mm=None)]
    append_rows(path, first)
    append_rows(path, [make_row(case="b__2")])
    assert read_rows(path) == [*first, make_row(case="b__2")]
    assert read_rows(path)[0].position == (1, 2, 3)


def test_an_absent_file_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "results.jsonl") == []


@pytest.mark.parametrize("size", [1, 40, 70_000])
def test_a_half_line_is_ignored_and_cut_off_by_the_next_write(tmp_path: Path, size: int) -> None:
    path = tmp_path / "results.jsonl"
    append_rows(path, [make_row()])
    with path.open("ab") as stream:
        stream.write(b'{"case": "' + b"x" * size)
    assert read_rows(path) == [make_row()]
    append_rows(path, [make_row(round=2)])
    assert read_rows(path) == [make_row(), make_row(round=2)]


def test_a_file_of_one_half_line_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"cas')
    append_rows(path, [make_row()])
    assert read_rows(path) == [make_row()]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        json.dumps({"case": "a"}),
        '{"dice": 1}',
    ],
)
def test_a_whole_line_that_is_no_row_is_told_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "results.jsonl"
    append_rows(path, [make_row()])
    with path.open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(DatasetError, match="line 2"):
        read_rows(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("label", 1.5), ("case", 3), ("position", [1, 2]), ("positive", 1), ("dice", None)],
)
def test_a_field_of_the_wrong_type_is_told_by_name(
    tmp_path: Path, name: str, value: object
) -> None:
    path = tmp_path / "results.jsonl"
    append_rows(path, [make_row()])
    line = json.loads(path.read_text())
    path.write_text(json.dumps({**line, name: value}) + "\n")
    with pytest.raises(DatasetError, match=f"line 1 has {name}"):
        read_rows(path)


def test_numbers_that_are_not_finite_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with pytest.raises(ValueError, match="JSON"):
        append_rows(path, [make_row(), make_row(dice=float("nan"))])
    assert read_rows(path) == []


def test_rows_of_one_target_differ_in_the_round_only() -> None:
    row: ResultRow = make_row()
    assert replace(row, round=2).target == row.target
    for change in ({"case": "z"}, {"label": 9}, {"component": 1}, {"seed": 4}):
        assert make_row(**change).target != row.target
