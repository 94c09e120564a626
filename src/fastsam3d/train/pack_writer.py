"""Write the training pack: read real cases, shrink them, find their objects, store them.

Only this half needs scipy, scikit-image, edt and connected-components-3d.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastsam3d.data import shrink
from fastsam3d.data.anatomy import anatomy_objects
from fastsam3d.data.codec import encode_array
from fastsam3d.data.licences import reason_to_drop_labels, reason_to_exclude
from fastsam3d.data.objects import component_ids, deep_seeds, object_table
from fastsam3d.data.supervoxels import SCALES, foreground_mask, supervoxels
from fastsam3d.errors import DatasetError
from fastsam3d.io import read_volume
from fastsam3d.model.checkpoint import write_atomically
from fastsam3d.train.pack import (
    NUM_DEEP_SEEDS,
    NUM_SUPER_DEEP_SEEDS,
    NUM_UNIFORM_SEEDS,
    PACK_FORMAT,
)

LOGGER = logging.getLogger(__name__)
Spacing = tuple[float, float, float]
# What the index says of a case, and its arrays by name.
_PackedParts = tuple[dict[str, Any], dict[str, NDArray[Any]]]


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How much detail a pack keeps.

    Attributes:
        target_mm: Finer axes are averaged to this spacing.
        large_mm: The same for cases of more than `large_voxels` at `target_mm`.
        label_mm: The same for label-only cases.
        large_voxels: Voxels (at `target_mm`) above which a case counts as large.
        native_voxels: Volumes up to this size keep their own grid.
        super_voxels: Supervoxel maps above this size are found at half resolution.
        margin_mm: Kept around the body.
        steps_per_noise: Intensity steps per noise standard deviation that are enough.
        has_supervoxels: Find pseudo-objects in the images, for targets without labels; this is
            nearly all of the time that packing takes.
        has_anatomy: Find bones and air spaces of CT.
    """

    target_mm: float = 1.2
    large_mm: float = 1.5
    label_mm: float = 1.5
    large_voxels: int = 2_000_000
    native_voxels: int = 100_000
    super_voxels: int = 150_000
    margin_mm: float = 6.0
    steps_per_noise: float = 1.5
    has_supervoxels: bool = True
    has_anatomy: bool = True


@dataclass(frozen=True, kw_only=True)
class RawCase:
    """A case as read.

    Attributes:
        row: What is known about it, as in the manifest: case, modality, body_part, license,
            label_names, and optionally provenance (else the part of the case's name before a
            double underscore).
        spacing: In mm.
        image: Intensities (I, J, K), axes closest to RAS, or None.
        labels: Label map on the same grid, or None.
    """

    row: dict[str, str]
    spacing: Spacing
    image: NDArray[Any] | None
    labels: NDArray[Any] | None

    @property
    def is_ct(self) -> bool:
        """Whether intensities are Hounsfield units (windowed 8-bit CT is not)."""
        text = self.row["modality"]
        return text.startswith("CT") and "windowed" not in text and "template" not in text


def write_pack(
    data_dir: Path,
    out_dir: Path,
    *,
    config: PackConfig | None = None,
    annotations: Path | None = None,
    limit: int | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """Pack all training cases of a data folder.

    Args:
        data_dir: Holds ``manifest.csv`` and ``train/<case>/image.nii.gz|label.nii.gz``.
        out_dir: Gets ``train_pack.npz`` and ``train_pack.json``.
        config: Detail to keep.
        annotations: Folder with label maps of one's own, ``CASE.nii.gz``, in place of any that a
            case has, and the names of their labels, in order, as its keys in ``clicks.json``.
        limit: Pack only the first cases, for trials.
        jobs: Processes that share the cases; the pack is the same for any number.

    Returns:
        Counts and sizes.

    Raises:
        DatasetError: The folder has no training case, a case is unreadable, or an annotation does
            not fit its image.
    """
    rows = [row for row in _manifest(data_dir) if row["split"] == "train"]
    rows = [row for row in rows if reason_to_exclude(row["case"]) is None][:limit]
    if not rows:
        raise DatasetError(f"No training case in {data_dir}; it needs manifest.csv and train/.")
    path, config = out_dir / "train_pack.npz", config or PackConfig()
    if jobs <= 1:
        cases = (_read_annotated(data_dir, row, annotations) for row in rows)
        return pack_cases(cases, path, config=config)
    count = len(rows)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        packed = pool.map(
            _read_and_pack,
            [data_dir] * count,
            rows,
            [annotations] * count,
            range(count),
            [config] * count,
        )
        return _save_all(path, packed)


def _read_and_pack(
    data_dir: Path,
    row: dict[str, str],
    annotations: Path | None,
    number: int,
    config: PackConfig,
) -> _PackedParts:
    arrays: dict[str, NDArray[Any]] = {}
    raw = _read_annotated(data_dir, row, annotations)
    return _pack_case(raw, number, arrays, config), arrays


def _read_annotated(data_dir: Path, row: dict[str, str], annotations: Path | None) -> RawCase:
    """Read a case, with labels of one's own where there are any."""
    raw = read_case(data_dir, row)
    path = None if annotations is None else annotations / f"{row['case']}.nii.gz"
    if annotations is None or path is None or not path.is_file():
        return raw
    labels, _ = _read_ras(path)
    if labels is None or raw.image is None or labels.shape != raw.image.shape:
        found = None if labels is None else labels.shape
        raise DatasetError(
            f"{path.name} has shape {found}, its image has "
            f"{None if raw.image is None else raw.image.shape}; label the image anew."
        )
    listed = json.loads((annotations / "clicks.json").read_text(encoding="utf-8"))
    names = ";".join(f"{n}={name}" for n, name in enumerate(listed[row["case"]], start=1))
    return replace(raw, row={**row, "label_names": names}, labels=labels.astype(np.uint8))


def pack_cases(
    raw_cases: Iterable[RawCase], path: Path, *, config: PackConfig | None = None
) -> dict[str, Any]:
    """Pack cases from anywhere; they are read one after the other.

    Args:
        raw_cases: The cases.
        path: The ``.npz`` to write; its ``.json`` goes beside it.
        config: Detail to keep.

    Returns:
        Counts and sizes.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    chosen = config or PackConfig()

    def packed() -> Iterator[_PackedParts]:
        for number, raw in enumerate(raw_cases):
            arrays: dict[str, NDArray[Any]] = {}
            yield _pack_case(raw, number, arrays, chosen), arrays

    return _save_all(path, packed())


def _save_all(path: Path, packed: Iterable[_PackedParts]) -> dict[str, Any]:
    arrays: dict[str, NDArray[Any]] = {}
    entries: list[dict[str, Any]] = []
    for entry, parts in packed:
        entries.append(entry)
        arrays.update(parts)
        LOGGER.info("%d: %s", len(entries), entry["case"])
    return _save(path, arrays, entries)


def _save(path: Path, arrays: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    index = {
        "format": PACK_FORMAT,
        "sha256": hashlib.sha256(content).hexdigest(),
        "cases": entries,
    }
    text = json.dumps(index, separators=(",", ":"))
    write_atomically(path.with_suffix(".json"), text.encode())
    kinds = {key.split("_")[0] for key in arrays}
    sizes = {
        kind: sum(a.nbytes for key, a in arrays.items() if key.split("_")[0] == kind)
        for kind in sorted(kinds)
    }
    return {"cases": len(entries), "bytes": len(content), "json_bytes": len(text), **sizes}


def _manifest(data_dir: Path) -> list[dict[str, str]]:
    path = data_dir / "manifest.csv"
    if not path.is_file():
        raise DatasetError(f"{path} is missing; the pack takes licences and names from it.")
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def read_case(data_dir: Path, row: dict[str, str]) -> RawCase:
    """Read image and label of one manifest row, axes turned to RAS-closest.

    Raises:
        DatasetError: Neither file is there.
    """
    folder = data_dir / row["split"] / row["case"]
    image, spacing = _read_ras(folder / "image.nii.gz")
    labels, label_spacing = _read_ras(folder / "label.nii.gz")
    if image is None and labels is None:
        raise DatasetError(f"{folder} has neither image.nii.gz nor label.nii.gz; remove its row.")
    if labels is not None and reason_to_drop_labels(row["case"]):
        labels = None
    if labels is not None:
        labels = labels.astype(np.uint16 if labels.max() > 255 else np.uint8)
    return RawCase(
        row=row, spacing=spacing or label_spacing or (1, 1, 1), image=image, labels=labels
    )


def _read_ras(path: Path) -> tuple[NDArray[Any] | None, Spacing | None]:
    if not path.is_file():
        return None, None
    volume = read_volume(path)
    reorder = volume.geometry.canonical_reorder()
    array = np.ascontiguousarray(reorder.apply(volume.array))
    return array, volume.geometry.reorient(reorder).spacing


def _pack_case(
    raw: RawCase, number: int, arrays: dict[str, Any], config: PackConfig
) -> dict[str, Any]:
    image, labels, spacing = _shrink(raw, config)
    row = raw.row
    entry: dict[str, Any] = {
        "case": row["case"],
        "source": row.get("provenance") or row["case"].split("__")[0],
        "modality": row["modality"],
        "body_part": row["body_part"],
        "licence": row["license"],
        "is_ct": raw.is_ct and image is not None,
        "spacing_mm": [round(s, 5) for s in spacing],
    }
    if image is not None:
        levels = _levels(image, is_ct=raw.is_ct, per_noise=config.steps_per_noise)
        codes = shrink.quantise(image, levels)
        arrays[f"image_{number}"], entry["image"] = encode_array(codes, predict=True)
        entry["levels"] = [round(float(v), 3) for v in levels]
        if config.has_supervoxels:
            entry["super"] = _pack_supervoxels(
                codes, image, raw.is_ct, spacing, number, arrays, config
            )
        if config.has_anatomy and raw.is_ct:
            _pack_anatomy(entry, image, spacing, number, arrays)
    if labels is not None and labels.any():
        entry["label"] = _pack_labels(labels, spacing, f"label_{number}", arrays)
        entry["label"]["names"] = _label_names(row["label_names"])
    return entry


def _shrink(
    raw: RawCase, config: PackConfig
) -> tuple[NDArray[np.float32] | None, NDArray[Any] | None, Spacing]:
    margin = tuple(int(np.ceil(config.margin_mm / side)) for side in raw.spacing)
    if raw.image is not None:
        reference = raw.image.astype(np.float32)
        body = foreground_mask(reference, threshold=_air_threshold(reference, is_ct=raw.is_ct))
        if raw.labels is not None:
            body |= raw.labels > 0
        box = shrink.bounding_box(body, margin)
    else:
        box = shrink.bounding_box(cast("NDArray[Any]", raw.labels) > 0, margin)
    image = raw.image[box] if raw.image is not None else None
    labels = raw.labels[box] if raw.labels is not None else None
    shape = cast("NDArray[Any]", image if image is not None else labels).shape
    factors = _factors(shape, raw.spacing, config, label_only=image is None)
    spacing = cast("Spacing", tuple(s * f for s, f in zip(raw.spacing, factors, strict=True)))
    small = shrink.average_down(image, factors) if image is not None else None
    return small, shrink.majority_down(labels, factors) if labels is not None else None, spacing


def _factors(
    shape: tuple[int, ...], spacing: Spacing, config: PackConfig, *, label_only: bool
) -> tuple[float, float, float]:
    if np.prod(shape) <= config.native_voxels:
        return (1.0, 1.0, 1.0)
    target = config.label_mm if label_only else config.target_mm
    if max(n * s for n, s in zip(shape, spacing, strict=True)) < 40.0:
        # A field of view of a few centimetres holds small objects: keep twice the detail.
        target *= 0.6
    factors = shrink.shrink_factors(shape, spacing, target)
    if np.prod(shape) / np.prod(factors) > config.large_voxels:
        factors = shrink.shrink_factors(shape, spacing, max(config.large_mm, target))
    return factors


def _air_threshold(image: NDArray[np.float32], *, is_ct: bool) -> float:
    if is_ct:
        return -500.0
    low = float(np.percentile(image, 0.5))
    return low + 0.35 * (shrink.otsu_threshold(image) - low)


def _levels(image: NDArray[np.float32], *, is_ct: bool, per_noise: float) -> NDArray[np.float32]:
    """Choose the 256 intensities of a case, no finer than its noise makes sensible."""
    low, high = (float(v) for v in np.percentile(image, [0.1, 99.9]))
    noise = shrink.noise_sigma(np.clip(image, low, high))
    if is_ct:
        return shrink.ct_levels(min(high, 1600.0), soft_step=noise / per_noise)
    if high <= low:
        high = low + 1.0
    wanted = (high - low) * per_noise / max(noise, 1e-6)
    return shrink.linear_levels(low, high, int(np.clip(wanted, 96, shrink.NUM_LEVELS)))


def _pack_labels(
    labels: NDArray[Any], spacing: Spacing, key: str, arrays: dict[str, Any]
) -> dict[str, Any]:
    id_map, values = component_ids(labels)
    header = _pack_map(id_map, spacing, key, arrays, NUM_DEEP_SEEDS)
    return {**header, "factor": [1, 1, 1], "values": values}


def _pack_anatomy(
    entry: dict[str, Any],
    image: NDArray[np.float32],
    spacing: Spacing,
    number: int,
    arrays: dict[str, Any],
) -> None:
    body = foreground_mask(image, threshold=_air_threshold(image, is_ct=True))
    id_map = anatomy_objects(image, body, spacing)
    if not id_map.any():
        return
    header = _pack_map(id_map, spacing, f"anatomy_{number}", arrays, NUM_SUPER_DEEP_SEEDS)
    entry["anatomy"] = {**header, "factor": [1, 1, 1]}


def _pack_map(
    id_map: NDArray[Any], spacing: Spacing, key: str, arrays: dict[str, Any], num_deep: int
) -> dict[str, Any]:
    table = object_table(id_map, spacing, num_seeds=NUM_UNIFORM_SEEDS)
    deep = deep_seeds(id_map, table, spacing, num_deep)
    arrays[key], map_header = encode_array(id_map, predict=False)
    narrow = deep.astype(np.uint8) if max(id_map.shape) <= 256 else deep
    arrays[f"{key}_seeds"], seed_header = encode_array(narrow, predict=False)
    return {"map": map_header, "seeds": seed_header}


def _pack_supervoxels(
    codes: NDArray[np.uint8],
    image: NDArray[np.float32],
    is_ct: bool,
    spacing: Spacing,
    number: int,
    arrays: dict[str, Any],
    config: PackConfig,
) -> list[dict[str, Any]]:
    factor = super_factor(codes.shape, spacing, config.super_voxels)
    spans = (float(factor[0]), float(factor[1]), float(factor[2]))
    body = foreground_mask(image, threshold=_air_threshold(image, is_ct=is_ct))
    trimmed = tuple(slice(0, n // f * f) for n, f in zip(codes.shape, factor, strict=True))
    coarse = shrink.average_down(codes[trimmed], spans)
    inside = shrink.average_down(body[trimmed], spans) > 0.5
    coarse_spacing = cast("Spacing", tuple(s * f for s, f in zip(spacing, factor, strict=True)))
    headers: list[dict[str, Any]] = []
    for scale, settings in enumerate(SCALES):
        id_map, contrast = supervoxels(coarse, inside, coarse_spacing, settings)
        key = f"super_{number}_{scale}"
        header = _pack_map(id_map, coarse_spacing, key, arrays, NUM_SUPER_DEEP_SEEDS)
        contrast_list = [round(float(c), 2) for c in contrast]
        headers.append({**header, "factor": list(factor), "contrast": contrast_list})
    return headers


def super_factor(shape: tuple[int, ...], spacing: Spacing, limit: int) -> tuple[int, int, int]:
    """Return how much coarser supervoxel maps are per axis: 1 or 2, finest axes first."""
    if np.prod(shape) <= limit:
        return (1, 1, 1)
    coarse = 1.7 * min(spacing)
    return cast("tuple[int, int, int]", tuple(2 if s < coarse else 1 for s in spacing))


def _label_names(text: str) -> dict[str, str]:
    pairs = [part.split("=", 1) for part in text.split(";") if "=" in part]
    return {key.strip(): name.strip() for key, name in pairs if key.strip().isdigit()}
