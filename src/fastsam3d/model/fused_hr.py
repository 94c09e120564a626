"""The decoder of the high-resolution variants for inference, on rows, in few kernels.

Shape legend: B prompt sets, N points, M mask candidates, C channels, T tokens, I J K axes of the
half-resolution grid, S side of the ROI.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsam3d.model.fused_layers import (
    ALIGNED,
    BLOCK,
    HeadBatch,
    activated_rows,
    blocks_of,
    convolve,
    downsampling,
    grid_of,
    linear_of,
    pointwise,
    project,
    rows_of,
    short_sum,
    smallest,
    split,
    unflatten,
    upsampling,
)
from fastsam3d.model.hr_decoder import (
    ABSENT_SCORE,
    NUM_MAPS,
    NUM_MASKS,
    HighResDecoder,
    PromptMaps,
    Prompts,
)
from fastsam3d.model.hr_layers import PositionEncoding, ResidualConv, Upsample
from fastsam3d.model.inference_ops import GridNorm
from fastsam3d.model.triton_kernels import load_kernels


class RowHighResDecoder(nn.Module):
    """What `HighResDecoder` computes, with its weights; without the rough mask.

    Convolutions whose kernel equals their stride are products of rows with blocks of voxels. The
    position of the grid is encoded once. Gaussians follow from the distance to the nearest point.
    The channels at full resolution are weighted and added up as they are made. Tokens are filled up
    to a multiple of eight.

    Args:
        decoder: Whose weights are taken.
    """

    image_position: Tensor

    def __init__(self, decoder: HighResDecoder) -> None:
        super().__init__()
        self.maps = _RowMaps(decoder.maps)
        self.decoder = decoder
        position = decoder.position(decoder.grid_position).detach().clone()
        self.register_buffer("image_position", position, persistent=False)
        self.pyramid = _RowPyramid(decoder)
        self.layers, self.mix = decoder.layers, decoder.mix
        self.norm_tokens = decoder.norm_tokens
        self.up8, self.res8 = _RowUpsample(decoder.up8), decoder.res8
        self.up4, self.res4 = _RowUpsample(decoder.up4), decoder.res4
        self.up2, self.res2 = _RowUpsample(decoder.up2), decoder.res2
        self.norm2, self.detail = decoder.norm2, pointwise(decoder.detail)
        self.fine_channels = decoder.detail.in_channels
        self.full_channels = decoder.full_channels
        quality, hyper = (_linears(head) for head in (decoder.quality, decoder.hyper))
        self.heads = HeadBatch([quality, *[hyper] * (NUM_MASKS - 1)], functional.gelu)
        self._kernel: Any = None

    def use_kernel(self) -> None:
        """Take the Triton kernels of the finest stage where they serve."""
        self._kernel = load_kernels("fastsam3d.model.finest_kernel")

    def forward(
        self, parts: tuple[Tensor, ...], prompts: Prompts, *, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, M, S, S, S) and quality (B, M), as `HighResSam3D.decode_masks`.

        Args:
            parts: Tokens and skips of the encoder.
            prompts: Of the same batch.
            multimask: Three candidates in place of one mask.
        """
        tokens, skip8, skip4, skip2, full = (rows_of(part) for part in parts)
        maps = self.maps(prompts, self.detail.weight.dtype)
        at4, at8, at16 = self.pyramid(maps)
        image = (tokens + at16).contiguous()  # whatever the order of the encoder's
        prompted, rows = self._attend(image.flatten(1, 3), prompts)
        x = _refined(self.res8, self.up8(rows.view(image.shape)) + skip8 + at8)
        x = _refined(self.res4, self.up4(x) + skip4 + at4)
        x = self.up2(x) + skip2 + self.pyramid.at_half(maps)
        weights, quality = self._weights(prompted, multimask=multimask)
        if self._is_served(x) and not multimask:
            return self._mask_by_kernel(x, full, weights), quality
        x = convolve(self.res2.conv, _voxel_norm(self.res2.norm, x)) + x
        return self._masks(_voxel_norm(self.norm2, x), full, weights), quality

    def _attend(self, image_BTC: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Return the tokens that answer, and the image's."""
        tokens, bias = self.decoder.prompt_tokens(prompts)
        spare = -tokens.shape[1] % ALIGNED
        tokens = functional.pad(tokens, (0, 0, 0, spare))
        bias = functional.pad(bias, (0, spare), value=ABSENT_SCORE)
        image = image_BTC
        for index, layer in enumerate(self.layers):
            tokens, image = layer(tokens, image, self.image_position, bias)
            if index == 0:
                image = self.mix(image, self.decoder.rope_cos, self.decoder.rope_sin)
        return tokens, image

    def _weights(self, tokens: Tensor, *, multimask: bool) -> tuple[Tensor, Tensor]:
        """Return what each mask multiplies the channels by (B, M, weights), and the quality."""
        if not multimask:
            found = self.heads(self.norm_tokens(tokens[:, :2]), slice(0, 2))
            return found[:, 1:], found[:, 0, :1]
        # The first mask token is that of the settled mask.
        asked = torch.cat([tokens[:, :1], tokens[:, 2 : 1 + NUM_MASKS]], dim=1)
        found = self.heads(self.norm_tokens(asked), slice(None))
        return found[:, 1:], found[:, 0, 1:NUM_MASKS]

    def _is_served(self, x_BIJKC: Tensor) -> bool:
        sizes = (self.fine_channels, self.full_channels)
        return self._kernel is not None and self._kernel.serves(x_BIJKC, *sizes)

    def _mask_by_kernel(self, x_BIJKC: Tensor, full_BIJKC: Tensor, weights: Tensor) -> Tensor:
        conv, norm = self.res2.conv, cast("nn.LayerNorm", self.norm2)
        normed = _voxel_norm(self.res2.norm, x_BIJKC).permute(0, 4, 1, 2, 3)
        assert conv.bias is not None
        return torch.ops.fastsam3d.finest_logits(
            rows_of(functional.conv3d(normed, conv.weight, padding=1)),
            x_BIJKC,
            full_BIJKC,
            conv.bias,
            [norm.weight, norm.bias],
            self.detail.weight,
            self.detail.bias,
            weights[0, 0, : self.fine_channels + self.full_channels + 1],
            norm.eps,
        )

    def _masks(self, half_BIJKC: Tensor, full_BIJKC: Tensor, weights: Tensor) -> Tensor:
        detail = functional.relu(project(self.detail, half_BIJKC) + full_BIJKC)
        detail = unflatten(detail, -1, (self.full_channels, BLOCK))
        widths = [self.fine_channels, self.full_channels, 1]
        logits: list[Tensor] = []
        for one in weights[:, None, None, None].unbind(4):
            coarse, fine, offset = split(one[..., : sum(widths)], widths)
            rough = (half_BIJKC * coarse).sum(-1)[:, None]
            rough = functional.interpolate(rough, scale_factor=2, mode="trilinear")
            blocks = short_sum(detail * fine[..., None], -2)
            logits.append(rough[:, 0] + grid_of(blocks[..., None])[..., 0] + offset[..., 0])
        return torch.stack(logits, 1)


class RowPosition(nn.Module):
    """`PositionEncoding`, every column by itself: nothing is concatenated, and rows are aligned.

    Args:
        encoding: Whose weights are taken.
    """

    frequencies: Tensor
    axes: Tensor
    is_sine: Tensor
    is_cosine: Tensor

    def __init__(self, encoding: PositionEncoding) -> None:
        super().__init__()
        octaves = encoding.frequencies
        width = encoding.proj.in_features
        spare = -width % ALIGNED
        axis = torch.arange(3, device=octaves.device)
        # Sines, then cosines, of each axis; the coordinates themselves; zeros.
        waves = torch.arange(2, device=octaves.device).repeat_interleave(len(octaves)).repeat(3)
        columns = {
            "frequencies": torch.cat([octaves.repeat(6), octaves.new_ones(3)]),
            "axes": torch.cat([axis.repeat_interleave(2 * len(octaves)), axis]),
            "is_sine": functional.pad(waves == 0, (0, 3)),
            "is_cosine": functional.pad(waves == 1, (0, 3)),
        }
        for name, column in columns.items():
            self.register_buffer(name, functional.pad(column, (0, spare)), persistent=False)
        weight = functional.pad(encoding.proj.weight, (0, spare))
        self.proj = linear_of(weight, encoding.proj.bias)

    def forward(self, position_BN3: Tensor) -> Tensor:
        """Encode coordinates in [-1, 1], (B, N, 3), to (B, N, dim)."""
        phase = position_BN3[..., self.axes] * self.frequencies
        waves = torch.where(self.is_cosine, phase.cos(), phase)
        return self.proj(torch.where(self.is_sine, phase.sin(), waves))


class _RowMaps(nn.Module):
    """`PromptMaps`, whose Gaussians are those of the nearest point."""

    def __init__(self, maps: PromptMaps) -> None:
        super().__init__()
        self.box_map = maps.box_map
        self.side, self.sigmas = maps.image_size // 2, maps.sigmas

    def forward(self, prompts: Prompts, dtype: torch.dtype) -> Tensor:
        """Return maps (B, NUM_MAPS, I, J, K)."""
        steps = torch.arange(self.side, device=prompts.points_BN3.device)
        centres_I = 2.0 * steps + 0.5
        squares_BN3I = (centres_I - prompts.points_BN3[..., None]).square()
        maps: list[Tensor] = []
        for label in (1, 0):
            nearest = _nearest(squares_BN3I, prompts.labels_BN == label)
            maps += [torch.exp((-0.5 / sigma**2) * nearest) for sigma in self.sigmas]
        boxes = self.box_map(prompts.boxes_B6, centres_I)
        # One more copy of the grid would be made of maps that are not of one type.
        parts = [each.to(dtype)[:, None] for each in (*maps, boxes)]
        return torch.cat([*parts, prompts.previous_B1IJK.to(dtype)], dim=1)


def _nearest(squares_BN3I: Tensor, is_used_BN: Tensor) -> Tensor:
    """Return the squared distance of each cell to its nearest used point, (B, I, J, K)."""
    batch, count, _, side = squares_BN3I.shape
    if not count:
        return squares_BN3I.new_full((batch, side, side, side), torch.inf)
    first = torch.where(is_used_BN[..., None], squares_BN3I[:, :, 0], torch.inf)
    others = squares_BN3I[:, :, 1:]
    planes = others[:, :, 0, None, :, None] + others[:, :, 1, None, None, :]
    return smallest(first[:, :, :, None, None] + planes, 1)


class _RowPyramid(nn.Module):
    """`PromptPyramid`, whose features at half resolution are left to the sum they join."""

    def __init__(self, decoder: HighResDecoder) -> None:
        super().__init__()
        pyramid = decoder.prompt_pyramid
        self.at2, self.at4, self.at8 = (
            pointwise(conv) for conv in (pyramid.at2, pyramid.at4, pyramid.at8)
        )
        self.down4, self.down8, self.down16 = (
            downsampling(conv) for conv in (pyramid.down4, pyramid.down8, pyramid.down16)
        )
        self.conv4, self.conv8 = pyramid.conv4, pyramid.conv8

    def forward(self, maps_BCIJK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features at 1/4, 1/8 and 1/16 of the ROI resolution, channels last."""
        quarter = functional.gelu(project(self.down4, blocks_of(rows_of(maps_BCIJK)).flatten(4)))
        blocks = blocks_of(functional.gelu(convolve(self.conv4, quarter)) + quarter)
        # Rows in the order of blocks serve both: what comes of them is put in place as it is added.
        at4 = grid_of(project(self.at4, blocks))
        eighth = functional.gelu(project(self.down8, blocks.flatten(4)))
        blocks = blocks_of(functional.gelu(convolve(self.conv8, eighth)) + eighth)
        return at4, grid_of(project(self.at8, blocks)), project(self.down16, blocks.flatten(4))

    def at_half(self, maps_BCIJK: Tensor) -> Tensor:
        """Return the features at half resolution, channels last."""
        if not torch.compiler.is_compiling():
            return project(self.at2, rows_of(maps_BCIJK))
        # Six terms, which a compiler computes together with the sum they join; as rows of a matrix
        # product they would not be aligned.
        weight, bias = self.at2.weight, self.at2.bias
        terms = (maps_BCIJK[:, n, ..., None] * weight[:, n] for n in range(NUM_MAPS))
        return sum(terms, start=bias)


class _RowUpsample(nn.Module):
    """`Upsample` of rows."""

    def __init__(self, layer: Upsample) -> None:
        super().__init__()
        self.norm, self.linear = cast("GridNorm", layer.norm), upsampling(layer.conv)

    def forward(self, x_BIJKC: Tensor) -> Tensor:
        """Return (B, 2I, 2J, 2K, C')."""
        blocks = project(self.linear, activated_rows(self.norm, x_BIJKC))
        return grid_of(unflatten(blocks, -1, (BLOCK, -1)))


def _refined(layer: ResidualConv, x_BIJKC: Tensor) -> Tensor:
    normed = activated_rows(cast("GridNorm", layer.norm), x_BIJKC)
    return convolve(layer.conv, normed) + x_BIJKC


def _voxel_norm(norm: nn.Module, x_BIJKC: Tensor) -> Tensor:
    """Return GELU of `VoxelNorm` of rows."""
    layer = cast("nn.LayerNorm", norm)
    shape = x_BIJKC.shape[-1:]
    normed = functional.layer_norm(x_BIJKC, shape, layer.weight, layer.bias, layer.eps)
    return functional.gelu(normed)


def _linears(head: nn.Sequential) -> Sequence[nn.Linear]:
    return [layer for layer in head if isinstance(layer, nn.Linear)]
