"""Relative-position bias of the official encoder, quirk included.

The official code adds three per-axis terms to the attention logits, but a wrong broadcast places
two of them on other axes than meant. With query ``(i, j, k)``, key ``(a, b, c)`` and tables R::

    bias = q[i,j,k].R_i[i-c]  +  q[i,j,a].R_j[j-c]  +  q[i,j,b].R_k[b-c]

so every term is looked up at the key's last axis, and the second and third are read from *other
queries* (those whose last index equals a or b). All released weights were trained with it.

Shape legend: B batch, H heads, I J K query axes (N tokens each), A key axis, D head dim.

Source: SAM-Med3D (uni-medical, commit f3de1fa, Apache-2.0), `add_decomposed_rel_pos`; facts only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class RelativeTables(NamedTuple):
    """Learned tables of the three axes, each (2 * extent - 1, D) for windows of `extent` tokens."""

    along_i: Tensor
    along_j: Tensor
    along_k: Tensor


class TableRows(NamedTuple):
    """The tables looked up for all pairs of a grid, each (N, num_keys, D); see `table_rows`."""

    along_i: Tensor
    along_j: Tensor
    along_k: Tensor


class PaddingConstants(NamedTuple):
    """What padding keys add whatever the queries are; see `padding_bias`.

    Attributes:
        by_key_i: (H, 1, N, E) for windows of extent E.
        by_key_j: (H, 1, 1, E).
    """

    by_key_i: Tensor
    by_key_j: Tensor


class BiasTerms(NamedTuple):
    """The three terms per query, each (B, H, I, J, K, A) with A the key's last axis."""

    own: Tensor
    by_key_i: Tensor
    by_key_j: Tensor

    def broadcast(self) -> Tensor:
        """Sum the terms over all keys: (B, H, I, J, K, A, A, A), K and A of equal extent."""
        return (
            self.own[..., :, None, None, :]
            + self.by_key_i[..., None, :, None, :]
            + self.by_key_j[..., None, None, :, :]
        )


def table_rows(table_LD: Tensor, num_queries: int, num_keys: int) -> Tensor:
    """Look up the table at ``query - key`` for all pairs: (num_queries, num_keys, D)."""
    extent = (table_LD.shape[0] + 1) // 2
    device = table_LD.device
    offsets = torch.arange(num_queries, device=device)[:, None] - torch.arange(
        num_keys, device=device
    )
    return table_LD[offsets + extent - 1]


def rows_of_tables(tables: RelativeTables, num_queries: int, num_keys: int) -> TableRows:
    """Look all three tables up."""
    return TableRows(*(table_rows(table, num_queries, num_keys) for table in tables))


def bias_terms(q_BHIJKD: Tensor, rows: TableRows) -> BiasTerms:
    """Compute the three bias terms of the given queries.

    Args:
        q_BHIJKD: Unscaled queries of a cube of tokens that starts at the window's origin.
        rows: The window's tables, for as many queries per axis and the keys to cover.

    Returns:
        Terms of shape (B, H, I, J, K, num_keys).
    """
    return BiasTerms(
        torch.einsum("bhijkd,iad->bhijka", q_BHIJKD, rows.along_i),
        torch.einsum("bhijkd,jad->bhijka", q_BHIJKD, rows.along_j),
        torch.einsum("bhijkd,kad->bhijka", q_BHIJKD, rows.along_k),
    )


def unfolded_terms(products_BTH3W: Tensor, size: int) -> BiasTerms:
    """Pick the bias terms from products of all queries and all rows of the tables.

    Args:
        products_BTH3W: Of T = N^3 queries and the tables along i, j and k; row n stands for the
            offset n + 1 - N of query and key.
        size: N, also the extent of the window.

    Returns:
        Terms of shape (B, H, N, N, N, N).
    """
    steps = torch.arange(size, device=products_BTH3W.device)
    rows_NN = steps[:, None] - steps + size - 1
    batch, _, heads, _, width = products_BTH3W.shape
    grid = products_BTH3W.reshape(batch, size, size, size, heads, 3, width)
    grid = grid.permute(5, 0, 4, 1, 2, 3, 6)
    shape = (batch, heads, *(size,) * 4)
    places = (
        rows_NN.view(*(size if axis == n else 1 for axis in range(3)), size) for n in range(3)
    )
    return BiasTerms(
        *(table.gather(-1, at.expand(shape)) for table, at in zip(grid, places, strict=True))
    )


def padding_constants(
    q_bias_HD: Tensor, tables: RelativeTables, num_queries: int
) -> PaddingConstants:
    """Compute what padding keys of the window add, of weights alone.

    Padding queries along the last axis carry b_q: `BiasTerms.by_key_i` then depends on j alone,
    `BiasTerms.by_key_j` on the padded position itself.

    Args:
        q_bias_HD: Query part of the projection bias, per head.
        tables: Relative-position tables of the window, extent E > N.
        num_queries: N, real tokens per axis.
    """
    extent = (tables.along_j.shape[0] + 1) // 2
    rows_j = table_rows(tables.along_j, num_queries, extent)
    rows_k = table_rows(tables.along_k, extent, extent)[num_queries:]
    pad_a_HJA = torch.einsum("hd,jad->hja", q_bias_HD, rows_j) + math.log(extent - num_queries)
    pad_b_HA = torch.einsum("hd,kad->hka", q_bias_HD, rows_k).logsumexp(dim=1)
    return PaddingConstants(pad_a_HJA[:, None], pad_b_HA[:, None, None])


def padding_bias(terms: BiasTerms, constants: PaddingConstants) -> Tensor:
    """Return the log-sum-exp of the bias over all padding keys of the window, per real query.

    A padding token is a zero vector after the norm, so its query, key and value equal the biases
    of the projection, and all padding keys share one value: together they act as one virtual key
    whose logit is the common ``q . b_k`` plus this number. The sum over two key axes factorises
    for each position of the third, so it needs no (window)^3 tensor; it is split into products of
    positive parts (never a difference), hence it is exact to rounding.

    Args:
        terms: Terms of the N^3 real queries over the whole window, (B, H, N, N, N, E).
        constants: Of the window, see `padding_constants`.

    Returns:
        Log-sum-exp, (B, H, N, N, N).
    """
    # Many small terms are added up: half precision would lose percents of their sum.
    dtype = torch.promote_types(terms.own.dtype, torch.float32)
    terms = BiasTerms(*(term.to(dtype) for term in terms))
    size = terms.own.shape[-2]
    pad_a, pad_b = constants
    real_a, real_b = terms.by_key_i.logsumexp(dim=-2), terms.by_key_j.logsumexp(dim=-2)
    all_a, all_b = torch.logaddexp(real_a, pad_a), torch.logaddexp(real_b, pad_b)
    inside = torch.logaddexp(pad_a + all_b, real_a + pad_b)[..., :size]
    outside = (all_a + all_b)[..., size:]
    per_key_k = torch.cat([inside, outside], dim=-1)
    return (terms.own + per_key_k[..., None, :]).logsumexp(dim=-1)
