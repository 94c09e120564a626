"""Bones and air spaces that a training pack has found in CT: one scan a row, seen from three sides.

    python benchmarks/anatomy_pictures.py train_pack.npz docs/figures/anatomy.png

First two panels: the nearest bone along a ray from the front and from the patient's left, darker
the farther away. Third: one slice with all objects over it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from fastsam3d.train.pack import PackedCase, load_pack

CASES = ("elastix__3DCT_lung", "fnndsc__andrei_abdomen", "mirp__CRLM-CT-1006")
SIDES = ((1, "from the front"), (0, "from the left"))
WINDOW_HU = (-200.0, 500.0)


def main() -> int:
    """Draw the figure; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pack", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--cases", nargs="+", default=CASES)
    options = parser.parse_args()
    cases = {case.name: case for case in load_pack(options.pack)}
    colours = np.vstack([[0, 0, 0], np.random.default_rng(0).uniform(0.3, 1, (255, 3))])
    rows = len(options.cases)
    figure, axes = plt.subplots(rows, 3, figsize=(10, 3.4 * rows), layout="constrained")
    for line, name in zip(np.atleast_2d(axes), options.cases, strict=True):
        draw_case(line, cases[name], colours)
    figure.savefig(options.output, dpi=80)
    return 0


def draw_case(axes: Any, case: PackedCase, colours: NDArray[np.float64]) -> None:
    """Draw one scan in three panels."""
    if case.anatomy is None or case.image is None or case.levels is None:
        raise SystemExit(f"{case.name} has no bones in this pack; name another case.")
    ids, image = case.anatomy.id_map, case.levels[case.image]
    dense = np.zeros(256, bool)
    for value in case.anatomy.table.ids:
        dense[value] = np.median(image[ids == value]) > 0
    bones = np.where(dense[ids], ids, 0)
    spacing = case.spacing_mm
    for panel, (axis, title) in zip(axes, SIDES, strict=False):
        along = np.moveaxis(bones, axis, 0)
        along = along[::-1] if axis == 1 else along
        first = (along > 0).argmax(0)
        seen = np.take_along_axis(along, first[None], 0)[0]
        picture = colours[seen] * (1 - 0.6 * first / len(along))[..., None]
        _show(panel, picture, spacing[2] / spacing[1 - axis])
        panel.set_title(
            f"{dense[case.anatomy.table.ids].sum()} bones and the like, {title}", size=9
        )
    middle = image.shape[1] // 2
    low, high = WINDOW_HU
    grey = np.clip((image[:, middle] - low) / (high - low), 0, 1)
    picture = np.repeat(grey[..., None], 3, -1)
    inside = ids[:, middle] > 0
    picture[inside] = 0.4 * picture[inside] + 0.6 * colours[ids[:, middle][inside]]
    _show(axes[2], picture, spacing[2] / spacing[0])
    axes[2].set_title(case.name, size=9)


def _show(panel: Any, picture: NDArray[np.float64], aspect: float) -> None:
    panel.imshow(np.swapaxes(picture, 0, 1), origin="lower", aspect=aspect)
    panel.axis("off")


if __name__ == "__main__":
    sys.exit(main())
