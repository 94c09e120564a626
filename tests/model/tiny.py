"""Toy-size configs of the compatible variants: a grid of 3^3 tokens in windows of 5."""

from dataclasses import replace

import torch

from fastsam3d.model.card import Preprocessing, WeightsCard
from fastsam3d.model.config import FASTSAM3D_6L, SAM_MED3D_B, ModelConfig, PatchEncoderConfig
from fastsam3d.model.registry import build_model

TINY_TEACHER = replace(
    SAM_MED3D_B,
    image_size=24,
    patch_size=8,
    embed_dim=12,
    depth=3,
    num_heads=2,
    out_dim=48,
    patch=PatchEncoderConfig(window_size=5, global_blocks=(1,)),
)
TINY_STUDENT = replace(
    FASTSAM3D_6L,
    image_size=24,
    patch_size=8,
    embed_dim=12,
    depth=3,
    num_heads=2,
    out_dim=48,
    patch=PatchEncoderConfig(num_attention_free_blocks=2, residual_after_norm=True),
)


def drawn_model(config: ModelConfig, seed: int = 0):
    """Return a model in evaluation mode whose every weight is drawn alike, norms and all."""
    torch.manual_seed(seed)
    model = build_model(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def tiny_card(config: ModelConfig = TINY_TEACHER, **changes: object) -> WeightsCard:
    card = WeightsCard(
        name=config.name,
        architecture=config,
        preprocessing=Preprocessing(
            normalisation="foreground_zscore",
            image_size=config.image_size,
            spacings_mm=(1.0, 1.5),
        ),
        licence="Apache-2.0",
        training_data=("random numbers",),
        sha256="0" * 64,
        created="2026-11-22",
    )
    return replace(card, **changes)
