"""Models are found by name or path, and everything that can be asked about them is plain data."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastsam3d.errors import ConfigError, ModelNotFoundError
from fastsam3d.model import registry
from fastsam3d.model.checkpoint import load_state, save_checkpoint
from fastsam3d.model.config import DEFAULT_MODEL, MODEL_CONFIGS
from fastsam3d.model.layers import without_random_weights
from fastsam3d.model.registry import (
    build_model,
    create_model,
    describe_model,
    describe_models,
    list_models,
    load_card,
    load_model,
    verify_weights,
)
from tests.model.tiny import TINY_TEACHER, tiny_card


@pytest.fixture
def package_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder as it ships, with a toy model under the name sam_med3d_b."""
    folder = tmp_path / "package" / "weights"
    folder.mkdir(parents=True)
    monkeypatch.setattr(registry.resources, "files", lambda _package: tmp_path / "package")
    path = folder / "sam_med3d_b.safetensors"
    save_checkpoint(build_model(TINY_TEACHER).state_dict(), path, tiny_card())
    return path


def test_all_four_variants_are_listed_default_first() -> None:
    assert list_models() == ["hr_s", "fastsam3d_6l", "hr_b", "sam_med3d_b"]
    assert list_models()[0] == DEFAULT_MODEL


def test_create_model_takes_overrides() -> None:
    changes = {
        name: getattr(TINY_TEACHER, name)
        for name in ("image_size", "patch_size", "embed_dim", "num_heads", "out_dim", "depth")
    }
    model = create_model("fastsam3d_6l", **changes)
    assert model.config.depth == TINY_TEACHER.depth
    assert model.config.name == "fastsam3d_6l"


def test_unknown_overrides_and_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be built with these overrides"):
        create_model("fastsam3d_6l", depht=3)
    with pytest.raises(ConfigError, match="multiple of num_heads"):
        create_model("fastsam3d_6l", num_heads=7)


@pytest.mark.parametrize(("typed", "meant"), [("hrs", "hr_s"), ("sam-med3d", "sam_med3d_b")])
def test_unknown_names_are_answered_with_near_names(typed: str, meant: str) -> None:
    for call in (create_model, load_model, load_card, describe_model, verify_weights):
        with pytest.raises(ModelNotFoundError, match=rf"{typed}.*did you mean .*{meant}"):
            call(typed)


def test_a_known_name_without_weights_says_so(package_weights: Path) -> None:
    assert package_weights.exists()
    with pytest.raises(ModelNotFoundError, match="No weights of hr_b ship"):
        load_model("hr_b")


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "model.pth"
    other.touch()
    for path in (other, tmp_path / "absent.safetensors", str(tmp_path / "absent.safetensors")):
        with pytest.raises(ModelNotFoundError, match=r"is not a \.safetensors file"):
            load_model(path)


def test_a_name_and_a_path_work_alike(package_weights: Path) -> None:
    for source in ("sam_med3d_b", package_weights, str(package_weights)):
        assert load_model(source).config == TINY_TEACHER
        assert load_card(source).architecture == TINY_TEACHER
        assert verify_weights(source)["num_tensors"] == len(load_model(source).state_dict())
        assert describe_model(source)["weights_bytes"] == package_weights.stat().st_size


def test_descriptions_are_plain_data(package_weights: Path) -> None:
    rows = {row["name"]: row for row in describe_models()}
    assert list(rows) == list_models()
    assert rows["sam_med3d_b"]["weights_bytes"] == package_weights.stat().st_size
    assert rows["sam_med3d_b"]["licence"] == "Apache-2.0"
    assert rows["hr_b"]["has_weights"] is False
    assert describe_model("hr_b")["architecture"] == MODEL_CONFIGS["hr_b"].to_dict()
    everything = [describe_models(), describe_model("hr_b"), describe_model("sam_med3d_b")]
    assert json.loads(json.dumps(everything)) == everything


def test_listing_and_describing_do_not_load_torch() -> None:
    code = (
        "import sys; from fastsam3d.model.registry import describe_model, describe_models; "
        "describe_models(); describe_model('hr_b'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loading_gives_the_files_weights_and_draws_none_first(package_weights: Path) -> None:
    loaded = load_model("sam_med3d_b").state_dict()
    state, _ = load_state(package_weights)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    before = torch.random.get_rng_state()
    with without_random_weights():
        torch.nn.Linear(3, 3)
        torch.nn.Embedding(3, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.nn.Linear(3, 3)
    assert not torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", MODEL_CONFIGS)
def test_no_variant_draws_until_values_are_right(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("never ends where nothing is drawn")

    monkeypatch.setattr(torch.nn.init, "trunc_normal_", fail)
    with without_random_weights():
        build_model(replace(MODEL_CONFIGS[name], depth=2))
