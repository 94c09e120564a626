"""Triton kernels of few rows equal the functions that say what is meant.

Without a GPU: ``TRITON_INTERPRET=1 pytest tests/model/test_row_kernels.py``.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from fastsam3d.model import row_ops
from fastsam3d.model.fused_tokens import RowTwoWayTransformer
from fastsam3d.model.row_ops import RowLinear, row_attention
from fastsam3d.model.triton_kernels import load_kernels
from fastsam3d.model.two_way import TwoWayTransformer3D
from tests.triton import DEVICE, HAS_GPU, needs_triton

pytestmark = needs_triton
DTYPE = torch.bfloat16 if HAS_GPU else torch.float32


def both_ways(function, monkeypatch: pytest.MonkeyPatch):
    """Return what the kernels and what the references make."""
    load_kernels(row_ops.KERNELS)
    found = []
    for is_served in (True, False):
        monkeypatch.setattr(row_ops, "_is_served", lambda *_, is_served=is_served: is_served)
        with torch.inference_mode():
            found.append(function())
    return found


def assert_near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    limit = 0.02 if HAS_GPU else 1e-5
    assert (found.float() - wanted.float()).norm() <= limit * wanted.float().norm()


def drawn(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.to(DEVICE)


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(24, 48, 32), (70, 64, 144)])
def test_a_product_of_rows(
    rows: int, inputs: int, outputs: int, activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(row_ops, "FEW_ROWS", 2 * rows)
    layer, norm = drawn(nn.Linear(inputs, outputs)), drawn(nn.LayerNorm(inputs))
    x = 3 + 2 * torch.randn(2, rows, inputs + 16, device=DEVICE)[..., :inputs]
    place = torch.randn(1, rows, inputs, device=DEVICE)
    table, residual = (torch.randn(size, rows, outputs, device=DEVICE) for size in (1, 2))
    for has_norm, has_table, has_residual in product((False, True), repeat=3):
        linear = RowLinear(
            layer,
            norm if has_norm else None,
            table=table[0] if has_table else None,
            placed=16,
            activation=activation,
            is_stream=has_residual,
            keeps=has_norm,
        )
        linear.reduce(DTYPE)
        given = {
            "place": place if has_norm else None,
            "residual": residual if has_residual else None,
        }
        found, wanted = both_ways(
            lambda linear=linear, given=given: linear(x, **given), monkeypatch
        )
        for one, other in zip(found, wanted, strict=True):
            assert_near(one, other)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("queries", "tokens"), [(24, 24), (24, 300), (100, 24)])
def test_attention(
    queries: int, tokens: int, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, count, 3 * 48, device=DEVICE, dtype=DTYPE)[..., 48:96]
        for count in (queries, tokens, tokens)
    )
    bias = torch.where(torch.rand(2, tokens, device=DEVICE) < 0.3, -1e4, 0.0) if has_bias else None
    found, wanted = both_ways(lambda: row_attention(q, k, v, 2, bias), monkeypatch)
    assert_near(found, wanted)


@pytest.mark.parametrize("most_rows", [row_ops.FEW_ROWS, 128])
def test_the_official_transformer_as_a_whole(
    most_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    transformer = TwoWayTransformer3D(96).to(DEVICE).eval().requires_grad_(requires_grad=False)
    tokens, image = (torch.randn(1, count, 96, device=DEVICE) for count in (24, 70))
    position = torch.randn(1, 70, 96, device=DEVICE)
    bias = torch.where(torch.arange(24, device=DEVICE) > 20, -1e4, 0.0)[None]
    monkeypatch.setattr(row_ops, "FEW_ROWS", most_rows)
    rows = RowTwoWayTransformer(transformer, position[0])
    for module in rows.modules():
        if isinstance(module, RowLinear):
            module.reduce(DTYPE)
    given = (tokens, image, position, bias)
    by_kernels, by_references = both_ways(lambda: rows(*given), monkeypatch)
    with torch.inference_mode():
        readable = transformer(*given)
    for found, other, wanted in zip(by_kernels, by_references, readable, strict=True):
        assert_near(found, other)
        assert_near(found, wanted)
