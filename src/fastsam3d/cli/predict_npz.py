"""``fastsam3d predict-npz``: answer one file of the CVPR 2025 challenge, as its containers do."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from fastsam3d.cli.progress import show_progress
from fastsam3d.cli.usage import Flag, UsageError
from fastsam3d.errors import VolumeWriteError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def predict_npz(
    source: Path,
    target: Path,
    /,
    *,
    model: str = "hr_s",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    npz_spacing: Literal["xyz", "zyx"] = "xyz",
    force: Flag = False,
) -> None:
    """Segment every class of a challenge file from its boxes and clicks.

    SOURCE holds imgs (D, H, W), spacing and prompts: boxes, clicks, clicks_order, prev_pred, all
    optional. TARGET gets segs: labels 1, 2, ... in the order of the prompts, on the same voxels.

    Args:
        source: The .npz file to read.
        target: The .npz file to write.
        model: Name of a model (see `fastsam3d models list`) or path of a .safetensors file.
        device: Where to compute; auto takes CUDA if there is any.
        npz_spacing: Which axis comes first in spacing.
        force: Replace TARGET if it exists.
    """
    _check(source, target, force=force)
    with show_progress(f"Reading {source.name}") as progress:
        from fastsam3d.eval.challenge import predict_classes, read_challenge
        from fastsam3d.session import Session

        given = read_challenge(source, spacing_order=npz_spacing)
        progress(f"Loading model {model}")
        session = Session.from_pretrained(model, device=device)
        progress(f"Segmenting {given.num_classes} classes")
        labels = predict_classes(session, given)
        progress("Writing the labels")
        _write(labels, target)
    sizes = [int((labels == number + 1).sum()) for number in range(given.num_classes)]
    print(f"Labels: {target} (voxels per class: {', '.join(map(str, sizes)) or 'none'})")


def _check(source: Path, target: Path, *, force: bool) -> None:
    if target.suffix.lower() != ".npz":
        raise UsageError(f"TARGET is a .npz file, got {str(target)!r}.")
    if not target.parent.is_dir():
        raise VolumeWriteError(f"Folder {target.parent} does not exist; create it first.")
    if not target.exists():
        return
    if source.exists() and target.samefile(source):
        raise VolumeWriteError(f"{target} is the input itself; choose another output name.")
    if not force:
        raise VolumeWriteError(f"{target} exists; choose another name or add --force.")


def _write(labels: NDArray[Any], path: Path) -> None:
    """Write the labels, whole or not at all."""
    import numpy as np

    largest = int(labels.max(initial=0))
    small = labels.astype(np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16)
    try:
        with tempfile.TemporaryDirectory(prefix=".fastsam3d-", dir=path.parent) as scratch:
            staged = Path(scratch, path.name)
            np.savez_compressed(staged, segs=cast("Any", small))
            staged.replace(path)
    except OSError as error:
        raise VolumeWriteError(f"Could not write {path}: {error.strerror}.") from error
