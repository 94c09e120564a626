"""The Triton kernel of queries and keys equals the trunk's own norm and rotation.

Without a GPU: ``TRITON_INTERPRET=1 pytest tests/model/test_turned_heads_kernel.py``.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastsam3d.model import turned_heads
from fastsam3d.model.hr_layers import rotate
from fastsam3d.model.triton_kernels import load_kernels
from tests.triton import DEVICE, HAS_GPU, needs_triton

DTYPE = torch.bfloat16 if HAS_GPU else torch.float32


def readable(
    qkv: Tensor, norms: tuple[nn.LayerNorm, nn.LayerNorm], waves: tuple[Tensor, Tensor], heads: int
) -> list[Tensor]:
    batch, tokens, _ = qkv.shape
    q, k, v = qkv.view(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    turned = [rotate(norm(part.float()), *waves) for norm, part in zip(norms, (q, k), strict=True)]
    return [part.to(qkv.dtype) for part in (*turned, v)]


@pytest.mark.parametrize("is_served", [False, pytest.param(True, marks=needs_triton)])
@pytest.mark.parametrize("depth", [16, 24, 64])
def test_queries_keys_and_values(
    depth: int, is_served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    norms = nn.LayerNorm(depth).to(DEVICE), nn.LayerNorm(depth).to(DEVICE)
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    angles = torch.randn(21, depth // 2, device=DEVICE)
    waves = angles.cos(), angles.sin()
    qkv = 3 + torch.randn(2, 21, 3 * 2 * depth, device=DEVICE, dtype=DTYPE)
    if is_served:
        load_kernels(turned_heads.KERNELS)
    monkeypatch.setattr(turned_heads, "_is_served", lambda _: is_served)
    with torch.inference_mode():
        wanted = readable(qkv, norms, waves, 2)
        gains = torch.stack([norm.weight for norm in norms])
        shifts = torch.stack([norm.bias for norm in norms])
        found = turned_heads.turned_heads(qkv, [gains, shifts], list(waves), norms[0].eps, 2)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        limit = 0.02 if HAS_GPU else 1e-5
        assert (one.float() - other.float()).norm() <= limit * other.float().norm()
