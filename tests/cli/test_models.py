"""`fastsam3d models`: listing, cards, verification and conversion from the command line."""

import json
from pathlib import Path

import pytest
import torch

from fastsam3d import list_models
from fastsam3d.cli.main import main
from tests.cli.weights import write_toy_weights


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_toy_weights(tmp_path / "toy.safetensors")


def test_list_shows_every_model_and_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert [line.split()[0] for line in lines[1:]] == list_models()
    assert "hr_s (default)" in lines[1]


def test_list_is_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list_models()


def test_info_shows_the_card_of_a_file(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "info", str(weights)]) == 0
    shown = capsys.readouterr().out

    assert "licence: Apache-2.0" in shown
    assert "training_data:\n  - nothing, these weights are random" in shown
    assert "  normalisation: roi_percentile_zscore" in shown


def test_info_is_json_for_programs(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "info", str(weights), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)

    assert facts["name"] == "toy"
    assert facts["architecture"]["image_size"] == 32


def test_verify_accepts_a_sound_file(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "verify", str(weights)]) == 0
    assert "is sound" in capsys.readouterr().out


def test_verify_refuses_a_damaged_file(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    payload = bytearray(weights.read_bytes())
    payload[-1] ^= 1
    weights.write_bytes(payload)

    assert main(["models", "verify", str(weights)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "sha256" in captured.err
    assert len(captured.err.splitlines()) == 1


def test_an_unknown_name_lists_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "info", "hr_ss"]) == 1
    assert "hr_s" in capsys.readouterr().err


def test_convert_refuses_a_file_that_is_no_official_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "other.pth", tmp_path / "out.safetensors"
    torch.save({"model_state_dict": {"stem.weight": torch.zeros(3)}}, source)

    assert main(["models", "convert", str(source), str(target)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["other.pth"]


@pytest.mark.parametrize("existing", ["out.safetensors", "out.json"])
def test_convert_replaces_files_only_when_forced(
    existing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / existing).write_text("precious")
    words = ["models", "convert", str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")]

    assert main(words) == 1
    assert f"{existing} exists" in capsys.readouterr().err
    assert main([*words, "--force"]) == 1  # the next thing that is wrong: no source
    assert "in.pth" in capsys.readouterr().err
    assert (tmp_path / existing).read_text() == "precious"
