"""`fastsam3d train`: words become a run; mistakes are told before any work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fastsam3d.cli.main import main
from fastsam3d.model.config import MODEL_CONFIGS
from fastsam3d.train import tensorboard
from fastsam3d.train.runlog import read_log
from fastsam3d.train.state import read_facts
from tests.train.toy import TOY, toy_case


@pytest.fixture(autouse=True)
def tiny_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODEL_CONFIGS, "hr_s", replace(TOY, image_size=128))
    monkeypatch.setattr("fastsam3d.train.launch.load_pack", lambda _: [toy_case(0)])
    monkeypatch.setattr("fastsam3d.train.launch.read_index", lambda _: {"sha256": "0" * 64})


def words(output: Path, *more: str) -> list[str]:
    small = ("--set", "generator.num_real=1", "--set", "generator.num_shapes=0")
    start = ["train", "debug", "--pack", "toy.npz", "--output", str(output), "--device", "cpu"]
    return [*start, *small, *more]


def test_a_run_logs_shows_progress_and_writes_events(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path, "--steps", "1", "--seed", "3", "--set", "ema=0.5")) == 0
    captured = capsys.readouterr()
    assert captured.out == f"1 steps; averaged weights and log in {tmp_path}\n"
    assert "Training hr_s" in captured.err
    assert "1/1" in captured.err
    config = json.loads((tmp_path / "run.json").read_text())["config"]
    assert (config["seed"], config["ema"], config["generator"]["num_real"]) == (3, 0.5, 1)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1
    assert read_facts(tmp_path / "averaged")["step"] == 1
    assert list((tmp_path / tensorboard.FOLDER).iterdir())


def test_without_tensorboard_a_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda _: None)
    assert main(words(tmp_path, "--steps", "1")) == 0
    assert "tensorboard is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--minutes", "1", "--steps", "1"], 2, "exclude each other"),
        (["--steps", "0"], 2, "must be positive"),
        (["--set", "emma=1"], 1, "No setting is called 'emma'"),
        (["--resume"], 1, "No checkpoint was found"),
    ],
)
def test_mistakes_are_told_before_any_work(
    tmp_path: Path,
    more: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(words(tmp_path / "run", *more)) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_written_over_but_a_failed_start_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.jsonl").write_text("left by a run that ended before its first checkpoint\n")
    assert main(words(tmp_path, "--steps", "1")) == 0
    assert len(read_log(tmp_path / "log.jsonl")) == 1
    capsys.readouterr()
    assert main(words(tmp_path, "--steps", "1")) == 1
    assert "holds a run; resume it or choose another folder" in capsys.readouterr().err
