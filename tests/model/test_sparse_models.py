"""Models whose image tokens attend sparsely: chosen by config, weights of dense ones fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastsam3d.errors import ConfigError
from fastsam3d.model.config import HR_S, ModelConfig
from fastsam3d.model.hr import HighResSam3D
from fastsam3d.model.hr_layers import TrunkBlock
from fastsam3d.model.registry import build_model
from fastsam3d.model.sam_encoder import EncoderBlock
from fastsam3d.model.sam_med3d import SamMed3D
from fastsam3d.model.sparse_attention_pattern import SparsePattern
from tests.model.tiny import TINY_TEACHER

PATTERN = "dilated:2/1,4/2"
HR_TOY = replace(HR_S, image_size=48, embed_dim=48, depth=2, num_heads=2, out_dim=48)
CONFIGS = [replace(config, attention=PATTERN) for config in (HR_TOY, TINY_TEACHER)]


def patterns_of(model: torch.nn.Module) -> list[SparsePattern]:
    blocks = [m for m in model.modules() if isinstance(m, TrunkBlock)]
    holders = blocks or [m.attn for m in model.modules() if isinstance(m, EncoderBlock)]
    return [holder.attend.keywords["pattern"] for holder in holders]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_a_sparse_model_encodes_decodes_and_trains(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = build_model(config)
    size = config.image_size
    embedding = model.encode_image(torch.randn(1, 1, size, size, size))
    logits, quality = model.decode_masks(
        embedding, torch.full((1, 1, 3), size / 2), torch.ones(1, 1)
    )
    assert logits.isfinite().all()
    (logits.square().mean() + quality.square().mean()).backward()
    trunk = model.encoder.trunk if isinstance(model, HighResSam3D) else model.image_encoder
    assert all(p.grad is not None and p.grad.any() for p in trunk.parameters())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_the_choice_survives_a_round_trip_through_plain_data(config: ModelConfig) -> None:
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert config.to_dict()["attention"] == PATTERN


def test_configs_of_earlier_cards_mean_dense_attention() -> None:
    data = HR_TOY.to_dict()
    del data["attention"]
    assert ModelConfig.from_dict(data) == HR_TOY


def test_an_unreadable_pattern_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        replace(HR_TOY, attention="flash")


def test_sparse_hr_models_take_the_weights_of_dense_ones() -> None:
    dense, sparse = HighResSam3D(HR_TOY), HighResSam3D(CONFIGS[0])
    sparse.load_state_dict(dense.state_dict(), strict=True)


def test_sparse_official_models_lack_the_relative_tables_alone() -> None:
    dense, sparse = SamMed3D(TINY_TEACHER).state_dict(), SamMed3D(CONFIGS[1]).state_dict()
    missing = {key for key in dense if key not in sparse}
    assert missing == {key for key in dense if ".attn.rel_pos_" in key}
    assert all(sparse[key].shape == dense[key].shape for key in sparse)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_every_second_block_is_shifted(config: ModelConfig) -> None:
    plain = SparsePattern.parse(PATTERN)
    for index, pattern in enumerate(patterns_of(build_model(config))[: config.depth]):
        assert pattern == (plain.shifted() if index % 2 else plain)


@torch.no_grad()
def test_a_pattern_that_covers_the_grid_equals_dense_attention() -> None:
    torch.manual_seed(0)
    dense = HighResSam3D(HR_TOY).eval()
    whole = HighResSam3D(replace(HR_TOY, attention="window:3")).eval()
    whole.load_state_dict(dense.state_dict())
    # A shifted window of 3 on a grid of 3 is cut in two: only even blocks see everything.
    whole.encoder.trunk.blocks[1].attend = dense.encoder.trunk.blocks[1].attend
    image = torch.randn(1, 1, 48, 48, 48)
    torch.testing.assert_close(
        whole.encode_image(image).tokens, dense.encode_image(image).tokens, atol=1e-5, rtol=1e-4
    )
