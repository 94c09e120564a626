"""Engines: what runs a model's two halves. All give the answers of eager torch, the reference.

An engine has the interface of a model (`encode_image`, `decode_masks`), so a predictor takes one in
the model's place. The ONNX engine answers what its graphs hold, one prompt set with one mask, and
leaves batches of prompts and the candidates of an ambiguous click to torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

import torch

from fastsam3d.errors import ConfigError
from fastsam3d.model.embedding import ImageEmbedding
from fastsam3d.model.hr import HighResSam3D
from fastsam3d.model.onnx_export import export_onnx, require
from fastsam3d.session.fixed_shape import FixedShapeEngine

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from fastsam3d.model.card import Preprocessing
    from fastsam3d.model.registry import Model

    Arrays = Mapping[str, NDArray[np.generic]]

EngineName = Literal["auto", "torch", "onnx", "cuda_graph"]


class _Graph(Protocol):
    """A loaded graph."""

    def run(self, inputs: Arrays) -> list[NDArray[np.float32]]:
        """Return the outputs in order; they belong to the caller."""
        ...


class OnnxRuntimeGraph:
    """A graph in onnxruntime on the CPU.

    Args:
        path: The .onnx file.
        threads: Threads of this graph alone.

    Raises:
        ConfigError: onnxruntime is missing.
    """

    def __init__(self, path: Path, threads: int) -> None:
        runtime = require("onnxruntime", extra="onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        # Waiting threads that spin would take the cores from the other graph and from torch.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = runtime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def run(self, inputs: Arrays) -> list[NDArray[np.float32]]:
        """Return the outputs in order; they belong to the caller."""
        return cast("list[NDArray[np.float32]]", self._session.run(None, dict(inputs)))


class GraphEngine:
    """Runs the exported graphs of a model.

    Args:
        model: What the graphs were made of; it answers what they do not hold.
        encoder: Its encoder.
        decoder: Its decoder.
    """

    def __init__(self, model: Model, encoder: _Graph, decoder: _Graph) -> None:
        self.model, self.config = model, model.config
        self._encoder, self._decoder = encoder, decoder

    def encode_image(self, image: Tensor) -> ImageEmbedding:
        """Embed ROIs, shape (B, 1, S, S, S), one after another."""
        each = [self._encoder.run({"image": _array(one)}) for one in torch.split(image.float(), 1)]
        tokens, *skips = (
            torch.cat([_tensor(part) for part in parts]) for parts in zip(*each, strict=True)
        )
        return ImageEmbedding(tokens, tuple(skips), self.config.image_size)

    def decode_masks(
        self,
        embedding: ImageEmbedding,
        points: Tensor,
        labels: Tensor,
        *,
        boxes: Tensor | None = None,
        mask_logits: Tensor | None = None,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, M, S, S, S) and predicted quality (B, M), as the model does."""
        is_compat_box = boxes is not None and not isinstance(self.model, HighResSam3D)
        if multimask or len(points) != 1 or is_compat_box:
            return self.model.decode_masks(
                embedding, points, labels, boxes=boxes, mask_logits=mask_logits, multimask=multimask
            )
        side = self.config.logits_size
        mask = torch.zeros(1, 1, side, side, side) if mask_logits is None else mask_logits.float()
        inputs = {
            "tokens": embedding.tokens,
            **dict(zip(("skip8", "skip4", "skip2", "skip1"), embedding.skips, strict=False)),
            "points": points.float(),
            "labels": labels.long(),
            "mask_logits": mask,
        }
        if isinstance(self.model, HighResSam3D):
            inputs["boxes"] = torch.zeros(1, 6) if boxes is None else boxes.float()
        else:
            inputs["has_mask"] = torch.tensor([mask_logits is not None])
        arrays = {name: _array(value) for name, value in inputs.items()}
        logits, quality = self._decoder.run(arrays)
        return _tensor(logits), _tensor(quality)


def create_engine(
    model: Model,
    name: EngineName = "auto",
    *,
    preprocessing: Preprocessing,
    weights_sha256: str,
    threads: int | None = None,
) -> Model | GraphEngine | FixedShapeEngine:
    """Choose what runs a model.

    Args:
        model: In evaluation mode, on its device.
        name: ``torch`` (eager, the reference), ``onnx`` (onnxruntime), ``cuda_graph`` (bfloat16,
            compiled, replayed), or ``auto``. Eager torch is measured no slower than onnxruntime,
            and compiling takes minutes, so ``auto`` takes eager torch.
        preprocessing: As the weights' card says.
        weights_sha256: As the weights' card says.
        threads: Of each graph; by default as many as torch has. Torch's own are not changed.

    Raises:
        ConfigError: There is no such engine, its package is missing, or the model is not on a CPU.
    """
    if name not in get_args(EngineName):
        msg = f"Engine must be one of {', '.join(get_args(EngineName))}, got {name!r}; choose one."
        raise ConfigError(msg)
    if name in {"auto", "torch"}:
        return model
    if name == "cuda_graph":
        return FixedShapeEngine(model)
    if next(model.parameters()).device.type != "cpu":
        msg = f"Engine {name} runs on a CPU only; use device='cpu', or engine='torch'."
        raise ConfigError(msg)
    require("onnxruntime", extra="onnx")
    count = threads or torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="fastsam3d-") as scratch:
        files = export_onnx(
            model, Path(scratch), preprocessing=preprocessing, weights_sha256=weights_sha256
        )
        encoder = OnnxRuntimeGraph(files.encoder, count)
        return GraphEngine(model, encoder, OnnxRuntimeGraph(files.decoder, count))


def available_engines() -> tuple[EngineName, ...]:
    """Return the engines that can run here, the reference first."""
    names: list[EngineName] = ["torch"]
    if all(find_spec(package) is not None for package in ("onnx", "onnxruntime")):
        names.append("onnx")
    if torch.cuda.is_available():
        names.append("cuda_graph")
    return tuple(names)


def _array(value: Tensor) -> NDArray[np.generic]:
    return cast("NDArray[np.generic]", cast("Any", value.contiguous()).numpy())


def _tensor(value: NDArray[np.float32]) -> Tensor:
    return cast("Tensor", cast("Any", torch).from_numpy(value))
