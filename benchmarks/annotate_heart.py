"""Label the heart of a CT angiography, chamber by chamber and with its wall, from seeds.

    python benchmarks/annotate_heart.py data docs/training/annotations --picture heart.png

In this one scan contrast medium tells blood from muscle, so no model is asked: blood is what is
denser than 195 HU, a watershed on its depth cuts it at the seeds of ``clicks.json``, chambers that
open widely into each other are shared out by distance to balls around further seeds below, and the
wall of the left ventricle is the muscle within 16 mm of its blood. Liver, spleen and descending
aorta, which have little contrast, are outlined by the package from their clicks, as in
``annotate.py``. The result replaces the coarse labels that the scan came with. Look at the picture
before keeping it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import cc3d
import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from annotate import HEART, label_map, turned
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from fastsam3d import Mask, Session, read_volume
from fastsam3d.io import write_mask

BY_CLICKS = ("descending aorta", "liver", "spleen")
BLOOD_HU = 195
MUSCLE_HU = (20, 260)
WALL_MM = 16.0
# Seeds and radii in voxels: where two wide rooms meet, distance decides and not depth.
BALLS: dict[str, tuple[int, list[tuple[int, int, int]]]] = {
    "right atrium": (
        7,
        [
            (84, 58, 29),
            (84, 60, 33),
            (86, 62, 38),
            (86, 62, 42),
            (88, 66, 46),
            (87, 66, 51),
            (86, 70, 56),
            (85, 62, 60),
        ],
    ),
    "right ventricle": (
        6,
        [
            (60, 78, 38),
            (62, 75, 33),
            (64, 72, 42),
            (58, 80, 47),
            (66, 74, 47),
            (60, 77, 51),
            (55, 80, 56),
            (50, 80, 60),
        ],
    ),
    "pulmonary artery": (
        4,
        [
            (45, 65, 70),
            (45, 62, 74),
            (45, 60, 78),
            (47, 50, 84),
            (60, 40, 86),
            (45, 32, 90),
            (42, 28, 96),
            (44, 74, 67),
            (80, 38, 86),
            (74, 38, 84),
            (78, 38, 88),
        ],
    ),
    "superior vena cava": (4, [(86, 45, 84), (88, 46, 90), (90, 42, 95)]),
}


def main() -> int:
    """Label the scan; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=Path, help="folder with train/CASE/image.nii.gz")
    parser.add_argument("annotations", type=Path, help="folder with clicks.json")
    parser.add_argument("--model", default="hr_s")
    parser.add_argument("--picture", type=Path, help="draw slices with the labels")
    options = parser.parse_args()
    folder = options.data_dir / "train" / HEART
    volume = turned(read_volume(folder / "image.nii.gz"))
    coarse = np.asarray(turned(read_volume(folder / "label.nii.gz")).array) > 0
    clicks = json.loads((options.annotations / "clicks.json").read_text("utf-8"))[HEART]
    session = Session.from_pretrained(options.model)
    session.set_volume(volume)
    outlined = label_map(session, volume, {name: clicks[name] for name in BY_CLICKS})
    array = np.asarray(volume.array, np.float32)
    seeds = {n: [c[:3] for c in found] for n, found in clicks.items() if n not in BY_CLICKS}
    parts = heart(array, coarse, outlined > 0, seeds, float(volume.geometry.spacing[0]))
    parts |= {name: outlined == n for n, name in enumerate(BY_CLICKS, start=1)}
    labels = np.zeros(array.shape, np.uint8)
    for value, name in enumerate(clicks, start=1):
        labels[parts[name] & (labels == 0)] = value
    write_mask(Mask(labels, volume.geometry), options.annotations / f"{HEART}.nii.gz")
    print(HEART, dict(zip(clicks, np.bincount(labels.ravel())[1:].tolist(), strict=True)))
    if options.picture is not None:
        draw(array, labels, options.picture)
    return 0


def heart(
    array: NDArray[np.float32],
    coarse: NDArray[np.bool_],
    taken: NDArray[np.bool_],
    seeds: dict[str, list[tuple[int, int, int]]],
    spacing: float,
) -> dict[str, NDArray[np.bool_]]:
    """Return chambers, great vessels and the wall of the left ventricle.

    Args:
        array: Hounsfield units (I, J, K) on an isotropic grid.
        coarse: (I, J, K) where the heart roughly is.
        taken: (I, J, K) what belongs to other objects.
        seeds: Voxels of each part; those of the wall are not used.
        spacing: Voxel size in mm.
    """
    smooth = ndimage.gaussian_filter(array, 0.7)
    blood = smooth > BLOOD_HU
    region = ndimage.binary_closing(np.pad(coarse, 6), iterations=4)[6:-6, 6:-6, 6:-6]
    region = ndimage.binary_dilation(region | coarse)
    rooms = [name for name in seeds if name != "heart wall"]
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(blood), 1)
    markers = np.zeros(array.shape, int)
    for value, name in enumerate(rooms, start=1):
        for i, j, k in seeds[name]:
            near = (slice(i - 2, i + 3), slice(j - 2, j + 3), slice(k - 1, k + 2))
            markers[near][blood[near]] = value
    basins = watershed(-depth, markers, mask=blood & ~taken)
    open_rooms = [rooms.index(name) + 1 for name in BALLS]
    pool = np.isin(basins, open_rooms)
    grid = np.ogrid[: array.shape[0], : array.shape[1], : array.shape[2]]
    for name, (radius, centres) in BALLS.items():
        for centre in centres:
            away = sum((axis - at) ** 2 for axis, at in zip(grid, centre, strict=True))
            markers[(away <= radius**2) & pool] = rooms.index(name) + 1
    shared = watershed(np.zeros(array.shape), np.where(pool, markers, 0), mask=pool)
    basins = np.where(pool, shared, basins)

    parts: dict[str, NDArray[np.bool_]] = {}
    for value, name in enumerate(rooms, start=1):
        part = basins == value
        if name.endswith(("ventricle", "atrium")):
            part &= region
        parts[name] = cc3d.largest_k(ndimage.binary_opening(part), k=1, connectivity=6) > 0
    others = np.any([part for name, part in parts.items() if name != "left ventricle"], 0)
    # Papillary muscles count as the cavity, as the field counts them.
    cavity = ndimage.binary_closing(parts["left ventricle"], iterations=3) & (smooth > MUSCLE_HU[0])
    parts["left ventricle"] = ndimage.binary_fill_holes(cavity & ~others) & ~others
    cavity = parts["left ventricle"]
    beyond = others & ~parts["right ventricle"]
    to_cavity = ndimage.distance_transform_edt(~cavity) * spacing
    wall = (smooth > MUSCLE_HU[0]) & (smooth < MUSCLE_HU[1]) & (to_cavity < WALL_MM) & region
    wall &= ~cavity & ~others & ~taken
    wall &= to_cavity < ndimage.distance_transform_edt(~beyond) * spacing
    wall = cc3d.largest_k(ndimage.binary_opening(wall), k=1, connectivity=6) > 0
    parts["heart wall"] = ndimage.binary_closing(wall) & ~cavity & ~others
    return parts


def draw(array: NDArray[np.float32], labels: NDArray[np.uint8], path: Path) -> None:
    """Draw axial slices with the labels in colour."""
    figure, axes = plt.subplots(4, 5, figsize=(15, 10.4))
    for axis, k in zip(axes.flat, np.linspace(14, 104, 20).round().astype(int), strict=True):
        axis.imshow(array[:, :, k].T, origin="lower", cmap="gray", vmin=-100, vmax=600)
        shown = np.ma.masked_equal(labels[:, :, k].T, 0)
        axis.imshow(shown, origin="lower", cmap="tab20", vmin=0, vmax=12, alpha=0.45)
        axis.set_title(f"k = {k}", fontsize=8)
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=60)


if __name__ == "__main__":
    sys.exit(main())
