"""Small made-up cases and models for the training tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fastsam3d.data.objects import object_table
from fastsam3d.model.config import HR_S, HighResConfig
from fastsam3d.model.hr import HighResSam3D
from fastsam3d.train.pack import PackedCase, PackedObjects

SIZE = 32
THIN = HighResConfig(stem_channels=(2, 8, 16, 24), decoder_channels=(24, 16, 8))
TOY = replace(HR_S, image_size=SIZE, embed_dim=48, depth=1, num_heads=2, out_dim=48, highres=THIN)


def toy_model(seed: int = 0) -> HighResSam3D:
    torch.manual_seed(seed)
    return HighResSam3D(TOY)


def toy_case(seed: int, *, side: int = 40, has_image: bool = True) -> PackedCase:
    """A case with five balls; every ball is brighter than the one before."""
    rng = np.random.default_rng(seed)
    axis = np.arange(side)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    ids = np.zeros((side,) * 3, np.uint8)
    for number in range(1, 6):
        centre, radius = rng.uniform(0.2 * side, 0.8 * side, 3), rng.uniform(0.1, 0.25) * side
        ids[((grid - centre) ** 2).sum(-1) < radius**2] = number
    table = object_table(ids, (1.0, 1.0, 2.0), num_seeds=16)
    labels = PackedObjects(
        id_map=ids,
        factor=(1, 1, 1),
        table=table,
        deep_seeds=table.seeds[:, :8],
        values=tuple(int(i) % 3 + 1 for i in table.ids),
        names=tuple("abcdef"[: len(table)]),
        contrast=np.zeros(len(table), np.float32),
    )
    pseudo = replace(labels, values=(0,) * len(table), names=("",) * len(table))
    noise = rng.normal(0, 4, ids.shape)
    return PackedCase(
        name=f"toy{seed}",
        source="toy",
        modality="CT" if seed % 2 else "MR",
        body_part="none",
        licence="CC0",
        is_ct=bool(seed % 2),
        spacing_mm=(1.0, 1.0, 2.0),
        image=(ids * 30 + 40 + noise).clip(0, 255).astype(np.uint8) if has_image else None,
        levels=np.linspace(-1000, 1000, 256).astype(np.float32) if has_image else None,
        labels=labels,
        supervoxels=(pseudo,) if has_image else (),
    )
