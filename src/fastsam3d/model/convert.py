"""Official checkpoints (.pth) of SAM-Med3D and FastSAM3D to our weights format.

Official files are pickles. They are read by torch's restricted unpickler only, which knows tensors
and plain containers; two harmless kinds that both training scripts save beside the weights (parsed
arguments and numpy numbers) are added. A file that wants anything else is refused, and nothing of
it runs.

Source: key names of SAM-Med3D f3de1fa and FastSAM3D 226dfb5 (both Apache-2.0).
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from fastsam3d.errors import CheckpointError
from fastsam3d.model.card import Preprocessing, WeightsCard
from fastsam3d.model.checkpoint import describe_differences, save_checkpoint, tensor_shapes
from fastsam3d.model.config import FASTSAM3D_6L, SAM_MED3D_B, ModelConfig
from fastsam3d.model.registry import build_model, find_config

Residual = Literal["sam_med3d", "fastsam3d"]
Shapes = dict[str, tuple[int, ...]]

OFFICIAL_VARIANTS = (SAM_MED3D_B, FASTSAM3D_6L)
# Where the two releases put the state dict inside the file.
_WRAPPERS = ("model_state_dict", "state_dict")
_PARALLEL_PREFIX = "module."
_ENCODER_PREFIX = "image_encoder."
_BLOCKED_NAME = re.compile(r"GLOBAL ([\w.]+)")
# What torch's readers were seen to raise on truncated and altered files of both formats.
_UNREADABLE = (
    pickle.UnpicklingError,
    struct.error,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    EOFError,
    OSError,
    MemoryError,
)
# Both releases resampled their training data to this spacing.
_OFFICIAL_SPACING_MM = 1.5


def convert_official(
    path_in: str | Path,
    path_out: str | Path,
    *,
    force_variant: str | None = None,
    residual: Residual | None = None,
    decoder_from: str | Path | None = None,
    variants: tuple[ModelConfig, ...] = OFFICIAL_VARIANTS,
) -> WeightsCard:
    """Convert an official checkpoint and write weights and card.

    The variant is found by key names and shapes. Which residual order a twelve-layer checkpoint
    was trained with leaves no trace in the file: SAM-Med3D's is assumed, `residual` says otherwise.

    Args:
        path_in: Official ``.pth`` file: a whole model, or a FastSAM3D student encoder.
        path_out: Target ending in ``.safetensors``; the card goes beside it.
        force_variant: Name of the variant that the file must hold; found by itself when None.
        residual: ``sam_med3d`` (pre-norm) or ``fastsam3d`` (normalised stream).
        decoder_from: Official whole-model file that gives prompt encoder and mask decoder to a
            student encoder, whose release holds the encoder alone.
        variants: Candidates to recognise.

    Returns:
        The card as written.

    Raises:
        CheckpointError: The file is damaged, unsafe or of another architecture; the message lists
            what differs. Nothing is written.
        ModelNotFoundError: `force_variant` is unknown.
    """
    path_in, path_out = Path(path_in), Path(path_out)
    if force_variant is not None:
        variants = tuple(c for c in variants if c.name == force_variant) or (
            find_config(force_variant),
        )
    state = read_official(path_in)
    config, is_encoder_only = _recognise(state, variants, path_in)
    if is_encoder_only:
        state = _complete(state, decoder_from, config, path_in)
    if residual is not None:
        after_norm = residual == "fastsam3d"
        config = replace(config, patch=replace(config.patch, residual_after_norm=after_norm))
    # float32 always: half-precision files exist, and the card promises nothing about dtype.
    state = {name: tensor.float() for name, tensor in state.items()}
    return save_checkpoint(state, path_out, _card(config, path_in))


def read_official(path: Path) -> dict[str, Tensor]:
    """Read the state dict of an official file, unwrapped and without ``module.`` prefixes.

    Raises:
        CheckpointError: The file is missing, damaged, wants to run code or holds no state dict.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        msg = f"Checkpoint {path} cannot be read ({error.strerror}); check the path."
        raise CheckpointError(msg) from error
    with file, warnings.catch_warnings(), torch.serialization.safe_globals(_harmless_kinds()):
        # torch warns of pickle protocols that its unpickler may not know; it then refuses them.
        warnings.simplefilter("ignore", UserWarning)
        try:
            content: object = torch.load(file, map_location="cpu", weights_only=True)
        except _UNREADABLE as error:
            # torch's own message advises to switch the protection off; only a name is kept.
            blocked = _BLOCKED_NAME.search(str(error))
            what = f"wants to load {blocked[1]}" if blocked else "is damaged or no torch file"
            msg = (
                f"Checkpoint {path} {what}; nothing of it was run. Fetch the file again, or ask "
                "its author for a plain state dict."
            )
            raise CheckpointError(msg) from error
    return _strip_parallel_prefix(_unwrap(content, path))


def _harmless_kinds() -> list[Any]:
    # The public way to numpy's scalar constructor, whose module was renamed in numpy 2.
    number = np.float64(0)
    rebuild = cast("tuple[object, ...]", number.__reduce__())[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    dtypes = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64")]
    return [argparse.Namespace, np.dtype, *dtypes, *((rebuild, name) for name in names)]


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and wrapper in content:
            content = cast("dict[str, object]", content)[wrapper]
    if isinstance(content, dict):
        entries = cast("dict[Any, object]", content)
        if entries and all(
            isinstance(k, str) and isinstance(v, Tensor) for k, v in entries.items()
        ):
            return cast("dict[str, Tensor]", entries)
    msg = (
        f"Checkpoint {path} holds no state dict (tensors by name, bare or under "
        f"{' or '.join(_WRAPPERS)}); give the file of a SAM-Med3D or FastSAM3D release."
    )
    raise CheckpointError(msg)


def _strip_parallel_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(_PARALLEL_PREFIX): tensor for name, tensor in state.items()}


def _recognise(
    state: Mapping[str, Tensor], variants: tuple[ModelConfig, ...], path: Path
) -> tuple[ModelConfig, bool]:
    """Find the variant whose keys and shapes are the file's, whole or encoder alone."""
    found = tensor_shapes(state)
    closest: tuple[int, str] | None = None
    for config in variants:
        whole = _expected_shapes(config)
        for is_encoder_only, expected in ((False, whole), (True, _encoder_part(whole))):
            if expected == found:
                return config, is_encoder_only
            score = len(expected.items() ^ found.items())
            part = "encoder" if is_encoder_only else "model"
            text = f"{config.name} ({part}): {describe_differences(expected, found)}"
            if closest is None or score < closest[0]:
                closest = (score, text)
    assert closest is not None, "there is at least one variant to compare with"
    names = ", ".join(config.name for config in variants)
    msg = f"Checkpoint {path} is none of {names}; the closest is {closest[1]}."
    raise CheckpointError(msg)


def _expected_shapes(config: ModelConfig) -> Shapes:
    with torch.device("meta"):
        return tensor_shapes(build_model(config).state_dict())


def _encoder_part(shapes: Shapes) -> Shapes:
    return {
        name.removeprefix(_ENCODER_PREFIX): shape
        for name, shape in shapes.items()
        if name.startswith(_ENCODER_PREFIX)
    }


def _complete(
    encoder: Mapping[str, Tensor],
    decoder_from: str | Path | None,
    config: ModelConfig,
    path: Path,
) -> dict[str, Tensor]:
    """Join an encoder with prompt encoder and mask decoder of another file."""
    if decoder_from is None:
        msg = (
            f"Checkpoint {path} holds the image encoder of {config.name} alone; give the "
            "whole-model file of that release too, for its prompt encoder and mask decoder."
        )
        raise CheckpointError(msg)
    donor = read_official(Path(decoder_from))
    joined = {_ENCODER_PREFIX + name: tensor for name, tensor in encoder.items()}
    joined |= {n: t for n, t in donor.items() if not n.startswith(_ENCODER_PREFIX)}
    differences = describe_differences(_expected_shapes(config), tensor_shapes(joined))
    if differences:
        msg = f"Decoder file {decoder_from} does not complete {config.name}: {differences}."
        raise CheckpointError(msg)
    return joined


def _card(config: ModelConfig, source: Path) -> WeightsCard:
    return WeightsCard(
        name=config.name,
        architecture=config,
        preprocessing=Preprocessing(
            normalisation="foreground_zscore",
            image_size=config.image_size,
            spacings_mm=(_OFFICIAL_SPACING_MM,),
        ),
        licence="Apache-2.0",
        training_data=("as published by the authors of the original checkpoint",),
        sha256="0" * 64,
        created=datetime.now(UTC).date().isoformat(),
        notes=f"Converted from {source.name}.",
    )
