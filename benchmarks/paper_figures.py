"""Draw the figures of docs/paper.md: ``python benchmarks/paper_figures.py``.

From ``paper_distillation.json``, into ``docs/figures/paper_*.png``: Dice by number of clicks, what
the modes learnt by the minute, and how far each layer is from the teacher's. Without that file
there is nothing to draw. The figure of sparse attention is drawn by ``plots.py``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import matplotlib as mpl

from fastsam3d.eval.outputs import read_json

mpl.use("Agg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Sequence

    Json = dict[str, Any]

HERE = Path(__file__).parent
RECORD = HERE / "paper_distillation.json"
FIGURES = HERE.parent / "docs" / "figures"
# Colour and mark of each model; of Okabe and Ito's palette, so that most eyes tell them apart.
STYLES: dict[str, tuple[str, str]] = {
    "teacher": ("#222222", "s"),
    "progressive": ("#0072b2", "o"),
    "all_layers": ("#56b4e9", "^"),
    "output_only": ("#d55e00", "v"),
    "copy_then_output": ("#cc79a7", "D"),
    "from_scratch": ("#009e73", "x"),
    "hr_s": ("#999999", "."),
}
OTHERS = ("#e69f00", "#f0e442")
BARS = ("1", "3", "5", "10")
FAR = 2.0
USUAL_ROI = 128


def styles(record: Json) -> dict[str, dict[str, Any]]:
    """Return how each model is drawn, in the record's order."""
    others = iter(OTHERS * len(record["models"]))
    found: dict[str, dict[str, Any]] = {}
    for name, of in record["models"].items():
        colour, mark = STYLES.get(name) or (next(others), "P")
        words = of["words"].replace("`", "")
        found[name] = {"color": colour, "marker": mark, "label": words, "markersize": 5}
    return found


def plot_clicks(record: Json, folder: Path) -> None:
    """Dice after each click, with intervals at some."""
    figure, axes = cast("Any", plt.subplots(figsize=(8.2, 4.2), layout="constrained"))
    drawn = styles(record)
    for number, (name, style) in enumerate(drawn.items()):
        of = record["models"][name]
        axes.plot(of["clicks"], of["curve"], linewidth=1.6, **style)
        beside = 0.04 * (number - (len(drawn) - 1) / 2)
        for clicks in BARS:
            if clicks in of["dice"]:
                _, low, high = of["dice"][clicks]
                at = int(clicks) + beside
                axes.plot([at, at], [low, high], color=style["color"], alpha=0.6, linewidth=1.1)
    axes.set(xlabel="clicks", ylabel="macro Dice")
    axes.xaxis.get_major_locator().set_params(integer=True, steps=[1, 10])
    axes.set_title(
        "Development targets, whole scans, last mask; bars: 95 % over subjects",
        loc="left",
        fontsize=10,
    )
    _finish([axes])
    _legend(figure)
    _save(figure, folder / "paper_clicks.png")


def plot_training(record: Json, folder: Path) -> None:
    """IoU on a run's own ROIs and error of the embedding, by minutes of training."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.9), layout="constrained")
    for name, style in styles(record).items():
        of = record["models"][name]
        # Other ROIs are other tasks: their IoU is not to be compared.
        if "log" not in of or of.get("config", {}).get("roi_voxels", USUAL_ROI) != USUAL_ROI:
            continue
        log, last = of["log"], of["minutes"]
        if name == "teacher" and "iou" in log:  # its minutes are others: show where it ended
            left.axhline(log["iou"][-1], linestyle="--", linewidth=1.2, **_line(style))
            continue
        for axes, key in ((left, "iou"), (right, "neck_error")):
            if key in log:
                axes.plot(log["minutes"], _numbers(log[key]), linewidth=1.4, **_line(style))
        left.set_xlim(0, max(left.get_xlim()[1], 1.02 * last))
    left.set(ylabel="IoU", ylim=(0, None))
    left.set_title("IoU after the trained round, own ROIs", loc="left", fontsize=10)
    right.set(ylabel="relative error", xlim=left.get_xlim())
    right.set_title("Embedding against the teacher's", loc="left", fontsize=10)
    for axes in (left, right):
        axes.set_xlabel("minutes")
    _finish([left, right])
    _legend(figure)
    _save(figure, folder / "paper_training.png")


def plot_layers(record: Json, folder: Path) -> None:
    """Error and alignment of each layer's features with the teacher's."""
    figure, (left, right) = cast(
        "Any", plt.subplots(1, 2, figsize=(9.5, 3.9), layout="constrained")
    )
    ticks: list[str] = []
    for name, style in styles(record).items():
        layers = record["models"][name].get("layers", [])
        ticks = [_layer_name(layer) for layer in layers] or ticks
        for axes, key in ((left, "error"), (right, "alignment")):
            values = _numbers([layer[key] for layer in layers])
            if values:
                axes.plot(range(len(values)), values, linewidth=1.4, **style)
    left.set(ylabel="relative error")
    # Features that never met the teacher may be of another size altogether.
    far = max((line.get_ydata().max() for line in left.lines), default=0.0) > FAR
    left.set(**({"yscale": "log"} if far else {"ylim": (0, None)}))
    left.set_title("Distance from the teacher's features", loc="left", fontsize=10)
    right.set(ylabel="alignment (CKA)", ylim=(0, 1.02))
    right.set_title("Same information, up to rotation and scale", loc="left", fontsize=10)
    for axes in (left, right):
        axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
        axes.set_xlabel("student's layer with the teacher's")
    _finish([left, right])
    _legend(figure)
    _save(figure, folder / "paper_layers.png")


def draw(record: Json, folder: Path) -> None:
    """Draw all figures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    plot_clicks(record, folder)
    plot_training(record, folder)
    plot_layers(record, folder)


def _line(style: dict[str, Any]) -> dict[str, Any]:
    return {"color": style["color"], "label": style["label"]}


def _layer_name(layer: Json) -> str:
    if layer["teacher_layer"] is None:
        return "embedding"
    return f"{layer['name'].removeprefix('layer')} / {layer['teacher_layer']}"


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _finish(axes: Sequence[Any]) -> None:
    for one in axes:
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any) -> None:
    """Put one legend below, each model once."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(
        found.values(), found.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Draw all figures; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--output", type=Path, default=FIGURES, help="folder of the figures")
    options = parser.parse_args(arguments)
    if not options.record.is_file():
        sys.stderr.write(f"{options.record.name} is not there yet: nothing to draw.\n")
        return 1
    draw(read_json(options.record), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
