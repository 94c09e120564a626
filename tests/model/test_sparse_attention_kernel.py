"""The Triton kernels equal the reference, on a GPU or in Triton's own interpreter.

Without a GPU: ``TRITON_INTERPRET=1 pytest tests/model/test_sparse_attention_kernel.py``.
"""

from __future__ import annotations

from math import prod

import pytest
import torch

from fastsam3d.model.sparse_attention import RelativeBias, sparse_attention
from fastsam3d.model.sparse_attention_pattern import Branch, Grid, SparsePattern
from tests.triton import DEVICE, needs_triton

pytestmark = [
    needs_triton,
    # The interpreter is numpy, which warns of groups without any token and of old idioms.
    pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning"),
    # The first matrix product of the process may come from the thread of the backward pass.
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),
]

LARGE_GROUP = SparsePattern(branches=(Branch(segment=(0, 0, 0)), Branch(segment=(2, 2, 2))))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("grid", "pattern", "channels"),
    [
        ((1, 1, 1), SparsePattern.dilated(), 8),
        ((3, 4, 5), SparsePattern.dilated(((2, 1), (4, 2))).shifted(), 20),
        ((2, 5, 3), SparsePattern.axial(), 3),
        ((5, 2, 4), LARGE_GROUP, 16),
    ],
)
def test_kernels_and_their_gradients_equal_the_reference(
    grid: Grid, pattern: SparsePattern, channels: int, with_bias: bool
) -> None:
    torch.manual_seed(0)
    # As a projection leaves them: heads beside channels, tokens apart.
    shape = (2, prod(grid), 2, channels)
    q, k, v, weight = (
        torch.randn(shape, device=DEVICE).transpose(1, 2).requires_grad_() for _ in range(4)
    )
    tables = [torch.randn(2, 2 * n + 1, device=DEVICE, requires_grad=True) for n in grid]
    bias = RelativeBias(*tables) if with_bias else None
    leaves = [q, k, v, *(bias or ())]
    expected = sparse_attention(q, k, v, grid=grid, pattern=pattern, bias=bias, path="reference")
    actual = sparse_attention(q, k, v, grid=grid, pattern=pattern, bias=bias, path="triton")
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    wanted = torch.autograd.grad(expected, leaves, weight)
    for found, gradient in zip(torch.autograd.grad(actual, leaves, weight), wanted, strict=True):
        torch.testing.assert_close(found, gradient, atol=1e-4, rtol=0)
