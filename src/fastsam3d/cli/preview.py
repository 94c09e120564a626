"""A picture of a mask on its volume: three slices as a radiologist expects them.

The patient's right is on the left of the picture, anterior and superior are up; sagittal slices
look to the left of the picture. All three panels share one scale in mm per pixel, so anisotropic
voxels keep their true shape. Only numpy and Pillow are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fastsam3d.volume.display import PLANES, Plane, display_window

if TYPE_CHECKING:
    from fastsam3d.volume import Mask, Volume

PANEL_PX: Final = 420
GAP_PX: Final = 6
HEADER_PX: Final = 46
MARGIN_PX: Final = 10
# The view is 1.5 times as wide as the structure around the click, but wide enough to recognise the
# anatomy. (Three times its reach from the click, which is half its width for a central click.)
VIEW_PER_REACH: Final = 3.0
MIN_VIEW_MM: Final = 110.0
SCALE_BARS_MM: Final = (100, 50, 20, 10, 5, 2, 1)

BACKGROUND: Final = (16, 18, 22)
TEXT: Final = (236, 239, 244)
FAINT_TEXT: Final = (150, 158, 170)
MASK_COLOUR: Final = (255, 176, 32)
POSITIVE_COLOUR: Final = (64, 224, 120)
NEGATIVE_COLOUR: Final = (255, 84, 84)
FILL_OPACITY: Final = 0.28

Array = NDArray[Any]
Grey = NDArray[np.float32]


class Click(NamedTuple):
    """A click to mark: the voxel of the file's grid and whether it lies inside the structure."""

    voxel: tuple[float, float, float]
    positive: bool = True


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """Volume and mask with axes ordered and flipped towards right, anterior, superior.

    `image` and `mask` are (I, J, K) views, `spacing` is in mm, `clicks` and `centre` are voxels
    of this reordered grid.
    """

    image: Array
    mask: NDArray[np.bool_]
    spacing: NDArray[np.float64]
    clicks: tuple[Click, ...]
    centre: NDArray[np.float64]


class _View(NamedTuple):
    """The part of the scene that all panels show: its middle in voxels, and its scale."""

    centre: NDArray[np.float64]
    px_per_mm: float


def render_preview(
    volume: Volume, mask: Mask, *, clicks: tuple[Click, ...] = (), title: str
) -> Image.Image:
    """Draw three orthogonal slices with the mask's outline and the clicks.

    The slices pass through the first positive click, else through the mask's centre, else through
    the middle of the volume.

    Args:
        volume: The scan; its `modality`, where known, chooses the grey window.
        mask: The mask on the same grid; above zero is inside.
        clicks: Clicks to mark, in voxels of the volume.
        title: Words for the header, such as the file's name.

    Returns:
        An RGB picture.
    """
    scene = _arrange(volume, mask, clicks)
    low, high = display_window(volume.array, mask.array > 0, volume.modality)
    view = _view_of(scene)
    width = 2 * MARGIN_PX + 3 * PANEL_PX + 2 * GAP_PX
    canvas = Image.new("RGB", (width, HEADER_PX + PANEL_PX + MARGIN_PX), BACKGROUND)
    for number, plane in enumerate(PLANES):
        panel = _draw_panel(scene, plane, window=(low, high), view=view)
        canvas.paste(panel, (MARGIN_PX + number * (PANEL_PX + GAP_PX), HEADER_PX))
    _draw_header(
        canvas, title, facts=f"{mask_volume_ml(mask):.4g} ml · window {low:.4g} to {high:.4g}"
    )
    return canvas


def mask_volume_ml(mask: Mask) -> float:
    """Return the volume inside a mask in millilitres, oblique and sheared grids included."""
    voxel_mm3 = abs(float(np.linalg.det(mask.geometry.affine[:3, :3])))
    return int(np.count_nonzero(mask.array)) * voxel_mm3 / 1000.0


def _arrange(volume: Volume, mask: Mask, clicks: tuple[Click, ...]) -> _Scene:
    """Reorder the axes towards RAS by the closest permutation; nothing is resampled."""
    reorder = volume.geometry.canonical_reorder()
    inside = reorder.apply(mask.array > 0)
    moved = tuple(Click(_triple(reorder.apply_points(c.voxel)), c.positive) for c in clicks)
    anchor = next((np.array(click.voxel) for click in moved if click.positive), None)
    if anchor is None:
        anchor = _mask_centre(inside)
    limit = np.array(inside.shape, dtype=np.float64) - 1
    return _Scene(
        image=reorder.apply(volume.array),
        mask=inside,
        spacing=np.array(volume.geometry.reorient(reorder).spacing),
        clicks=moved,
        centre=np.clip(np.rint(anchor), 0, limit),
    )


def _triple(voxel: NDArray[np.float64]) -> tuple[float, float, float]:
    i, j, k = voxel
    return float(i), float(j), float(k)


def _mask_centre(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the voxel of the mask nearest to its centre of mass; a ring's hole is no answer."""
    voxels = np.argwhere(inside)
    if not len(voxels):
        return (np.array(inside.shape, dtype=np.float64) - 1) / 2
    offsets = voxels - voxels.mean(axis=0)
    return voxels[int(np.argmin((offsets**2).sum(axis=1)))].astype(np.float64)


def _view_of(scene: _Scene) -> _View:
    """Show the structure and its surroundings, at most the whole scan."""
    shape = np.array(scene.mask.shape)
    scan_mm = shape * scene.spacing
    width_mm = float(scan_mm.max())
    voxels = np.argwhere(scene.mask)
    if len(voxels):
        # The slices meet in the click, so what counts is the farthest face from there.
        reach = np.maximum(voxels.max(axis=0) - scene.centre, scene.centre - voxels.min(axis=0))
        wanted_mm = VIEW_PER_REACH * float(((reach + 0.5) * scene.spacing).max())
        width_mm = min(width_mm, max(wanted_mm, MIN_VIEW_MM))
    # Near the scan's border the view slides inwards instead of showing half a panel of nothing.
    half = width_mm / 2 / scene.spacing
    middle = (shape - 1) / 2
    room = np.maximum(0.0, shape / 2 - half)
    centre = np.clip(scene.centre, middle - room, middle + room)
    return _View(centre=centre, px_per_mm=PANEL_PX / width_mm)


def _draw_panel(
    scene: _Scene, plane: Plane, *, window: tuple[float, float], view: _View
) -> Image.Image:
    """Draw one slice: grey image, outlined mask, clicks, orientation letters, scale bar."""
    low, high = window
    index = int(scene.centre[plane.normal])
    image = _slice(scene.image, plane, index).astype(np.float32)
    rows, columns = _sampling(scene, plane, view)
    grey = np.clip((_sample(image, rows, columns, outside=low) - low) / (high - low), 0, 1)
    inside = _slice(scene.mask, plane, index).astype(np.float32)
    covered = _sample(inside, rows, columns, outside=0.0) >= 0.5
    panel = Image.fromarray(_overlay(grey, covered))
    draw = ImageDraw.Draw(panel)
    _draw_clicks(draw, scene, plane, view)
    _draw_letters(draw, plane)
    _draw_scale(draw, view.px_per_mm)
    return panel


def _slice(array: Array, plane: Plane, index: int) -> Array:
    """Cut one slice as (row, column) with axis directions still increasing."""
    cut = np.take(array, index, axis=plane.normal)
    return cut.T  # columns come first in RAS order for all three planes


def _sampling(scene: _Scene, plane: Plane, view: _View) -> tuple[Grey, Grey]:
    """Return, for each pixel row and column, the (fractional) voxel shown there.

    All displayed axes run against the pixel direction (R to L is decreasing R, A to P and S to I
    are decreasing), so both samplings descend.
    """
    offsets_mm = (np.arange(PANEL_PX, dtype=np.float32) + 0.5 - PANEL_PX / 2) / view.px_per_mm
    row = view.centre[plane.row] - offsets_mm / scene.spacing[plane.row]
    column = view.centre[plane.column] - offsets_mm / scene.spacing[plane.column]
    return row.astype(np.float32), column.astype(np.float32)


def _sample(image: Grey, rows: Grey, columns: Grey, *, outside: float) -> Grey:
    """Sample an image bilinearly on a grid of rows and columns; `outside` beyond its border."""
    row_weights = _weights(rows, image.shape[0])
    column_weights = _weights(columns, image.shape[1])
    sampled = row_weights @ (image - outside) @ column_weights.T
    return (sampled + outside).astype(np.float32)


def _weights(positions: Grey, length: int) -> Grey:
    """Return the linear interpolation matrix (positions, length); zero rows outside the image."""
    held = np.clip(positions, 0, length - 1)
    distance = np.abs(held[:, None] - np.arange(length, dtype=np.float32)[None, :])
    weights = np.maximum(0.0, 1.0 - distance)
    weights[(positions < -0.5) | (positions > length - 0.5)] = 0.0
    return weights.astype(np.float32)


def _overlay(grey: Grey, covered: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Blend the mask over the image: a translucent fill and a solid outline two pixels wide."""
    colour = np.array(MASK_COLOUR, dtype=np.float32)
    picture = np.repeat(grey[..., None] * 255.0, 3, axis=2)
    picture[covered] = (1 - FILL_OPACITY) * picture[covered] + FILL_OPACITY * colour
    outline = covered & ~_eroded(_eroded(covered))
    picture[outline] = colour
    return np.rint(picture).astype(np.uint8)


def _eroded(covered: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Remove the pixels that touch the outside by an edge."""
    padded = np.pad(covered, 1)
    return covered & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _draw_clicks(draw: ImageDraw.ImageDraw, scene: _Scene, plane: Plane, view: _View) -> None:
    """Mark the clicks of this slice: a ring, with a plus inside the structure, a minus outside."""
    for click in scene.clicks:
        if abs(click.voxel[plane.normal] - scene.centre[plane.normal]) > 0.5:
            continue
        away = (view.centre - np.array(click.voxel)) * scene.spacing * view.px_per_mm
        x, y = PANEL_PX / 2 + away[plane.column], PANEL_PX / 2 + away[plane.row]
        colour = POSITIVE_COLOUR if click.positive else NEGATIVE_COLOUR
        draw.ellipse(
            (x - 11, y - 11, x + 11, y + 11), outline=(0, 0, 0), width=5
        )  # visible on white
        draw.ellipse((x - 10, y - 10, x + 10, y + 10), outline=colour, width=2)
        draw.line((x - 5, y, x + 5, y), fill=colour, width=2)
        if click.positive:
            draw.line((x, y - 5, x, y + 5), fill=colour, width=2)


def _draw_letters(draw: ImageDraw.ImageDraw, plane: Plane) -> None:
    left, right, top, bottom = plane.letters
    middle, far = PANEL_PX // 2, PANEL_PX - 8
    _write(draw, (8, middle), left, anchor="lm")
    _write(draw, (far, middle), right, anchor="rm")
    _write(draw, (middle, 6), top, anchor="mt")
    _write(draw, (middle, far), bottom, anchor="mb")
    _write(draw, (8, 6), plane.name, anchor="lt", colour=FAINT_TEXT)


def _draw_scale(draw: ImageDraw.ImageDraw, px_per_mm: float) -> None:
    """Draw a bar of a round length, at most a third of the panel."""
    length_mm = next(
        (mm for mm in SCALE_BARS_MM if mm * px_per_mm <= PANEL_PX / 3), SCALE_BARS_MM[-1]
    )
    right, bottom = PANEL_PX - 10, PANEL_PX - 10
    left = right - length_mm * px_per_mm
    draw.rectangle((left - 2, bottom - 3, right + 2, bottom + 3), fill=(0, 0, 0))
    draw.rectangle((left, bottom - 1, right, bottom + 1), fill=TEXT)
    _write(draw, (int((left + right) / 2), bottom - 6), f"{length_mm} mm", anchor="mb", size=13)


def _draw_header(canvas: Image.Image, title: str, *, facts: str) -> None:
    draw = ImageDraw.Draw(canvas)
    middle = HEADER_PX // 2
    draw.text((MARGIN_PX, middle), facts, fill=MASK_COLOUR, font=_font(17), anchor="lm")
    used = draw.textlength(facts, font=_font(17)) + 3 * MARGIN_PX
    room = canvas.width - MARGIN_PX - used
    shown = title
    while len(shown) > 4 and draw.textlength(shown, font=_font(17)) > room:
        shown = "..." + shown[4:]  # the end of a file name tells more than its start
    draw.text((canvas.width - MARGIN_PX, middle), shown, fill=TEXT, font=_font(17), anchor="rm")


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    *,
    anchor: str,
    colour: tuple[int, int, int] = TEXT,
    size: int = 17,
) -> None:
    """Write text with a dark rim, so that it reads on bright and dark tissue alike."""
    draw.text(
        place,
        text,
        fill=colour,
        font=_font(size),
        anchor=anchor,
        stroke_width=2,
        stroke_fill=(0, 0, 0),
    )


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
