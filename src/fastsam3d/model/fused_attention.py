"""Two-way attention with few products: what reads the same tokens is projected at once.

Keys and some queries read tokens with their position, values without. Both stand in a pair, which
one kernel makes together with the norm before, so that one product serves all; half of what it
computes is not used, which at these sizes costs less than another launch.

Shape legend: B prompt sets, P prompt tokens, T image tokens, C channels, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsam3d.model.fused_layers import joined, project, split, unflatten
from fastsam3d.model.hr_decoder import DECODER_HEADS, TwoWayLayer
from fastsam3d.model.inference_ops import activate


class JointReads(nn.Module):
    """Projections of the same tokens as one product.

    Args:
        placed: Of the tokens with their position.
        plain: Of the tokens alone.
    """

    def __init__(self, placed: Sequence[nn.Linear], plain: Sequence[nn.Linear]) -> None:
        super().__init__()
        layers = [*placed, *plain]
        self.widths = [layer.out_features for layer in layers]
        self.num_placed = len(placed)
        self.joint = joined(layers)

    def forward(self, pair_2BTC: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the projections with position, and those without, each (B, T, width)."""
        placed, plain = project(self.joint, pair_2BTC).unbind(0)
        with_position = list(split(placed, self.widths))[: self.num_placed]
        return with_position, list(split(plain, self.widths))[self.num_placed :]


def normed_pair(norm: nn.Module, x_BTC: Tensor, position_BTC: Tensor) -> Tensor:
    """Return normalised tokens with their position and without, (2, B, T, C)."""
    # Concatenated, they would take a kernel of their own.
    share = torch.arange(1, -1, -1, device=x_BTC.device, dtype=position_BTC.dtype)
    return norm(x_BTC.expand(2, *x_BTC.shape)) + share.view(2, 1, 1, 1) * position_BTC


class JointTwoWayLayer(nn.Module):
    """`TwoWayLayer` of the high-resolution variants with its weights, joined.

    Args:
        layer: Whose weights are taken.
    """

    def __init__(self, layer: TwoWayLayer) -> None:
        super().__init__()
        own, read, write = layer.self_attention, layer.read_image, layer.write_image
        self.norm_self, self.self_out = layer.norm_self, own.out_proj
        self.own = joined([own.q_proj, own.k_proj, own.v_proj])
        self.norm_image = layer.norm_image
        self.from_image = JointReads([read.k_proj, write.q_proj], [read.v_proj])
        self.norm_read, self.query, self.read_out = layer.norm_read, read.q_proj, read.out_proj
        self.norm_mlp, self.fc1, self.fc2 = layer.norm_mlp, layer.fc1, layer.fc2
        self.norm_write, self.write_out = layer.norm_write, write.out_proj
        self.from_tokens = joined([write.k_proj, write.v_proj])

    def forward(
        self, tokens: Tensor, image: Tensor, image_position: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return updated prompt tokens (B, N, C) and image tokens (B, T, C)."""
        q, k, v = self.own(self.norm_self(tokens)).chunk(3, dim=-1)
        tokens = tokens + self.self_out(_attend(q, k, v, bias))
        (k, q_image), (v,) = self.from_image(normed_pair(self.norm_image, image, image_position))
        q = self.query(self.norm_read(tokens))
        tokens = tokens + self.read_out(_attend(q, k, v))
        tokens = tokens + self.fc2(activate(self.fc1(self.norm_mlp(tokens))))
        k, v = self.from_tokens(self.norm_write(tokens)).chunk(2, dim=-1)
        image = image + self.write_out(_attend(q_image, k, v, bias))
        return tokens, image


def _attend(q_BTC: Tensor, k_BTC: Tensor, v_BTC: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return mixed values (B, T, C); the bias has the dimensions of the scores."""
    q, k, v = (unflatten(x, -1, (DECODER_HEADS, -1)).transpose(1, 2) for x in (q_BTC, k_BTC, v_BTC))
    mask = None if bias is None else bias.to(q.dtype)
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return mixed.transpose(1, 2).flatten(2)
