"""Transformers on `row_ops`: norm, product, activation and residual of few tokens in one kernel.

What the position of the image adds to a product is a table that is computed once. Each module takes
the place of the one whose weights it copies; sums stay in float32.

Shape legend: B prompt sets, P prompt tokens, T image tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsam3d.model.fused_layers import joined, linear_of, project, split
from fastsam3d.model.hr_decoder import DECODER_HEADS, TwoWayLayer
from fastsam3d.model.hr_layers import TrunkBlock
from fastsam3d.model.row_ops import RowLinear, row_attention
from fastsam3d.model.turned_heads import turned_heads
from fastsam3d.model.two_way import NUM_HEADS, TwoWayBlock, TwoWayTransformer3D


def _placed_table(placed: Sequence[nn.Linear], plain: Sequence[nn.Linear], place: Tensor) -> Tensor:
    """Return what a position (T, C) adds to the products of joined layers, (T, widths)."""
    tables = [place @ layer.weight.T for layer in placed]
    tables += [place.new_zeros(len(place), layer.out_features) for layer in plain]
    return torch.cat(tables, 1)


class RowTwoWayLayer(nn.Module):
    """`TwoWayLayer` of the high-resolution variants with its weights.

    Args:
        layer: Whose weights are taken.
        position: Of the image tokens, (T, C), always the same.
    """

    def __init__(self, layer: TwoWayLayer, position: Tensor) -> None:
        super().__init__()
        own, read, write = layer.self_attention, layer.read_image, layer.write_image
        self.own = RowLinear(joined([own.q_proj, own.k_proj, own.v_proj]), layer.norm_self)
        self.self_out = RowLinear(own.out_proj, is_stream=True)
        placed, plain = [read.k_proj, write.q_proj], [read.v_proj]
        self.from_image = RowLinear(
            joined([*placed, *plain]),
            layer.norm_image,
            table=_placed_table(placed, plain, position),
        )
        self.query = RowLinear(read.q_proj, layer.norm_read)
        self.read_out = RowLinear(read.out_proj, is_stream=True)
        self.fc1 = RowLinear(layer.fc1, layer.norm_mlp, activation="gelu")
        self.fc2 = RowLinear(layer.fc2, is_stream=True)
        self.from_tokens = RowLinear(joined([write.k_proj, write.v_proj]), layer.norm_write)
        self.write_out = RowLinear(write.out_proj, is_stream=True)

    def forward(
        self, tokens: Tensor, image: Tensor, image_position: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return updated prompt tokens (B, N, C) and image tokens (B, T, C), float32."""
        del image_position  # in the table
        tokens, image, bias = tokens.float(), image.float(), bias.flatten(1).float()
        q, k, v = self.own(tokens)[0].chunk(3, dim=-1)
        attended = row_attention(q, k, v, DECODER_HEADS, bias)
        tokens, _ = self.self_out(attended, residual=tokens)
        k, q_image, v = self.from_image(image)[0].chunk(3, dim=-1)
        q, _ = self.query(tokens)
        tokens, _ = self.read_out(row_attention(q, k, v, DECODER_HEADS), residual=tokens)
        tokens, _ = self.fc2(self.fc1(tokens)[0], residual=tokens)
        k, v = self.from_tokens(tokens)[0].chunk(2, dim=-1)
        attended = row_attention(q_image, k, v, DECODER_HEADS, bias)
        image, _ = self.write_out(attended, residual=image)
        return tokens, image


class _RowTwoWayBlock(nn.Module):
    def __init__(
        self,
        block: TwoWayBlock,
        norm_before: nn.LayerNorm | None,
        following: tuple[list[nn.Linear], list[nn.Linear]],
        position: Tensor,
    ) -> None:
        super().__init__()
        read, write = block.cross_attn_token_to_image, block.cross_attn_image_to_token
        self.is_first = block.is_first
        self.self_out = RowLinear(block.self_attn.out_proj, is_stream=True)
        inner = read.q_proj.out_features
        self.query = RowLinear(read.q_proj, block.norm1, placed=inner, keeps=True)
        placed, plain = [read.k_proj, write.q_proj], [read.v_proj]
        self.from_image = RowLinear(
            joined([*placed, *plain]),
            norm_before,
            table=_placed_table(placed, plain, position),
            keeps=norm_before is not None,
        )
        self.read_out = RowLinear(read.out_proj, is_stream=True)
        self.lin1 = RowLinear(block.mlp.lin1, block.norm2, activation="relu", keeps=True)
        self.lin2 = RowLinear(block.mlp.lin2, is_stream=True)
        placed, plain = [write.k_proj, *following[0]], [write.v_proj, *following[1]]
        self.widths = [layer.out_features for layer in (*placed, *plain)]
        self.num_placed = len(placed)
        self.from_tokens = RowLinear(
            joined([*placed, *plain]),
            block.norm3,
            placed=sum(self.widths[: self.num_placed]),
            keeps=True,
        )
        self.write_out = RowLinear(write.out_proj, is_stream=True)

    def forward(
        self,
        tokens: Tensor,
        image: Tensor,
        reads: Sequence[Tensor],
        place: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return tokens, image tokens whose norm is due, and what the next attention reads."""
        q, k, v = reads
        attended = row_attention(q, k, v, NUM_HEADS, bias)
        summed, _ = self.self_out(attended, residual=None if self.is_first else tokens)
        q, tokens = self.query(summed, place=place)
        found, kept = self.from_image(image)
        image = kept if self.from_image.keeps else image
        k, q_image, v = found.chunk(3, dim=-1)
        summed, _ = self.read_out(row_attention(q, k, v, NUM_HEADS), residual=tokens)
        hidden, tokens = self.lin1(summed)
        summed, _ = self.lin2(hidden, residual=tokens)
        found, tokens = self.from_tokens(summed, place=place)
        parts = split(found, self.widths)
        (k, *placed), (v, *plain) = parts[: self.num_placed], parts[self.num_placed :]
        attended = row_attention(q_image, k, v, NUM_HEADS, bias)
        image, _ = self.write_out(attended, residual=image)
        return tokens, image, (*placed, *plain)


def _following_reads(
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


class RowTwoWayTransformer(nn.Module):
    """`TwoWayTransformer3D` with its weights.

    Args:
        transformer: Whose weights are taken.
        position: Of the image tokens, (T, C), always the same.
    """

    def __init__(self, transformer: TwoWayTransformer3D, position: Tensor) -> None:
        super().__init__()
        blocks = cast("list[TwoWayBlock]", list(transformer.layers))
        first, last = blocks[0].self_attn, transformer.final_attn_token_to_image
        self.first = RowLinear(joined([first.q_proj, first.k_proj, first.v_proj]))
        norms_before = [None, *(block.norm4 for block in blocks[:-1])]
        self.layers = nn.ModuleList(
            _RowTwoWayBlock(block, norm, reads, position)
            for block, norm, reads in zip(
                blocks, norms_before, _following_reads(transformer), strict=True
            )
        )
        self.last_reads = RowLinear(
            joined([last.k_proj, last.v_proj]),
            blocks[-1].norm4,
            table=_placed_table([last.k_proj], [last.v_proj], position),
            keeps=True,
        )
        self.last_out = RowLinear(last.out_proj, is_stream=True)
        self.norm_final_attn = transformer.norm_final_attn

    def forward(
        self,
        tokens_BPC: Tensor,
        image_BTC: Tensor,
        image_pe_BTC: Tensor,
        bias_BP: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the processed prompt tokens and image tokens, shapes kept, float32."""
        del image_pe_BTC  # in the tables
        place, image = tokens_BPC.float(), image_BTC.float()
        bias = None if bias_BP is None else bias_BP.float()
        tokens, reads = place, self.first(place)[0].chunk(3, dim=-1)
        for layer in self.layers:
            tokens, image, reads = layer(tokens, image, reads, place, bias)
        found, image = self.last_reads(image)
        keys, values = found.chunk(2, dim=-1)
        attended = row_attention(reads[0], keys, values, NUM_HEADS)
        return self.norm_final_attn(self.last_out(attended, residual=tokens)[0]), image


class GeluLinear(nn.Module):
    """GELU of a layer, which the library computes with the product: on a GPU its tanh form.

    In float32 it is the exact one.

    Args:
        layer: Whose weights are taken.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = linear_of(layer.weight, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., outputs)."""
        weight = self.layer.weight
        if weight.dtype == torch.float32:
            return functional.gelu(self.layer(x))
        rows = x.flatten(0, -2).to(weight.dtype)
        found = torch.ops.aten._addmm_activation(self.layer.bias, rows, weight.T, use_gelu=True)
        return found.view(*x.shape[:-1], -1)


class FusedTrunkBlock(nn.Module):
    """`TrunkBlock` with its weights, in fewer kernels, for any number of rows.

    Args:
        block: Whose weights are taken; its attention is dense.
    """

    head_gain: Tensor
    head_shift: Tensor

    def __init__(self, block: TrunkBlock) -> None:
        super().__init__()
        self.block, self.hidden = block, GeluLinear(block.fc1)
        norms = (block.q_norm, block.k_norm)
        gain = torch.stack([norm.weight for norm in norms]).detach()
        self.register_buffer("head_gain", gain, persistent=False)
        shift = torch.stack([norm.bias for norm in norms]).detach()
        self.register_buffer("head_shift", shift, persistent=False)

    def forward(self, x_BTC: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        """Return tokens of the input's shape; `cos_TD`, `sin_TD` are the rotary tables."""
        block = self.block
        x_BTC = x_BTC + block.scale1 * self._attended(block.norm1(x_BTC), cos_TD, sin_TD)
        return x_BTC + block.scale2 * block.fc2(self.hidden(block.norm2(x_BTC)))

    def _attended(self, x_BTC: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        block = self.block
        norms = [self.head_gain, self.head_shift]
        q_BHTD, k_BHTD, v_BHTD = turned_heads(
            project(block.qkv, x_BTC), norms, [cos_TD, sin_TD], block.q_norm.eps, block.num_heads
        )
        out = block.attend(q_BHTD, k_BHTD, v_BHTD)
        return block.proj(out.transpose(1, 2).flatten(2))
