"""A model run in fixed shapes: reduced precision, compiled, replayed as CUDA graphs.

On a GPU the decoder of a small model is hundreds of kernels of a few microseconds; launching them
one by one from Python takes longer than computing them. A graph is launched once. It wants the same
addresses and shapes every time, so prompts are copied into buffers of fixed sizes.

Shape legend: B batch, N points, M mask candidates, S side of the ROI, L side of the logits.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from fastsam3d.errors import ConfigError
from fastsam3d.session.fixed_model import FixedModel
from fastsam3d.session.fixed_prompts import ClickBuffers, Fence
from fastsam3d.session.fixed_replay import CompileMode, Replay
from fastsam3d.session.mask_bits import RoiAnswer, unpack_mask

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from fastsam3d.model.config import ModelConfig
    from fastsam3d.model.embedding import ImageEmbedding
    from fastsam3d.model.registry import Model


@dataclass(frozen=True, kw_only=True)
class FixedShapeConfig:
    """How the fixed shapes are run.

    Attributes:
        dtype: Of weights and products of matrices; norms, positions and sums of statistics stay in
            float32.
        is_compiled: Fuse with torch.compile; the first answer of each kind then takes a minute. If
            that fails, a warning says so and the same is run without.
        compile_mode: What torch.compile tries; ``max-autotune-no-cudagraphs`` times many kernels of
            each product and convolution first, which takes several minutes.
        is_captured: Replay CUDA graphs; False runs the same buffers eagerly, on any device.
        max_points: Most points of one prompt set; more are left to the eager model.
        batch_sizes: Numbers of ROIs that are encoded by a replay of their own, besides one; others
            are run eagerly. Each takes the memory of such a batch for good.
    """

    dtype: torch.dtype = torch.bfloat16
    is_compiled: bool = True
    compile_mode: CompileMode = "default"
    is_captured: bool = True
    max_points: int = 16
    batch_sizes: tuple[int, ...] = ()


class _Kind(NamedTuple):
    """What one recorded decoder answers."""

    has_mask: bool
    multimask: bool


class FixedShapeEngine:
    """Answers as the model does, one ROI and one prompt set at a time, by replay.

    Batches, but for `FixedShapeConfig.batch_sizes`, and prompt sets of more points than
    `FixedShapeConfig.max_points` are run eagerly in the same precision. Several sessions may share
    it: calls take turns, and what is returned belongs to the caller. Prompts travel in one copy,
    best from tensors in host memory.

    Args:
        model: In evaluation mode on its device; it is copied, not changed.
        config: How to run it.

    Attributes:
        device: Where the model is.
        prompt_device: Where prompts are best given.

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
        self.prompt_device = torch.device("cpu")
        self._model = FixedModel(model, self.options)
        self._lock = threading.Lock()
        self._fence = Fence(device)
        self._buffers = ClickBuffers(
            self.options.max_points,
            empty_label=self._model.empty_label,
            side=model.config.logits_size,
            fence=self._fence,
            device=device,
        )
        self._encoders: dict[int, tuple[Tensor, Replay]] = {}
        self._decoders: dict[_Kind, Replay] = {}
        self._shared: tuple[Tensor, ...] = ()
        self._resident: ImageEmbedding | None = None

    @property
    def config(self) -> ModelConfig:
        """The model's config."""
        return self._model.config

    def encode_image(self, image: Tensor) -> ImageEmbedding:
        """Embed ROIs, shape (B, 1, S, S, S)."""
        with self._lock, torch.inference_mode():
            count = len(image)
            if count != 1 and count not in self.options.batch_sizes:
                return self._model.embedding(self._model.encode(image))
            buffer, encoder = self._encoder(count)
            buffer.copy_(image, non_blocking=True)
            parts = encoder.run()
            embedding = self._model.embedding(tuple(part.clone() for part in parts))
            if parts is self._shared:
                self._resident = embedding
            return embedding

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
        with self._lock, torch.inference_mode():
            logits, quality, *_ = self._answer(
                embedding, points, labels, boxes, mask_logits, multimask=multimask
            )
            self._fence.close()
            is_prompt = logits.shape == self._buffers.mask_logits.shape
            kept = self._buffers.keep(logits) if is_prompt else logits.clone()
            return kept, quality.clone()

    def answer(
        self,
        embedding: ImageEmbedding,
        points: Tensor,
        labels: Tensor,
        *,
        boxes: Tensor | None = None,
        mask_logits: Tensor | None = None,
    ) -> RoiAnswer:
        """Decode one prompt set to the mask itself, in host memory.

        Upsampling, threshold, bounding box and packing to bits are part of the graph; what is
        copied to the host is S**3 / 8 bytes and the bounds.

        Args:
            embedding: Of one ROI.
            points: As `decode_masks`, B = 1.
            labels: As `decode_masks`.
            boxes: As `decode_masks`.
            mask_logits: As `decode_masks`.

        Raises:
            ConfigError: More than one prompt set.
        """
        if len(points) != 1 or embedding.batch_size != 1:
            msg = f"One prompt set is answered at a time, got {len(points)}; use decode_masks."
            raise ConfigError(msg)
        with self._lock, torch.inference_mode():
            found = self._answer(embedding, points, labels, boxes, mask_logits, multimask=False)
            logits, _, packed = found
            packed = _host_copy(packed)
            self._fence.close()
            # The device makes the caller's copy while the host reads the bytes.
            logits = self._buffers.keep(logits)
            self._fence.wait()
            return unpack_mask(logits, packed, self.config.image_size)

    def _answer(
        self,
        embedding: ImageEmbedding,
        points: Tensor,
        labels: Tensor,
        boxes: Tensor | None,
        mask_logits: Tensor | None,
        *,
        multimask: bool,
    ) -> tuple[Tensor, ...]:
        """Return logits, quality and, of one mask of one prompt set, its bytes."""
        is_single = len(points) == 1 and embedding.batch_size == 1
        if not is_single or points.shape[1] > self.options.max_points:
            values = {
                "points": points,
                "labels": labels,
                "boxes": boxes,
                "mask_logits": mask_logits,
            }
            given = {
                name: part.to(self.device) for name, part in values.items() if part is not None
            }
            return self._model.decode(_parts(embedding), given, multimask=multimask)
        # Absent prompts of our own variants have neutral values, so that one graph serves all.
        kind = _Kind(self._model.is_own or mask_logits is not None, multimask)
        decoder = self._decoder(embedding, kind)
        self._make_resident(embedding)
        self._buffers.fill(points, labels, boxes, mask_logits, reads_mask=kind.has_mask)
        return decoder.run()

    def _encoder(self, count: int) -> tuple[Tensor, Replay]:
        """Return what encodes so many ROIs, and the buffer that it reads."""
        if count not in self._encoders:
            size = (self.config.image_size,) * 3
            image = torch.zeros(count, 1, *size, device=self.device)
            encoder = self._replay(self._model.encode, {"image": image})
            self._encoders[count] = image, encoder
            if count == 1 and not self._shared:
                # The decoder reads where the encoder writes: a first click copies nothing.
                self._shared = encoder.outputs
        return self._encoders[count]

    def _decoder(self, embedding: ImageEmbedding, kind: _Kind) -> Replay:
        if not self._shared:
            self._shared = tuple(torch.empty_like(part) for part in _parts(embedding))
        if kind not in self._decoders:
            self._make_resident(embedding)
            buffers = {"packed": self._buffers.packed}
            if kind.has_mask:
                buffers["mask"] = self._buffers.mask_logits
            decode = partial(self._decode_shared, multimask=kind.multimask)
            self._decoders[kind] = self._replay(decode, buffers)
        return self._decoders[kind]

    def _decode_shared(
        self, packed: Tensor, mask: Tensor | None = None, *, multimask: bool
    ) -> tuple[Tensor, ...]:
        return self._model.decode_packed(self._shared, packed, mask, multimask=multimask)

    def _replay(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        buffers: dict[str, Tensor],
    ) -> Replay:
        return Replay(
            function,
            buffers,
            compile_mode=self.options.compile_mode if self.options.is_compiled else None,
            is_captured=self.options.is_captured,
        )

    def _make_resident(self, embedding: ImageEmbedding) -> None:
        if self._resident is not embedding:
            for buffer, part in zip(self._shared, _parts(embedding), strict=True):
                buffer.copy_(part)
            self._resident = embedding


def _host_copy(packed: Tensor) -> NDArray[np.uint8]:
    """Start to copy bytes to host memory of their own, which is read when the device is done."""
    if packed.is_cuda:
        # Page-locked; the allocator has it ready again when the answer before is gone.
        host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        host.copy_(packed, non_blocking=True)
    else:
        host = packed.clone()
    return cast("NDArray[np.uint8]", cast("Any", host).numpy())


def _parts(embedding: ImageEmbedding) -> tuple[Tensor, ...]:
    return (embedding.tokens, *embedding.skips)
