"""Toy weights on disk: our own architecture with random numbers, small enough for a test."""

from pathlib import Path

import torch

from fastsam3d.model.card import Preprocessing, WeightsCard
from fastsam3d.model.checkpoint import save_checkpoint
from fastsam3d.model.config import HighResConfig
from fastsam3d.model.registry import create_model


def write_toy_weights(path: Path) -> Path:
    """Write random weights of a toy `hr` model with their card, and return the path."""
    torch.manual_seed(7)
    model = create_model(
        "hr_s",
        image_size=32,
        embed_dim=48,
        depth=1,
        num_heads=2,
        out_dim=48,
        highres=HighResConfig(stem_channels=(8, 8, 8, 8), decoder_channels=(8, 8, 8)),
    )
    card = WeightsCard(
        name="toy",
        architecture=model.config,
        preprocessing=Preprocessing(
            normalisation="roi_percentile_zscore", image_size=32, spacings_mm=(1.0, 2.0)
        ),
        licence="Apache-2.0",
        training_data=("nothing, these weights are random",),
        sha256="0" * 64,
        created="2026-11-22",
    )
    save_checkpoint(model.state_dict(), path, card)
    return path
