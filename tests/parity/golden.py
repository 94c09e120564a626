"""Golden arrays and the weight formula they were made with; see tests/golden/README.md."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fastsam3d.model.config import FASTSAM3D_6L, SAM_MED3D_B, PatchEncoderConfig
from fastsam3d.model.sam_med3d import SamMed3D
from fastsam3d.model.window_attention import WindowAttention

ModuleT = TypeVar("ModuleT", bound=nn.Module)
GOLDEN_DIR = Path(__file__).parents[1] / "golden"

TEACHER_SMALL = replace(
    SAM_MED3D_B,
    name="sam_med3d_small",
    embed_dim=96,
    depth=4,
    num_heads=4,
    out_dim=48,
    patch=PatchEncoderConfig(window_size=14, global_blocks=(1, 3)),
)
STUDENT_SMALL = replace(
    FASTSAM3D_6L,
    name="fastsam3d_small",
    embed_dim=96,
    depth=4,
    num_heads=2,
    out_dim=48,
    patch=PatchEncoderConfig(num_attention_free_blocks=1, residual_after_norm=True),
)


def use_path(model: SamMed3D, path: str) -> SamMed3D:
    for module in model.modules():
        if isinstance(module, WindowAttention):
            module.path = path
    return model


def load_golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN_DIR / f"{name}.npz", allow_pickle=False) as data:
        return dict(data)


def draw(name: str, shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(zlib.crc32(f"{seed}:{name}".encode())))
    return generator.standard_normal(shape, dtype=np.float32)


def formula_value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    z = draw(name, shape)
    if "rel_pos" in name:
        return 0.3 * z
    if "gaussian_matrix" in name:
        return z
    if len(shape) < 2:
        return (1 + 0.1 * z) if name.endswith("weight") else 0.1 * z
    if name.endswith("pos_embed") or ("embed" in name and "patch" not in name) or "token" in name:
        return 0.5 * z
    return scaled_by_fan_in(z)


def scaled_by_fan_in(z: np.ndarray) -> np.ndarray:
    return z / np.sqrt(np.prod(z.shape[1:]))


def formula_state(
    shapes: dict[str, tuple[int, ...]], *, scale_transformer_by_fan_in: bool = False
) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if scale_transformer_by_fan_in and "transformer" in name and len(shape) > 1:
            value = scaled_by_fan_in(draw(name, shape))
        else:
            value = formula_value(name, shape)
        state[name] = torch.from_numpy(np.asarray(value, dtype=np.float32))
    return state


def fill_by_formula(module: ModuleT) -> ModuleT:
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    module.load_state_dict(formula_state(shapes), strict=True)
    return module.eval()
