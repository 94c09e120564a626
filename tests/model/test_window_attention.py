"""The fast attention computes what the padded reference computes, gradients included."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fastsam3d.model.relpos import (
    BiasTerms,
    RelativeTables,
    bias_terms,
    padding_bias,
    padding_constants,
    rows_of_tables,
    table_rows,
)
from fastsam3d.model.window_attention import WindowAttention


def random_attention(dim: int, *, extent: int, scale: float = 0.5) -> WindowAttention:
    torch.manual_seed(0)
    attention = WindowAttention(dim, num_heads=2, extent=extent, path="reference").double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return attention


def run(attention: WindowAttention, path: str, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    attention.path = path
    attention.zero_grad()
    output = attention(x)
    (output * torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view_as(output)).sum().backward()
    return output.detach(), {n: p.grad.clone() for n, p in attention.named_parameters()}


@pytest.mark.parametrize(("size", "extent"), [(1, 1), (3, 3), (1, 2), (3, 4), (2, 5), (4, 7)])
def test_fast_path_equals_reference_in_float64(size: int, extent: int) -> None:
    attention = random_attention(12, extent=extent)
    x = torch.randn(2, size, size, size, 12, dtype=torch.float64)
    expected, expected_gradients = run(attention, "reference", x)
    actual, gradients = run(attention, "fast", x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=1e-11)


def test_fast_path_survives_bias_logits_beyond_the_range_of_exp() -> None:
    attention = random_attention(12, extent=5, scale=12.0).float()
    x = torch.randn(1, 3, 3, 3, 12)
    with torch.no_grad():
        attention.path = "fast"
        actual = attention(x)
        attention.path = "reference"
        expected = attention(x)
    assert actual.isfinite().all()
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-2)


def test_bias_reads_the_axes_that_the_official_broadcast_reads() -> None:
    size, dim = 3, 4
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(1, 1, size, size, size, dim, generator=generator)
    tables = RelativeTables(*(torch.randn(5, dim, generator=generator) for _ in range(3)))
    bias = bias_terms(q, rows_of_tables(tables, size, size)).broadcast()
    i_rows, j_rows, k_rows = (table_rows(table, size, size) for table in tables)
    for i, j, k, a, b, c in itertools.product(range(size), repeat=6):
        expected = (
            q[0, 0, i, j, k] @ i_rows[i, c]
            + q[0, 0, i, j, a] @ j_rows[j, c]
            + q[0, 0, i, j, b] @ k_rows[b, c]
        )
        torch.testing.assert_close(bias[0, 0, i, j, k, a, b, c], expected)


def test_padding_bias_is_the_log_sum_over_all_padding_keys() -> None:
    size, extent, dim = 2, 4, 3
    generator = torch.Generator().manual_seed(4)
    tables = RelativeTables(
        *(torch.randn(2 * extent - 1, dim, generator=generator) for _ in range(3))
    )
    pad_query = torch.randn(1, dim, generator=generator)
    queries = pad_query.expand(1, 1, extent, extent, extent, dim).clone()
    real = torch.randn(1, 1, size, size, size, dim, generator=generator)
    queries[:, :, :size, :size, :size] = real
    bias = bias_terms(queries, rows_of_tables(tables, extent, extent)).broadcast()[
        :, :, :size, :size, :size
    ]
    is_padding = torch.ones(extent, extent, extent, dtype=torch.bool)
    is_padding[:size, :size, :size] = False
    expected = bias[..., is_padding].logsumexp(dim=-1)
    terms = bias_terms(real, rows_of_tables(tables, size, extent))
    constants = padding_constants(pad_query, tables, size)
    assert isinstance(terms, BiasTerms)
    torch.testing.assert_close(padding_bias(terms, constants), expected)
