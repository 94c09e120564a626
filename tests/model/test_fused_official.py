"""The official decoder in few kernels computes what the official decoder computes."""

import pytest
import torch

from fastsam3d.model.fused_official import HIDDEN_POINT, RowMaskDecoder
from fastsam3d.model.fused_tokens import RowTwoWayTransformer
from fastsam3d.model.two_way import TwoWayTransformer3D
from tests.model.launches import launches_of
from tests.model.tiny import TINY_TEACHER, drawn_model

SIDE, GRID = TINY_TEACHER.logits_size, TINY_TEACHER.grid_size


@pytest.fixture
def model():
    return drawn_model(TINY_TEACHER)


def prompts(count: int, *, batch: int = 1, mask: bool = False):
    points = TINY_TEACHER.image_size * torch.rand(batch, count, 3)
    labels = torch.randint(-1, 2, (batch, count))
    return points, labels, torch.randn(batch, 1, SIDE, SIDE, SIDE) if mask else None


def embedding(model, batch: int = 1):
    return model.encode_image(torch.randn(batch, 1, *(TINY_TEACHER.image_size,) * 3))


@torch.inference_mode()
def test_the_transformer_on_rows_is_the_transformer() -> None:
    torch.manual_seed(1)
    transformer = TwoWayTransformer3D(48).eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tokens, image = (torch.randn(2, n, 48) for n in (7, 27))
    position = torch.randn(1, 27, 48)
    rows = RowTwoWayTransformer(transformer, position[0])
    bias = torch.where(torch.rand(2, 7) < 0.3, -1e4, 0.0)
    for hidden in (None, bias):
        wanted = transformer(tokens, image, position, hidden)
        found = rows(tokens, image, position, hidden)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("count", [0, 1, 3, 9])
@pytest.mark.parametrize("mask", [False, True])
def test_masks_and_qualities_are_those_of_the_decoder(model, count: int, mask: bool) -> None:
    image = embedding(model)
    points, labels, mask_logits = prompts(count, mask=mask)
    for multimask in (False, True):
        wanted = model.decode_masks(
            image, points, labels, mask_logits=mask_logits, multimask=multimask
        )
        found = RowMaskDecoder(model)(
            image.tokens, points, labels, mask_logits, multimask=multimask
        )
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("rois", [1, 3])
@pytest.mark.parametrize("mask", [False, True])
def test_prompt_sets_on_one_roi_or_on_as_many(model, rois: int, mask: bool) -> None:
    image = embedding(model, rois)
    points, labels, mask_logits = prompts(2, batch=3, mask=mask)
    wanted = model.decode_masks(image, points, labels, mask_logits=mask_logits)
    found = RowMaskDecoder(model)(image.tokens, points, labels, mask_logits, multimask=False)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_hidden_point_has_no_effect_but_a_padding_point_has(model) -> None:
    decoder, image = RowMaskDecoder(model), embedding(model)
    points, labels = torch.full((1, 2, 3), 9.0), torch.tensor([[1, HIDDEN_POINT]])
    alone, _ = decoder(image.tokens, points[:, :1], labels[:, :1], multimask=False)
    hidden, _ = decoder(image.tokens, points, labels, multimask=False)
    seen, _ = decoder(image.tokens, points, labels.clamp(min=-1), multimask=False)
    torch.testing.assert_close(hidden, alone, rtol=1e-5, atol=1e-5)
    assert (seen - alone).abs().max() > 1e-3


@torch.inference_mode()
def test_a_click_takes_fewer_launches(model) -> None:
    image = embedding(model)
    points, labels, mask_logits = prompts(2, mask=True)
    before = launches_of(lambda: model.decode_masks(image, points, labels, mask_logits=mask_logits))
    position = model.prompt_encoder.encode_grid().flatten(2).transpose(1, 2)[0]
    transformer = RowTwoWayTransformer(model.mask_decoder.transformer, position)
    model.mask_decoder.transformer = transformer
    decoder = RowMaskDecoder(model)
    after = launches_of(lambda: decoder(image.tokens, points, labels, mask_logits, multimask=False))
    assert after.products <= 0.66 * before.products
    assert after.all < before.all
