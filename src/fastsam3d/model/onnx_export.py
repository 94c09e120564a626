"""Write a model's encoder and decoder as ONNX graphs that onnxruntime runs without this package.

Needs the extra ``onnx``. The TorchScript exporter is used: it keeps the box of the decoder's finest
stage, whose size depends on the data, as dynamic slices.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import torch

from fastsam3d.errors import ConfigError
from fastsam3d.model.hr import HighResSam3D
from fastsam3d.model.onnx_graphs import (
    SKIP_NAMES,
    CompatDecoderGraph,
    EncoderGraph,
    HighResDecoderGraph,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from fastsam3d.model.card import Preprocessing
    from fastsam3d.model.registry import Model

FORMAT_VERSION = 1
OPSET = 17
ENCODER_NAME, DECODER_NAME, FACTS_NAME = "encoder.onnx", "decoder.onnx", "model.json"


@dataclass(frozen=True, kw_only=True)
class OnnxFiles:
    """What an export wrote.

    Attributes:
        encoder: Graph from an image to its embedding.
        decoder: Graph from an embedding and prompts to a mask.
        facts: JSON with names, sizes, preprocessing constants and digests.
    """

    encoder: Path
    decoder: Path
    facts: Path


def export_onnx(
    model: Model, folder: Path, *, preprocessing: Preprocessing, weights_sha256: str
) -> OnnxFiles:
    """Write ``encoder.onnx``, ``decoder.onnx`` and ``model.json``.

    Args:
        model: On the CPU, in evaluation mode.
        folder: An existing folder; files of these names are replaced.
        preprocessing: How the model wants its input.
        weights_sha256: Digest of the weights, to tell exports apart.

    Returns:
        The files.

    Raises:
        ConfigError: The package onnx is missing, or the model computes what ONNX has no operator
            for (attention in padded windows).
    """
    require("onnx", extra="onnx")
    files = OnnxFiles(
        encoder=folder / ENCODER_NAME, decoder=folder / DECODER_NAME, facts=folder / FACTS_NAME
    )
    side = model.config.image_size
    with torch.no_grad():
        image = torch.zeros(1, 1, side, side, side)
        embedding = model.encode_image(image)
        parts = (embedding.tokens, *embedding.skips)
        embedding_names = ["tokens", *SKIP_NAMES][: len(parts)]
        _trace(EncoderGraph(model), {"image": image}, embedding_names, files.encoder)
        decoder, prompts = _decoder(model)
        inputs = dict(zip(embedding_names, parts, strict=True)) | prompts
        _trace(decoder, inputs, ["logits", "quality"], files.decoder)
    facts = {
        "format_version": FORMAT_VERSION,
        "name": model.config.name,
        "opset": OPSET,
        "weights_sha256": weights_sha256,
        "embedding": embedding_names,
        "decoder_inputs": {name: list(value.shape) for name, value in inputs.items()},
        "logits_size": model.config.logits_size,
        "preprocessing": {
            "normalisation": preprocessing.normalisation,
            "image_size": preprocessing.image_size,
            "spacings_mm": list(preprocessing.spacings_mm),
            "ct_window_hu": preprocessing.ct_window_hu,
            "axes": "nearest to RAS",
            "centre_voxel": preprocessing.image_size // 2,
        },
        "sha256": {path.name: _digest(path) for path in (files.encoder, files.decoder)},
    }
    files.facts.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return files


def require(package: str, *, extra: str) -> Any:
    """Return an optional package.

    Raises:
        ConfigError: It is missing; the message names the extra that brings it.
    """
    try:
        return import_module(package)
    except ImportError as error:
        msg = f"This needs {package}, which is not installed; pip install 'fastsam3d[{extra}]'."
        raise ConfigError(msg) from error


def _decoder(model: Model) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the decoder's graph and examples of its prompts."""
    size = model.config.logits_size
    prompts = {
        "points": torch.full((1, 2, 3), model.config.image_size / 2),
        "labels": torch.ones(1, 2, dtype=torch.int64),
    }
    mask = {"mask_logits": torch.zeros(1, 1, size, size, size)}
    if isinstance(model, HighResSam3D):
        return HighResDecoderGraph(model), {**prompts, "boxes": torch.zeros(1, 6), **mask}
    has_mask = torch.zeros(1, dtype=torch.bool)
    return CompatDecoderGraph(model), {**prompts, **mask, "has_mask": has_mask}


def _trace(graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str], path: Path) -> None:
    dynamic = {name: {1: "num_points"} for name in ("points", "labels") if name in inputs}
    with warnings.catch_warnings():
        # Of the exporter's age, and of Python numbers that are constants on purpose.
        warnings.simplefilter("ignore")
        try:
            cast("Any", torch.onnx).export(
                graph.eval(),
                tuple(value.contiguous() for value in inputs.values()),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=outputs,
                dynamic_axes=dynamic,
            )
        except torch.onnx.errors.UnsupportedOperatorError as error:
            msg = f"{path.name} of this model cannot be written as ONNX: {error}."
            raise ConfigError(msg) from error


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
