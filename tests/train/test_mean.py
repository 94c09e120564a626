"""Means of weights files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastsam3d.errors import CheckpointError, ConfigError
from fastsam3d.model.checkpoint import load_state, save_checkpoint
from fastsam3d.model.registry import load_model
from fastsam3d.train.mean import main, mean_of_weights
from tests.train.test_launch import card
from tests.train.toy import TOY, toy_model


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three models of one architecture, each with a source of its own and one in common."""
    paths: list[Path] = []
    for seed in range(3):
        path = tmp_path / f"{seed}.safetensors"
        own = replace(card(TOY), training_data=("shapes", f"clinic {seed}"))
        save_checkpoint(toy_model(seed).state_dict(), path, own)
        paths.append(path)
    return paths


def test_mean_has_the_mean_of_every_tensor_and_all_sources(
    files: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "mean.safetensors"
    written = mean_of_weights(files, output, shares=(2, 1, 1), notes="three runs")
    states = [load_state(path)[0] for path in files]
    mean, read = load_state(output)
    assert read == written
    assert read.training_data == ("shapes", "clinic 0", "clinic 1", "clinic 2")
    assert read.notes == "three runs"
    for name, value in mean.items():
        parts = [state[name].float() for state in states]
        expected = 0.5 * parts[0] + 0.25 * parts[1] + 0.25 * parts[2]
        assert torch.allclose(value.float(), expected, atol=1e-6), name
    load_model(output)


def test_mean_of_a_file_with_itself_is_the_file(files: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "mean.safetensors"
    assert main([str(output), str(files[0]), str(files[0])]) == 0
    first, mean = load_state(files[0])[0], load_state(output)[0]
    assert all(torch.allclose(mean[name], value.float()) for name, value in first.items())


def test_other_architectures_and_shares_are_refused(files: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "mean.safetensors"
    with pytest.raises(ConfigError, match="a positive share for each, got 3 and"):
        mean_of_weights(files, output, shares=(1, -1, 1))
    with pytest.raises(ConfigError, match="a positive share for each, got 3 and"):
        mean_of_weights(files, output, shares=(1, 1))
    state, own = load_state(files[1])
    state.pop(next(iter(state)))
    save_checkpoint(state, files[1], own)
    with pytest.raises(CheckpointError, match=r"1\.safetensors is no model like 0\.safetensors"):
        mean_of_weights(files, output)
    assert not output.exists()


def test_a_missing_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "mean.safetensors"), str(tmp_path / "none.safetensors")]) == 1
    error = capsys.readouterr().err
    assert "none" in error
    assert error.count("\n") == 1
