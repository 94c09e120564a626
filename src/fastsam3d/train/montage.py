"""Look at what the generator makes: ``python -m fastsam3d.train.montage --pack FILE -o PNG``.

Each column is one ROI: three orthogonal slices through its centre, the first target in red and
the second in blue (outlines), the ROI centre marked by a cross.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fastsam3d.train.bank import TrainingBank
from fastsam3d.train.config import recipe
from fastsam3d.train.drawing import BatchDrawer
from fastsam3d.train.pack import load_pack
from fastsam3d.train.rendering import Renderer, TrainingBatch

COLOURS = ((255, 60, 60), (80, 140, 255))
CROSS_COLOUR = (255, 255, 0)


def montage(batch: TrainingBatch) -> NDArray[np.uint8]:
    """Return an RGB picture of a batch, uint8 (3 * (S + 2), B * (S + 2), 3)."""
    images = batch.image[:, 0].cpu().numpy()
    targets = batch.targets.cpu().numpy()
    middle = images.shape[1] // 2
    columns = [_column(images[b], targets[b], middle) for b in range(len(images))]
    return np.concatenate(columns, axis=1)


def _column(
    image: NDArray[np.float32], targets: NDArray[np.bool_], middle: int
) -> NDArray[np.uint8]:
    rows: list[NDArray[np.uint8]] = []
    for axis in range(3):
        grey = (np.take(image, middle, axis) * 55 + 100).clip(0, 255).astype(np.uint8)
        picture = np.repeat(grey[..., None], 3, axis=2)
        for target, colour in zip(targets, COLOURS, strict=False):
            mask = np.take(target, middle, axis)
            inner = mask.copy()
            inner[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
            picture[mask & ~inner] = colour
        picture[middle, middle - 2 : middle + 3] = CROSS_COLOUR
        picture[middle - 2 : middle + 3, middle] = CROSS_COLOUR
        rows.append(np.pad(picture, ((0, 2), (0, 2), (0, 0))))
    return np.concatenate(rows, axis=0)


def main(arguments: list[str] | None = None) -> int:
    """Write the montage of one batch."""
    parser = argparse.ArgumentParser(prog="python -m fastsam3d.train.montage", description=__doc__)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--counts", type=int, nargs=3, default=(2, 3, 7), metavar=("SHAPES", "PAINTED", "REAL")
    )
    options = parser.parse_args(arguments)
    shapes, painted, real = options.counts
    config = replace(
        recipe(options.recipe).generator, num_shapes=shapes, num_painted=painted, num_real=real
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bank = TrainingBank(load_pack(options.pack), device=device)
    torch.manual_seed(options.seed)  # pyright: ignore[reportUnknownMemberType]
    drawn = BatchDrawer(bank, config, seed=options.seed).draw().to(device)
    picture = montage(Renderer(bank, config).render(drawn))
    Image.fromarray(picture).save(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
