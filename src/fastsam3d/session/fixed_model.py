"""A copy of a model in reduced precision whose two halves take and return plain tensors."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fastsam3d.model import row_ops, turned_heads
from fastsam3d.model.config import DENSE
from fastsam3d.model.embedding import ImageEmbedding
from fastsam3d.model.fused_hr import RowHighResDecoder, RowPosition
from fastsam3d.model.fused_layers import HeadBatch
from fastsam3d.model.fused_official import HIDDEN_POINT, PADDING_POINT, RowMaskDecoder
from fastsam3d.model.fused_tokens import (
    FusedTrunkBlock,
    GeluLinear,
    RowTwoWayLayer,
    RowTwoWayTransformer,
)
from fastsam3d.model.hr import HighResSam3D, previous_mask_map
from fastsam3d.model.layers import FeedForward
from fastsam3d.model.prompt_encoder import append_box_centres
from fastsam3d.model.row_ops import RowLinear
from fastsam3d.model.triton_kernels import load_kernels
from fastsam3d.model.window_attention import WindowAttention
from fastsam3d.session.fixed_prompts import slots_of
from fastsam3d.session.mask_bits import mask_packer

if TYPE_CHECKING:
    from fastsam3d.model.config import ModelConfig
    from fastsam3d.model.hr_decoder import TwoWayLayer
    from fastsam3d.model.hr_layers import PositionEncoding, TrunkBlock
    from fastsam3d.model.registry import Model
    from fastsam3d.model.two_way import TwoWayTransformer3D
    from fastsam3d.session.fixed_shape import FixedShapeConfig

_MATRIX_LAYERS = (nn.Linear, nn.Conv3d, nn.ConvTranspose3d, HeadBatch)


class FixedModel:
    """Encoder and decoder as functions of tensors, which a compiler and a graph can take.

    Attributes:
        config: The model's.
        model: The copy.
        is_own: Our own variant, whose absent prompts have neutral values.
        empty_label: Of a slot that holds no point.

    Args:
        model: In evaluation mode on its device; it is copied, not changed.
        options: Its precision is taken.
    """

    def __init__(self, model: Model, options: FixedShapeConfig) -> None:
        self.config: ModelConfig = model.config
        self.is_own = isinstance(model, HighResSam3D)
        # Our own variants know padding without effect; the official ones attend to theirs.
        self.empty_label = PADDING_POINT if self.is_own else HIDDEN_POINT
        self.model = copy.deepcopy(model)
        self._rows = _fused(self.model)
        _reduce(self.model, options)
        _reduce_layers(self._rows, options.dtype)
        self._device = next(model.parameters()).device
        self._dtype, self._max_points = options.dtype, options.max_points
        sides = self.config.image_size, self.config.logits_size
        self._pack_mask = mask_packer(*sides, by_kernel=self._device.type == "cuda")

    def embedding(self, parts: tuple[Tensor, ...]) -> ImageEmbedding:
        """Return what `encode` made as the model's embedding."""
        return ImageEmbedding(parts[0], parts[1:], self.config.image_size)

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return tokens and skips of ROIs (B, 1, S, S, S)."""
        with self._precision():
            embedding = self.model.encode_image(image.to(self._device))
        return (embedding.tokens, *embedding.skips)

    def decode(
        self, parts: tuple[Tensor, ...], given: dict[str, Tensor], *, multimask: bool
    ) -> tuple[Tensor, ...]:
        """Return float32 logits, quality and, of one mask of one prompt set, its bytes.

        Args:
            parts: Tokens and skips.
            given: Points and labels, and boxes or mask_logits where there are any, as
                `decode_masks` has them.
            multimask: As `decode_masks` has it.
        """
        run = self._decode_own if self.is_own else self._decode_official
        with self._precision():
            logits, quality = run(self.embedding(parts), given, multimask=multimask)
        logits, quality = logits.float(), quality.float()
        if multimask or len(logits) != 1:
            return logits, quality
        return logits, quality, self._pack_mask(logits, quality, self.config.image_size)

    def decode_packed(
        self, parts: tuple[Tensor, ...], packed: Tensor, mask: Tensor | None, *, multimask: bool
    ) -> tuple[Tensor, ...]:
        """Decode the prompts in `ClickBuffers`; else as `decode`."""
        slots = slots_of(packed, self._max_points)
        given = {"points": slots.points, "labels": slots.labels, "boxes": slots.boxes}
        if not self.is_own:
            given = _with_box_slot(given, slots.has_box)
        if mask is not None:
            given["mask_logits"] = mask
        return self.decode(parts, given, multimask=multimask)

    def _decode_own(
        self, embedding: ImageEmbedding, given: dict[str, Tensor], *, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        model, rows = cast("HighResSam3D", self.model), cast("RowHighResDecoder", self._rows)
        mask = given.get("mask_logits")
        prompts = model.prepare_prompts(
            given["points"],
            given["labels"],
            boxes=given.get("boxes"),
            previous=None if mask is None else previous_mask_map(mask.sigmoid()),
        )
        return rows((embedding.tokens, *embedding.skips), prompts, multimask=multimask)

    def _decode_official(
        self, embedding: ImageEmbedding, given: dict[str, Tensor], *, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        rows = cast("RowMaskDecoder", self._rows)
        points, labels, mask = given["points"], given["labels"], given.get("mask_logits")
        if "boxes" in given:
            points, labels = append_box_centres(points, labels, given["boxes"])
        return rows(embedding.tokens, points, labels, mask, multimask=multimask)

    def _precision(self) -> torch.autocast:
        # The cache would keep casts of another call's memory; weights are cast already.
        is_reduced = self._dtype != torch.float32
        dtype = self._dtype if is_reduced else None
        return torch.autocast(self._device.type, dtype, enabled=is_reduced, cache_enabled=False)


def _with_box_slot(given: dict[str, Tensor], has_box: Tensor) -> dict[str, Tensor]:
    """Make the box one more point, hidden where none was given."""
    points, labels = append_box_centres(given["points"], given["labels"], given["boxes"])
    is_absent = nn.functional.pad(has_box == 0, (labels.shape[1] - 1, 0))
    return {"points": points, "labels": torch.where(is_absent, HIDDEN_POINT, labels)}


@torch.no_grad()
def _fused(model: Model) -> RowMaskDecoder | RowHighResDecoder:
    """Join parts of a model that may be changed, and return what decodes in its place."""
    if isinstance(model, HighResSam3D):
        return _fused_own(model)
    for module in model.image_encoder.modules():
        if isinstance(module, FeedForward):
            module.lin1 = cast("nn.Linear", GeluLinear(module.lin1))
            module.act = nn.Identity()
    load_kernels(row_ops.KERNELS)
    decoder = model.mask_decoder
    position = model.prompt_encoder.encode_grid().flatten(2).transpose(1, 2)[0]
    rows = RowTwoWayTransformer(decoder.transformer, position)
    decoder.transformer = cast("TwoWayTransformer3D", rows)
    return RowMaskDecoder(model)


def _fused_own(model: HighResSam3D) -> RowHighResDecoder:
    trunk, decoder = model.encoder.trunk, model.decoder
    if model.config.attention == DENSE:
        load_kernels(turned_heads.KERNELS)
        blocks = [FusedTrunkBlock(cast("TrunkBlock", block)) for block in trunk.blocks]
        trunk.blocks = nn.ModuleList(blocks)
        decoder.mix = cast("TrunkBlock", FusedTrunkBlock(decoder.mix))
    load_kernels(row_ops.KERNELS)
    position = decoder.position(decoder.grid_position)[0]
    layers = [RowTwoWayLayer(cast("TwoWayLayer", layer), position) for layer in decoder.layers]
    decoder.layers = nn.ModuleList(layers)
    rows = RowHighResDecoder(decoder)
    rows.use_kernel()
    decoder.position = cast("PositionEncoding", RowPosition(decoder.position))
    return rows


def _reduce(model: Model, options: FixedShapeConfig) -> None:
    if isinstance(model, HighResSam3D):
        model.decoder.is_limited = False  # the box around the object has no fixed shape
    for module in model.modules():
        if isinstance(module, WindowAttention):
            with torch.no_grad():  # while its tables are float32
                module.fix(model.config.grid_size, options.dtype)
                module.fold(model.config.grid_size)
            module.use_kernel()
    _reduce_layers(model, options.dtype)


def _reduce_layers(root: nn.Module, dtype: torch.dtype) -> None:
    for module in root.modules():
        if isinstance(module, _MATRIX_LAYERS):
            module.to(dtype)
        if isinstance(module, RowLinear):
            module.reduce(dtype)
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            # Tensor cores read channels last; with other weights every input would be turned round.
            cast("Any", module).to(memory_format=torch.channels_last_3d)
