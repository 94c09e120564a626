"""The encoders and decoders in the form that is traced for ONNX: tensors in, tensors out.

A decoder graph answers one prompt set (batch 1) with one mask. Its number of points is dynamic and
may be 0, zeros stand for an absent box or mask, and the finest stage is cut to the object inside
the graph, so that a runtime saves what eager torch saves.

Shape legend: B batch (1), N points, C channels, S side of the ROI, I J K grid axes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsam3d.model.hr import HighResSam3D, previous_mask_map
from fastsam3d.model.hr_decoder import (
    LIMIT_LOGIT,
    LIMIT_MARGIN,
    FineInputs,
    HighResDecoder,
    PromptMaps,
    Prompts,
)

if TYPE_CHECKING:
    from fastsam3d.model.config import ModelConfig
    from fastsam3d.model.registry import Model
    from fastsam3d.model.sam_med3d import SamMed3D

SKIP_NAMES = ("skip8", "skip4", "skip2", "skip1")


class EncoderGraph(nn.Module):
    """Image (1, 1, S, S, S) to tokens and, in the high-resolution family, four skips."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.encoder = model.encoder if isinstance(model, HighResSam3D) else model.image_encoder

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Encode."""
        return self.encoder(image)


class HighResDecoderGraph(nn.Module):
    """Decoder of the high-resolution family, limited to the object in the finest stage."""

    def __init__(self, model: HighResSam3D) -> None:
        super().__init__()
        self.decoder = _TracedDecoder(model.config)
        self.decoder.load_state_dict(model.decoder.state_dict())
        self.decoder.is_limited = True

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Decode tokens, four skips, points, labels, box and mask logits: logits and quality."""
        *embedding, points, labels, boxes, mask_logits = inputs
        # A padding point has no effect, and spares the graph an empty maximum.
        points = functional.pad(points, (0, 0, 0, 1))
        labels = functional.pad(labels, (0, 1), value=-1)
        # Logits of zero everywhere draw the same map as no mask: zero.
        previous = previous_mask_map(torch.sigmoid(mask_logits))
        prompts = Prompts(points, labels, boxes, previous)
        logits, quality, _ = self.decoder(tuple(embedding), prompts, multimask=False)
        return logits, quality


class CompatDecoderGraph(nn.Module):
    """Decoder of the officially compatible family, which knows no boxes."""

    def __init__(self, model: SamMed3D) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = model.prompt_encoder, model.mask_decoder

    def forward(
        self, tokens: Tensor, points: Tensor, labels: Tensor, mask_logits: Tensor, has_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decode; `has_mask` is bool, shape (1,)."""
        masked = self.prompt_encoder(points, labels, None, mask_logits)
        plain = self.prompt_encoder(points, labels, None, None)
        dense = torch.where(has_mask[:, None, None, None, None], masked.dense, plain.dense)
        grid = self.prompt_encoder.encode_grid()
        return self.mask_decoder(tokens, grid, masked._replace(dense=dense), multimask=False)


class _TracedMaps(PromptMaps):
    """Draws any number of points at once, because a trace cannot hold the loop over them."""

    @staticmethod
    def _gaussians(offset_BN3I: Tensor, used_BN: Tensor, sigma: float) -> Tensor:
        falls = torch.exp(-0.5 * (offset_BN3I / sigma) ** 2)
        first = falls[:, :, 0] * used_BN[..., None]
        plane = falls[:, :, 1, :, None] * falls[:, :, 2, None, :]
        return (first[..., None, None] * plane[:, :, None]).amax(1)


class _TracedDecoder(HighResDecoder):
    """The decoder with the box of the finest stage as a part of the graph."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.maps = _TracedMaps(config.image_size, config.highres.click_sigmas)

    def _limited_masks(self, fine: FineInputs, rough: Tensor, tokens_BMC: Tensor) -> Tensor:
        whole = functional.interpolate(rough, scale_factor=4, mode="trilinear")
        side = rough.shape[-1]
        region = (rough[0, 0] > LIMIT_LOGIT).to(torch.int64)
        bounds = [_bounds(region, axis) for axis in range(3)]
        cut = FineInputs(*(_cut(x, bounds, x.shape[-1] // side) for x in fine))
        detailed = self._fine_masks(cut, tokens_BMC)
        margins = [m for low, high in reversed(bounds) for m in (4 * low, 4 * (side - high))]
        # Sizes are tensors while a graph is traced; the stubs know numbers only.
        placed = functional.pad(detailed, cast("list[int]", margins))
        return torch.where(self._inside(bounds) & (region.amax() > 0), placed, whole)

    def _inside(self, bounds: list[tuple[Tensor, Tensor]]) -> Tensor:
        axis = torch.arange(self.image_size)
        i, j, k = ((axis >= 4 * low) & (axis < 4 * high) for low, high in bounds)
        return i[:, None, None] & j[:, None] & k


def _bounds(region_IJK: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return where a region of ones starts and stops, with the margin; any cell where empty."""
    line = region_IJK.amax([other for other in range(3) if other != axis])
    side = region_IJK.shape[axis]
    low = line.argmax() - LIMIT_MARGIN
    high = side - line.flip(0).argmax() + LIMIT_MARGIN
    return low.clamp(min=0), high.clamp(max=side)


def _cut(x: Tensor, bounds: list[tuple[Tensor, Tensor]], factor: int) -> Tensor:
    for axis, (low, high) in enumerate(bounds):
        index = [slice(None)] * (2 + axis) + [slice(factor * low, factor * high)]
        x = x[tuple(index)]
    return x
