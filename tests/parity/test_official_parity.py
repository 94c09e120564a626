"""Both compatible variants reproduce the published modules' arrays, by both attention paths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fastsam3d.model.config import FASTSAM3D_6L, SAM_MED3D_B
from fastsam3d.model.embedding import ImageEmbedding
from fastsam3d.model.sam_med3d import SamMed3D
from tests.parity.golden import (
    STUDENT_SMALL,
    TEACHER_SMALL,
    draw,
    fill_by_formula,
    formula_state,
    load_golden,
    use_path,
)

PATHS = ("fast", "reference")
TOLERANCE = 1e-4
# Rounding alone moves the saturated full-size decoder by this much: see tests/golden/README.md.
SATURATED_RELATIVE_ERROR = 0.02


def image() -> Tensor:
    return torch.from_numpy(draw("input:image", (1, 1, 128, 128, 128)))


def decodings() -> dict[str, dict[str, object]]:
    mask_logits = 4 * torch.from_numpy(draw("input:mask_logits", (1, 1, 32, 32, 32)))
    return {
        "first": {},
        "refine": {"mask_logits": mask_logits},
        "multimask": {"mask_logits": mask_logits, "multimask": True},
    }


def assert_close(actual: Tensor, expected: np.ndarray, what: str) -> None:
    error = (actual - torch.from_numpy(expected)).abs().max().item()
    assert error <= TOLERANCE, f"{what}: max |difference| is {error:.2e}"


def assert_blocks_match(outputs: dict[str, Tensor], golden: dict[str, np.ndarray]) -> None:
    for name, tokens in outputs.items():
        kind, index = name.split("/")
        grid = tokens.unflatten(1, (8, 8, 8)) if tokens.ndim == 3 else tokens
        assert_close(grid.square().mean().sqrt(), golden[f"{kind}_rms/{index}"], f"{name} rms")
        assert_close(grid[0, :2, :2, :2, :8], golden[f"{kind}_corner/{index}"], f"{name} corner")


def key_table(module: torch.nn.Module) -> list[str]:
    return [f"{name} {tuple(value.shape)}" for name, value in module.state_dict().items()]


def check_student_encoder(model: SamMed3D, golden: dict[str, np.ndarray]) -> None:
    depth = model.config.depth
    every_second = model.forward_intermediates(image(), indices=range(1, depth, 2))
    stages = {f"stage/{i + 1}": tokens for i, tokens in enumerate(every_second)}
    stages["stage/0"] = model.image_encoder.embed_patches(image())
    assert_blocks_match(stages, golden)
    assert_close(model.encode_image(image()).tokens, golden["image_embedding"], "embedding")


def check_teacher_encoder(model: SamMed3D, golden: dict[str, np.ndarray]) -> ImageEmbedding:
    blocks = model.forward_intermediates(image())
    assert_blocks_match({f"block/block{i}": tokens for i, tokens in enumerate(blocks)}, golden)
    neck_input = blocks[-1].unflatten(1, (8, 8, 8)).permute(0, 4, 1, 2, 3)
    tokens = model.image_encoder.neck(neck_input)
    assert_close(tokens, golden["image_embedding"], "embedding")
    return ImageEmbedding(tokens)


def check_prompts(model: SamMed3D, golden: dict[str, np.ndarray]) -> None:
    encoder = model.prompt_encoder
    points, labels = torch.from_numpy(golden["points"]), torch.from_numpy(golden["labels"])
    assert_close(encoder.encode_grid()[0, :, :2, :3, :4], golden["dense_pe_corner"], "dense pe")
    for name, kwargs in decodings().items():
        sparse = encoder(points, labels, None, kwargs.get("mask_logits")).sparse
        assert_close(sparse, golden[f"{name}/sparse"], f"{name} sparse")


@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_small_student_encoder_matches_every_golden_array(path: str) -> None:
    golden = load_golden("fastsam3d_small_seed1")
    model = use_path(SamMed3D(STUDENT_SMALL), path)
    assert key_table(model.image_encoder) == golden["keys"].tolist()
    fill_by_formula(model.image_encoder)
    check_student_encoder(model, golden)


@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_small_teacher_matches_every_golden_array(path: str) -> None:
    golden = load_golden("sam_med3d_small_seed1")
    model = use_path(fill_by_formula(SamMed3D(TEACHER_SMALL)), path)
    assert key_table(model) == golden["keys"].tolist()
    embedding = check_teacher_encoder(model, golden)
    check_prompts(model, golden)
    points, labels = torch.from_numpy(golden["points"]), torch.from_numpy(golden["labels"])
    for name, kwargs in decodings().items():
        logits, quality = model.decode_masks(embedding, points, labels, **kwargs)
        assert_close(logits, golden[f"{name}/low_res_logits"], f"{name} logits")
        assert_close(quality, golden[f"{name}/iou"], f"{name} quality")


@pytest.mark.slow
@torch.no_grad()
def test_full_student_encoder_matches_every_golden_array() -> None:
    golden = load_golden("fastsam3d_full_seed1")
    model = SamMed3D(FASTSAM3D_6L)
    assert key_table(model.image_encoder) == golden["keys"].tolist()
    fill_by_formula(model.image_encoder)
    for path in PATHS:
        check_student_encoder(use_path(model, path), golden)


@pytest.mark.slow
@torch.no_grad()
def test_full_teacher_matches_every_golden_array() -> None:
    golden = load_golden("sam_med3d_full_seed1")
    model = fill_by_formula(SamMed3D(SAM_MED3D_B))
    assert key_table(model) == golden["keys"].tolist()
    check_prompts(model, golden)
    points, labels = torch.from_numpy(golden["points"]), torch.from_numpy(golden["labels"])
    for path in PATHS:
        embedding = check_teacher_encoder(use_path(model, path), golden)
        for name, kwargs in decodings().items():
            logits, quality = model.decode_masks(embedding, points, labels, **kwargs)
            expected = torch.from_numpy(golden[f"{name}/low_res_logits"])
            assert (logits - expected).norm() <= SATURATED_RELATIVE_ERROR * expected.norm()
            expected = torch.from_numpy(golden[f"{name}/iou"])
            assert (quality - expected).norm() <= SATURATED_RELATIVE_ERROR * expected.norm()


@torch.no_grad()
def test_full_size_decoder_matches_on_well_conditioned_weights() -> None:
    golden = load_golden("sam_med3d_full_decoder_conditioned_seed1")
    model = SamMed3D(replace(SAM_MED3D_B, depth=0))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(formula_state(shapes, scale_transformer_by_fan_in=True))
    points, labels = torch.from_numpy(golden["points"]), torch.from_numpy(golden["labels"])
    embedding = load_golden("sam_med3d_full_seed1")["image_embedding"]
    for name, kwargs in decodings().items():
        logits, quality = model.decode_masks(
            ImageEmbedding(torch.from_numpy(embedding)), points, labels, **kwargs
        )
        every_second = logits[..., ::2, ::2, ::2]
        assert_close(every_second, golden[f"{name}/low_res_logits"], f"{name} logits")
        assert_close(quality, golden[f"{name}/iou"], f"{name} quality")


@pytest.mark.parametrize("quirk", ["residual", "broadcast"])
@torch.no_grad()
def test_each_official_quirk_is_needed(quirk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = load_golden("sam_med3d_small_seed1")
    patch = replace(TEACHER_SMALL.patch, residual_after_norm=quirk == "residual")
    model = fill_by_formula(SamMed3D(replace(TEACHER_SMALL, patch=patch)))
    if quirk == "broadcast":
        monkeypatch.setattr("fastsam3d.model.relpos.BiasTerms.broadcast", _intended_broadcast)
    tokens = model.encode_image(image()).tokens
    difference = tokens - torch.from_numpy(golden["image_embedding"])
    assert difference.abs().max() > 100 * TOLERANCE


def _intended_broadcast(terms: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    own, by_key_i, by_key_j = terms
    return own[..., :, None, None] + by_key_i[..., None, :, None] + by_key_j[..., None, None, :]
