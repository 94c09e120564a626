"""Segmenters by name: baselines, and any model of this package through its session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from fastsam3d.errors import ConfigError
from fastsam3d.eval.baselines import (
    BallSegmenter,
    BlindModel,
    RandomWalker,
    RegionGrowing,
    WatershedBasin,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastsam3d.eval.baselines.base import Baseline
    from fastsam3d.segmenter import Segmenter
    from fastsam3d.session.session import Device


def create_segmenter(
    name: str | Path,
    *,
    device: str = "cpu",
    zero_image: bool = False,
    mirrors: int = 1,
    spacing_mm: float | None = None,
) -> Segmenter:
    """Make a segmenter of a baseline's spec, a model's name or the path of weights.

    Args:
        name: A key of `BASELINES`, possibly with an argument after a colon (``ball:20``), or what
            `fastsam3d.load_model` takes: SAM-Med3D and FastSAM3D checkpoints come by the path of
            their converted file, whose card says how they want their input.
        device: "auto", "cpu" or "cuda"; the classical baselines compute on the CPU in any case.
        zero_image: Hide the image from the model: what remains is what clicks alone achieve.
        mirrors: Mirror images of what a model sees over which its answers are averaged.
        spacing_mm: Let the model look with voxels of this side alone, without adapting to the
            object; None leaves the choice to the session.

    Raises:
        ConfigError: An argument that the baseline does not take, or an option that it lacks.
        ModelNotFoundError: Neither a baseline nor a model.
        CheckpointError: The weights are damaged.
    """
    kind, _, argument = str(name).partition(":")
    if kind in BASELINES:
        if zero_image or mirrors != 1 or spacing_mm is not None:
            raise ConfigError(
                f"zero_image, mirrors and spacing_mm are options of models, got {name}; leave "
                "them out."
            )
        return BASELINES[kind](argument, device)
    return _session(name, device, zero_image=zero_image, mirrors=mirrors, spacing_mm=spacing_mm)


def _session(
    name: str | Path, device: str, *, zero_image: bool, mirrors: int, spacing_mm: float | None
) -> Segmenter:
    # These load torch, which the classical baselines do without.
    from fastsam3d.session import Session  # noqa: PLC0415
    from fastsam3d.session.scale import ScalePolicy  # noqa: PLC0415

    policy = None
    if spacing_mm is not None:
        policy = ScalePolicy(
            spacings_mm=(spacing_mm,), finest_voxel=0.0, max_refinements=0, max_growths=0
        )
    session = Session.from_pretrained(
        name, device=cast("Device", device), policy=policy, mirrors=mirrors
    )
    if zero_image:
        session.predictor.model = BlindModel(session.predictor.model)
    return session


def _ball(argument: str, _device: str) -> Baseline:
    if not argument:
        return BallSegmenter()
    try:
        return BallSegmenter(float(argument))
    except ValueError as error:
        raise ConfigError(f"ball:MM wants a radius in mm, got {argument!r}.") from error


def _sam2d(argument: str, device: str) -> Baseline:
    from fastsam3d.eval.baselines.sam2d import create_sam2d  # noqa: PLC0415 - loads transformers

    return create_sam2d(argument, device)


def _unet(argument: str, device: str) -> Baseline:
    from fastsam3d.eval.baselines.unet import load_unet  # noqa: PLC0415 - loads torch

    if not argument:
        raise ConfigError("unet needs its weights, got none; write unet:PATH.safetensors.")
    return load_unet(Path(argument), device)


def _plain(kind: Callable[[], Baseline]) -> Callable[[str, str], Baseline]:
    def make(argument: str, _device: str) -> Baseline:
        if argument:
            raise ConfigError(f"This baseline takes no argument, got {argument!r}; leave it out.")
        return kind()

    return make


BASELINES: dict[str, Callable[[str, str], Baseline]] = {
    "ball": _ball,
    "region_growing": _plain(RegionGrowing),
    "random_walker": _plain(RandomWalker),
    "watershed": _plain(WatershedBasin),
    "sam2d": _sam2d,
    "unet": _unet,
}
"""How each baseline is made of (argument, device)."""
