"""Training of the fixed-class U-Net: patches, half of them on foreground, Dice and cross-entropy.

Shape legend: B patches, C classes with background, S side of a patch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastsam3d.errors import DatasetError
from fastsam3d.eval.baselines.unet import (
    UnetConfig,
    build_unet,
    network_shape,
    save_unet,
    to_network,
)
from fastsam3d.eval.cases import parse_label_names

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from fastsam3d.volume import Volume

IMAGE_FILE, LABEL_FILE = "image.nii.gz", "label.nii.gz"
BATCH = 2
LEARNING_RATE = 1e-3
LOSSES_REPORTED = 20


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train.

    Attributes:
        names: What labels are called, ``"1=liver; 2=spleen"``.
        spacing_mm: As `UnetConfig.spacing_mm`.
        patch: As `UnetConfig.patch`.
        steps: At most so many steps of two patches.
        minutes: At most so long.
        device: "cpu" or "cuda".
        seed: Of weights and patches.
    """

    names: str = ""
    spacing_mm: float = UnetConfig.spacing_mm
    patch: int = UnetConfig.patch
    steps: int = 2000
    minutes: float = 10.0
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class TrainCase:
    """One case on the network's grid.

    Attributes:
        image: Normalised intensities, (I, J, K).
        labels: Label values of the file, (I, J, K).
    """

    image: NDArray[np.float32]
    labels: NDArray[Any]


def train_unet(folders: Sequence[Path], output: Path, options: TrainOptions) -> dict[str, Any]:
    """Train on all labelled cases and write the network.

    Args:
        folders: Case folders (``image.nii.gz`` and ``label.nii.gz``), or folders of them.
        output: The .safetensors to write, its .json beside it.
        options: How to train.

    Returns:
        Facts of the training: cases, steps, seconds and the mean of the last losses.

    Raises:
        DatasetError: There is no case, no label, or a case's grids differ.
        ConfigError: A value is impossible, or MONAI is not installed.
    """
    cases = [read_case(folder, options.spacing_mm) for folder in find_cases(folders)]
    classes = sorted({int(v) for case in cases for v in np.unique(case.labels)} - {0})
    if not classes:
        raise DatasetError("The cases hold no label but background; give labelled cases.")
    names = parse_label_names(options.names)
    config = UnetConfig(
        classes=tuple(classes),
        names=tuple(names.get(value, f"label {value}") for value in classes),
        spacing_mm=options.spacing_mm,
        patch=options.patch,
    )
    network, losses, seconds = _fit(cases, config, options)
    facts = {
        "cases": len(cases),
        "steps": len(losses),
        "seconds": round(seconds, 1),
        "loss": float(np.mean(losses[-LOSSES_REPORTED:])),
        "classes": dict(zip(map(str, classes), config.names, strict=True)),
        "seed": options.seed,
    }
    save_unet(network, config, output, facts)
    return facts


def find_cases(folders: Sequence[Path]) -> list[Path]:
    """Return all case folders among or right below some folders, sorted.

    Raises:
        DatasetError: There is none.
    """
    candidates = [p for folder in folders for p in (folder, *sorted(folder.glob("*/")))]
    found = [p for p in candidates if (p / IMAGE_FILE).is_file() and (p / LABEL_FILE).is_file()]
    if not found:
        raise DatasetError(
            f"No case with {IMAGE_FILE} and {LABEL_FILE} in {[str(f) for f in folders]}."
        )
    return sorted(set(found))


def read_case(folder: Path, spacing_mm: float) -> TrainCase:
    """Read a case and bring it onto the network's grid.

    Raises:
        DatasetError: Image and labels differ in geometry.
    """
    from fastsam3d.io import read_mask, read_volume  # noqa: PLC0415 - late, heavy

    volume, mask = read_volume(folder / IMAGE_FILE), read_mask(folder / LABEL_FILE)
    if not volume.geometry.is_close(mask.geometry):
        raise DatasetError(f"Image and labels of {folder} differ in geometry; resave one.")
    return TrainCase(
        to_network(volume, spacing_mm), _labels_to_network(volume, mask.array, spacing_mm)
    )


def draw_patch(
    case: TrainCase, config: UnetConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw an image patch (S, S, S) and its class indices, randomly flipped.

    Every other patch is centred on a foreground voxel; what lies outside of the scan is padded.
    """
    shape, half = np.array(case.image.shape), config.patch // 2
    foreground = np.argwhere(case.labels > 0) if rng.random() < 0.5 else np.zeros((0, 3), int)
    centre = rng.choice(foreground) if len(foreground) else rng.integers(shape)
    start = np.asarray(centre) - half
    low, high = np.maximum(0, -start), np.maximum(0, start + config.patch - shape)
    inside = tuple(
        slice(int(max(0, s)), int(min(n, s + config.patch)))
        for s, n in zip(start, shape, strict=True)
    )
    pad = list(zip(low.tolist(), high.tolist(), strict=True))
    image = np.pad(case.image[inside], pad, mode="edge")
    labels = np.pad(case.labels[inside], pad)
    classes = np.zeros(labels.shape, dtype=np.int64)
    for index, value in enumerate(config.classes, start=1):
        classes[labels == value] = index
    flips = tuple(axis for axis in range(3) if rng.random() < 0.5)
    return np.flip(image, flips).copy(), np.flip(classes, flips).copy()


def _fit(
    cases: Sequence[TrainCase], config: UnetConfig, options: TrainOptions
) -> tuple[Any, list[float], float]:
    import torch  # noqa: PLC0415 - late, heavy

    torch_any = cast("Any", torch)
    torch_any.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    network = build_unet(config).to(options.device)
    from monai import losses as monai_losses  # noqa: PLC0415 - build_unet has checked for MONAI

    criterion = cast("Any", monai_losses).DiceCELoss(to_onehot_y=True, softmax=True)
    optimiser = torch_any.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    values: list[float] = []
    begin = time.perf_counter()
    while len(values) < options.steps and time.perf_counter() - begin < 60 * options.minutes:
        drawn = [
            draw_patch(cases[int(rng.integers(len(cases)))], config, rng) for _ in range(BATCH)
        ]
        image, classes = (
            torch_any.from_numpy(np.stack(part)[:, None]).to(options.device)
            for part in zip(*drawn, strict=True)
        )
        loss = criterion(network(image), classes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    return network.eval(), values, time.perf_counter() - begin


def _labels_to_network(volume: Volume, labels: NDArray[Any], spacing_mm: float) -> NDArray[Any]:
    """Take the nearest label for every voxel of the network's grid."""
    index = [
        np.clip(((np.arange(count) + 0.5) * spacing_mm / side).astype(int), 0, length - 1)
        for count, side, length in zip(
            network_shape(volume, spacing_mm), volume.geometry.spacing, labels.shape, strict=True
        )
    ]
    return labels[np.ix_(*index)]
