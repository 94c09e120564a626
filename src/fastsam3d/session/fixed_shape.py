"""A model run in fixed shapes: reduced precision, compiled, replayed as CUDA graphs.

On a GPU the decoder of a small model is hundreds of kernels of a few microseconds; launching them
one by one from Python takes longer than computing them. A graph is launched once. It wants the same
addresses and shapes every time, so prompts are copied into buffers of fixed sizes.

Shape legend: B batch, N points, M mask candidates, S side of the ROI, L side of the logits.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fastsam3d.errors import ConfigError
from fastsam3d.model.embedding import ImageEmbedding
from fastsam3d.model.hr import HighResSam3D

if TYPE_CHECKING:
    from fastsam3d.model.config import ModelConfig
    from fastsam3d.model.registry import Model

_WARM_UPS = 3  # a graph may be captured once the kernels of its library calls are chosen
_MATRIX_LAYERS = (nn.Linear, nn.Conv3d, nn.ConvTranspose3d)


@dataclass(frozen=True, kw_only=True)
class FixedShapeConfig:
    """How the fixed shapes are run.

    Attributes:
        dtype: Of weights and products of matrices; norms, positions and sums of statistics stay in
            float32.
        is_compiled: Fuse with torch.compile; the first answer of each kind then takes minutes.
        is_captured: Replay CUDA graphs; False runs the same buffers eagerly, on any device.
        max_points: Most points of one prompt set; more are left to the eager model.
    """

    dtype: torch.dtype = torch.bfloat16
    is_compiled: bool = True
    is_captured: bool = True
    max_points: int = 16


class _Kind(NamedTuple):
    """What one recorded decoder answers."""

    num_points: int
    has_box: bool
    has_mask: bool
    multimask: bool


class FixedShapeEngine:
    """Answers as the model does, one ROI and one prompt set at a time, by replay.

    Batches, and prompt sets of more points than `FixedShapeConfig.max_points`, are run eagerly in
    the same precision. Several sessions may share it: calls take turns, and what is returned
    belongs to the caller.

    Args:
        model: In evaluation mode on its device; it is copied, not changed.
        config: How to run it.

    Raises:
        ConfigError: Capture is asked for without CUDA.
    """

    def __init__(self, model: Model, config: FixedShapeConfig | None = None) -> None:
        self.options = config or FixedShapeConfig()
        device = next(model.parameters()).device
        if self.options.is_captured and device.type != "cuda":
            msg = f"CUDA graphs need a CUDA device, got {device.type}; use engine='torch'."
            raise ConfigError(msg)
        self.device = device
        self._model = _reduced(model, self.options.dtype)
        self._lock = threading.Lock()
        self._encoder: _Replay | None = None
        self._decoders: dict[_Kind, _Replay] = {}
        self._shared: tuple[Tensor, ...] = ()
        self._resident: ImageEmbedding | None = None

    @property
    def config(self) -> ModelConfig:
        """The model's config."""
        return self._model.config

    def encode_image(self, image: Tensor) -> ImageEmbedding:
        """Embed ROIs, shape (B, 1, S, S, S)."""
        with self._lock, torch.inference_mode():
            if len(image) != 1:
                return self._embedding(self._encode(image))
            if self._encoder is None:
                buffers = {"image": torch.zeros_like(image, dtype=torch.float32)}
                self._encoder = _Replay(self._encode, buffers, self.options)
            parts = self._encoder.run({"image": image})
            return self._embedding(tuple(part.clone() for part in parts))

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
        """Return logits (B, M, L, L, L) and quality (B, M), float32, as the model does."""
        values = {"points": points, "labels": labels, "boxes": boxes, "mask_logits": mask_logits}
        given = {name: value for name, value in values.items() if value is not None}
        is_single = len(points) == 1 and embedding.batch_size == 1
        with self._lock, torch.inference_mode():
            if not is_single or points.shape[1] > self.options.max_points:
                parts = (embedding.tokens, *embedding.skips)
                return cast("Any", self._decode(parts, given, multimask=multimask))
            decoder = self._decoder(embedding, self._kind(given, multimask=multimask))
            self._make_resident(embedding)
            logits, quality = decoder.run(given)
            return logits.clone(), quality.clone()

    def _kind(self, given: dict[str, Tensor], *, multimask: bool) -> _Kind:
        if isinstance(self._model, HighResSam3D):
            # Absent prompts have neutral values here, so that one graph serves all.
            return _Kind(self.options.max_points, True, True, multimask)
        count = given["points"].shape[1]
        return _Kind(count, "boxes" in given, "mask_logits" in given, multimask)

    def _decoder(self, embedding: ImageEmbedding, kind: _Kind) -> _Replay:
        if not self._shared:
            parts = (embedding.tokens, *embedding.skips)
            self._shared = tuple(torch.empty_like(part) for part in parts)
        if kind not in self._decoders:
            self._make_resident(embedding)

            def decode(**given: Tensor) -> tuple[Tensor, ...]:
                return self._decode(self._shared, given, multimask=kind.multimask)

            self._decoders[kind] = _Replay(decode, self._buffers(kind), self.options)
        return self._decoders[kind]

    def _buffers(self, kind: _Kind) -> dict[str, Tensor]:
        side, on = self.config.logits_size, self.device
        buffers = {
            "points": torch.zeros(1, kind.num_points, 3, device=on),
            "labels": torch.full((1, kind.num_points), -1, device=on),
        }
        if kind.has_box:
            buffers["boxes"] = torch.zeros(1, 6, device=on)
        if kind.has_mask:
            buffers["mask_logits"] = torch.zeros(1, 1, side, side, side, device=on)
        return buffers

    def _make_resident(self, embedding: ImageEmbedding) -> None:
        if self._resident is not embedding:
            parts = (embedding.tokens, *embedding.skips)
            for buffer, part in zip(self._shared, parts, strict=True):
                buffer.copy_(part)
            self._resident = embedding

    def _encode(self, image: Tensor) -> tuple[Tensor, ...]:
        with self._precision():
            embedding = self._model.encode_image(image)
        return (embedding.tokens, *embedding.skips)

    def _decode(
        self, parts: tuple[Tensor, ...], given: dict[str, Tensor], *, multimask: bool
    ) -> tuple[Tensor, ...]:
        rest = dict(given)
        points, labels = rest.pop("points"), rest.pop("labels")
        with self._precision():
            logits, quality = self._model.decode_masks(
                self._embedding(parts), points, labels, **rest, multimask=multimask
            )
        return logits.float(), quality.float()

    def _embedding(self, parts: tuple[Tensor, ...]) -> ImageEmbedding:
        return ImageEmbedding(parts[0], parts[1:], self.config.image_size)

    def _precision(self) -> torch.autocast:
        # The cache would keep casts of another call's memory; weights are cast already.
        is_reduced = self.options.dtype != torch.float32
        dtype = self.options.dtype if is_reduced else None
        return torch.autocast(self.device.type, dtype, enabled=is_reduced, cache_enabled=False)


class _Replay:
    """One function on buffers that stay where they are."""

    def __init__(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        buffers: dict[str, Tensor],
        options: FixedShapeConfig,
    ) -> None:
        self._buffers = buffers
        self._neutral = {name: buffer.clone() for name, buffer in buffers.items()}
        if options.is_compiled:
            mode = "max-autotune-no-cudagraphs"
            function = cast("Any", torch).compile(function, dynamic=False, mode=mode)
        self._function = function
        self._graph = self._capture() if options.is_captured else None

    def run(self, values: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the outputs for new values of the buffers; the next run overwrites them."""
        for name, buffer in self._buffers.items():
            value = values.get(name)
            if value is None:
                buffer.copy_(self._neutral[name])
            elif value.shape == buffer.shape:
                buffer.copy_(value, non_blocking=True)
            else:  # fewer points than the buffer holds
                buffer.copy_(self._neutral[name])
                buffer[:, : value.shape[1]].copy_(value, non_blocking=True)
        if self._graph is None:
            return self._function(**self._buffers)
        graph, outputs = self._graph
        graph.replay()
        return outputs

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._function(**self._buffers)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._function(**self._buffers)
        return graph, outputs


def _reduced(model: Model, dtype: torch.dtype) -> Model:
    reduced = copy.deepcopy(model)
    if isinstance(reduced, HighResSam3D):
        reduced.decoder.is_limited = False  # the box around the object has no fixed shape
    for module in reduced.modules():
        if isinstance(module, _MATRIX_LAYERS):
            module.to(dtype)
    return reduced
