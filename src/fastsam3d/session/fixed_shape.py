"""A model run in fixed shapes: reduced precision, compiled, replayed as CUDA graphs.

On a GPU the decoder of a small model is hundreds of kernels of a few microseconds; launching them
one by one from Python takes longer than computing them. A graph is launched once. It wants the same
addresses and shapes every time, so prompts are copied into buffers of fixed sizes.

Shape legend: B batch, N points, M mask candidates, S side of the ROI, L side of the logits.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fastsam3d.errors import ConfigError
from fastsam3d.model.embedding import ImageEmbedding
from fastsam3d.model.hr import HighResSam3D
from fastsam3d.model.prompt_encoder import append_box_centres
from fastsam3d.model.window_attention import WindowAttention
from fastsam3d.session.fixed_replay import CompileMode, Replay
from fastsam3d.session.mask_bits import RoiAnswer, pack_mask, unpack_mask

if TYPE_CHECKING:
    from fastsam3d.model.config import ModelConfig
    from fastsam3d.model.registry import Model
    from fastsam3d.model.sam_med3d import SamMed3D

# Of a slot of the buffer that holds no point. Our own variants know padding without effect; the
# official decoders attend to their padding (-1), so that theirs is hidden from attention.
_NO_POINT, _HIDDEN_POINT = -1, -2
_HIDDEN_SCORE = -1.0e4
_MATRIX_LAYERS = (nn.Linear, nn.Conv3d, nn.ConvTranspose3d)


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
        has_window_kernel: Add the official encoders' position bias within a Triton kernel in place
            of forming it, where Triton and the shapes allow.
    """

    dtype: torch.dtype = torch.bfloat16
    is_compiled: bool = True
    compile_mode: CompileMode = "default"
    is_captured: bool = True
    max_points: int = 16
    has_window_kernel: bool = True


class _Kind(NamedTuple):
    """What one recorded decoder answers."""

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
        self._model = _reduced(model, self.options)
        self._is_own = isinstance(model, HighResSam3D)
        self._lock = threading.Lock()
        self._encoder: Replay | None = None
        self._decoders: dict[_Kind, Replay] = {}
        self._shared: tuple[Tensor, ...] = ()
        self._resident: ImageEmbedding | None = None
        if not self._is_own:
            with torch.inference_mode():
                self._grid_position = cast("SamMed3D", self._model).prompt_encoder.encode_grid()

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
                buffer = torch.zeros(image.shape, device=self.device)
                self._encoder = self._replay(self._encode, {"image": buffer})
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
        with self._lock, torch.inference_mode():
            logits, quality, *_ = self._answer(
                embedding, points, labels, boxes, mask_logits, multimask=multimask
            )
            return logits.clone(), quality.clone()

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
        copied to the host is S**3 / 8 bytes.

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
            logits, _, bits, facts = found
            # All copies are under way before the first is waited for.
            logits, on_host = logits.clone(), [_to_host(part) for part in (bits, facts)]
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()
            return unpack_mask(logits, *on_host)

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
        """Return logits, quality and, of one mask of one prompt set, its bits and facts."""
        if boxes is not None and not self._is_own:
            points, labels = append_box_centres(points.to(boxes), labels.to(boxes.device), boxes)
            boxes = None
        values = {"points": points, "labels": labels, "boxes": boxes, "mask_logits": mask_logits}
        given = {name: value for name, value in values.items() if value is not None}
        is_single = len(points) == 1 and embedding.batch_size == 1
        if not is_single or points.shape[1] > self.options.max_points:
            on_device = {name: value.to(self.device) for name, value in given.items()}
            return self._decode(_parts(embedding), on_device, multimask=multimask)
        # Absent prompts of our own variants have neutral values, so that one graph serves all.
        kind = _Kind(self._is_own or mask_logits is not None, multimask)
        decoder = self._decoder(embedding, kind)
        self._make_resident(embedding)
        return decoder.run(given)

    def _decoder(self, embedding: ImageEmbedding, kind: _Kind) -> Replay:
        if not self._shared:
            self._shared = tuple(torch.empty_like(part) for part in _parts(embedding))
        if kind not in self._decoders:
            self._make_resident(embedding)
            decode = partial(self._decode_shared, multimask=kind.multimask)
            self._decoders[kind] = self._replay(decode, self._buffers(kind))
        return self._decoders[kind]

    def _replay(self, function: Any, buffers: dict[str, Tensor]) -> Replay:
        return Replay(
            function,
            buffers,
            compile_mode=self.options.compile_mode if self.options.is_compiled else None,
            is_captured=self.options.is_captured,
        )

    def _buffers(self, kind: _Kind) -> dict[str, Tensor]:
        side, on, count = self.config.logits_size, self.device, self.options.max_points
        absent = _NO_POINT if self._is_own else _HIDDEN_POINT
        buffers = {
            "points": torch.zeros(1, count, 3, device=on),
            "labels": torch.full((1, count), absent, device=on),
        }
        if self._is_own:
            buffers["boxes"] = torch.zeros(1, 6, device=on)
        if kind.has_mask:
            buffers["mask_logits"] = torch.zeros(1, 1, side, side, side, device=on)
        return buffers

    def _make_resident(self, embedding: ImageEmbedding) -> None:
        if self._resident is not embedding:
            for buffer, part in zip(self._shared, _parts(embedding), strict=True):
                buffer.copy_(part)
            self._resident = embedding

    def _encode(self, image: Tensor) -> tuple[Tensor, ...]:
        with self._precision():
            return _parts(self._model.encode_image(image.to(self.device)))

    def _decode_shared(self, *, multimask: bool, **given: Tensor) -> tuple[Tensor, ...]:
        return self._decode(self._shared, given, multimask=multimask)

    def _decode(
        self, parts: tuple[Tensor, ...], given: dict[str, Tensor], *, multimask: bool
    ) -> tuple[Tensor, ...]:
        run = self._decode_own if self._is_own else self._decode_official
        with self._precision():
            logits, quality = run(self._embedding(parts), given, multimask=multimask)
        logits, quality = logits.float(), quality.float()
        if multimask or len(logits) != 1:
            return logits, quality
        return logits, quality, *pack_mask(logits, quality, self.config.image_size)

    def _decode_own(
        self, embedding: ImageEmbedding, given: dict[str, Tensor], *, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        return cast("HighResSam3D", self._model).decode_masks(
            embedding, **cast("Any", given), multimask=multimask
        )

    def _decode_official(
        self, embedding: ImageEmbedding, given: dict[str, Tensor], *, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        model = cast("SamMed3D", self._model)
        points, labels = given["points"], given["labels"]
        shown = labels.clamp(min=_NO_POINT)
        prompts = model.prompt_encoder(points, shown, None, given.get("mask_logits"))
        # The prompt encoder adds one padding point of its own, which is not hidden.
        is_hidden = nn.functional.pad(labels == _HIDDEN_POINT, (0, 1))
        prompts = prompts._replace(bias=_HIDDEN_SCORE * is_hidden)
        return model.mask_decoder(
            embedding.tokens, self._grid_position, prompts, multimask=multimask
        )

    def _embedding(self, parts: tuple[Tensor, ...]) -> ImageEmbedding:
        return ImageEmbedding(parts[0], parts[1:], self.config.image_size)

    def _precision(self) -> torch.autocast:
        # The cache would keep casts of another call's memory; weights are cast already.
        is_reduced = self.options.dtype != torch.float32
        dtype = self.options.dtype if is_reduced else None
        return torch.autocast(self.device.type, dtype, enabled=is_reduced, cache_enabled=False)


def _parts(embedding: ImageEmbedding) -> tuple[Tensor, ...]:
    return (embedding.tokens, *embedding.skips)


def _to_host(part: Tensor) -> Tensor:
    """Start a copy to the host; on a GPU the caller waits for its stream."""
    if part.device.type == "cpu":
        return part.clone()
    host = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
    return host.copy_(part, non_blocking=True)


def _reduced(model: Model, options: FixedShapeConfig) -> Model:
    dtype = options.dtype
    reduced = copy.deepcopy(model)
    if isinstance(reduced, HighResSam3D):
        reduced.decoder.is_limited = False  # the box around the object has no fixed shape
    for module in reduced.modules():
        if isinstance(module, WindowAttention):
            with torch.no_grad():  # while its tables are float32
                module.fix(reduced.config.grid_size, dtype)
            if options.has_window_kernel:
                module.use_kernel()
    for module in reduced.modules():
        if isinstance(module, _MATRIX_LAYERS):
            module.to(dtype)
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            # Tensor cores read channels last; with other weights every input would be turned round.
            cast("Any", module).to(memory_format=torch.channels_last_3d)
    return reduced
