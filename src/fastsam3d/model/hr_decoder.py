"""Prompt encoder and mask decoder of the high-resolution variants.

Prompts reach the decoder twice: as tokens that attend to the image tokens, and drawn as dense
maps at half the ROI resolution that join the features at every scale.

Shape legend: B prompt sets, N points, M mask candidates, C channels, T tokens, I J K grid axes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastsam3d.model import channels_last
from fastsam3d.model.config import ModelConfig
from fastsam3d.model.hr_layers import (
    PositionEncoding,
    ResidualConv,
    TokenAttention,
    TrunkBlock,
    Upsample,
    axial_rope,
    depth_to_space,
    double_resolution,
    grid_norm,
)
from fastsam3d.model.inference_ops import (
    PointwiseConv,
    activate,
    add_to,
    detail_sums,
    enlarge,
    is_plain_inference,
    is_recorded,
    weighted_sums,
)
from fastsam3d.model.sparse_attention import choose_attention
from fastsam3d.model.winograd import CubeConv

NUM_MASKS = 4  # one for a settled prompt, three candidates for an ambiguous first click
NUM_MAPS = 6  # positive and negative clicks at two radii, previous mask, box
DECODER_HEADS = 8
ABSENT_SCORE = -1.0e4
# Where the rough mask is surer of background than this (probability 2 %), no detail is computed.
LIMIT_LOGIT = -4.0
LIMIT_MARGIN = 2  # quarter-grid cells around the box


class Prompts(NamedTuple):
    """Prompts of B objects in ROI voxels (voxel centres are integers).

    Attributes:
        points_BN3: Point coordinates, float.
        labels_BN: 1 positive, 0 negative, -1 padding without effect.
        boxes_B6: i0 j0 k0 i1 j1 k1, half-open; a row with stop <= start is no box.
        previous_B1IJK: Probabilities of the previous mask at half resolution, mapped to -1..1,
            zero everywhere where there is none.
    """

    points_BN3: Tensor
    labels_BN: Tensor
    boxes_B6: Tensor
    previous_B1IJK: Tensor


class PromptMaps(nn.Module):
    """Draw prompts as dense maps at half the ROI resolution."""

    def __init__(self, image_size: int, sigmas: tuple[float, float]) -> None:
        super().__init__()
        self.image_size = image_size
        self.sigmas = sigmas

    def forward(self, prompts: Prompts) -> Tensor:
        """Return maps, shape (B, NUM_MAPS, S/2, S/2, S/2)."""
        # The cell n of the half grid covers voxels 2n and 2n + 1: its centre is 2n + 0.5.
        steps = torch.arange(self.image_size // 2, device=prompts.points_BN3.device)
        centres_I = 2.0 * steps + 0.5
        offset_BN3I = centres_I - prompts.points_BN3[..., None]
        maps = [
            self._gaussians(offset_BN3I, prompts.labels_BN == label, sigma)
            for label in (1, 0)
            for sigma in self.sigmas
        ]
        boxes = self.box_map(prompts.boxes_B6, centres_I)
        if is_recorded():
            previous = prompts.previous_B1IJK[:, 0].to(boxes.dtype)
            return channels_last.stack([*maps, boxes, previous])
        stacked = torch.stack([*maps, boxes], dim=1)
        previous = prompts.previous_B1IJK.to(stacked.dtype)
        return torch.cat((stacked, previous), dim=1)

    @staticmethod
    def _gaussians(offset_BN3I: Tensor, used_BN: Tensor, sigma: float) -> Tensor:
        """Return the largest Gaussian over the used points, shape (B, I, J, K)."""
        falls = torch.exp(-0.5 * (offset_BN3I / sigma) ** 2)
        first = falls[:, :, 0] * used_BN[..., None]
        if falls.is_cuda and falls.shape[1] and not torch.is_grad_enabled():
            balls = first[..., :, None, None] * falls[:, :, 1, None, :, None]
            return (balls * falls[:, :, 2, None, None, :]).amax(1)
        drawn: Tensor | None = None
        # A point of another kind draws zeros, which change no maximum of what is not negative.
        is_skipping = falls.device.type == "cpu" and is_plain_inference()
        for n in range(falls.shape[1]):  # a running maximum keeps one map in memory, not N
            if is_skipping and not used_BN[:, n].any():
                continue
            ball = (
                first[:, n, :, None, None]
                * falls[:, n, 1, None, :, None]
                * falls[:, n, 2, None, None, :]
            )
            drawn = ball if drawn is None else torch.maximum(drawn, ball)
        if drawn is None:
            batch, side = falls.shape[0], falls.shape[-1]
            drawn = falls.new_zeros(batch, side, side, side)
        return drawn

    @staticmethod
    def box_map(boxes_B6: Tensor, centres_I: Tensor) -> Tensor:
        """Return 1 inside of each box and 0 outside, (B, I, J, K), at centres in voxels."""
        start_B3, stop_B3 = boxes_B6[:, :3, None], boxes_B6[:, 3:, None]
        inside = ((centres_I >= start_B3) & (centres_I < stop_B3)).to(centres_I.dtype)
        return (
            inside[:, 0, :, None, None] * inside[:, 1, None, :, None] * inside[:, 2, None, None, :]
        )


class PromptPyramid(nn.Module):
    """Features of the prompt maps at quarter, eighth and token resolution, and by `at2` at half.

    `at2` is left to the caller, who may need it in a part of the grid only.
    """

    def __init__(self, channels: tuple[int, int, int], token_dim: int) -> None:
        super().__init__()
        deep, mid, fine = channels
        self.at2 = PointwiseConv(NUM_MAPS, fine, 1)
        self.down4 = nn.Conv3d(NUM_MAPS, 32, 2, stride=2)
        self.conv4 = CubeConv(32, 32, 3, padding=1)
        self.at4 = PointwiseConv(32, mid, 1)
        self.down8 = nn.Conv3d(32, 64, 2, stride=2)
        self.conv8 = CubeConv(64, 64, 3, padding=1)
        self.at8 = PointwiseConv(64, deep, 1)
        self.down16 = nn.Conv3d(64, token_dim, 2, stride=2)

    def forward(self, maps_BCIJK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features at 1/4, 1/8 and 1/16 of the ROI resolution."""
        quarter = activate(self.down4(maps_BCIJK))
        quarter = add_to(activate(self.conv4(quarter)), quarter)
        eighth = activate(self.down8(quarter))
        eighth = add_to(activate(self.conv8(eighth)), eighth)
        return self.at4(quarter), self.at8(eighth), self.down16(eighth)


class TwoWayLayer(nn.Module):
    """Prompt tokens attend to themselves and to the image; image tokens attend back.

    Source: SAM's two-way transformer layer (arXiv 2304.02643, appendix A), pre-norm.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(dim)
        self.self_attention = TokenAttention(dim, DECODER_HEADS, dim)
        self.norm_read = nn.LayerNorm(dim)
        self.read_image = TokenAttention(dim, DECODER_HEADS, dim // 2)
        self.norm_mlp = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        self.norm_write = nn.LayerNorm(dim)
        self.norm_image = nn.LayerNorm(dim)
        self.write_image = TokenAttention(dim, DECODER_HEADS, dim // 2)

    def forward(
        self, tokens: Tensor, image: Tensor, image_position: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return updated prompt tokens (B, N, C) and image tokens (B, T, C)."""
        x = self.norm_self(tokens)
        tokens = tokens + self.self_attention(x, x, x, bias)
        keys = self.norm_image(image)
        x = self.norm_read(tokens)
        tokens = tokens + self.read_image(x, keys + image_position, keys, None)
        tokens = tokens + self.fc2(activate(self.fc1(self.norm_mlp(tokens))))
        x = self.norm_write(tokens)
        image = image + self.write_image(keys + image_position, x, x, bias)
        return tokens, image


class FineInputs(NamedTuple):
    """What the finest stage reads: normalised quarter-grid features, half-grid skips and maps."""

    quarter: Tensor
    skip2: Tensor
    maps: Tensor
    full: Tensor

    def central(self, side: int, whole: int) -> FineInputs:
        """Return what is read for the central box of `side` of `whole` ROI voxels."""
        quarter, half = (
            (slice(None), slice(None), *(central_part(side // f, whole // f),) * 3) for f in (4, 2)
        )
        return FineInputs(self.quarter[quarter], self.skip2[half], self.maps[half], self.full[half])


def central_part(side: int, whole: int) -> slice:
    """Return the middle `side` of `whole` places."""
    start = (whole - side) // 2
    return slice(start, start + side)


class HighResDecoder(nn.Module):
    """Mask logits at the full ROI resolution from an image embedding and prompts.

    Attributes:
        is_limited: Compute the finest stage only around the object when one prompt set is decoded
            to one mask; for CPUs, where that stage is most of the time.
    """

    rope_cos: Tensor
    rope_sin: Tensor
    grid_position: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.is_limited = False
        dim, highres = config.out_dim, config.highres
        deep, mid, fine = highres.decoder_channels
        self.full_channels = full = highres.stem_channels[0]
        self.image_size, self.grid_size = config.image_size, config.grid_size
        self.maps = PromptMaps(config.image_size, highres.click_sigmas)
        self.prompt_pyramid = PromptPyramid(highres.decoder_channels, dim)
        self.position = PositionEncoding(dim)
        self.kinds = nn.Embedding(4, dim)  # negative point, positive point, box start, box stop
        self.output_tokens = nn.Embedding(1 + NUM_MASKS, dim)  # quality, then masks
        layers = [TwoWayLayer(dim) for _ in range(highres.num_decoder_layers)]
        self.layers = nn.ModuleList(layers)
        self.mix = TrunkBlock(dim, DECODER_HEADS, 2.0, choose_attention(config, 0))
        self.up8, self.res8 = Upsample(dim, deep), ResidualConv(deep)
        self.up4, self.res4 = Upsample(deep, mid), ResidualConv(mid)
        self.norm4 = grid_norm(mid, local=True)
        # The finest stage is local, so that it can be limited to the box around the object.
        self.up2, self.res2 = Upsample(mid, fine), ResidualConv(fine, local=True)
        self.norm2 = grid_norm(fine, local=True)
        self.detail = PointwiseConv(fine, 8 * full, 1)
        self.norm_tokens = nn.LayerNorm(dim)
        self.hyper = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, fine + full + 1))
        self.hyper4 = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, mid + 1))
        self.quality = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, NUM_MASKS))
        angles = axial_rope(config.grid_size, dim // DECODER_HEADS)
        self.register_buffer("rope_cos", angles.cos(), persistent=False)
        self.register_buffer("rope_sin", angles.sin(), persistent=False)
        axis = (torch.arange(config.grid_size) + 0.5) * (2 / config.grid_size) - 1
        grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(1, -1, 3)
        self.register_buffer("grid_position", grid, persistent=False)

    def forward(
        self,
        embedding: tuple[Tensor, ...],
        prompts: Prompts,
        *,
        multimask: bool,
        fine_side: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode.

        Args:
            embedding: Tokens and skips of `PyramidEncoder`, batch B.
            prompts: Prompts of the same batch.
            multimask: Return all masks (the settled one first, then the candidates) rather than
                only the settled one.
            fine_side: Compute the finest stage, and so the logits, in the central box of this side
                alone; a multiple of 8. What is computed is exact but for the box's outermost
                voxels.

        Returns:
            Mask logits (B, M, S, S, S), or of the box; predicted quality (B, M) with M = 4 or 1;
            and the settled mask's logits at a quarter of the resolution, (B, 1, S/4, S/4, S/4).
        """
        tokens_BCIJK, skip8, skip4, skip2, full = embedding
        maps = self.maps(prompts)
        at4, at8, at16 = self.prompt_pyramid(maps)
        image = (tokens_BCIJK + at16).flatten(2).transpose(1, 2)
        tokens, image = self._attend(image, prompts)
        x = image.transpose(1, 2).reshape(tokens_BCIJK.shape)
        x = self.res8(add_to(add_to(self.up8(x), skip8), at8))
        x = self.res4(add_to(add_to(self.up4(x), skip4), at4))
        rough = self._rough_masks(x, tokens[:, 1:2])
        count = NUM_MASKS if multimask else 1
        quality = self.quality(tokens[:, 0])[:, :count]
        fine = FineInputs(self.up2.norm.activated(x), skip2, maps, full)
        if fine_side is not None:
            fine = fine.central(fine_side, self.image_size)
            return self._fine_masks(fine, tokens[:, 1 : 1 + count]), quality, rough
        if self.is_limited and count == 1 and x.shape[0] == 1:
            return self._limited_masks(fine, rough, tokens[:, 1:2]), quality, rough
        return self._fine_masks(fine, tokens[:, 1 : 1 + count]), quality, rough

    def _fine_masks(self, fine: FineInputs, tokens_BMC: Tensor) -> Tensor:
        """Return logits (B, M, S, S, S), or of the box that the inputs were cut to."""
        at2 = self.prompt_pyramid.at2(fine.maps)
        x = self.res2(add_to(add_to(self.up2.conv(fine.quarter), fine.skip2), at2))
        return self._masks(self.norm2.activated(x), fine.full, tokens_BMC)

    def _limited_masks(self, fine: FineInputs, rough: Tensor, tokens_BMC: Tensor) -> Tensor:
        """Compute the finest stage only where the rough mask leaves any doubt about background.

        Exact inside the box but for its outermost voxels; outside, the rough logits stand.
        """
        side = rough.shape[-1]
        whole = enlarge(rough, 4)
        box = _box_of(rough[0, 0] > LIMIT_LOGIT, side)
        if box is None:
            return whole
        quarter, half, full = (_slices(box, factor) for factor in (1, 2, 4))
        cut = FineInputs(fine.quarter[quarter], fine.skip2[half], fine.maps[half], fine.full[half])
        whole[full] = self._fine_masks(cut, tokens_BMC).to(whole.dtype)
        return whole

    def _attend(self, image: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        tokens, bias = self.prompt_tokens(prompts)
        position = self.position(self.grid_position)
        for index, layer in enumerate(self.layers):
            tokens, image = layer(tokens, image, position, bias)
            if index == 0:  # let the prompted tokens inform the rest of the grid early
                image = self.mix(image, self.rope_cos, self.rope_sin)
        return self.norm_tokens(tokens), image

    def prompt_tokens(self, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Return prompt tokens (B, N, C) and the score bias that hides padding."""
        points, labels, boxes = prompts.points_BN3, prompts.labels_BN, prompts.boxes_B6
        batch = points.shape[0]
        # A box corner lies on a voxel face, half a voxel before the centre of its voxel.
        corners = boxes.view(batch, 2, 3) - 0.5
        has_box = (boxes[:, 3:] > boxes[:, :3]).all(1, keepdim=True)
        at = torch.cat((points, corners.to(points.dtype)), dim=1)
        at = ((at + 0.5) * (2 / self.image_size) - 1).clamp(-2, 2)
        # Made on the device: a copy from the host would end the capture of a CUDA graph.
        box_kinds = torch.arange(2, 4, device=labels.device).expand(batch, 2)
        kinds = torch.cat((labels.clamp(min=0).long(), box_kinds), dim=1)
        used = torch.cat((labels >= 0, has_box.expand(batch, 2)), dim=1)
        prompt_tokens = self.position(at) + self.kinds(kinds)
        outputs = self.output_tokens.weight.expand(batch, -1, -1)
        tokens = torch.cat((outputs.to(prompt_tokens.dtype), prompt_tokens), dim=1)
        always = used.new_ones(batch, outputs.shape[1])
        bias = torch.where(torch.cat((always, used), dim=1), 0.0, ABSENT_SCORE)
        return tokens, bias[:, None, None, :]

    def _rough_masks(self, quarter_BCIJK: Tensor, tokens_BMC: Tensor) -> Tensor:
        weights, offset = self.hyper4(tokens_BMC).split((quarter_BCIJK.shape[1], 1), dim=2)
        features = self.norm4.activated(quarter_BCIJK)
        return weighted_sums(features, weights) + offset[..., None, None]

    def _masks(self, half_BCIJK: Tensor, full_BCIJK: Tensor, tokens_BMC: Tensor) -> Tensor:
        """Combine half- and full-resolution features with the weights each mask token asks for."""
        weights = self.hyper(tokens_BMC)
        if is_recorded() and not torch.is_grad_enabled():
            # With a gradient, a compiler makes worse kernels of it.
            half_BCIJK = channels_last.reduced(half_BCIJK)
        fine = half_BCIJK.shape[1]
        coarse_weights, detail_weights, offset = weights.split((fine, self.full_channels, 1), dim=2)
        coarse = weighted_sums(half_BCIJK, coarse_weights)
        # One small matrix per mask that keeps the eight voxels of a block apart.
        apart = torch.eye(8, dtype=detail_weights.dtype, device=detail_weights.device)
        block_weights = detail_weights[:, :, None, :, None] * apart[:, None]
        fine_part = detail_sums(
            self.detail, half_BCIJK, full_BCIJK, block_weights.flatten(1, 2).flatten(2, 3)
        )
        logits = add_to(double_resolution(coarse), depth_to_space(fine_part))
        return add_to(logits, offset[..., None, None])


def _box_of(region_IJK: Tensor, side: int) -> tuple[tuple[int, int], ...] | None:
    """Return the bounds of a region per axis with a margin, or None where it is empty."""
    bounds: list[tuple[int, int]] = []
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        found = region_IJK.amax(others).nonzero()
        if not len(found):
            return None
        low, high = int(found[0]) - LIMIT_MARGIN, int(found[-1]) + 1 + LIMIT_MARGIN
        bounds.append((max(low, 0), min(high, side)))
    return tuple(bounds)


def _slices(box: tuple[tuple[int, int], ...], factor: int) -> tuple[slice, ...]:
    """Return the index of a quarter-grid box on a grid `factor` times as fine, all channels."""
    return (slice(None), slice(None), *(slice(factor * a, factor * b) for a, b in box))
