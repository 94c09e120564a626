"""The training pack: every real training case in one small file, readable with numpy alone.

`load_pack` needs numpy and the standard library only, because it runs on the training machine.
Writing (`python -m fastsam3d.train.pack DATA_DIR OUT_DIR`) imports SimpleITK, scipy, scikit-image,
edt and connected-components-3d lazily. Evaluation cases never go through this module.

Arrays are (I, J, K) with axes closest to RAS, spacing in mm, seeds and boxes in voxels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsam3d.data.codec import decode_array
from fastsam3d.data.licences import reason_to_exclude
from fastsam3d.data.objects import ObjectTable, object_table
from fastsam3d.errors import DatasetError

PACK_FORMAT = 1
NUM_DEEP_SEEDS = 8
NUM_UNIFORM_SEEDS = 16
NUM_SUPER_DEEP_SEEDS = 2


@dataclass(frozen=True, kw_only=True)
class PackedObjects:
    """The objects of one id map, ready for sampling targets and clicks.

    Attributes:
        id_map: uint8 or uint16 (I, J, K), 0 = background.
        factor: Voxels of the case per voxel of `id_map`, per axis; (1, 1, 1) for labels.
        table: Extents and voxel counts; `table.seeds` are drawn uniformly in the object.
        deep_seeds: Voxels of `id_map` deep inside, int16 (N, S, 3); the first is the deepest.
        values: Original label value per object; 0 for supervoxels.
        names: Label name per object; empty for supervoxels.
        contrast: Boundary contrast over interior spread, float32 (N,); zeros for labels.
    """

    id_map: NDArray[Any]
    factor: tuple[int, int, int]
    table: ObjectTable
    deep_seeds: NDArray[np.int16]
    values: tuple[int, ...]
    names: tuple[str, ...]
    contrast: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class PackedCase:
    """One training case.

    Attributes:
        name: Folder name in the source data.
        source: Provenance group, the part of `name` before the double underscore.
        modality: As stated in the manifest.
        body_part: As stated in the manifest.
        licence: Of the data, as stated in the manifest.
        is_ct: Whether `levels` are Hounsfield units.
        spacing_mm: Of the packed grid.
        image: uint8 codes (I, J, K), or None for label-only cases.
        levels: Intensity of each code, float32 (256,), or None for label-only cases.
        labels: Labelled objects (connected components), or None.
        supervoxels: Pseudo-objects of the image, finest first; empty for label-only cases.
        anatomy: Bones and air spaces that a CT's intensities tell apart, or None.
    """

    name: str
    source: str
    modality: str
    body_part: str
    licence: str
    is_ct: bool
    spacing_mm: tuple[float, float, float]
    image: NDArray[np.uint8] | None
    levels: NDArray[np.float32] | None
    labels: PackedObjects | None
    supervoxels: tuple[PackedObjects, ...]
    anatomy: PackedObjects | None = None


def load_pack(path: Path | str, *, seed: int = 0) -> list[PackedCase]:
    """Read a pack written by `write_pack`.

    Args:
        path: The ``.npz``; its ``.json`` lies beside it.
        seed: Of the uniformly drawn seed voxels.

    Returns:
        All cases in the order of the pack.

    Raises:
        DatasetError: A file is missing, damaged, or of another format.
    """
    path = Path(path)
    index = read_index(path)
    with np.load(path) as arrays:
        return [_load_case(entry, arrays, seed) for entry in index["cases"]]


def read_index(path: Path) -> dict[str, Any]:
    """Read and check the JSON beside a pack.

    Cases whose licence was found wanting after the pack was written are left out
    (`fastsam3d.data.licences`). Each entry has its place in the pack as ``number``.

    Raises:
        DatasetError: The JSON or the pack is missing, or they do not belong together.
    """
    index_path = path.with_suffix(".json")
    for needed in (path, index_path):
        if not needed.is_file():
            raise DatasetError(f"{needed} is missing; write the pack first or copy both files.")
    index: dict[str, Any] = json.loads(index_path.read_text(encoding="utf-8"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if index.get("sha256") != digest:
        raise DatasetError(
            f"{path.name} has sha256 {digest[:12]}..., its JSON says "
            f"{str(index.get('sha256'))[:12]}...; copy both files again."
        )
    if index.get("format") != PACK_FORMAT:
        raise DatasetError(
            f"{path.name} has format {index.get('format')}, this version reads {PACK_FORMAT}; "
            "write the pack again."
        )
    entries: list[dict[str, Any]] = index["cases"]
    for number, entry in enumerate(entries):
        entry["number"] = number
    index["cases"] = [entry for entry in entries if reason_to_exclude(entry["case"]) is None]
    return index


def _load_case(entry: dict[str, Any], arrays: Any, seed: int) -> PackedCase:
    number = entry["number"]
    spacing: tuple[float, float, float] = tuple(entry["spacing_mm"])
    image = levels = labels = anatomy = None
    if "image" in entry:
        image = decode_array(arrays[f"image_{number}"], entry["image"])
        levels = np.asarray(entry["levels"], dtype=np.float32)
    if "label" in entry:
        labels = _load_objects(entry["label"], arrays, f"label_{number}", spacing, seed)
    if "anatomy" in entry:
        anatomy = _load_objects(entry["anatomy"], arrays, f"anatomy_{number}", spacing, seed)
    supers = tuple(
        _load_objects(header, arrays, f"super_{number}_{scale}", spacing, seed)
        for scale, header in enumerate(entry.get("super", []))
    )
    return PackedCase(
        name=entry["case"],
        source=entry["source"],
        modality=entry["modality"],
        body_part=entry["body_part"],
        licence=entry["licence"],
        is_ct=entry["is_ct"],
        spacing_mm=spacing,
        image=image,
        levels=levels,
        labels=labels,
        supervoxels=supers,
        anatomy=anatomy,
    )


def _load_objects(
    header: dict[str, Any], arrays: Any, key: str, spacing: tuple[float, float, float], seed: int
) -> PackedObjects:
    id_map = decode_array(arrays[key], header["map"])
    factor: tuple[int, int, int] = tuple(header["factor"])
    map_spacing = (spacing[0] * factor[0], spacing[1] * factor[1], spacing[2] * factor[2])
    table = object_table(id_map, map_spacing, num_seeds=NUM_UNIFORM_SEEDS, seed=seed)
    count = len(table)
    names: dict[str, str] = header.get("names", {})
    values = tuple(int(v) for v in header.get("values", [0] * count))
    return PackedObjects(
        id_map=id_map,
        factor=factor,
        table=table,
        deep_seeds=decode_array(arrays[f"{key}_seeds"], header["seeds"]),
        values=values,
        names=tuple(names.get(str(value), "") for value in values),
        contrast=np.asarray(header.get("contrast", [0.0] * count), dtype=np.float32),
    )


def main(arguments: list[str] | None = None) -> int:
    """Write a pack from a folder of cases; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m fastsam3d.train.pack", description=__doc__)
    parser.add_argument("data_dir", type=Path, help="folder with manifest.csv and train/")
    parser.add_argument("out_dir", type=Path, help="gets train_pack.npz and train_pack.json")
    parser.add_argument("--limit", type=int, default=None, help="pack only this many cases")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the cases")
    parser.add_argument(
        "--annotations", type=Path, help="folder with clicks.json and label maps CASE.nii.gz"
    )
    chosen = parser.parse_args(arguments)
    from fastsam3d.train.pack_writer import write_pack  # noqa: PLC0415 - needs SimpleITK and scipy

    summary = write_pack(
        chosen.data_dir,
        chosen.out_dir,
        annotations=chosen.annotations,
        limit=chosen.limit,
        jobs=chosen.jobs,
    )
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
