"""The Triton kernel of window attention equals the path that forms the bias.

Without a GPU: ``TRITON_INTERPRET=1 pytest tests/model/test_window_attention_kernel.py``.
"""

from __future__ import annotations

import pytest
import torch

from fastsam3d.model import window_attention
from fastsam3d.model.window_attention import WindowAttention
from tests.triton import HAS_GPU, needs_triton

pytestmark = needs_triton


def both_paths(
    size: int, extent: int, dim: int, device: str, dtype: torch.dtype, *, is_folded: bool = False
):
    torch.manual_seed(0)
    attention = WindowAttention(dim, num_heads=2, extent=extent, path="fast").to(device)
    for name, parameter in attention.named_parameters():
        torch.nn.init.normal_(parameter, std=1.0 if "bias" in name else dim**-0.5)
    x = torch.randn(3, size, size, size, dim, device=device)
    with torch.inference_mode():
        expected = attention(x)
        attention.fix(size, dtype)
        if is_folded:
            attention.fold(size)
            assert (attention.folded is None) == (extent > size)
        attention.to(dtype)
        attention.use_kernel()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return attention(x).float(), expected


@pytest.mark.skipif(HAS_GPU, reason="float32 is for the interpreter")
def test_a_compiler_traces_it_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_attention, "_serves", lambda _q, _size: True)
    attention = WindowAttention(32, num_heads=2, extent=7, path="fast").requires_grad_(
        requires_grad=False
    )
    attention.use_kernel()
    x = torch.randn(1, 4, 4, 4, 32)
    traced = torch.compile(attention, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(x), attention(x))


@pytest.mark.skipif(HAS_GPU, reason="float32 is for the interpreter")
@pytest.mark.parametrize("is_folded", [False, True])
@pytest.mark.parametrize("extent", [4, 7])
def test_the_kernel_equals_the_formed_bias(
    extent: int, is_folded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(window_attention, "_serves", lambda _q, size: calls.append(size) or True)
    found, expected = both_paths(4, extent, 32, "cpu", torch.float32, is_folded=is_folded)
    assert calls == [4]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
@pytest.mark.parametrize("is_folded", [False, True])
@pytest.mark.parametrize("dim", [128, 256])
@pytest.mark.parametrize("extent", [8, 14])
def test_on_a_gpu_at_full_size(extent: int, dim: int, is_folded: bool) -> None:
    found, expected = both_paths(8, extent, dim, "cuda", torch.bfloat16, is_folded=is_folded)
    assert (found - expected).norm() < 0.02 * expected.norm()
