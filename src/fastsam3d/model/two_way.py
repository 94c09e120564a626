"""Two-way transformer: prompt tokens and image tokens attend to each other.

Attribute names are official state-dict keys. Keys and values of attention come from different
tensors here (positions are added to keys only).

Shape legend: B prompt sets, P prompt tokens, T image tokens, C channels, H heads, D head dim.

Source: SAM-Med3D (uni-medical, commit f3de1fa, Apache-2.0), `mask_decoder3D.py`.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fastsam3d.model.layers import FeedForward

NUM_LAYERS = 2
NUM_HEADS = 8
_HIDDEN_DIM = 2048
_CROSS_REDUCTION = 2


class CrossAttention(nn.Module):
    """Attention with separate query, key and value inputs and an optional narrower inside."""

    def __init__(self, dim: int, *, reduction: int = 1) -> None:
        super().__init__()
        inner = dim // reduction
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(
        self, q_BPC: Tensor, k_BTC: Tensor, v_BTC: Tensor, bias_BT: Tensor | None = None
    ) -> Tensor:
        """Return one mixed value per query, (B, P, C); the bias is added to each key's scores."""
        projected = (self.q_proj(q_BPC), self.k_proj(k_BTC), self.v_proj(v_BTC))
        q, k, v = (x.unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2) for x in projected)
        mask = None if bias_BT is None else bias_BT[:, None, None].to(q.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image; then the image attends to the tokens."""

    def __init__(self, dim: int, *, is_first: bool) -> None:
        super().__init__()
        self.is_first = is_first
        self.self_attn = CrossAttention(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = CrossAttention(dim, reduction=_CROSS_REDUCTION)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, _HIDDEN_DIM, nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = CrossAttention(dim, reduction=_CROSS_REDUCTION)

    def forward(
        self,
        tokens_BPC: Tensor,
        image_BTC: Tensor,
        token_pe_BPC: Tensor,
        image_pe_BTC: Tensor,
        bias_BP: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return updated tokens and image tokens, shapes kept; the bias hides tokens as keys."""
        if self.is_first:
            # The tokens still equal their own position encoding: neither it nor a residual is due.
            tokens = self.self_attn(tokens_BPC, tokens_BPC, tokens_BPC, bias_BP)
        else:
            placed = tokens_BPC + token_pe_BPC
            tokens = tokens_BPC + self.self_attn(placed, placed, tokens_BPC, bias_BP)
        tokens = self.norm1(tokens)
        placed_image = image_BTC + image_pe_BTC
        attended = self.cross_attn_token_to_image(tokens + token_pe_BPC, placed_image, image_BTC)
        tokens = self.norm2(tokens + attended)
        tokens = self.norm3(tokens + self.mlp(tokens))
        placed = tokens + token_pe_BPC
        attended = self.cross_attn_image_to_token(placed_image, placed, tokens, bias_BP)
        return tokens, self.norm4(image_BTC + attended)


class TwoWayTransformer3D(nn.Module):
    """The decoder's transformer: two-way blocks and a last look of the tokens at the image."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(dim, is_first=index == 0) for index in range(NUM_LAYERS)
        )
        self.final_attn_token_to_image = CrossAttention(dim, reduction=_CROSS_REDUCTION)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(
        self,
        tokens_BPC: Tensor,
        image_BTC: Tensor,
        image_pe_BTC: Tensor,
        bias_BP: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the processed prompt tokens and image tokens, shapes kept."""
        tokens, image = tokens_BPC, image_BTC
        for layer in self.layers:
            tokens, image = layer(tokens, image, tokens_BPC, image_pe_BTC, bias_BP)
        attended = self.final_attn_token_to_image(tokens + tokens_BPC, image + image_pe_BTC, image)
        return self.norm_final_attn(tokens + attended), image
