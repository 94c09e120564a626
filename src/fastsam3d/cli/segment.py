"""``fastsam3d segment``: one volume, some prompts, one mask.

Nothing is written before everything has succeeded: the picture waits under another name until the
mask is on disk, and both files appear whole or not at all.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from fastsam3d.cli.progress import show_progress
from fastsam3d.cli.start import tracing_later
from fastsam3d.cli.usage import Flag, PromptOptions, UsageError
from fastsam3d.errors import VolumeWriteError

if TYPE_CHECKING:
    from PIL import Image

    from fastsam3d.prompts import PromptSet
    from fastsam3d.segmenter import Prediction
    from fastsam3d.session import Session
    from fastsam3d.volume import Mask, Volume


@Parameter(name="*", group="Engine")
@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Which weights do the work, and where.

    Attributes:
        model: Name of a model (see `fastsam3d models list`) or path of a .safetensors file.
        device: Where to compute; auto takes CUDA if there is any.
        engine: What runs the model; onnx needs the extra of that name, cuda_graph a GPU.
        mirrors: Average over so many mirror images (1, 2, 4 or 8): a little better, at the price
            of as many answers.
        cache: A folder to keep what the encoder made of this image, so that the next prompt on it
            is answered sooner. It is derived from the patient's image and stays until you delete
            the folder.
    """

    model: str = "hr_s"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: Literal["auto", "torch", "onnx", "cuda_graph"] = "auto"
    mirrors: int = 1
    cache: Path | None = None


@Parameter(name="*", group="Output")
@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What to write and print.

    Attributes:
        output: The mask file to write, on the grid of IMAGE (.nii, .nii.gz, .nrrd, .mha, .mhd).
        preview: A picture (.png) to draw: three slices with the mask's outline.
        json: Print the result as one JSON object on stdout.
        force: Replace files that exist.
    """

    output: Annotated[Path, Parameter(name=["--output", "-o"])]
    preview: Path | None = None
    json: Flag = False
    force: Flag = False

    def check(self, image: Path) -> None:
        """Refuse what could never be written, before any work is done.

        Args:
            image: The volume that is read; it is never overwritten.

        Raises:
            UsageError: The preview is not called .png.
            VolumeWriteError: A file exists and may not be replaced, its folder is missing, or no
                mask format has such a name.
        """
        from fastsam3d.io import check_target

        check_target(self.output)
        if self.preview is not None and self.preview.suffix.lower() != ".png":
            raise UsageError(f"--preview writes a .png file, got {str(self.preview)!r}.")
        if self.preview is not None and not self.preview.parent.is_dir():
            raise VolumeWriteError(
                f"Folder {self.preview.parent} does not exist; create it for the preview."
            )
        for path in (self.output, self.preview):
            if path is None or not path.exists():
                continue
            if image.exists() and path.samefile(image):
                raise VolumeWriteError(f"{path} is the image itself; choose another output name.")
            if not self.force:
                raise VolumeWriteError(f"{path} exists; choose another name or add --force.")


def segment(
    image: Path,
    /,
    *,
    output: OutputOptions,
    time: int | None = None,
    prompts: PromptOptions = PromptOptions(),  # noqa: B008 - frozen, hence safe to share
    engine: EngineOptions = EngineOptions(),
) -> None:
    """Segment what you point at in a volume.

    Args:
        image: The volume: NIfTI, NRRD, MHA/MHD or a folder with one DICOM series.
        time: Which time point of a 4-D file, from 0.
        output: What to write.
        prompts: What the user points at.
        engine: Which weights, where.
    """
    prompt_set = prompts.to_prompt_set()
    output.check(image)
    with show_progress(f"Reading {image.name}, loading model {engine.model}") as progress:
        # Inflating a file and importing torch keep one core each busy.
        with ThreadPoolExecutor(1) as reader:
            reading = reader.submit(_read, image, time)
            session = _load(engine)
            volume = reading.result()
        from fastsam3d.io import write_mask

        session.set_volume(volume)
        progress("Segmenting")
        result = session.predict(prompt_set)
        progress("Writing the results")
        mask = result.mask
        with ExitStack() as staged:
            if output.preview is not None:
                picture = _draw(volume, mask, prompt_set, title=image.name)
                staged.enter_context(stage_picture(picture, output.preview))
            write_mask(mask, output.output)
    report = build_report(result, image=image, output=output, model=engine.model)
    print(json.dumps(report) if output.json else describe(report))


def _read(image: Path, time: int | None) -> Volume:
    from fastsam3d.io import read_volume

    # Of a large scan, one answer looks at the surroundings of its prompts only.
    return read_volume(image, time=time, in_scratch=True)


def _load(engine: EngineOptions) -> Session:
    # The other engines compile or export the model.
    with tracing_later() if engine.engine in {"auto", "torch"} else nullcontext():
        from fastsam3d.session import Session

    return Session.from_pretrained(
        engine.model,
        device=engine.device,
        engine=engine.engine,
        mirrors=engine.mirrors,
        disk_cache=engine.cache,
    )


def build_report(
    result: Prediction, *, image: Path, output: OutputOptions, model: str
) -> dict[str, Any]:
    """Collect what a program wants to know about one segmentation.

    Args:
        result: What the session answered.
        image: The volume that was read.
        output: Where the results went.
        model: Name or path of the weights.

    Returns:
        A mapping that JSON can hold; lengths in mm, times in ms, volume in ml.
    """
    import numpy as np

    from fastsam3d.session.postprocess import voxel_ml

    geometry = result.volume.geometry
    voxels = int(np.count_nonzero(result.region_mask))
    return {
        "image": str(image),
        "mask": str(output.output),
        "preview": None if output.preview is None else str(output.preview),
        "model": model,
        "voxels": voxels,
        "volume_ml": round(voxels * voxel_ml(geometry), 4),
        "voxel_spacing_mm": [float(mm) for mm in geometry.spacing],
        "roi_spacing_mm": float(result.spacing_mm),
        "predicted_quality": float(result.predicted_quality),
        "encode_ms": float(result.encode_ms),
        "click_ms": float(result.click_ms),
        "warnings": list(result.warnings),
    }


def describe(report: dict[str, Any]) -> str:
    """Put a report of `build_report` in a few lines for a person."""
    lines = [
        f"Mask: {report['mask']} ({report['volume_ml']:.4g} ml, {report['voxels']} voxels)",
        f"Predicted quality {report['predicted_quality']:.2f} at {report['roi_spacing_mm']:g} mm; "
        f"encode {report['encode_ms']:.0f} ms, click {report['click_ms']:.0f} ms "
        f"({report['model']})",
    ]
    if report["preview"]:
        lines.insert(1, f"Preview: {report['preview']}")
    return "\n".join(lines + [f"Warning: {text}" for text in report["warnings"]])


@contextmanager
def stage_picture(picture: Image.Image, path: Path) -> Generator[None, None, None]:
    """Write a PNG under another name, and give it its own when the block has succeeded.

    Args:
        picture: What to write.
        path: Where; an existing file is replaced.

    Yields:
        Nothing; the picture is on disk but not yet under its name.

    Raises:
        VolumeWriteError: The system refused it; nothing is left.
    """
    # A folder beside the target: same file system, hence the last step is one rename.
    try:
        with tempfile.TemporaryDirectory(prefix=".fastsam3d-", dir=path.parent) as scratch:
            staged = Path(scratch, path.name)
            picture.save(staged, format="PNG")
            yield
            staged.replace(path)
    except OSError as error:
        raise VolumeWriteError(f"Could not write {path}: {error.strerror}.") from error


def _draw(volume: Volume, mask: Mask, prompt_set: PromptSet, *, title: str) -> Image.Image:
    from fastsam3d.cli.preview import Click, render_preview

    clicks = tuple(
        Click(point.position, positive=point.positive)
        for point in prompt_set.to_voxel(volume.geometry).points
    )
    return render_preview(volume, mask, clicks=clicks, title=title)
