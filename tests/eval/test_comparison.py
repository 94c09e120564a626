"""Differences of two runs: paired, per source, and only between runs that can be compared."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastsam3d.cli.main import main
from fastsam3d.errors import DatasetError
from fastsam3d.eval.comparison import compare_rows, compare_runs
from fastsam3d.eval.protocol import InteractionProtocol
from fastsam3d.eval.results import ResultRow
from tests.eval.outputs import write_output
from tests.eval.rows import curve

NAMES = ("hr_s", "ball")


def run(*, better_by: float = 0.0, people: int = 12) -> list[ResultRow]:
    """Subjects of very different difficulty, all answered better by the same amount."""
    rng = np.random.default_rng(0)
    return [
        row
        for source in ("a", "b")
        for person in range(people)
        for row in curve(f"{source}__{person}", "x", *(rng.uniform(0.1, 0.8, 2) + better_by))
    ]


def test_a_constant_gain_is_found_although_subjects_differ_widely() -> None:
    found = compare_rows(run(), run(better_by=0.05), names=NAMES)
    by = found.overall["dice@2"]

    assert by.difference.value == pytest.approx(0.05)
    assert by.difference.low == pytest.approx(0.05)
    assert by.difference.high == pytest.approx(0.05)
    assert by.second == pytest.approx(by.first + 0.05)
    assert found.sources["a"]["dice@1"].difference.value == pytest.approx(0.05)
    assert found.targets_by_source == {"a": 12, "b": 12}


def test_a_run_does_not_differ_from_itself_and_order_does_not_matter() -> None:
    rows = run()
    found = compare_rows(rows, rows[::-1], names=NAMES)

    assert {one.difference.value for one in found.overall.values()} == {0.0}


def test_noise_has_an_interval_around_zero() -> None:
    rng = np.random.default_rng(1)
    noisy = [replace(row, dice=row.dice + rng.normal(0, 0.05)) for row in run()]
    span = compare_rows(run(), noisy, names=NAMES).overall["dice@2"].difference

    assert span.low < 0 < span.high


def test_a_figure_is_compared_where_both_have_it() -> None:
    first = [*curve("a__1", "x", 0.5, hd95_mm=None), *curve("a__2", "x", 0.5, hd95_mm=4.0)]
    second = [*curve("a__1", "x", 0.5, hd95_mm=9.0), *curve("a__2", "x", 0.5, hd95_mm=3.0)]
    found = compare_rows(first, second, names=NAMES).overall

    assert found["hd95_mm@1"].difference.value == pytest.approx(-1.0)
    assert found["hd95_mm@1"].second == pytest.approx(3.0)


def test_folders_are_compared_and_the_models_named(tmp_path: Path) -> None:
    a = write_output(tmp_path / "a", run())
    b = write_output(tmp_path / "b", run(better_by=0.1), model="ball:16", zero_image=True)
    found = compare_runs(a, b)

    assert found.names == ("hr_s", "ball:16, no image")
    assert found.overall["dice@2"].difference.value == pytest.approx(0.1)


def test_other_targets_are_refused_unless_the_shared_ones_are_asked_for(tmp_path: Path) -> None:
    a = write_output(tmp_path / "a", run(people=4))
    b = write_output(tmp_path / "b", run(people=4)[:-2])
    c = write_output(tmp_path / "c", run(people=4)[2:], cases_hash="other")

    with pytest.raises(DatasetError, match=r"has 1 targets that .* lacks, and 0 the other way"):
        compare_runs(a, b)
    with pytest.raises(DatasetError, match="different cases; add --shared"):
        compare_runs(a, c)
    found = compare_runs(b, c, shared=True)
    assert (found.num_targets, found.left_out) == (6, (1, 1))


def test_other_protocols_are_refused_even_for_shared_targets(tmp_path: Path) -> None:
    a = write_output(tmp_path / "a", run())
    paper = InteractionProtocol(name="paper", num_clicks=2)
    b = write_output(tmp_path / "b", run(), protocol=paper)
    c = write_output(tmp_path / "c", run(), protocol=InteractionProtocol(num_clicks=2, seeds=(3,)))

    with pytest.raises(DatasetError, match="differ in protocol name: 'clicks' and 'paper'"):
        compare_runs(a, b, shared=True)
    with pytest.raises(DatasetError, match="differ in protocol seeds"):
        compare_runs(a, c)


def test_runs_without_a_common_target_or_round_are_refused() -> None:
    with pytest.raises(DatasetError, match="share no target"):
        compare_rows(curve("a__1", "x", 0.5), curve("a__2", "x", 0.5), names=NAMES)
    with pytest.raises(DatasetError, match="same number of clicks"):
        compare_rows(curve("a__1", "x", 0.5), curve("a__1", "x", 0.5, 0.6), names=NAMES)


def test_the_command_prints_both_tables_or_one_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write_output(tmp_path / "a", run()), write_output(tmp_path / "b", run(better_by=0.05))

    assert main(["compare", str(a), str(b)]) == 0
    shown = capsys.readouterr().out
    assert "+0.050" in shown
    assert "dice@2 by source" in shown
    assert main(["compare", str(a), str(b), "--json"]) == 0
    assert capsys.readouterr().out.startswith('{"names": ["hr_s", "hr_s"]')
    assert main(["compare", str(a), str(tmp_path / "absent")]) == 1
