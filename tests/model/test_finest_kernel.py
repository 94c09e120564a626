"""The Triton kernels of the finest stage make the logits of the decoder on rows.

Without a GPU: ``TRITON_INTERPRET=1 pytest tests/model/test_finest_kernel.py``.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastsam3d.model.config import HighResConfig, ModelConfig
from fastsam3d.model.fused_hr import RowHighResDecoder
from fastsam3d.model.hr_decoder import HighResDecoder, Prompts
from tests.triton import DEVICE, needs_triton

pytestmark = needs_triton
CONFIG = ModelConfig(
    name="toy",
    family="hr",
    image_size=32,
    embed_dim=48,
    out_dim=48,
    depth=1,
    num_heads=2,
    highres=HighResConfig(stem_channels=(4, 16, 16, 16), decoder_channels=(16, 16, 16)),
)


def drawn_parts(generator: torch.Generator) -> list[Tensor]:
    shapes = [(48, 2), (16, 4), (16, 8), (16, 16), (32, 16)]
    return [
        torch.randn(1, channels, side, side, side, generator=generator).to(DEVICE)
        for channels, side in shapes
    ]


def test_the_logits_are_those_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    decoder = HighResDecoder(CONFIG).to(DEVICE).eval().requires_grad_(requires_grad=False)
    parts = tuple(drawn_parts(generator))
    prompts = Prompts(
        torch.tensor([[[9.0, 20, 11], [4, 4, 30]]], device=DEVICE),
        torch.tensor([[1, 0]], device=DEVICE),
        torch.zeros(1, 6, device=DEVICE),
        torch.zeros(1, 1, 16, 16, 16, device=DEVICE),
    )
    rows = RowHighResDecoder(decoder)
    with torch.inference_mode():
        wanted, quality = rows(parts, prompts, multimask=False)
        rows.use_kernel()
        monkeypatch.setattr(rows._kernel, "serves", lambda *_: True)
        found, same = rows(parts, prompts, multimask=False)
    assert torch.equal(same, quality)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
