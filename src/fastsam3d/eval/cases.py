"""Evaluation cases: whole volumes with their truth, from a folder or from one lossless pack.

Nothing here may be used for training. Volumes keep their own grid, field of view and
intensities. `load_cases` needs numpy and the standard library only, so that a machine without an
image reader can measure; `python -m fastsam3d.eval.cases DATA_DIR OUT.npz` writes the pack.

Arrays are (I, J, K) in the order of the file; affines map voxels to RAS+ mm.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsam3d.data.codec import decode_array, encode_array
from fastsam3d.errors import DatasetError
from fastsam3d.volume import Geometry, Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

CASE_PACK_FORMAT = 1
IMAGE_FILE = "image.nii.gz"
LABEL_FILE = "label.nii.gz"


@dataclass(frozen=True, kw_only=True)
class EvalCase:
    """One volume and the truth about it.

    Attributes:
        name: Case name.
        source: Provenance group, the part of `name` before the double underscore.
        volume: What a segmenter may see.
        labels: Truth, uint8 or uint16 (I, J, K), 0 = background. Never given to a segmenter.
        label_names: Structure name per label value.
        licence: Of the data, as stated in the manifest.
    """

    name: str
    source: str
    volume: Volume
    labels: NDArray[Any]
    label_names: dict[int, str]
    licence: str = ""

    def __post_init__(self) -> None:
        """Check that volume and truth share a grid."""
        if self.labels.shape != self.volume.shape:
            raise DatasetError(
                f"Case {self.name} has an image of shape {self.volume.shape} and labels of shape "
                f"{self.labels.shape}; put them on one grid."
            )


def read_cases(data_dir: Path, *, split: str = "dev", limit: int | None = None) -> list[EvalCase]:
    """Read all cases of a split that have an image and labels.

    Args:
        data_dir: Holds ``manifest.csv`` and ``<split>/<case>/``.
        split: Which split.
        limit: Only the first cases.

    Raises:
        DatasetError: No such case, or image and labels do not share a grid.
        VolumeReadError: A file is damaged.
    """
    path = data_dir / "manifest.csv"
    if not path.is_file():
        raise DatasetError(f"{path} is missing; give the folder that holds manifest.csv.")
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == split]
    rows = [row for row in rows if row["kind"] == "image+label"]
    if not rows:
        raise DatasetError(f"No labelled case of split {split!r} in {path}; check the split.")
    return [_read_case(data_dir, row) for row in rows[:limit]]


def parse_label_names(text: str) -> dict[int, str]:
    """Read ``"1=liver; 2=spleen"``; parts without a number are ignored."""
    pairs = [part.split("=", 1) for part in text.split(";") if "=" in part]
    return {int(key): name.strip() for key, name in pairs if key.strip().isdigit()}


def write_case_pack(cases: list[EvalCase], path: Path) -> dict[str, int]:
    """Store cases losslessly as ``path`` (.npz) and a .json beside it.

    Returns:
        Numbers of cases and bytes.

    Raises:
        DatasetError: Intensities are fractional and would not survive exactly.
    """
    arrays: dict[str, NDArray[np.uint8]] = {}
    entries: list[dict[str, Any]] = []
    for number, case in enumerate(cases):
        codes = _exact_integers(case.volume.array, case.name)
        arrays[f"image_{number}"], image_header = encode_array(codes, predict=True)
        arrays[f"label_{number}"], label_header = encode_array(case.labels, predict=False)
        entries.append(
            {
                "case": case.name,
                "source": case.source,
                "licence": case.licence,
                "affine": case.volume.geometry.affine.ravel().tolist(),
                "spacing_mm": list(case.volume.geometry.spacing),
                "modality": case.volume.modality,
                "image_dtype": case.volume.array.dtype.name,
                "label_names": {str(k): v for k, v in case.label_names.items()},
                "image": image_header,
                "label": label_header,
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        np.savez(stream, **arrays)  # pyright: ignore[reportArgumentType] - numpy's stub wants bool
    content = path.read_bytes()
    index = {
        "format": CASE_PACK_FORMAT,
        "sha256": hashlib.sha256(content).hexdigest(),
        "cases": entries,
    }
    path.with_suffix(".json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return {"cases": len(cases), "bytes": len(content)}


def load_cases(path: Path, *, limit: int | None = None) -> list[EvalCase]:
    """Read a pack written by `write_case_pack`.

    Raises:
        DatasetError: A file is missing, damaged or of another format.
    """
    index_path = path.with_suffix(".json")
    for needed in (path, index_path):
        if not needed.is_file():
            raise DatasetError(f"{needed} is missing; write the pack first or copy both files.")
    index: dict[str, Any] = json.loads(index_path.read_text(encoding="utf-8"))
    if index.get("format") != CASE_PACK_FORMAT:
        raise DatasetError(f"{path.name} has format {index.get('format')}; write it again.")
    if index["sha256"] != hashlib.sha256(path.read_bytes()).hexdigest():
        raise DatasetError(f"{path.name} does not belong to its JSON; copy both files again.")
    with np.load(path) as arrays:
        return [_load_case(e, arrays, n) for n, e in enumerate(index["cases"][:limit])]


def _load_case(entry: dict[str, Any], arrays: Any, number: int) -> EvalCase:
    image = decode_array(arrays[f"image_{number}"], entry["image"])
    labels = decode_array(arrays[f"label_{number}"], entry["label"])
    geometry = Geometry(image.shape, np.asarray(entry["affine"]).reshape(4, 4))
    return EvalCase(
        name=entry["case"],
        source=entry["source"],
        volume=Volume(image.astype(entry["image_dtype"]), geometry, entry["modality"]),
        labels=labels,
        label_names={int(k): v for k, v in entry["label_names"].items()},
        licence=entry["licence"],
    )


def _read_case(data_dir: Path, row: dict[str, str]) -> EvalCase:
    from fastsam3d.io import read_mask, read_volume  # noqa: PLC0415 - absent on lean machines

    folder = data_dir / row["split"] / row["case"]
    volume = read_volume(folder / IMAGE_FILE)
    labels = read_mask(folder / LABEL_FILE)
    if not volume.geometry.is_close(labels.geometry):
        raise DatasetError(f"Image and labels of {row['case']} differ in geometry; resave one.")
    return EvalCase(
        name=row["case"],
        source=row["case"].split("__")[0],
        volume=volume,
        labels=labels.array,
        label_names=parse_label_names(row["label_names"]),
        licence=row["license"],
    )


def _exact_integers(array: NDArray[Any], name: str) -> NDArray[Any]:
    if array.dtype.kind in "iu" and array.dtype.itemsize <= 2:
        return array
    for dtype in (np.int16, np.int32):
        codes = array.astype(dtype)
        if np.array_equal(codes, array):
            return codes
    raise DatasetError(f"Case {name} has fractional intensities; the lossless pack needs integers.")


def main(arguments: list[str] | None = None) -> int:
    """Write the pack of a split; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m fastsam3d.eval.cases", description=__doc__)
    parser.add_argument("data_dir", type=Path, help="folder with manifest.csv")
    parser.add_argument("output", type=Path, help="the .npz to write")
    parser.add_argument("--split", default="dev")
    chosen = parser.parse_args(arguments)
    report = write_case_pack(read_cases(chosen.data_dir, split=chosen.split), chosen.output)
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
