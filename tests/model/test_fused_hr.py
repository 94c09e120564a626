"""The high-resolution decoder in few kernels computes what the decoder computes."""

import pytest
import torch

from fastsam3d.model.fused_hr import RowHighResDecoder, RowPosition
from fastsam3d.model.fused_tokens import RowTwoWayLayer
from fastsam3d.model.hr import previous_mask_map
from fastsam3d.model.hr_decoder import TwoWayLayer
from tests.model.launches import launches_of
from tests.model.tiny import drawn_model
from tests.session.test_engine import TOY

SIDE = TOY.image_size


@pytest.fixture
def model():
    return drawn_model(TOY)


def case(model, count: int, *, batch: int = 1, box: bool = False, mask: bool = False):
    image = model.encode_image(torch.randn(batch, 1, SIDE, SIDE, SIDE))
    given = {
        "points": SIDE * torch.rand(batch, count, 3),
        "labels": torch.randint(-1, 2, (batch, count)),
        "boxes": torch.tensor([[3.0, 4, 5, 20, 18, 22]]).repeat(batch, 1) if box else None,
        "mask_logits": torch.randn(batch, 1, SIDE, SIDE, SIDE) if mask else None,
    }
    previous = previous_mask_map(given["mask_logits"].sigmoid()) if mask else None
    prompts = model.prepare_prompts(
        given["points"], given["labels"], boxes=given["boxes"], previous=previous
    )
    return image, given, prompts


@torch.inference_mode()
def test_rows_are_those_of_the_layer() -> None:
    torch.manual_seed(1)
    layer = TwoWayLayer(48).eval()
    tokens, image = (torch.randn(2, n, 48) for n in (7, 27))
    position = torch.randn(27, 48)
    bias = torch.where(torch.rand(2, 1, 1, 7) < 0.3, -1e4, 0.0)
    wanted = layer(tokens, image, position.expand(2, 27, 48), bias)
    found = RowTwoWayLayer(layer, position)(tokens, image, position, bias)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_positions_column_by_column(model) -> None:
    encoding = model.decoder.position
    at = 2 * torch.rand(2, 5, 3) - 1
    torch.testing.assert_close(RowPosition(encoding)(at), encoding(at), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("count", [0, 1, 4, 9])
@pytest.mark.parametrize(("box", "mask"), [(False, False), (True, False), (False, True)])
def test_masks_and_qualities_are_those_of_the_decoder(model, count, box, mask) -> None:
    image, given, prompts = case(model, count, box=box, mask=mask)
    for multimask in (False, True):
        wanted = model.decode_masks(image, **given, multimask=multimask)
        parts = (image.tokens, *image.skips)
        found = RowHighResDecoder(model.decoder)(parts, prompts, multimask=multimask)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_batch(model) -> None:
    image, given, prompts = case(model, 2, batch=3, box=True, mask=True)
    wanted = model.decode_masks(image, **given)
    found = RowHighResDecoder(model.decoder)((image.tokens, *image.skips), prompts, multimask=False)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_click_takes_fewer_launches(model) -> None:
    image, given, prompts = case(model, 2, mask=True)
    before = launches_of(lambda: model.decode_masks(image, **given))
    decoder = RowHighResDecoder(model.decoder)
    position = model.decoder.position(model.decoder.grid_position)[0]
    layers = [RowTwoWayLayer(layer, position) for layer in decoder.layers]
    decoder.layers = torch.nn.ModuleList(layers)
    parts = (image.tokens, *image.skips)
    after = launches_of(lambda: decoder(parts, prompts, multimask=False))
    assert after.products <= 0.75 * before.products
    assert after.all < before.all
