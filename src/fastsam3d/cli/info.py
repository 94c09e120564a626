"""``fastsam3d info``: what a volume says about itself."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any

from fastsam3d.cli.usage import Flag


def info(image: Path, /, *, time: int | None = None, json: Flag = False) -> None:
    """Show a volume's geometry and intensities.

    Args:
        image: NIfTI, NRRD, MHA/MHD or a folder with one DICOM series.
        time: Which time point of a 4-D file, from 0.
        json: Print one JSON object.
    """
    facts = collect_facts(image, time=time)
    if json:
        print(json_module.dumps(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


def collect_facts(image: Path, *, time: int | None = None) -> dict[str, Any]:
    """Read a volume and collect its facts.

    Args:
        image: As `info`.
        time: As `info`.

    Returns:
        Shape in voxels, spacing and origin in mm (RAS+), orientation codes of the voxel axes, the
        voxel-to-world matrix, modality if the file says it, dtype and intensity range.

    Raises:
        VolumeReadError: The file cannot be read as one 3-D volume.
        GeometryError: Its geometry makes no sense.
    """
    from fastsam3d.io import read_volume

    volume = read_volume(image, time=time)
    geometry = volume.geometry
    return {
        "image": str(image),
        "shape": list(geometry.shape),
        "spacing_mm": [float(mm) for mm in geometry.spacing],
        "origin_mm": [float(mm) for mm in geometry.origin],
        "orientation": "".join(geometry.orientation),
        "affine": geometry.affine.tolist(),
        "modality": volume.modality,
        "dtype": str(volume.array.dtype),
        "min": float(volume.array.min()),
        "max": float(volume.array.max()),
    }
