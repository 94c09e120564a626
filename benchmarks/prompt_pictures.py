"""Draw what each kind of prompt does: ``python benchmarks/prompt_pictures.py IMAGE``.

IMAGE is `totalsegmentator__ct` of the development data (the example CT of TotalSegmentator,
Apache-2.0). Writes ``docs/figures/prompts_*.png``: one slice, the prompt as a user gave it, and the
outline of what `hr_s` answers. The prompts were placed by hand; no truth plays a part.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np

from fastsam3d.io import read_volume
from fastsam3d.prompts import Box, Lasso, MaskPrompt, Point, PromptSet, Scribble, SliceBox
from fastsam3d.session import Session

mpl.use("Agg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastsam3d.prompts import Prompt
    from fastsam3d.volume import Volume

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
SLICE = 80
VIEW = ((55, 115), (18, 68))  # voxels shown along i and j
LOOK = {"negative_point": (61, ((41, 71), (27, 52)))}
ANSWER, POSITIVE, NEGATIVE = "#ffd23f", "#3ddc84", "#ff5d5d"
KIDNEY = (84.0, 43.0, float(SLICE))


def prompts_of(volume: Volume) -> dict[str, tuple[Prompt, ...]]:
    """Return what is drawn on each picture, all about the right kidney but one."""
    k = SLICE
    index = np.moveaxis(np.indices(volume.shape), 0, -1)
    rough = np.linalg.norm((index - KIDNEY) / (8, 7, 10), axis=-1) < 1
    return {
        "point": (Point.voxel(KIDNEY),),
        "negative_point": (Point.voxel((56, 46, 61)), Point.voxel((56, 36, 61), positive=False)),
        "box": (Box.voxel((68, 28, 66), (96, 57, 103)),),
        "slice_box": (SliceBox.voxel(2, k, (68, 29), (96, 56)),),
        "scribble": (Scribble.voxel([(88, 37, k), (84, 44, k), (77, 50, k)], axis=2, radius_mm=3),),
        "lasso": (
            Lasso.voxel(
                [
                    (95, 40, k),
                    (92, 31, k),
                    (85, 29, k),
                    (78, 34, k),
                    (75, 41, k),
                    (68, 47, k),
                    (69, 54, k),
                    (78, 56, k),
                    (88, 54, k),
                    (94, 48, k),
                ],
                axis=2,
            ),
        ),
        "mask": (MaskPrompt(rough, volume.geometry), Point.voxel(KIDNEY)),
    }


def draw_prompt(axes: Axes, prompt: Prompt) -> None:
    """Draw a prompt on its slice."""
    colour = POSITIVE if getattr(prompt, "positive", True) else NEGATIVE
    line: dict[str, Any] = {"color": colour, "linewidth": 1.6}
    if isinstance(prompt, Point):
        marker = "+" if prompt.positive else "_"
        axes.plot(*prompt.position[:2], marker=marker, color=colour, markersize=13, mew=3)
    elif isinstance(prompt, Box | SliceBox):
        (i0, j0, _), (i1, j1, _) = prompt.start, prompt.stop
        i, j = np.array([i0, i1, i1, i0, i0]) - 0.5, np.array([j0, j0, j1, j1, j0]) - 0.5
        axes.plot(i, j, **line)
    elif isinstance(prompt, Scribble):
        axes.plot(*np.array(prompt.path)[:, :2].T, **{**line, "linewidth": 7, "alpha": 0.75})
    elif isinstance(prompt, Lasso):
        closed = np.array((*prompt.outline, prompt.outline[0]))
        axes.plot(*closed[:, :2].T, **line, linestyle="--")
    else:
        shown = np.ma.masked_equal(prompt.array[:, :, SLICE].T, 0)
        axes.imshow(shown, cmap=mpl.colors.ListedColormap([colour]), alpha=0.45, origin="lower")


def main() -> int:
    """Draw; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("--model", default="hr_s")
    options = parser.parse_args()
    volume = read_volume(options.image)
    session = Session.from_pretrained(options.model, device="cpu")
    session.set_volume(volume)
    for name, prompts in prompts_of(volume).items():
        k, view = LOOK.get(name, (SLICE, VIEW))
        answer = session.predict(PromptSet(prompts)).mask.array[:, :, k]
        before = None
        if name == "negative_point":
            before = session.predict(PromptSet(prompts[:1])).mask.array[:, :, k]
        figure, axes = plt.subplots(figsize=(2.6, 2.2), dpi=100)
        figure.subplots_adjust(0, 0, 1, 1)
        axes.imshow(
            volume.array[:, :, k].T, cmap="gray", vmin=-160, vmax=240, origin="lower",
            interpolation="bilinear",
        )  # fmt: skip
        if before is not None:
            axes.contour(before.T, [0.5], colors=ANSWER, linewidths=1.2, linestyles="dotted")
        axes.contour(answer.T, [0.5], colors=ANSWER, linewidths=1.8)
        for prompt in prompts:
            draw_prompt(axes, prompt)
        # As radiologists look: the patient's right is on the left.
        axes.set(xlim=view[0][::-1], ylim=view[1], aspect="equal")
        axes.axis("off")
        figure.savefig(FIGURES / f"prompts_{name}.png")
        plt.close(figure)
        sys.stdout.write(f"{name}: {np.count_nonzero(answer)} voxels on the slice\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
