"""Draw candidates and uncertainty: ``python benchmarks/ambiguity_picture.py IMAGE``.

IMAGE is `totalsegmentator__ct` of the development data (the example CT of TotalSegmentator,
Apache-2.0). Writes ``docs/figures/ambiguity.png``: one click, the candidates of `hr_s`, and the
entropy of sixteen moved clicks with the suggested next one. The click was placed by hand; no truth
plays a part.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import torch

from fastsam3d.io import read_volume
from fastsam3d.prompts import Point
from fastsam3d.session import Session

mpl.use("Agg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "ambiguity.png"
COLOURS = {"answer": "#ffd23f", "part": "#3ddc84", "whole": "#4aa8ff"}
MARGIN_MM = 62.0


def main() -> int:
    """Draw; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("--click", type=int, nargs=3, default=(84, 43, 80), metavar=("I", "J", "K"))
    parser.add_argument("--output", type=Path, default=FIGURE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    session = Session.from_pretrained("hr_s", device="cpu")
    volume = read_volume(options.image)
    session.set_volume(volume)
    click = tuple(options.click)
    session.add_point(Point.voxel(click))
    candidates, found = session.candidates(), session.uncertainty()
    suggestion = found.suggest_point()
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.3), layout="constrained")
    for axis in axes[:2]:
        _show(axis, volume.array, click, volume.geometry.spacing)
    for candidate in candidates:
        mask = candidate.mask.to_array(volume.shape)[..., click[2]]
        colour = COLOURS[candidate.kind]
        axes[0].contour(mask.T, [0.5], colors=colour, linewidths=1.6)
        label = f"{candidate.kind}, quality {candidate.quality:.2f}"
        axes[0].plot([], [], color=colour, label=label)
    axes[0].plot(*click[:2], "+", color="white", markersize=11, markeredgewidth=2)
    axes[0].legend(loc="lower right", fontsize=8, framealpha=0.8)
    axes[0].set_title("One click, three candidates")
    _entropy(axes[1], found.to_volume("entropy").array[..., click[2]])
    axes[1].plot(*click[:2], "+", color="white", markersize=11, markeredgewidth=2)
    axes[1].set_title(f"Entropy of 16 moved clicks (stability {found.stability:.2f})")
    if suggestion is not None:
        i, j, k = (int(value) for value in suggestion.position)
        _show(axes[2], volume.array, (i, j, k), volume.geometry.spacing)
        _entropy(axes[2], found.to_volume("entropy").array[..., k])
        axes[2].plot(i, j, "o", color="#ff5dd2", markersize=10, fillstyle="none", markeredgewidth=2)
        axes[2].set_title(f"Where to click next: slice {k}")
    figure.savefig(options.output, dpi=100)
    return 0


def _show(axis: Axes, array: np.ndarray, at: tuple[int, int, int], spacing: tuple) -> None:
    axis.imshow(array[..., at[2]].T, cmap="gray", vmin=-120, vmax=250, interpolation="bilinear")
    for set_limits, centre, side in (
        (axis.set_xlim, at[0], spacing[0]),
        (axis.set_ylim, at[1], spacing[1]),
    ):
        set_limits(centre - MARGIN_MM / side, centre + MARGIN_MM / side)
    axis.set_axis_off()


def _entropy(axis: Axes, entropy: np.ndarray) -> None:
    shown = np.ma.masked_less(entropy, 0.1)
    axis.imshow(shown.T, cmap="inferno", vmin=0, vmax=1, alpha=0.75)


if __name__ == "__main__":
    sys.exit(main())
