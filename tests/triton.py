"""Tests of Triton kernels run on a GPU, or in Triton's interpreter where it is asked for."""

from __future__ import annotations

import os

import pytest
import torch

from fastsam3d.model.triton_kernels import HAS_TRITON

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
needs_triton = pytest.mark.skipif(
    not HAS_TRITON or not (HAS_GPU or os.environ.get("TRITON_INTERPRET") == "1"),
    reason="needs Triton, and a GPU or TRITON_INTERPRET=1",
)
