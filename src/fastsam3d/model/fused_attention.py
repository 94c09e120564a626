"""Two-way attention with few products: what reads the same tokens is projected at once.

Keys and some queries read tokens with their position, values without. Both stand in a pair, which
one kernel makes together with the norm before, so that one product serves all; half of what it
computes is not used, which at these sizes costs less than another launch. Both transformers take
the place of those whose weights they copy.

Shape legend: B prompt sets, P prompt tokens, T image tokens, C channels, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsam3d.model.fused_layers import joined, project, split, unflatten
from fastsam3d.model.hr_decoder import DECODER_HEADS, TwoWayLayer
from fastsam3d.model.inference_ops import activate
from fastsam3d.model.two_way import NUM_HEADS, TwoWayBlock, TwoWayTransformer3D


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


def paired(x_BTC: Tensor, position_BTC: Tensor) -> Tensor:
    """Return tokens with their position and without, (2, B, T, C)."""
    # Concatenated, they would take a kernel of their own.
    share = torch.arange(1, -1, -1, device=x_BTC.device, dtype=position_BTC.dtype)
    return x_BTC + share.view(2, 1, 1, 1) * position_BTC


def normed_pair(norm: nn.Module, x_BTC: Tensor, position_BTC: Tensor) -> Tensor:
    """Return normalised tokens with their position and without, (2, B, T, C)."""
    return paired(norm(x_BTC.expand(2, *x_BTC.shape)), position_BTC)


class _Fixed(NamedTuple):
    """What all blocks are given alike: positions, and the bias that hides tokens as keys."""

    tokens: Tensor
    image: Tensor
    bias: Tensor | None


class _JointTwoWayBlock(nn.Module):
    def __init__(self, block: TwoWayBlock, placed: list[nn.Linear], plain: list[nn.Linear]) -> None:
        super().__init__()
        self.is_first = block.is_first
        read, write = block.cross_attn_token_to_image, block.cross_attn_image_to_token
        self.self_out, self.norm1 = block.self_attn.out_proj, block.norm1
        self.query = read.q_proj
        self.from_image = JointReads([read.k_proj, write.q_proj], [read.v_proj])
        self.read_out, self.norm2 = read.out_proj, block.norm2
        self.lin1, self.lin2, self.norm3 = block.mlp.lin1, block.mlp.lin2, block.norm3
        self.from_tokens = JointReads([write.k_proj, *placed], [write.v_proj, *plain])
        self.write_out, self.norm4 = write.out_proj, block.norm4

    def forward(
        self, tokens: Tensor, images: Tensor, reads: Sequence[Tensor], fixed: _Fixed
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return tokens, the pair of image tokens, and what the next attention reads of tokens."""
        q, k, v = reads
        attended = self.self_out(_attend(q, k, v, NUM_HEADS, fixed.bias))
        tokens = self.norm1(attended if self.is_first else tokens + attended)
        (k, q_image), (v,) = self.from_image(images)
        q = self.query(tokens + fixed.tokens)
        tokens = self.norm2(tokens + self.read_out(_attend(q, k, v, NUM_HEADS)))
        pair = normed_pair(self.norm3, tokens + self.lin2(_relu(self.lin1, tokens)), fixed.tokens)
        (k, *placed), (v, *plain) = self.from_tokens(pair)
        attended = self.write_out(_attend(q_image, k, v, NUM_HEADS, fixed.bias))
        images = normed_pair(self.norm4, images[1] + attended, fixed.image)
        return pair[1], images, (*placed, *plain)


def following_reads(
    transformer: TwoWayTransformer3D,
) -> list[tuple[list[nn.Linear], list[nn.Linear]]]:
    """Return, for each block, what the next attention projects of its tokens.

    They can be projected as soon as they are ready.

    Returns:
        Layers of the tokens with their position, and of the tokens alone.
    """
    blocks = cast("list[TwoWayBlock]", list(transformer.layers))
    following = [
        ([block.self_attn.q_proj, block.self_attn.k_proj], [block.self_attn.v_proj])
        for block in blocks[1:]
    ]
    return [*following, ([transformer.final_attn_token_to_image.q_proj], [])]


class JointTwoWayTransformer(nn.Module):
    """`TwoWayTransformer3D` with its weights, joined.

    Args:
        transformer: Whose weights are taken.
    """

    def __init__(self, transformer: TwoWayTransformer3D) -> None:
        super().__init__()
        blocks = cast("list[TwoWayBlock]", list(transformer.layers))
        first, last = blocks[0].self_attn, transformer.final_attn_token_to_image
        self.first = joined([first.q_proj, first.k_proj, first.v_proj])
        self.layers = nn.ModuleList(
            _JointTwoWayBlock(block, *reads)
            for block, reads in zip(blocks, following_reads(transformer), strict=True)
        )
        self.last_reads = JointReads([last.k_proj], [last.v_proj])
        self.last_out = last.out_proj
        self.norm_final_attn = transformer.norm_final_attn

    def forward(
        self,
        tokens_BPC: Tensor,
        image_BTC: Tensor,
        image_pe_BTC: Tensor,
        bias_BP: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the processed prompt tokens and image tokens, shapes kept."""
        tokens, images = tokens_BPC, paired(image_BTC, image_pe_BTC)
        reads = self.first(tokens_BPC).chunk(3, dim=-1)
        for layer in self.layers:
            tokens, images, reads = layer(
                tokens, images, reads, _Fixed(tokens_BPC, image_pe_BTC, bias_BP)
            )
        images = images.to(self.last_out.weight.dtype)  # once for all that read them from here on
        (keys,), (values,) = self.last_reads(images)
        attended = self.last_out(_attend(reads[0], keys, values, NUM_HEADS))
        return self.norm_final_attn(tokens + attended), images[1]


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
        tokens = tokens + self.self_out(_attend(q, k, v, DECODER_HEADS, bias))
        (k, q_image), (v,) = self.from_image(normed_pair(self.norm_image, image, image_position))
        q = self.query(self.norm_read(tokens))
        tokens = tokens + self.read_out(_attend(q, k, v, DECODER_HEADS))
        tokens = tokens + self.fc2(activate(self.fc1(self.norm_mlp(tokens))))
        k, v = self.from_tokens(self.norm_write(tokens)).chunk(2, dim=-1)
        image = image + self.write_out(_attend(q_image, k, v, DECODER_HEADS, bias))
        return tokens, image


def _relu(layer: nn.Linear, x_BPC: Tensor) -> Tensor:
    """Return ReLU of a layer, which the library computes with the product."""
    rows = x_BPC.flatten(0, 1).to(layer.weight.dtype)
    found = torch.ops.aten._addmm_activation(layer.bias, rows, layer.weight.T)
    return found.view(*x_BPC.shape[:2], -1)


def _attend(
    q_BTC: Tensor, k_BTC: Tensor, v_BTC: Tensor, num_heads: int, bias: Tensor | None = None
) -> Tensor:
    """Return mixed values (B, T, C); the bias is (B, T), or has the dimensions of the scores."""
    q, k, v = (unflatten(x, -1, (num_heads, -1)).transpose(1, 2) for x in (q_BTC, k_BTC, v_BTC))
    if bias is not None:
        bias = (bias if bias.ndim == 4 else bias[:, None, None]).to(q.dtype)
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return mixed.transpose(1, 2).flatten(2)
