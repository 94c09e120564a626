"""A card is read strictly: whatever is missing, unknown, mistyped or absurd is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastsam3d.errors import CheckpointError
from fastsam3d.model.card import WeightsCard, card_path, read_card
from fastsam3d.model.config import MODEL_CONFIGS
from tests.model.tiny import tiny_card


def edited(path: str, value: object) -> dict[str, Any]:
    data = json.loads(json.dumps(tiny_card().to_dict()))
    *parents, last = path.split(".")
    entry = data
    for key in parents:
        entry = entry[key]
    entry[last] = value
    return data


@pytest.mark.parametrize("name", MODEL_CONFIGS)
def test_round_trip_through_json(name: str) -> None:
    card = tiny_card(MODEL_CONFIGS[name], notes="a note with ü")
    assert WeightsCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("format_version", 2, "format_version must be 1"),
        ("name", 3, "name must be text"),
        ("sha256", "ABC", "sha256 must be 64"),
        ("quantisation", "int4", "quantisation must be one of"),
        ("training_data", "everything", "training_data must be a list"),
        ("training_data", [1], "training_data must be a list of texts"),
        ("surprise", 1, r"unknown entries \['surprise'\]"),
        ("preprocessing.normalisation", "min_max", "normalisation must be one of"),
        ("preprocessing.image_size", 128, "image_size must be the architecture's 24"),
        ("preprocessing.image_size", 24.0, "image_size must be an integer"),
        ("preprocessing.scribble_points", 0, "scribble_points must be an integer from 1"),
        ("preprocessing.scribble_points", True, "scribble_points must be an integer from 1"),
        ("preprocessing.ct_window_hu", 0, "ct_window_hu must be a positive number or null"),
        ("preprocessing.ct_window_hu", "wide", "ct_window_hu must be a positive number or null"),
        ("preprocessing.spacings_mm", [], "spacings_mm must be a list of positive"),
        ("preprocessing.spacings_mm", [float("inf")], "spacings_mm must be a list of positive"),
        ("preprocessing.spacings_mm", [True], "spacings_mm must be a list of positive"),
        ("architecture", [], "architecture must be a JSON object"),
        ("architecture.depth", "3", "depth must be of type int"),
        ("architecture.depth", True, "depth must be of type int"),
        ("architecture.depth", 10**9, "depth must be between 0 and 4096"),
        ("architecture.mlp_ratio", float("nan"), "mlp_ratio must be between"),
        ("architecture.num_heads", 5, "embed_dim must be a multiple of num_heads"),
        ("architecture.num_heads", 0, "Sizes must be positive"),
        ("architecture.family", "resnet", "family must be one of"),
        ("architecture.patch.attention", "magic", "attention one of"),
        ("architecture.patch.global_blocks", 1, "global_blocks must be a list"),
        ("architecture.patch.extra", 1, "unknown entries"),
    ],
)
def test_wrong_entries_are_refused(entry: str, value: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        WeightsCard.from_dict(edited(entry, value))


def test_cards_of_older_weights_are_read() -> None:
    data = tiny_card().to_dict()
    for entry in ("scribble_points", "ct_window_hu"):
        del data["preprocessing"][entry]
    found = WeightsCard.from_dict(data).preprocessing
    assert (found.scribble_points, found.ct_window_hu) == (1, None)


def test_a_grid_beyond_any_use_is_refused() -> None:
    data = tiny_card(MODEL_CONFIGS["hr_s"]).to_dict()
    data["architecture"]["patch_size"] = 1
    with pytest.raises(CheckpointError, match="image_size must be at most 64 patches"):
        WeightsCard.from_dict(data)


@pytest.mark.parametrize("entry", list(tiny_card().to_dict()))
def test_missing_entries_are_refused(entry: str) -> None:
    data = tiny_card().to_dict()
    del data[entry]
    with pytest.raises(CheckpointError, match=rf"card lacks \['{entry}'\]"):
        WeightsCard.from_dict(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON text"),
        (b"\xff\xfe", "is not JSON text"),
        (b"[" * 100_000, "is not JSON text"),
        (b"[]", "card must be a JSON object"),
        (b" " * 1_000_001, "larger than"),
    ],
)
def test_files_that_are_no_card_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    weights = tmp_path / "w.safetensors"
    card_path(weights).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_card(weights)


def test_a_missing_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"w\.json cannot be read"):
        read_card(tmp_path / "w.safetensors")
