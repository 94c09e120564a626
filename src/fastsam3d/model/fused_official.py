"""The official prompt encoder and mask decoder for inference, on rows, in few kernels.

Shape legend: B prompt sets, N points, P prompt tokens, T image tokens, M mask candidates, C
channels, L side of the logits.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsam3d.model.fused_layers import (
    ALIGNED,
    BLOCK,
    HeadBatch,
    downsampling,
    pointwise,
    unflatten,
    upsampling,
)

if TYPE_CHECKING:
    from fastsam3d.model.layers import ChannelNorm3d, HeadMLP
    from fastsam3d.model.sam_med3d import SamMed3D

# Labels beyond those of a prompt: the official decoders attend to their padding (-1), so that what
# only fills a buffer is hidden from attention.
PADDING_POINT, HIDDEN_POINT = -1, -2
HIDDEN_SCORE = -1.0e4
_NUM_ANSWERS = 5  # tokens: the one mask, quality, and three candidates


class RowMaskDecoder(nn.Module):
    """What `PromptEncoder3D` and `MaskDecoder3D` compute, with their weights.

    Transposed convolutions are products of rows with blocks of voxels, and blocks they stay: only
    logits are put in their places. The same holds for a mask prompt the other way round. Tokens are
    filled up to a multiple of eight. The transformer is that of the model.

    Args:
        model: Whose weights are taken.
    """

    answers: Tensor
    kinds: Tensor
    no_mask: Tensor
    position: Tensor
    frequencies: Tensor
    is_cosine: Tensor

    def __init__(self, model: SamMed3D) -> None:
        super().__init__()
        prompts, decoder = model.prompt_encoder, model.mask_decoder
        self.image_size, self.grid_size = prompts.image_size, prompts.grid_size
        matrix = prompts.pe_layer.positional_encoding_gaussian_matrix
        thirds = torch.arange(3, device=matrix.device)
        self._keep("frequencies", matrix.repeat(1, 3))  # sine, cosine, sine again
        self._keep("is_cosine", (thirds == 1).repeat_interleave(matrix.shape[1]))
        quality, masks = decoder.iou_token.weight, decoder.mask_tokens.weight
        # What is asked for together lies side by side: mask and quality, or quality and three.
        self._keep("answers", torch.cat([masks[:1], quality, masks[1:]]))
        points = [cast("nn.Embedding", layer).weight for layer in prompts.point_embeddings]
        self._keep("kinds", torch.cat([prompts.not_a_point_embed.weight, *points]))
        self._keep("no_mask", prompts.no_mask_embed.weight)
        self._keep("position", prompts.encode_grid().flatten(2).transpose(1, 2))
        first, norm, _, second, self.down_norm2, _, third = prompts.mask_downscaling
        self.down1 = _CentredDown(cast("nn.Conv3d", first), cast("ChannelNorm3d", norm))
        self.down2 = downsampling(cast("nn.Conv3d", second), channels=BLOCK)
        self.down3 = pointwise(cast("nn.Conv3d", third))
        # Its last norm is left to the few tokens that are asked for.
        self.transformer = copy.deepcopy(decoder.transformer)
        self.norm = self.transformer.norm_final_attn
        self.transformer.norm_final_attn = cast("nn.LayerNorm", nn.Identity())
        wide, self.up_norm, _, fine, _ = decoder.output_upscaling
        self.up1 = upsampling(cast("nn.ConvTranspose3d", wide))
        self.up2 = upsampling(cast("nn.ConvTranspose3d", fine))
        heads = [cast("HeadMLP", head) for head in decoder.output_hypernetworks_mlps]
        heads.insert(1, decoder.iou_prediction_head)
        layers = [cast("list[nn.Linear]", list(head.layers)) for head in heads]
        self.heads = HeadBatch(layers, functional.relu)
        self.num_filters = layers[0][-1].out_features

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.detach().clone(), persistent=False)

    def forward(
        self,
        image_BCIJK: Tensor,
        points_BN3: Tensor,
        labels_BN: Tensor,
        mask_logits: Tensor | None = None,
        *,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, M, L, L, L) and quality (B, M), as `SamMed3D.decode_masks`.

        Args:
            image_BCIJK: Image tokens.
            points_BN3: Voxels of the ROI.
            labels_BN: 1, 0, `PADDING_POINT`, or `HIDDEN_POINT` of what is to have no effect.
            mask_logits: Mask prompt, (B, 1, L, L, L).
            multimask: Three candidates in place of one mask.
        """
        tokens, bias = self._embed_points(points_BN3, labels_BN)
        dense = self.no_mask if mask_logits is None else self._embed_mask(mask_logits)
        # Rows from here on, whatever the order of the encoder's.
        image = (image_BCIJK.flatten(2).transpose(1, 2) + dense).contiguous()
        if len(image) != len(tokens):
            image = image.expand(len(tokens), -1, -1)
        tokens, image = self.transformer(tokens, image, self.position, bias)
        first = 1 if multimask else 0
        which = slice(first, _NUM_ANSWERS) if multimask else slice(0, 2)
        found = self.heads(self.norm(tokens[:, which]), which)
        at_quality = 1 - first
        masks = slice(1, None) if multimask else slice(0, 1)
        qualities = slice(1, _NUM_ANSWERS - 1) if multimask else slice(0, 1)
        return (
            self._masks(image, found[:, masks, : self.num_filters]),
            found[:, at_quality, qualities],
        )

    def _embed_points(self, points_BN3: Tensor, labels_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Return all prompt tokens (B, P, C) and the bias (B, P) of their scores as keys."""
        # One padding point is always there, and seen; see `PromptEncoder3D`.
        spare = -(_NUM_ANSWERS + labels_BN.shape[1] + 1) % ALIGNED
        labels = functional.pad(labels_BN, (0, 1), value=PADDING_POINT)
        labels = functional.pad(labels, (0, spare), value=HIDDEN_POINT)
        points = functional.pad(points_BN3, (0, 0, 0, 1 + spare))
        unit = (2 / self.image_size) * (points.to(self.frequencies) + 0.5) - 1
        # Three terms written out: a product of matrices would be one more kernel.
        phase = 2 * math.pi * (unit[..., None] * self.frequencies).sum(-2)
        encoding = torch.where(self.is_cosine, phase.cos(), phase.sin())
        is_point = (labels >= 0)[..., None]
        kind = self.kinds[labels.clamp(PADDING_POINT, 1).long() + 1]
        embedded = torch.where(is_point, encoding, 0) + kind
        tokens = torch.cat([self.answers.expand(len(labels), -1, -1), embedded], dim=1)
        return tokens, HIDDEN_SCORE * functional.pad(labels == HIDDEN_POINT, (_NUM_ANSWERS, 0))

    def _embed_mask(self, mask_logits: Tensor) -> Tensor:
        """Return the mask prompt as image tokens, (B, T, C)."""
        side = self.grid_size
        blocks = mask_logits.reshape(len(mask_logits), *(side, 2, 2) * 3)
        rows = blocks.permute(0, 1, 4, 7, 2, 5, 8, 3, 6, 9).reshape(-1, side**3, BLOCK, BLOCK)
        x = self.down2(self.down1(rows).flatten(2))
        x = functional.gelu(_normed(self.down_norm2, x))
        return self.down3(x)

    def _masks(self, image_BTC: Tensor, filters_BMC: Tensor) -> Tensor:
        x = functional.gelu(_normed(self.up_norm, unflatten(self.up1(image_BTC), -1, (BLOCK, -1))))
        x = functional.gelu(unflatten(self.up2(x), -1, (BLOCK, -1)))
        if filters_BMC.shape[:2] == (1, 1):  # a sum, which is computed together with GELU
            found = (x * filters_BMC[0, 0]).sum(-1)[:, None]
        else:
            found = filters_BMC @ x.flatten(1, 3).transpose(1, 2)
        side = self.grid_size
        placed = found.reshape(*found.shape[:2], side, side, side, 2, 2, 2, 2, 2, 2)
        placed = placed.permute(0, 1, 2, 5, 8, 3, 6, 9, 4, 7, 10)
        return placed.reshape(*found.shape[:2], *(4 * side,) * 3)


class _CentredDown(nn.Module):
    """The first convolution of a mask prompt with its norm and GELU.

    Weights without their mean over the channels make channels without theirs. Channels are filled
    up to eight with zeros: the sum over them is then computed together with the convolution.
    """

    weight: Tensor
    bias: Tensor
    gain: Tensor
    shift: Tensor

    def __init__(self, conv: nn.Conv3d, norm: ChannelNorm3d) -> None:
        super().__init__()
        layer = downsampling(conv)
        self.num_channels, self.eps = conv.out_channels, norm.eps
        spare = BLOCK - self.num_channels
        parts = {
            "weight": layer.weight - layer.weight.mean(0),
            "bias": layer.bias - layer.bias.mean(),
            "gain": norm.weight,
            "shift": norm.bias,
        }
        for name, part in parts.items():
            padding = (0, 0, 0, spare) if part.ndim == 2 else (0, spare)
            self.register_buffer(name, functional.pad(part.detach(), padding), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Return (..., 8 channels) of blocks (..., 8 voxels)."""
        # A compiler writes out sums of fewer than eight terms: in two steps they take no kernel.
        products = unflatten(rows[..., None, :] * self.weight, -1, (4, 2))
        centred = products.sum(-2).sum(-1) + self.bias
        variance = centred.square().sum(-1, keepdim=True) / self.num_channels
        normed = centred * torch.rsqrt(variance + self.eps)
        return functional.gelu(normed * self.gain + self.shift)


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    """Return `ChannelNorm3d` of rows."""
    layer = cast("ChannelNorm3d", norm)
    return functional.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, layer.eps)
