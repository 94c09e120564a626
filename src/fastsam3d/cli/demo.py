"""``fastsam3d demo``: a result on a real scan without any data of one's own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastsam3d.cli.segment import EngineOptions, OutputOptions, segment
from fastsam3d.cli.usage import PromptOptions
from fastsam3d.errors import DatasetError

ICBM152_T1 = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
# A voxel in the middle of the right lateral ventricle.
CLICK = "103,136,89"


def demo(*, output_dir: Path = Path("demo-output")) -> None:
    """Segment the brain MR that nilearn ships.

    Args:
        output_dir: Folder for the mask and the preview; created if missing.
    """
    image = find_brain()
    output_dir.mkdir(parents=True, exist_ok=True)
    print(f"Clicking voxel {CLICK} (lateral ventricle) in {image.name}")
    segment(
        image,
        output=OutputOptions(
            output=output_dir / "brain_mask.nii.gz",
            preview=output_dir / "brain_preview.png",
            force=True,
        ),
        prompts=PromptOptions(point=(CLICK,)),
        engine=EngineOptions(device="cpu"),
    )


def find_brain() -> Path:
    """Find the ICBM152 T1 average brain among nilearn's own files, without importing nilearn.

    Returns:
        Path of the NIfTI file.

    Raises:
        DatasetError: nilearn is not installed or no longer ships the file.
    """
    spec = find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise DatasetError("The demo's scan is missing; pip install 'fastsam3d[demo]' brings it.")
    image = Path(spec.submodule_search_locations[0], "datasets", "data", ICBM152_T1)
    if not image.is_file():
        raise DatasetError(
            f"The installed nilearn has no {ICBM152_T1}; pip install 'nilearn<0.15'."
        )
    return image
