"""Small pictures of results, kept while an evaluation runs and drawn in its report.

A snapshot holds three orthogonal slices through the truth, cut around truth and mask, on the
voxels of the file: nothing is resampled, large slices are thinned. Sides are those of
`fastsam3d.volume.display`: row 0 is up, column 0 is left on the picture.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsam3d.errors import DatasetError
from fastsam3d.prompts.simulate import bounding_box
from fastsam3d.volume.display import PLANES, Plane, display_window

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from fastsam3d.eval.results import Target
    from fastsam3d.prompts import Point
    from fastsam3d.volume import Volume

SNAPSHOT_FORMAT = 1
MAX_PIXELS = 256
MARGIN_SHARE = 0.25
MIN_MARGIN_MM = 15.0

Ijk = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class SliceView:
    """One slice as it appears on a picture.

    Attributes:
        plane: "axial", "coronal" or "sagittal".
        image: Grey values, uint8 (rows, columns).
        truth: Inside the structure, bool (rows, columns).
        mask: Inside the result, bool (rows, columns).
        pixel_mm: Height and width of a pixel.
        clicks: Row, column and whether positive, of the clicks that lie in this slice.
    """

    plane: str
    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    mask: NDArray[np.bool_]
    pixel_mm: tuple[float, float]
    clicks: tuple[tuple[float, float, bool], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """Three slices: axial, coronal, sagittal."""

    slices: tuple[SliceView, SliceView, SliceView]


def make_snapshot(
    volume: Volume, truth: NDArray[Any], mask: NDArray[Any], clicks: Iterable[Point] = ()
) -> Snapshot:
    """Cut slices through the voxel of the truth that is nearest to its centre of mass.

    Args:
        volume: The scan.
        truth: Non-zero inside, shape of the volume. If empty, the mask takes its place, then the
            whole volume.
        mask: The result, likewise.
        clicks: In any frame.
    """
    reorder = volume.geometry.canonical_reorder()
    inside, wanted = reorder.apply(mask != 0), reorder.apply(truth != 0)
    spacing = np.array(volume.geometry.reorient(reorder).spacing)
    low, high, centre = _view(wanted, inside, spacing)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    black, white = display_window(volume.array, truth != 0, volume.modality)
    image = reorder.apply(volume.array)[box].astype(np.float32)
    grey = np.clip((image - black) / (white - black) * 255.0 + 0.5, 0, 255).astype(np.uint8)
    places = [(p.to_voxel(volume.geometry).position, p.positive) for p in clicks]
    marks = [(reorder.apply_points(position) - low, positive) for position, positive in places]
    scene = _Scene(
        grey=grey, truth=wanted[box], mask=inside[box], spacing=spacing, centre=centre - low
    )
    axial, coronal, sagittal = (_slice_view(scene, plane, marks) for plane in PLANES)
    return Snapshot(slices=(axial, coronal, sagittal))


def save_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot, whole or not at all; its folder is made.

    Raises:
        DatasetError: The system refused to write.
    """
    arrays: dict[str, Any] = {}
    header: list[dict[str, Any]] = []
    for number, view in enumerate(snapshot.slices):
        arrays[f"image_{number}"] = view.image
        # Two bits of one array compress better than two arrays.
        arrays[f"masks_{number}"] = view.truth + np.uint8(2) * view.mask
        header.append({"plane": view.plane, "pixel_mm": view.pixel_mm, "clicks": view.clicks})
    text = json.dumps({"format": SNAPSHOT_FORMAT, "slices": header})
    arrays["header"] = np.array(text)
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            np.savez_compressed(stream, **arrays)
        partial.replace(path)
    except OSError as error:
        raise DatasetError(f"Could not write {path}: {error.strerror}; free the disk.") from error


def load_snapshot(path: Path) -> Snapshot:
    """Read a snapshot; nothing from the file is executed.

    Raises:
        DatasetError: The file is missing, damaged or of another format.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            content = json.loads(str(arrays["header"]))
            if content["format"] != SNAPSHOT_FORMAT:
                raise DatasetError(f"{path} has format {content['format']}; evaluate again.")
            views = [_read_view(arrays, n, of) for n, of in enumerate(content["slices"])]
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"{path} is no readable snapshot ({error}); evaluate again.") from error
    axial, coronal, sagittal = views
    return Snapshot(slices=(axial, coronal, sagittal))


def snapshot_name(target: Target) -> str:
    """Return the file name of a target's snapshot, one per target and safe on any system."""
    case, label, component, seed = target
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', case)}-{label}-{component}-{seed}.npz"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scene:
    """The cut part of the scan: axes towards right, anterior, superior; `centre` in its voxels."""

    grey: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    mask: NDArray[np.bool_]
    spacing: NDArray[np.float64]
    centre: NDArray[np.int64]


def _view(
    truth: NDArray[np.bool_], mask: NDArray[np.bool_], spacing: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and last (exclusive) voxel shown and the voxel where the slices meet."""
    shape = np.array(truth.shape)
    box, wanted_box = bounding_box(truth | mask), bounding_box(truth)
    if box is None:
        return np.zeros(3, np.int64), shape, shape // 2
    main = (mask, box) if wanted_box is None else (truth, wanted_box)
    voxels = np.argwhere(main[0][main[1]]) + [side.start for side in main[1]]
    away = ((voxels - voxels.mean(axis=0)) * spacing) ** 2
    centre = voxels[int(away.sum(axis=1).argmin())]
    low, high = (np.array([getattr(side, end) for side in box]) for end in ("start", "stop"))
    margin_mm = max(MIN_MARGIN_MM, MARGIN_SHARE * float(((high - low) * spacing).max()))
    margin = np.ceil(margin_mm / spacing).astype(np.int64)
    return np.maximum(low - margin, 0), np.minimum(high + margin, shape), centre


def _slice_view(
    scene: _Scene, plane: Plane, marks: list[tuple[NDArray[np.float64], bool]]
) -> SliceView:
    """Cut one plane: rows run against the `row` axis, columns against the `column` axis."""
    index = int(scene.centre[plane.normal])
    height, width = scene.grey.shape[plane.row], scene.grey.shape[plane.column]
    thin = -(-max(height, width) // MAX_PIXELS)

    def cut(array: NDArray[Any]) -> NDArray[Any]:
        return np.take(array, index, axis=plane.normal).T[::-1, ::-1][::thin, ::thin].copy()

    clicks = tuple(
        (
            (height - 1 - float(place[plane.row])) / thin,
            (width - 1 - float(place[plane.column])) / thin,
            positive,
        )
        for place, positive in marks
        if abs(float(place[plane.normal]) - index) <= 0.5
    )
    pixel_mm = (
        float(scene.spacing[plane.row]) * thin,
        float(scene.spacing[plane.column]) * thin,
    )
    return SliceView(
        plane=plane.name,
        image=cut(scene.grey),
        truth=cut(scene.truth),
        mask=cut(scene.mask),
        pixel_mm=pixel_mm,
        clicks=clicks,
    )


def _read_view(arrays: Any, number: int, facts: dict[str, Any]) -> SliceView:
    masks = arrays[f"masks_{number}"]
    height, width = (float(mm) for mm in facts["pixel_mm"])
    return SliceView(
        plane=str(facts["plane"]),
        image=arrays[f"image_{number}"],
        truth=(masks & 1) > 0,
        mask=(masks & 2) > 0,
        pixel_mm=(height, width),
        clicks=tuple((float(r), float(c), bool(p)) for r, c, p in facts["clicks"]),
    )
