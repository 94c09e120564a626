"""The compatible model keeps the contract of every variant: encode once, decode prompt sets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastsam3d.errors import ConfigError
from fastsam3d.model.config import ModelConfig, PatchEncoderConfig
from fastsam3d.model.sam_med3d import SamMed3D
from fastsam3d.model.window_attention import WindowAttention
from tests.model.tiny import TINY_STUDENT, TINY_TEACHER

CONFIGS = [TINY_TEACHER, TINY_STUDENT]


def random_model(config: ModelConfig, seed: int = 0) -> SamMed3D:
    torch.manual_seed(seed)
    model = SamMed3D(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def random_image(batch: int = 1) -> Tensor:
    return torch.randn(batch, 1, 24, 24, 24, generator=torch.Generator().manual_seed(1))


def prompts(batch: int = 1) -> tuple[Tensor, Tensor]:
    points = torch.tensor([[[3.0, 12.0, 20.0], [8.0, 0.0, 23.0]]]).expand(batch, -1, -1)
    return points, torch.tensor([[1, 0]]).expand(batch, -1)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_fast_encoder_equals_reference(config: ModelConfig) -> None:
    model = random_model(config)
    tokens: dict[tuple[str, torch.dtype], Tensor] = {}
    for dtype in (torch.float32, torch.float64):
        for path in ("fast", "reference"):
            for module in model.modules():
                if isinstance(module, WindowAttention):
                    module.path = path
            with torch.no_grad():
                tokens[path, dtype] = model.to(dtype).encode_image(random_image().to(dtype)).tokens
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        difference = tokens["fast", dtype] - tokens["reference", dtype]
        assert difference.abs().max() < tolerance


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@pytest.mark.parametrize("path", ["fast", "reference"])
def test_gradients_reach_every_parameter(config: ModelConfig, path: str) -> None:
    model = SamMed3D(replace(config, patch=replace(config.patch, attention=path)))
    embedding = model.encode_image(random_image())
    points, labels = prompts()
    loss = torch.zeros(())
    for mask_logits, multimask in ((None, False), (torch.randn(1, 1, 12, 12, 12), True)):
        logits, quality = model.decode_masks(
            embedding, points, labels, mask_logits=mask_logits, multimask=multimask
        )
        loss = loss + logits.square().sum() + quality.square().sum()
    loss.backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@torch.no_grad()
def test_shapes_of_the_contract(config: ModelConfig) -> None:
    model = random_model(config)
    embedding = model.encode_image(random_image(2))
    assert embedding.tokens.shape == (2, 48, 3, 3, 3)
    assert embedding.skips == ()
    assert embedding.image_size == 24
    for multimask, candidates in ((False, 1), (True, 3)):
        logits, quality = model.decode_masks(embedding, *prompts(2), multimask=multimask)
        size = config.logits_size
        assert logits.shape == (2, candidates, size, size, size)
        assert quality.shape == (2, candidates)


@torch.no_grad()
def test_many_objects_on_one_embedding_equal_single_decodes() -> None:
    model = random_model(TINY_TEACHER)
    embedding = model.encode_image(random_image())
    points = torch.tensor([[[3.0, 12.0, 20.0]], [[20.0, 1.0, 5.0]], [[11.0, 11.0, 11.0]]])
    labels = torch.ones(3, 1)
    together, quality = model.decode_masks(embedding, points, labels)
    for index in range(3):
        part = slice(index, index + 1)
        alone, alone_quality = model.decode_masks(embedding, points[part], labels[part])
        torch.testing.assert_close(together[part], alone)
        torch.testing.assert_close(quality[part], alone_quality)


@torch.no_grad()
def test_a_batch_of_images_equals_single_images() -> None:
    model = random_model(TINY_TEACHER)
    images = random_image(2)
    both = model.encode_image(images)
    for index in range(2):
        alone = model.encode_image(images[index : index + 1])
        torch.testing.assert_close(both.select(index).tokens, alone.tokens)


@torch.no_grad()
def test_a_box_is_a_positive_point_at_its_centre_and_an_empty_box_is_padding() -> None:
    model = random_model(TINY_TEACHER)
    embedding = model.encode_image(random_image())
    points, labels = prompts()
    box = torch.tensor([[2, 4, 6, 5, 11, 13]])
    centre = torch.tensor([[[3.0, 7.0, 9.0]]])
    for boxes, point, label in ((box, centre, 1), (box * 0, centre * 0, -1)):
        by_box, _ = model.decode_masks(embedding, points, labels, boxes=boxes)
        by_point, _ = model.decode_masks(
            embedding,
            torch.cat([points, point], dim=1),
            torch.cat([labels, torch.tensor([[label]])], dim=1),
        )
        torch.testing.assert_close(by_box, by_point)
    without, _ = model.decode_masks(embedding, points, labels)
    assert not torch.allclose(by_box, without), "padding points count in the official models"


@torch.no_grad()
def test_a_mask_prompt_alone_is_enough() -> None:
    model = random_model(TINY_STUDENT)
    embedding = model.encode_image(random_image())
    points, labels = torch.zeros(1, 0, 3), torch.zeros(1, 0)
    logits, _ = model.decode_masks(
        embedding, points, labels, mask_logits=torch.randn(1, 1, 12, 12, 12)
    )
    assert logits.isfinite().all()


@torch.no_grad()
def test_intermediates_are_the_inputs_of_the_next_block() -> None:
    model = random_model(TINY_TEACHER)
    blocks = model.forward_intermediates(random_image())
    assert [tuple(tokens.shape) for tokens in blocks] == [(1, 27, 12)] * 3
    following = model.image_encoder.blocks[2](blocks[1].unflatten(1, (3, 3, 3)))
    torch.testing.assert_close(blocks[2], following.flatten(1, 3))
    chosen = model.forward_intermediates(random_image(), indices=[0, 2])
    torch.testing.assert_close(chosen[0], blocks[0])
    torch.testing.assert_close(chosen[1], blocks[2])


def test_blocks_after_the_last_wanted_one_are_not_computed() -> None:
    model = random_model(TINY_TEACHER)
    calls: list[int] = []
    for index, block in enumerate(model.image_encoder.blocks):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    model.forward_intermediates(random_image(), indices=[0])
    assert calls == [0]


@torch.no_grad()
def test_half_precision_runs_and_stays_near_float32() -> None:
    model = random_model(TINY_TEACHER)
    exact = model.encode_image(random_image()).tokens
    rounded = model.bfloat16().encode_image(random_image().bfloat16()).tokens
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@torch.no_grad()
def test_autocast_runs_and_stays_near_float32(config: ModelConfig) -> None:
    model = random_model(config)
    exact, _ = model.decode_masks(model.encode_image(random_image()), *prompts())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, _ = model.decode_masks(model.encode_image(random_image()), *prompts())
    assert (rounded.float() - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_dim": 40}, "out_dim must be a multiple of 48"),
        ({"patch": PatchEncoderConfig(window_size=2)}, "window_size must be 0 or at least"),
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY_TEACHER, **changes)


def test_point_positions_survive_reduced_precision() -> None:
    encoder = random_model(TINY_TEACHER).prompt_encoder
    points, labels = prompts()
    with torch.no_grad():
        exact = encoder(points, labels).sparse
        with torch.autocast("cpu", torch.bfloat16):
            reduced = encoder(points, labels).sparse
    assert (reduced.float() - exact).abs().max() < 1e-6
