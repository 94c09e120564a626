"""The Triton kernels that pack a mask make the bytes of the readable function.

Without a GPU: ``TRITON_INTERPRET=1 pytest tests/session/test_mask_bits_kernel.py``.
"""

from __future__ import annotations

import importlib

import pytest
import torch

from fastsam3d.session.mask_bits import pack_mask
from tests.triton import DEVICE, needs_triton

pytestmark = needs_triton


def packed(logits: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    kernel = importlib.import_module("fastsam3d.session.mask_bits_kernel")
    logits, quality = logits.to(DEVICE), torch.tensor([[0.8125, 0.5]], device=DEVICE)[:, :1]
    return kernel.pack_mask_by_kernel(logits, quality, side), pack_mask(logits, quality, side)


@pytest.mark.parametrize("source", [4, 8, 16, 32])
def test_bytes_of_any_mask(source: int) -> None:
    torch.manual_seed(2)
    logits = torch.randn(1, 1, source, source, source)
    found, wanted = packed(logits, 32)
    facts = 32**3 // 8
    assert torch.equal(found[facts:], wanted[facts:])
    # Where interpolation ends at zero, rounding decides.
    assert (found != wanted).sum() <= (0 if source == 32 else 2)


@pytest.mark.parametrize("place", [None, (0, 0, 0), (31, 7, 30)])
def test_bounds_of_one_voxel_and_of_none(place: tuple[int, int, int] | None) -> None:
    logits = torch.full((1, 1, 32, 32, 32), -1.0)
    if place is not None:
        logits[0, 0][place] = 1.0
    assert torch.equal(*packed(logits, 32))
