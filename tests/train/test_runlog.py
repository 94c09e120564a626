"""The log of a run as its readers see it: one curve, live or later, also in TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastsam3d.errors import ConfigError
from fastsam3d.train import runlog, tensorboard
from fastsam3d.train.runlog import LogFollower, LogLine, Throughput, read_log


def write(path: Path, *steps: int, end: str = "\n") -> None:
    lines = [
        json.dumps({"step": s, "seconds": float(s), "rois": 8 * s, "loss": 1 / s, "skipped": 0})
        for s in steps
    ]
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + end)


def steps(lines: list[LogLine]) -> list[int]:
    return [line["step"] for line in lines]


def test_a_resumed_run_is_one_curve_and_half_a_line_is_none(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert read_log(log) == []
    write(log, 5, 10, 15)
    write(log, 10, 20)
    write(log, 25, end="")
    assert steps(read_log(log)) == [5, 10, 20]


def test_follower_hands_over_new_whole_lines_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runlog, "POLL_SECONDS", 0.01)
    log, seen = tmp_path / "log.jsonl", list[LogLine]()
    write(log, 1)
    with LogFollower(log, seen.append):
        write(log, 2, end="")
        with log.open("a") as file:
            file.write("\n")
        write(log, 3)
    assert steps(seen) == [2, 3]


def test_an_observer_that_fails_is_heard(tmp_path: Path) -> None:
    def fail(_: LogLine) -> None:
        raise ConfigError("no room")

    with pytest.raises(ConfigError, match="no room"), LogFollower(tmp_path / "log.jsonl", fail):
        write(tmp_path / "log.jsonl", 1)


def test_throughput_is_between_lines_and_survives_a_restart() -> None:
    rate = Throughput()
    assert rate.update({"seconds": 1.0, "rois": 10}) is None
    assert rate.update({"seconds": 3.0, "rois": 50}) == 20
    assert rate.update({"seconds": 0.5, "rois": 60}) is None


def scalars(run: Path) -> dict[str, list[Any]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / tensorboard.FOLDER))
    events.Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


def test_events_hold_the_curves_of_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "log.jsonl", 2, 4, 6)
    assert tensorboard.main([str(tmp_path)]) == 0
    assert "3 lines" in capsys.readouterr().out
    found = scalars(tmp_path)
    assert [(s.step, s.value) for s in found["train/loss"]] == [
        (step, pytest.approx(1 / step)) for step in (2, 4, 6)
    ]
    assert [s.value for s in found["run/rois_per_second"]] == [8, 8]


def test_steps_of_a_resumed_run_replace_those_before(tmp_path: Path) -> None:
    for last in (6, 4):
        with tensorboard.EventWriter(tmp_path) as event:
            for step in range(2, last + 1, 2):
                event({"step": step, "seconds": step, "rois": step, "loss": float(last)})
    assert {s.value for s in scalars(tmp_path)["train/loss"]} == {4.0}


def test_runs_without_a_log_and_machines_without_tensorboard_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tensorboard.main([str(tmp_path)]) == 1
    assert "has no line in log.jsonl" in capsys.readouterr().err
    monkeypatch.setattr(tensorboard, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'fastsam3d\[train\]'"):
        tensorboard.EventWriter(tmp_path)
