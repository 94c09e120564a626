"""Pictures of an evaluation: curves, distributions, overlays. The only user of matplotlib.

Figures are drawn with a palette. `LIGHT` is for files; `THEMED` holds stand-ins that `to_svg`
replaces by the style variables of the page, so that one drawing serves light and dark.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsam3d.errors import ConfigError
from fastsam3d.eval.curves import BOX_ROUND, FAILURE_DICE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastsam3d.eval.snapshot import SliceView, Snapshot
    from fastsam3d.eval.summary import Summary

TRUTH_COLOUR = "#3fd0ff"
MASK_COLOUR = "#ff9d1e"
POSITIVE_COLOUR = "#55f08c"
NEGATIVE_COLOUR = "#ff5c5c"
_COLUMNS = 4
_PNG_DPI = 160
_OVERLAY_DPI = 110


@dataclass(frozen=True, kw_only=True)
class Palette:
    """Colours of a drawing.

    Attributes:
        ink: Words and axes.
        faint: Less important words and reference lines.
        rule: Grid lines.
        accent: What the drawing is about.
        bad: Failures.
    """

    ink: str
    faint: str
    rule: str
    accent: str
    bad: str


LIGHT = Palette(ink="#1c2430", faint="#6b7686", rule="#dfe4ea", accent="#1f6fd0", bad="#c8401f")
# Never seen: each is replaced by the variable of the same name.
THEMED = Palette(ink="#010101", faint="#020202", rule="#030303", accent="#040404", bad="#050505")


def draw_curves(summary: Summary, palette: Palette) -> Any:
    """Draw Dice after every round: all sources first, then a panel per source if there are more.

    Bands are 95 % intervals; the thin line in a source's panel is the mean over all sources.
    """
    panels = [("all sources", summary.overall.num_targets, summary.macro, summary.interval)]
    panels += [
        (source, of.num_targets, summary.by_source[source], summary.interval_by_source[source])
        for source, of in summary.sources.items()
        if len(summary.sources) > 1
    ]
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(2.55 * columns, 2.2 * rows + 0.25)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    x = np.arange(len(summary.rounds))
    for number, axes in enumerate(grid.flat):
        if number >= len(panels):
            axes.set_axis_off()
            continue
        name, targets, curve, interval = panels[number]
        low, high = np.array(interval).T
        if number:
            axes.plot(x, summary.macro, color=palette.faint, linewidth=0.9, linestyle=(0, (4, 2)))
        axes.fill_between(x, low, high, color=palette.accent, alpha=0.18, linewidth=0)
        axes.plot(x, curve, color=palette.accent, linewidth=1.8, marker="o", markersize=3.5)
        is_below = bool(number) and curve[-1] < summary.macro[-1]  # away from the dashed line
        axes.annotate(
            f"{curve[-1]:.2f}",
            (x[-1], curve[-1]),
            xytext=(0, -13 if is_below else 6),
            textcoords="offset points",
            ha="right",
            color=palette.ink,
            fontsize=8,
        )
        weight = "normal" if number else "bold"
        axes.set_title(f"{name} ({targets})", fontsize=9, color=palette.ink, weight=weight)
        axes.set_xticks(x, [_round_name(r) for r in summary.rounds])
        axes.set_ylim(0, 1)
        axes.set_xlim(-0.25, len(x) - 0.75)
        _tidy(axes, palette)
    figure.supxlabel("clicks", fontsize=9, color=palette.ink)
    figure.supylabel("Dice", fontsize=9, color=palette.ink)
    return figure


def draw_distribution(last_dice: Mapping[str, Sequence[float]], palette: Palette) -> Any:
    """Draw every target's last Dice as a dot, one row per source, with the median as a bar.

    Args:
        last_dice: Per source.
        palette: Colours; targets below .5 have the colour of failures.
    """
    figure = _figure(10.0, 0.5 * len(last_dice) + 0.7)
    axes = figure.subplots()
    names = list(last_dice)
    for row, name in enumerate(names):
        values = np.array(last_dice[name])
        offsets = stacked_offsets(values)
        for chosen, colour in (
            (values >= FAILURE_DICE, palette.accent),
            (values < FAILURE_DICE, palette.bad),
        ):
            axes.scatter(
                values[chosen],
                row + offsets[chosen],
                s=13,
                color=colour,
                alpha=0.8,
                linewidths=0,
                zorder=2,
            )
        middle = [np.median(values)] * 2
        axes.plot(middle, [row - 0.3, row + 0.3], color=palette.ink, linewidth=1.4, zorder=1.5)
    axes.axvline(FAILURE_DICE, color=palette.faint, linewidth=0.9, linestyle=(0, (4, 2)))
    axes.set_yticks(range(len(names)), [f"{name} ({len(last_dice[name])})" for name in names])
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("Dice after the last click", fontsize=9, color=palette.ink)
    _tidy(axes, palette)
    axes.grid(visible=False, axis="y")
    return figure


def stacked_offsets(values: Any) -> Any:
    """Return how far each dot moves off its row, within 0.4, so that equal values do not hide.

    Dots of one bin of .02 go up and down in turn; nothing is drawn at random.
    """
    bins = np.round(np.asarray(values) / 0.02).astype(int)
    found = np.zeros(len(bins))
    largest = int(np.bincount(bins).max()) if len(bins) else 1
    step = min(0.12, 0.8 / max(largest, 1))
    for one in np.unique(bins):
        members = np.flatnonzero(bins == one)
        order = np.arange(len(members))
        found[members] = ((order + 1) // 2) * np.where(order % 2, 1, -1) * step
    return found


def draw_overlay(snapshot: Snapshot, palette: Palette, *, height_in: float = 2.0) -> Any:
    """Draw the three slices of a snapshot at one scale, with the outlines of truth and mask."""
    sizes = [_size_mm(view) for view in snapshot.slices]
    tallest = max(height for height, _ in sizes)
    total = sum(width for _, width in sizes)
    figure = _figure(height_in * total / tallest + 0.16, height_in)
    axes = figure.subplots(1, 3, squeeze=False, width_ratios=[width for _, width in sizes])[0]
    for view, one in zip(snapshot.slices, axes, strict=True):
        _draw_slice(one, view)
        one.set_title(view.plane, fontsize=9, color=palette.faint, pad=2)
    return figure


def draw_montage(rows: Sequence[tuple[str, Sequence[tuple[str, Snapshot]]]]) -> Any:
    """Draw overlays in titled rows, such as best, median and worst.

    Args:
        rows: Per row its title, and caption and snapshot of every overlay.
    """
    width = max(len(overlays) for _, overlays in rows)
    figure = _figure(4.4 * width, 2.0 * len(rows) + 0.2)
    bands = figure.subfigures(len(rows), width, squeeze=False)
    for (title, overlays), band in zip(rows, bands, strict=True):
        for number, (caption, snapshot) in enumerate(overlays):
            cell = band[number]
            cell.suptitle(f"{title}: {caption}", fontsize=7.5, color=LIGHT.ink)
            widths = [_size_mm(view)[1] for view in snapshot.slices]
            axes = cell.subplots(1, 3, squeeze=False, width_ratios=widths)[0]
            for view, one in zip(snapshot.slices, axes, strict=True):
                _draw_slice(one, view)
    return figure


def mark(figure: Any, words: str) -> None:
    """Write words over a figure that must not be shown without them."""
    figure.suptitle(words, fontsize=10, color=LIGHT.bad, weight="bold")


def to_png(figure: Any, *, for_page: bool = False) -> bytes:
    """Return a figure as PNG: transparent and smaller for the page, white for a file."""
    stream = io.BytesIO()
    dpi = _OVERLAY_DPI if for_page else _PNG_DPI
    # No metadata: the same results give the same bytes.
    figure.savefig(stream, format="png", dpi=dpi, transparent=for_page, metadata={"Software": None})
    return stream.getvalue()


def to_svg(figure: Any, name: str) -> str:
    """Return a figure drawn in `THEMED` as an SVG element that takes the page's colours.

    Args:
        figure: The figure.
        name: Different for every figure of a page, since ids of a page must differ.
    """
    stream = io.StringIO()
    matplotlib = _matplotlib("matplotlib")
    with matplotlib.rc_context({"svg.hashsalt": "fastsam3d", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for field in fields(THEMED):
        text = text.replace(getattr(THEMED, field.name), f"var(--{field.name})")
    return text


def _draw_slice(axes: Any, view: SliceView) -> None:
    height, width = _size_mm(view)
    row_mm, column_mm = view.pixel_mm
    rows, columns = view.image.shape
    axes.imshow(
        view.image,
        cmap="gray",
        vmin=0,
        vmax=255,
        extent=(0, width, height, 0),
        interpolation="none",
    )
    x = [(number + 0.5) * column_mm for number in range(columns)]
    y = [(number + 0.5) * row_mm for number in range(rows)]
    for inside, colour in ((view.truth, TRUTH_COLOUR), (view.mask, MASK_COLOUR)):
        if min(inside.shape) > 1 and inside.any() and not inside.all():
            axes.contour(x, y, inside, levels=[0.5], colors=[colour], linewidths=0.9)
    for row, column, positive in view.clicks:
        axes.plot(
            (column + 0.5) * column_mm,
            (row + 0.5) * row_mm,
            marker="P" if positive else "X",
            markersize=4.5,
            color=POSITIVE_COLOUR if positive else NEGATIVE_COLOUR,
            markeredgecolor="black",
            markeredgewidth=0.5,
        )
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal")


def _size_mm(view: SliceView) -> tuple[float, float]:
    rows, columns = view.image.shape
    return rows * view.pixel_mm[0], columns * view.pixel_mm[1]


def _round_name(number: int) -> str:
    return "box" if number == BOX_ROUND else str(number)


def _tidy(axes: Any, palette: Palette) -> None:
    axes.grid(color=palette.rule, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=palette.ink, labelsize=8, length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _figure(width_in: float, height_in: float) -> Any:
    # Not pyplot, whose figures live in a global list until they are closed.
    return _matplotlib("matplotlib.figure").Figure(
        figsize=(width_in, height_in), layout="constrained"
    )


def _matplotlib(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            'The report needs matplotlib and Jinja2; run pip install "fastsam3d[eval]".'
        ) from error
