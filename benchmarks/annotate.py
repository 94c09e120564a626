"""Label training scans by clicks with the package itself: from a list of clicks to label maps.

    python benchmarks/annotate.py data docs/training/annotations --pictures pictures

``clicks.json`` of the folder names, for each case, the objects and their clicks: voxels of the
image turned to RAS, and 1 for on the object or 0 beside it. Each object is one session; label n is
the n-th object of its case, and where two overlap the first keeps the voxel. An object without a
click is the label of that name that the scan came with. The label maps,
``CASE.nii.gz``, lie beside the list, on the image's grid turned to RAS;
`python -m fastsam3d.train.pack --annotations` takes both. Look at the pictures before keeping one.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fastsam3d import Mask, Session, Volume, read_volume
from fastsam3d.io import write_mask

SLICES = 12
HEART = "totalsegmentator__pulmonary_report"  # annotate_heart.py labels it, with other means
Clicks = dict[str, list[tuple[int, int, int, int]]]


def main() -> int:
    """Label the cases; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=Path, help="folder with train/CASE/image.nii.gz")
    parser.add_argument("annotations", type=Path, help="folder with clicks.json")
    parser.add_argument("--model", default="hr_s")
    parser.add_argument("--cases", nargs="+", help="only these")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each case")
    options = parser.parse_args()
    listed: dict[str, Clicks] = json.loads((options.annotations / "clicks.json").read_text("utf-8"))
    session = Session.from_pretrained(options.model)
    for case in options.cases or [name for name in listed if name != HEART]:
        folder = options.data_dir / "train" / case
        volume = turned(read_volume(folder / "image.nii.gz"))
        given = {}
        if not all(listed[case].values()):
            maps = np.asarray(turned(read_volume(folder / "label.nii.gz")).array)
            given = {name: maps == n for name, n in names_given(options.data_dir, case).items()}
        session.set_volume(volume)
        labels = label_map(session, volume, listed[case], given)
        write_mask(Mask(labels, volume.geometry), options.annotations / f"{case}.nii.gz")
        if options.pictures is not None:
            options.pictures.mkdir(parents=True, exist_ok=True)
            draw(volume, labels, list(listed[case]), options.pictures / f"{case}.png")
        print(case, np.bincount(labels.ravel())[1:].tolist())
    return 0


def turned(volume: Volume) -> Volume:
    """Return a scan with its axes closest to RAS."""
    reorder = volume.geometry.canonical_reorder()
    array = np.ascontiguousarray(reorder.apply(volume.array))
    return replace(volume, array=array, geometry=volume.geometry.reorient(reorder), source=None)


def names_given(data_dir: Path, case: str) -> dict[str, int]:
    """Return the names and values of the labels that a case came with."""
    with (data_dir / "manifest.csv").open(encoding="utf-8", newline="") as file:
        listed = next(row["label_names"] for row in csv.DictReader(file) if row["case"] == case)
    parts = (part.split("=", 1) for part in listed.split(";"))
    return {name.strip(): int(value) for value, name in parts}


def label_map(
    session: Session,
    volume: Volume,
    objects: Clicks,
    given: dict[str, NDArray[np.bool_]] | None = None,
) -> NDArray[np.uint8]:
    """Play every object's clicks and return the label map, uint8 (I, J, K).

    Args:
        session: Shows the volume.
        volume: The scan.
        objects: Clicks of each object; none for those of `given`.
        given: Objects that need no clicks, (I, J, K) each.
    """
    labels = np.zeros(volume.array.shape, np.uint8)
    for value, (name, clicks) in enumerate(objects.items(), start=1):
        if clicks:
            session.reset()
            for i, j, k, is_on in clicks:
                found = session.add_point((i, j, k), positive=bool(is_on))
            mask = found.mask.array > 0
        else:
            mask = (given or {})[name]
        labels[mask & (labels == 0)] = value
    return labels


def draw(volume: Volume, labels: NDArray[np.uint8], names: list[str], path: Path) -> None:
    """Draw axial slices with the outlines of all objects."""
    inside = np.flatnonzero(labels.any((0, 1)))
    chosen = np.linspace(inside[0], inside[-1], SLICES).round().astype(int)
    low, high = np.percentile(volume.array[labels > 0], [1, 99])
    low, high = low - 0.3 * (high - low), high + 0.2 * (high - low)
    spacing = volume.geometry.spacing
    colours = plt.get_cmap("tab20")(np.arange(20))[:, :3]
    figure, axes = plt.subplots(3, 4, figsize=(18, 12), layout="constrained")
    for axis, k in zip(axes.flat, chosen, strict=True):
        grey = np.clip((volume.array[:, :, k].astype(np.float64) - low) / (high - low), 0, 1)
        picture = np.repeat(grey[..., None], 3, -1)
        for value in np.unique(labels[:, :, k])[1:]:
            _outline(axis, picture, labels[:, :, k] == value, names[value - 1], colours[value % 20])
        axis.imshow(np.swapaxes(picture, 0, 1), origin="lower", aspect=spacing[1] / spacing[0])
        axis.set_title(f"k = {k}", fontsize=9)
        axis.axis("off")
    figure.savefig(path, dpi=60)
    plt.close(figure)


def _outline(
    axis: Any, picture: NDArray[np.float64], inside: NDArray[np.bool_], name: str, colour: Any
) -> None:
    picture[inside] = 0.75 * picture[inside] + 0.25 * colour
    picture[inside & ~ndimage.binary_erosion(inside)] = colour
    i, j = np.argwhere(inside).mean(0)
    axis.text(i, j, name, fontsize=7, color="white", ha="center")


if __name__ == "__main__":
    sys.exit(main())
