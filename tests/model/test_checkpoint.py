"""Weights files survive the round trip and are refused when anything about them is wrong."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastsam3d.errors import CheckpointError
from fastsam3d.model.card import card_path, read_card
from fastsam3d.model.checkpoint import load_state, save_checkpoint
from fastsam3d.model.quantise import SCALE_SUFFIX, dequantise, quantise
from fastsam3d.model.registry import build_model, load_model, verify_weights
from tests.model.tiny import TINY_STUDENT, TINY_TEACHER, tiny_card


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(build_model(TINY_TEACHER).state_dict(), path, tiny_card())
    return path


def test_a_saved_model_loads_bit_equal(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    model = build_model(TINY_STUDENT)
    save_checkpoint(model.state_dict(), path, tiny_card(TINY_STUDENT))
    loaded = load_model(path)
    assert loaded.config == TINY_STUDENT
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_the_card_on_disk_carries_the_digest_that_was_returned(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    written = save_checkpoint(build_model(TINY_TEACHER).state_dict(), path, tiny_card())
    assert read_card(path) == written
    assert written.sha256 != tiny_card().sha256
    assert verify_weights(path)["sha256"] == written.sha256


def test_a_flipped_bit_is_noticed(weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or was exchanged"):
        load_model(weights)


def test_a_pickle_under_our_suffix_is_never_unpickled(weights: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    weights.write_bytes(pickle.dumps(_TouchOnLoad(marker)))
    with pytest.raises(CheckpointError):
        load_model(weights)
    _accept_digest(weights)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_model(weights)
    assert not marker.exists()


@pytest.mark.parametrize("size", [0, 7, 100, 5000])
def test_a_truncated_file_is_refused_even_with_its_own_digest(weights: Path, size: int) -> None:
    weights.write_bytes(weights.read_bytes()[:size])
    _accept_digest(weights)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_model(weights)


def test_weights_of_another_architecture_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    state = build_model(TINY_TEACHER).state_dict()
    del state["image_encoder.neck.0.weight"]
    state["stranger"] = torch.zeros(2)
    state["mask_decoder.iou_token.weight"] = torch.zeros(1, 7)
    save_checkpoint(state, path, tiny_card())
    expected = r"1 missing \(image_encoder.neck.0.weight\); 1 unknown \(stranger\); 1 of another"
    with pytest.raises(CheckpointError, match=expected):
        load_model(path)


def test_an_absurd_architecture_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    huge = replace(TINY_TEACHER, embed_dim=4096, num_heads=8, depth=4096)
    save_checkpoint(build_model(TINY_TEACHER).state_dict(), path, tiny_card(huge))
    with pytest.raises(CheckpointError, match="the trunk alone needs"):
        load_model(path)


def test_a_failed_save_leaves_the_old_pair_and_no_temporary_file(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in weights.parent.iterdir()}

    def refuse(_self: Path, _target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(build_model(TINY_TEACHER).state_dict(), weights, tiny_card())
    assert {path.name: path.read_bytes() for path in weights.parent.iterdir()} == before


def test_other_suffixes_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"saved as \.safetensors"):
        save_checkpoint({}, tmp_path / "tiny.pth", tiny_card())
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint({}, tmp_path / "nowhere" / "tiny.safetensors", tiny_card())


def test_int8_keeps_every_weight_within_half_a_step() -> None:
    generator = torch.Generator().manual_seed(0)
    gains = torch.logspace(-4, 3, 70)[:, None]
    state = {"linear.weight": torch.randn(70, 90, generator=generator) * gains}
    stored = quantise(state)
    assert stored["linear.weight"].dtype == torch.int8
    steps = state["linear.weight"].abs().amax(dim=1, keepdim=True) / 127
    error = (dequantise(stored)["linear.weight"] - state["linear.weight"]).abs()
    assert (error <= 0.5001 * steps).all()


def test_what_is_not_a_large_matrix_stays_floating() -> None:
    state = {
        "bias": torch.randn(5000),
        "small.weight": torch.randn(64, 64),
        "pos_embed": torch.randn(1, 8, 8, 8, 32),
        "huge": torch.tensor([1e6]),
        "count": torch.tensor([7]),
        "empty": torch.zeros(0),
    }
    stored = quantise(state)
    kinds = {name: tensor.dtype for name, tensor in stored.items()}
    half = torch.float16
    assert kinds == {
        "bias": half,
        "small.weight": half,
        "pos_embed": half,
        "huge": torch.float32,
        "count": torch.int64,
        "empty": half,
    }
    restored = dequantise(stored)
    for name, tensor in state.items():
        torch.testing.assert_close(restored[name], tensor, rtol=1e-3, atol=1e-7)


def test_channels_of_zeros_stay_zero() -> None:
    weight = torch.randn(3, 2000)
    weight[1] = 0
    restored = dequantise(quantise({"weight": weight}))["weight"]
    assert restored.isfinite().all()
    assert not restored[1].any()


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(CheckpointError, match="bad holds NaN or infinity"):
        quantise({"bad": torch.tensor([float("nan")])})


def test_scales_must_belong_to_their_tensors() -> None:
    stored = quantise({"weight": torch.randn(70, 90)})
    scale = stored.pop("weight" + SCALE_SUFFIX)
    with pytest.raises(CheckpointError, match="lacks its scales"):
        dequantise(stored)
    with pytest.raises(CheckpointError, match="lacks its scales"):
        dequantise({**stored, "weight" + SCALE_SUFFIX: scale[:5]})
    with pytest.raises(CheckpointError, match="Scales without"):
        dequantise({"weight" + SCALE_SUFFIX: scale})


def test_a_quantised_model_is_small_and_close(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    model = build_model(TINY_TEACHER).eval()
    save_checkpoint(model.state_dict(), path, tiny_card(quantisation="int8"))
    full = sum(tensor.numel() * 4 for tensor in model.state_dict().values())
    assert path.stat().st_size < 0.4 * full
    assert load_state(path)[1].quantisation == "int8"
    image = torch.randn(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.encode_image(image).tokens
        actual = load_model(path).encode_image(image).tokens
    assert (actual - expected).norm() < 0.02 * expected.norm()


class _TouchOnLoad:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.marker,)


def _accept_digest(weights: Path) -> None:
    card = read_card(weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    text = card_path(weights).read_text().replace(card.sha256, digest)
    card_path(weights).write_text(text)
