"""Draw the figures of the documentation from committed records: ``python benchmarks/plots.py``.

`docs/figures/sparse_attention.png` from `sparse_attention_h200.json`, and
`docs/figures/training_curves.png` from the logs of the training runs.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
FIGURES = HERE.parent / "docs" / "figures"
RUNS = HERE.parent / "docs" / "training" / "runs"
COLOURS = {
    "dense": "#444444",
    "dilated triton": "#0072b2",
    "window8 triton": "#009e73",
    "axial triton": "#d55e00",
}
NAMES = {
    "dense": "dense (flash)",
    "dilated triton": "dilated (4,1) (8,2) (16,4)",
    "window8 triton": "window of 8",
    "axial triton": "axial",
}


def plot_sparse_attention() -> None:
    """Time and memory of one attention by grid size, dense beside sparse."""
    record = json.loads((HERE / "sparse_attention_h200.json").read_text(encoding="utf-8"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    for method, colour in COLOURS.items():
        rows = [row for row in record["times"] if row["method"] == method]
        tokens = [row["tokens"] for row in rows]
        style: dict[str, Any] = {"color": colour, "marker": "o", "label": NAMES[method]}
        left.plot(tokens, [row["forward_backward_ms"] for row in rows], **style)
        right.plot(tokens, [row["forward_backward_peak_mib"] for row in rows], **style)
    for axes, title, unit in (
        (left, "Forward and backward", "ms"),
        (right, "Peak memory", "MiB"),
    ):
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=unit)
        axes.set_title(title, loc="left", fontsize=11)
        sides = (8, 16, 24, 32, 48, 64)
        axes.set_xticks([side**3 for side in sides], [f"{side}³" for side in sides])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=9)
    figure.suptitle(
        f"{record['heads']} heads of {record['head_dim']}, bfloat16, {record['device']}",
        x=0.01,
        ha="left",
        fontsize=10,
        color="#555555",
    )
    figure.savefig(FIGURES / "sparse_attention.png", dpi=110)
    plt.close(figure)


def plot_training_curves() -> None:
    """Loss and IoU on its own training ROIs, by ROIs seen, for every run kept."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    shown = {
        "first": "#999999",
        "second": "#0072b2",
        "third": "#d55e00",
        "fourth": "#009e73",
        "fifth": "#cc79a7",
        "sixth_a": "#e69f00",
        "sixth_b": "#56b4e9",
        "seventh": "#000000",
    }
    for name, colour in shown.items():
        log = (RUNS / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
        lines = [json.loads(line) for line in log]
        columns: defaultdict[str, list[float]] = defaultdict(list)
        for line in lines:
            for key in ("rois", "dice_loss", "iou"):
                columns[key].append(line[key])
        thousands = [rois / 1000 for rois in columns["rois"]]
        for axes, key in ((left, "dice_loss"), (right, "iou")):
            axes.plot(thousands, columns[key], color=colour, alpha=0.3, linewidth=0.8)
            smooth = _smoothed(columns[key])
            label = f"{name.replace('_', ' ')} run"
            axes.plot(thousands, smooth, color=colour, linewidth=1.8, label=label)
    left.set_title("Loss of the settled mask (Dice + cross entropy)", loc="left", fontsize=11)
    right.set_title("IoU after the trained round", loc="left", fontsize=11)
    for axes in (left, right):
        axes.set(xlabel="thousands of ROIs of 128³")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylim(0.45, 1.3)
    left.legend(frameon=False)
    figure.savefig(FIGURES / "training_curves.png", dpi=110)
    plt.close(figure)


def _smoothed(values: list[float], *, weight: float = 0.7) -> list[float]:
    """Return the bias-corrected running mean."""
    total, norm, found = 0.0, 0.0, []
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        found.append(total / norm)
    return found


def main() -> int:
    """Draw all figures."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    plot_sparse_attention()
    plot_training_curves()
    return 0


if __name__ == "__main__":
    sys.exit(main())
