"""Evaluation cases: whole volumes with their truth, and a lossless pack of them.

Nothing here may be used for training. Volumes keep their own grid, field of view and
intensities. `load_cases` needs numpy and the standard library only, so that a machine without an
image reader can measure; `python -m fastsam3d.eval.cases DATA_DIR OUT.npz` writes the pack.
`fastsam3d.eval.folders` finds cases.

Arrays are (I, J, K) in the order of the file; affines map voxels to RAS+ mm.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsam3d.data.codec import decode_array, encode_array
from fastsam3d.errors import DatasetError
from fastsam3d.eval.regions import label_regions
from fastsam3d.volume import Geometry, Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.eval.regions import LabelRegion
    from fastsam3d.volume import Region

CASE_PACK_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class EvalCase:
    """One volume and the truth about it.

    Attributes:
        name: Case name.
        source: Provenance group, such as the part of `name` before the double underscore.
        volume: What a segmenter may see.
        labels: Truth, uint8 or uint16 (I, J, K), 0 = background. Never given to a segmenter.
        label_names: Structure name per label value.
        subject: Who was scanned; several cases may share a subject. Empty: nobody else's.
        ignored: Label values that are no structures.
        regions: Its structures where they are unions of labels; empty: every label is one.
        boxes: Boxes that come with the data, per label value; None where they are to be made of
            the truth.
        licence: Of the data, as stated in the manifest.
    """

    name: str
    source: str
    volume: Volume
    labels: NDArray[Any]
    label_names: dict[int, str] = field(default_factory=dict[int, str])
    subject: str = ""
    ignored: tuple[int, ...] = ()
    regions: tuple[LabelRegion, ...] = ()
    boxes: dict[int, Region] | None = None
    licence: str = ""

    def __post_init__(self) -> None:
        """Check that volume and truth share a grid."""
        if self.labels.shape != self.volume.shape:
            raise DatasetError(
                f"Case {self.name} has an image of shape {self.volume.shape} and labels of shape "
                f"{self.labels.shape}; put them on one grid."
            )

    def structure(self, label: int) -> str:
        """Return the name of a label value, or of the region that a number stands for."""
        regions = {region.label: region.name for region in self.regions}
        return regions.get(label) or self.label_names.get(label, f"label {label}")


def read_case(image: Path, label: Path, name: str) -> EvalCase:
    """Read one case from two files in any format that `fastsam3d.io` reads.

    Args:
        image: The volume.
        label: Its label map, on the same grid.
        name: Case name; its source is what comes before a double underscore.

    Raises:
        DatasetError: Image and labels do not share a grid.
        VolumeReadError: A file is damaged.
        GeometryError: A file's geometry is impossible.
    """
    from fastsam3d.io import read_mask, read_volume  # noqa: PLC0415 - absent on lean machines

    volume, labels = read_volume(image), read_mask(label)
    if not volume.geometry.is_close(labels.geometry):
        raise DatasetError(f"Image and labels of {name} differ in geometry; resave one.")
    return EvalCase(
        name=name, source=name.split("__", maxsplit=1)[0], volume=volume, labels=labels.array
    )


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
                "subject": case.subject,
                "licence": case.licence,
                "affine": case.volume.geometry.affine.ravel().tolist(),
                "spacing_mm": list(case.volume.geometry.spacing),
                "modality": case.volume.modality,
                "image_dtype": case.volume.array.dtype.name,
                "label_names": {str(k): v for k, v in case.label_names.items()},
                "regions": {region.name: region.values for region in case.regions},
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
    entries = check_case_pack(path)[:limit]
    with np.load(path) as arrays:
        return [_load_case(entry, arrays, number) for number, entry in enumerate(entries)]


def check_case_pack(path: Path) -> list[dict[str, Any]]:
    """Check that a pack is whole and return what its JSON says of each case.

    Raises:
        DatasetError: A file is missing, damaged or of another format.
    """
    entries = _entries(path)
    index: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if index["sha256"] != hashlib.sha256(path.read_bytes()).hexdigest():
        raise DatasetError(f"{path.name} does not belong to its JSON; copy both files again.")
    return entries


def load_case(path: Path, number: int) -> EvalCase:
    """Read one case of a pack that `check_case_pack` has found whole.

    Args:
        path: The pack.
        number: Place of the case in the pack, from 0.
    """
    with np.load(path) as arrays:
        return _load_case(_entries(path)[number], arrays, number)


def entry_names(entry: dict[str, Any]) -> dict[int, str]:
    """Return the structure name per label value from what a pack says of a case."""
    return {int(value): name for value, name in entry["label_names"].items()}


def entry_regions(entry: dict[str, Any]) -> tuple[LabelRegion, ...]:
    """Return the regions from what a pack says of a case; older packs say nothing of them.

    Raises:
        DatasetError: They contradict each other.
    """
    return label_regions(entry.get("regions", {}), of=entry["case"])


def _entries(path: Path) -> list[dict[str, Any]]:
    index_path = path.with_suffix(".json")
    for needed in (path, index_path):
        if not needed.is_file():
            raise DatasetError(f"{needed} is missing; write the pack first or copy both files.")
    index: dict[str, Any] = json.loads(index_path.read_text(encoding="utf-8"))
    if index.get("format") != CASE_PACK_FORMAT:
        raise DatasetError(f"{path.name} has format {index.get('format')}; write it again.")
    return index["cases"]


def _load_case(entry: dict[str, Any], arrays: Any, number: int) -> EvalCase:
    image = decode_array(arrays[f"image_{number}"], entry["image"])
    labels = decode_array(arrays[f"label_{number}"], entry["label"])
    geometry = Geometry(image.shape, np.asarray(entry["affine"]).reshape(4, 4))
    return EvalCase(
        name=entry["case"],
        source=entry["source"],
        volume=Volume(image.astype(entry["image_dtype"]), geometry, entry["modality"]),
        labels=labels,
        label_names=entry_names(entry),
        regions=entry_regions(entry),
        subject=entry.get("subject", ""),
        licence=entry["licence"],
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
    # The search for cases builds on this module.
    from fastsam3d.eval.folders import find_cases  # noqa: PLC0415

    found = find_cases(chosen.data_dir, split=chosen.split)
    report = write_case_pack([case.read() for case in found], chosen.output)
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
