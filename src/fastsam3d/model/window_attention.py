"""Self-attention of the official encoder on a cube of tokens, as two equal paths.

``reference`` is the readable original: the token grid is padded with zeros to the window and all
padded tokens attend. ``fast`` computes the same numbers for the real tokens alone: all padding
keys collapse into one virtual key. With windows of 14 on a grid of 8 that is 512 queries and 513
keys in place of 2744 and 2744.

Shape legend: B batch, C channels, I J K grid axes, H heads, T tokens, D head dim.

Source: SAM-Med3D (uni-medical, commit f3de1fa, Apache-2.0), `Attention` and `window_partition3D`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsam3d.model.config import AttentionPath
from fastsam3d.model.fused_layers import joined, linear_of, unflatten
from fastsam3d.model.relpos import (
    BiasTerms,
    PaddingConstants,
    RelativeTables,
    TableRows,
    bias_terms,
    padding_bias,
    padding_constants,
    rows_of_tables,
    unfolded_terms,
)
from fastsam3d.model.triton_kernels import load_kernels

# Tensor cores want rows of 16 bytes; with 14 keys a slower product would be chosen.
_ALIGNED_KEYS = 8
_KERNEL_DTYPES = (torch.bfloat16, torch.float16)
_KERNEL_GRID = 8
_KERNEL_CHANNELS = (32, 64, 128)


class WindowAttention(nn.Module):
    """Multi-head self-attention over one window that holds the whole token grid.

    Attributes:
        path: ``fast`` or ``reference``; both take the same weights and agree to rounding.
        num_heads: Attention heads.
        extent: Side of the window in tokens; larger than the grid means zero padding.
        has_kernel: The Triton kernel is taken where it serves, see `use_kernel`.
        folded: Makes queries, keys, values and products of queries and tables in one, see `fold`.
    """

    def __init__(self, dim: int, *, num_heads: int, extent: int, path: AttentionPath) -> None:
        super().__init__()
        self.path = path
        self.num_heads = num_heads
        self.extent = extent
        head_dim = dim // num_heads
        self.rel_pos_d = nn.Parameter(torch.zeros(2 * extent - 1, head_dim))
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * extent - 1, head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * extent - 1, head_dim))
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self._fixed: tuple[TableRows, PaddingConstants | None] | None = None
        self.has_kernel = False
        self.folded: nn.Linear | None = None

    @property
    def tables(self) -> RelativeTables:
        """The three relative-position tables."""
        return RelativeTables(self.rel_pos_d, self.rel_pos_h, self.rel_pos_w)

    def fix(self, size: int, dtype: torch.dtype) -> None:
        """Compute once what depends on the weights alone; they must not change any more.

        Args:
            size: Tokens per axis of all grids to come.
            dtype: Of the products of queries and tables.
        """
        rows, constants = self._constants(size)
        spare = -self.extent % _ALIGNED_KEYS
        padded = (F.pad(row.to(dtype), (0, 0, 0, spare)) for row in rows)
        self._fixed = TableRows(*padded), constants

    def use_kernel(self) -> None:
        """Take the Triton kernel, which has no gradient, where device, type and shapes allow."""
        self.has_kernel = load_kernels("fastsam3d.model.window_attention_kernel") is not None

    def fold(self, size: int) -> None:
        """Join the tables with the projection of queries; weights must not change any more.

        The products of queries and tables are then columns of the one product that makes queries,
        keys and values. Padded windows are left as they are: their tables reach further.

        Args:
            size: Tokens per axis of all grids to come.
        """
        if self.extent != size:
            return
        spare = -self.tables.along_i.shape[0] % _ALIGNED_KEYS
        rows_RD = torch.cat([F.pad(table, (0, 0, 0, spare)) for table in self.tables])
        queries = linear_of(*(part.chunk(3)[0] for part in (self.qkv.weight, self.qkv.bias)))
        weight = unflatten(queries.weight, 0, (self.num_heads, -1))
        bias = unflatten(queries.bias, 0, (self.num_heads, -1))
        products = linear_of((rows_RD @ weight).flatten(0, 1), (bias @ rows_RD.T).flatten())
        self.folded = joined([self.qkv, products])

    def _constants(self, size: int) -> tuple[TableRows, PaddingConstants | None]:
        if self._fixed is not None:
            return self._fixed
        rows, constants = rows_of_tables(self.tables, size, self.extent), None
        if self.extent > size:
            q_bias = self.qkv.bias.view(3, self.num_heads, -1)[0].to(self.rel_pos_d.dtype)
            constants = padding_constants(q_bias, self.tables, size)
        return rows, constants

    def forward(self, x_BIJKC: Tensor) -> Tensor:
        """Mix the tokens of a cubic grid of side at most `extent`; same shape."""
        if self.path == "reference":
            return self.proj(self._attend_padded(x_BIJKC))
        if self.folded is not None:
            return self.proj(self._attend_folded(x_BIJKC, self.folded))
        return self.proj(self._attend_exact(x_BIJKC))

    def _project(self, x_BIJKC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, num_tokens = x_BIJKC.shape[0], x_BIJKC.shape[1:4].numel()
        qkv = self.qkv(x_BIJKC).view(batch, num_tokens, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _attend_padded(self, x_BIJKC: Tensor) -> Tensor:
        size = x_BIJKC.shape[1]
        after = self.extent - size
        padded = F.pad(x_BIJKC, (0, 0, 0, after, 0, after, 0, after))
        q, k, v = self._project(padded)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        rows = rows_of_tables(self.tables, self.extent, self.extent)
        bias = bias_terms(_to_cube(q, self.extent), rows).broadcast()
        weights = (logits + bias.reshape(logits.shape)).softmax(dim=-1)
        mixed = _join_heads(weights @ v).view(padded.shape)
        return mixed[:, :size, :size, :size]

    def _attend_exact(self, x_BIJKC: Tensor) -> Tensor:
        size = x_BIJKC.shape[1]
        q, k, v = self._project(x_BIJKC)
        rows, constants = self._constants(size)
        terms = bias_terms(_to_cube(q, size), rows)
        wide, terms = terms, type(terms)(*(term[..., : self.extent] for term in terms))
        if self.has_kernel and _serves(q, size):
            return self._attend_in_kernel(q, k, v, wide, terms, constants).view(x_BIJKC.shape)
        real = type(terms)(*(term[..., :size] for term in terms)).broadcast()
        bias = real.reshape(*q.shape[:3], size**3)
        if constants is not None:
            _, k_bias, v_bias = self.qkv.bias.view(3, self.num_heads, -1)
            virtual = padding_bias(terms, constants).view(*q.shape[:3], 1)
            bias = torch.cat([bias, virtual.to(bias.dtype)], dim=-1)
            k = _append_token(k, k_bias)
            v = _append_token(v, v_bias)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return _join_heads(mixed).view(x_BIJKC.shape)

    def _attend_folded(self, x_BIJKC: Tensor, folded: nn.Linear) -> Tensor:
        batch, size, num_tokens = x_BIJKC.shape[0], x_BIJKC.shape[1], x_BIJKC.shape[1:4].numel()
        found = folded(x_BIJKC.reshape(batch, num_tokens, -1))
        qkv, products = found.tensor_split((self.qkv.out_features,), dim=-1)
        qkv = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        products_BTH3W = products.unflatten(-1, (self.num_heads, 3, -1))
        if self.has_kernel and _serves(q, size):
            attend = torch.ops.fastsam3d.folded_window_attention
            return attend(q, k, v, products_BTH3W).view(x_BIJKC.shape)
        bias = unfolded_terms(products_BTH3W, size).broadcast().reshape(*q.shape[:3], num_tokens)
        return _join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=bias)).view(
            x_BIJKC.shape
        )

    def _attend_in_kernel(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        wide: BiasTerms,
        terms: BiasTerms,
        constants: PaddingConstants | None,
    ) -> Tensor:
        padding: list[Tensor] = []
        if constants is not None:
            _, k_bias, v_bias = self.qkv.bias.view(3, self.num_heads, -1)
            padding = [padding_bias(terms, constants), k_bias, v_bias]
        return torch.ops.fastsam3d.window_attention(q, k, v, list(wide), padding)


def _serves(q_BHTD: Tensor, size: int) -> bool:
    fits = size == _KERNEL_GRID and q_BHTD.shape[-1] in _KERNEL_CHANNELS
    return fits and q_BHTD.is_cuda and q_BHTD.dtype in _KERNEL_DTYPES


def _to_cube(q_BHTD: Tensor, size: int) -> Tensor:
    return q_BHTD.reshape(*q_BHTD.shape[:2], size, size, size, q_BHTD.shape[-1])


def _join_heads(x_BHTD: Tensor) -> Tensor:
    return x_BHTD.transpose(1, 2).flatten(2)


def _append_token(x_BHTD: Tensor, token_HD: Tensor) -> Tensor:
    batch = x_BHTD.shape[0]
    token = token_HD.to(x_BHTD.dtype)[:, None].expand(batch, -1, 1, -1)
    return torch.cat([x_BHTD, token], dim=2)
