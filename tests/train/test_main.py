"""The training command: options become a run, mistakes become a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastsam3d.model.config import MODEL_CONFIGS
from fastsam3d.train.__main__ import main
from fastsam3d.train.state import load_state
from tests.train.toy import TOY, toy_case

LAUNCH = "fastsam3d.train.launch"


@pytest.fixture(autouse=True)
def tiny_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """One case for a pack, and a small model that is made for ROIs of the usual size."""
    monkeypatch.setitem(MODEL_CONFIGS, "hr_s", replace(TOY, image_size=128))
    monkeypatch.setattr(f"{LAUNCH}.load_pack", lambda _: [toy_case(0)])
    monkeypatch.setattr(f"{LAUNCH}.read_index", lambda _: {"sha256": "0" * 64})


def arguments(output: Path, *more: str) -> list[str]:
    return ["debug", "--pack", "toy.npz", "--output", str(output), "--device", "cpu", *more]


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--pack", "--steps", "--resume", "--start-from"))


def test_run_resumes_and_restarts_from_its_own_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first"
    assert main(arguments(first, "--steps", "1", "--seed", "7")) == 0
    record = json.loads((first / "run.json").read_text())
    assert (record["config"]["seed"], record["facts"]["data_sha256"]) == (7, "0" * 64)
    assert main(arguments(first, "--steps", "1", "--seed", "7", "--resume")) == 0
    second = tmp_path / "second"
    start = str(first / "averaged")
    assert main(arguments(second, "--steps", "0", "--start-from", start)) == 0
    record = json.loads((second / "run.json").read_text())
    assert record["config"]["initial_weights"] == "averaged"
    before, after = load_state(first / "averaged")[0], load_state(second / "averaged")[0]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [json.loads(line)["steps"] for line in capsys.readouterr().out.splitlines()] == [1, 1, 0]


def test_settings_change_the_recipe(tmp_path: Path) -> None:
    more = ("--steps", "0", "--set", "ema=0.9", "--set", "generator.num_real=3")
    assert main(arguments(tmp_path, *more)) == 0
    config = json.loads((tmp_path / "run.json").read_text())["config"]
    assert (config["ema"], config["generator"]["num_real"]) == (0.9, 3)


def test_a_run_is_not_resumed_on_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path, "--steps", "0")) == 0
    monkeypatch.setattr(f"{LAUNCH}.read_index", lambda _: {"sha256": "1" * 64})
    assert main(arguments(tmp_path, "--steps", "0", "--resume")) == 1
    assert "this pack has 111111111111; give the run's own pack" in capsys.readouterr().err


def test_unknown_recipe_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fast", *arguments(tmp_path)[1:]]) == 1
    assert "Recipe must be one of" in capsys.readouterr().err
