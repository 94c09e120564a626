"""The high-resolution model: shapes, prompts that do and do not matter, gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastsam3d.model.config import HR_S
from fastsam3d.model.embedding import ImageEmbedding
from fastsam3d.model.hr import HighResSam3D
from fastsam3d.model.hr_decoder import NUM_MAPS, FineInputs, PromptMaps, Prompts
from fastsam3d.model.hr_layers import (
    axial_rope,
    depth_to_space,
    double_resolution,
    rotate,
    space_to_depth,
)

SIZE = 32
TOY = replace(HR_S, image_size=SIZE, embed_dim=48, depth=2, num_heads=2, out_dim=48)
CENTRE = torch.full((1, 1, 3), SIZE / 2)
POSITIVE = torch.ones(1, 1)


@pytest.fixture(scope="module")
def model() -> HighResSam3D:
    torch.manual_seed(0)
    return HighResSam3D(TOY).eval()


@pytest.fixture(scope="module")
def embedding(model: HighResSam3D) -> ImageEmbedding:
    torch.manual_seed(1)
    with torch.no_grad():
        return model.encode_image(torch.randn(1, 1, SIZE, SIZE, SIZE))


def decode(model: HighResSam3D, embedding: ImageEmbedding, **prompts: Tensor) -> Tensor:
    given = {"points": CENTRE, "labels": POSITIVE} | prompts
    with torch.no_grad():
        return model.decode_masks(embedding, **given)[0]


def test_decodes_one_mask_or_three_candidates_at_full_resolution(
    model: HighResSam3D, embedding: ImageEmbedding
) -> None:
    with torch.no_grad():
        logits, quality = model.decode_masks(embedding, CENTRE, POSITIVE)
        candidates, qualities = model.decode_masks(embedding, CENTRE, POSITIVE, multimask=True)
    assert logits.shape == (1, 1, SIZE, SIZE, SIZE)
    assert quality.shape == (1, 1)
    assert candidates.shape == (1, 3, SIZE, SIZE, SIZE)
    assert qualities.shape == (1, 3)
    assert not torch.allclose(candidates[:, 0], candidates[:, 1])


def test_padding_points_have_no_effect(model: HighResSam3D, embedding: ImageEmbedding) -> None:
    padded = torch.cat((CENTRE, torch.rand(1, 5, 3) * SIZE), 1)
    labels = torch.tensor([[1.0, -1, -1, -1, -1, -1]])
    expected = decode(model, embedding)
    torch.testing.assert_close(
        decode(model, embedding, points=padded, labels=labels), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("box", [[0.0] * 6, [9.0, 9, 9, 4, 30, 30]])
def test_empty_box_is_no_box(
    model: HighResSam3D, embedding: ImageEmbedding, box: list[float]
) -> None:
    expected = decode(model, embedding)
    found = decode(model, embedding, boxes=torch.tensor([box]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "prompts",
    [
        {"labels": torch.zeros(1, 1)},
        {"points": CENTRE + 6},
        {"boxes": torch.tensor([[4.0, 4, 4, 20, 20, 20]])},
        {"mask_logits": torch.full((1, 1, SIZE, SIZE, SIZE), 5.0)},
    ],
    ids=["negative", "elsewhere", "box", "mask"],
)
def test_every_kind_of_prompt_changes_the_mask(
    model: HighResSam3D, embedding: ImageEmbedding, prompts: dict[str, Tensor]
) -> None:
    assert (decode(model, embedding, **prompts) - decode(model, embedding)).abs().max() > 1e-3


def test_batched_prompts_equal_one_by_one(model: HighResSam3D, embedding: ImageEmbedding) -> None:
    points = torch.tensor([[[5.0, 6, 7]], [[20.0, 9, 15]]])
    labels = torch.tensor([[1.0], [0.0]])
    both = decode(model, embedding.repeat(2), points=points, labels=labels)
    for index in range(2):
        part = slice(index, index + 1)
        alone = decode(model, embedding, points=points[part], labels=labels[part])
        torch.testing.assert_close(both[part], alone, atol=1e-5, rtol=1e-5)


def test_no_prompt_at_all_decodes(model: HighResSam3D, embedding: ImageEmbedding) -> None:
    empty = decode(model, embedding, points=torch.zeros(1, 0, 3), labels=torch.zeros(1, 0))
    assert torch.isfinite(empty).all()


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    model = HighResSam3D(TOY)
    embedding = model.encode_image(torch.randn(1, 1, SIZE, SIZE, SIZE))
    prompts = model.prepare_prompts(
        CENTRE.repeat(1, 2, 1),
        torch.tensor([[1.0, 0.0]]),
        boxes=torch.tensor([[4.0, 4, 4, 20, 20, 20]]),
        previous=torch.randn(1, 1, SIZE // 2, SIZE // 2, SIZE // 2),
    )
    parts = (embedding.tokens, *embedding.skips)
    outputs = model.decoder(parts, prompts, multimask=True)
    sum(output.square().mean() for output in outputs).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_intermediates_end_in_the_trunk_output(model: HighResSam3D) -> None:
    image = torch.randn(1, 1, SIZE, SIZE, SIZE)
    with torch.no_grad():
        outputs = model.forward_intermediates(image)
        last = model.forward_intermediates(image, (1,))
        tokens = model.encoder.neck(model.encoder.norm(outputs[-1]))
        expected = model.encode_image(image).tokens.flatten(2).transpose(1, 2)
    assert len(outputs) == TOY.depth
    torch.testing.assert_close(last[0], outputs[1])
    torch.testing.assert_close(tokens, expected)


def test_click_maps_peak_at_the_click() -> None:
    maps = PromptMaps(SIZE, (2.5, 8.0))
    points = torch.tensor([[[10.5, 20.5, 4.5], [30.5, 2.5, 8.5]]])
    previous = torch.zeros(1, 1, SIZE // 2, SIZE // 2, SIZE // 2)
    prompts = Prompts(points, torch.tensor([[1.0, 0.0]]), torch.zeros(1, 6), previous)
    drawn = maps(prompts)
    assert drawn[0, 0, 5, 10, 2] == pytest.approx(1.0)
    assert drawn[0, 2, 15, 1, 4] == pytest.approx(1.0)
    assert drawn[0, 0].argmax() != drawn[0, 2].argmax()
    assert drawn[0, 4].abs().max() == 0


def test_box_map_covers_half_open_voxels() -> None:
    maps = PromptMaps(SIZE, (2.5, 8.0))
    box = torch.tensor([[4.0, 6, 8, 10, 12, 14]])
    previous = torch.zeros(1, 1, SIZE // 2, SIZE // 2, SIZE // 2)
    drawn = maps(Prompts(torch.zeros(1, 0, 3), torch.zeros(1, 0), box, previous))[0, 4]
    assert drawn.sum() == 27
    assert drawn[2:5, 3:6, 4:7].all()


def test_space_to_depth_keeps_blocks_together_and_inverts() -> None:
    x = torch.arange(8.0).view(1, 1, 2, 2, 2)
    assert space_to_depth(x).flatten().tolist() == list(range(8))
    x = torch.randn(2, 3, 4, 6, 8)
    assert torch.equal(depth_to_space(space_to_depth(x)), x)


def test_rotary_scores_depend_on_the_distance_only() -> None:
    angles = axial_rope(4, 24)
    q, k = torch.randn(2, 24)
    turned_q = rotate(q.expand(64, 24), angles.cos(), angles.sin())
    turned_k = rotate(k.expand(64, 24), angles.cos(), angles.sin())
    scores = (turned_q @ turned_k.T).view(4, 4, 4, 4, 4, 4)
    assert scores[0, 0, 0, 1, 2, 3] == pytest.approx(float(scores[2, 1, 0, 3, 3, 3]), abs=1e-4)


def test_double_resolution_is_trilinear_interpolation() -> None:
    x = torch.randn(2, 3, 4, 5, 6, requires_grad=True)
    expected = torch.nn.functional.interpolate(x, scale_factor=2, mode="trilinear")
    torch.testing.assert_close(double_resolution(x), expected)


def test_limited_masks_equal_full_ones_inside_the_box(model: HighResSam3D) -> None:
    torch.manual_seed(0)
    half, tokens = SIZE // 2, torch.randn(1, 1, TOY.out_dim)
    fine = FineInputs(
        torch.randn(1, 64, SIZE // 4, SIZE // 4, SIZE // 4),
        torch.randn(1, 32, half, half, half),
        torch.randn(1, NUM_MAPS, half, half, half),
        torch.randn(1, 64, half, half, half),
    )
    rough = torch.full((1, 1, 8, 8, 8), -20.0)
    rough[..., 3:5, 2:4, 6:8] = 1.0
    decoder = model.decoder
    with torch.no_grad():
        whole = decoder._fine_masks(fine, tokens)
        limited = decoder._limited_masks(fine, rough, tokens)
    inside = (..., slice(12, 20), slice(8, 16), slice(24, 32))
    torch.testing.assert_close(limited[inside], whole[inside], atol=1e-5, rtol=1e-5)
    assert limited[..., :4, :, :].max() < -10
    with torch.no_grad():
        nothing = decoder._limited_masks(fine, torch.full_like(rough, -20.0), tokens)
    assert nothing.max() < -10


def test_limiting_changes_nothing_where_the_rough_mask_covers_the_roi(
    model: HighResSam3D, embedding: ImageEmbedding
) -> None:
    expected = decode(model, embedding)
    model.decoder.is_limited = True
    try:
        found = decode(model, embedding)
    finally:
        model.decoder.is_limited = False
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
