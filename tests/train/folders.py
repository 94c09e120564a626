"""Folders of small labelled cases as users have them, and toy weights to begin with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastsam3d.io import write_mask, write_volume
from fastsam3d.model.card import Preprocessing, WeightsCard
from fastsam3d.model.checkpoint import save_checkpoint
from fastsam3d.volume import Geometry, Volume
from tests.train.toy import TOY, toy_model

SHAPE = (24, 22, 20)
SPACING = (1.0, 1.0, 1.5)


def case_arrays(seed: int, *, air: float = 0.0) -> tuple[Volume, NDArray[np.uint8]]:
    """A bright ball (label 2) in a grey body."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    labels = (2 * (((grid - rng.uniform(9, 13, 3)) ** 2).sum(-1) < 25)).astype(np.uint8)
    body = ((grid - 11.0) ** 2).sum(-1) < 110
    array = np.where(body, 40, air) + 40 * labels + rng.normal(0, 4, SHAPE)
    return Volume(array.astype(np.float32), Geometry(SHAPE, np.diag([*SPACING, 1.0]))), labels


def write_case(folder: Path, seed: int, *, air: float = 0.0) -> None:
    folder.mkdir(parents=True)
    volume, labels = case_arrays(seed, air=air)
    write_volume(volume, folder / "image.nii.gz")
    write_mask(volume.new_mask(labels), folder / "label.nii.gz")


def write_nnunet(root: Path, *, train: int, test: int) -> None:
    numbers = {"Tr": range(train), "Ts": range(50, 50 + test)}
    for part, seeds in numbers.items():
        (root / f"images{part}").mkdir(parents=True)
        (root / f"labels{part}").mkdir()
        for seed in seeds:
            volume, labels = case_arrays(seed)
            write_volume(volume, root / f"images{part}" / f"ball_{seed:03d}_0000.nii.gz")
            write_mask(volume.new_mask(labels), root / f"labels{part}" / f"ball_{seed:03d}.nii.gz")
            for folder in ("images", "labels"):  # the Decathlon's archives hold such shadows
                (root / f"{folder}{part}" / f"._ball_{seed:03d}.nii.gz").write_bytes(b"shadow")
    dataset = {
        "name": "Balls",
        "licence": "CC-BY-4.0",
        "labels": {"background": 0, "ball": 2},
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")


def write_start(path: Path) -> Path:
    """Toy weights whose card is that of a trainable model."""
    card = WeightsCard(
        name="toy",
        architecture=TOY,
        preprocessing=Preprocessing(
            normalisation="roi_percentile_zscore", image_size=TOY.image_size, spacings_mm=(1.2,)
        ),
        licence="Apache-2.0",
        training_data=("earlier (MR): 3 cases, CC0",),
        sha256="0" * 64,
        created="2026-11-22",
    )
    save_checkpoint(toy_model(seed=5).state_dict(), path, card)
    return path
