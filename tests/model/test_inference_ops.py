"""What a CPU computes in place, by rows, equals the ordinary layers that training takes."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from fastsam3d.model.config import HR_S
from fastsam3d.model.inference_ops import (
    GridNorm,
    PointwiseConv,
    activate,
    add_to,
    detail_sums,
    enlarge,
)
from fastsam3d.model.registry import build_model

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


def features(channels: int, side: int = 18, *, batch: int = 2) -> torch.Tensor:
    return 5 + 3 * torch.randn(batch, channels, side, side, side)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pointwise_convolution_is_conv3d(layout: torch.memory_format) -> None:
    conv, x = PointwiseConv(6, 4, 1), features(6).to(memory_format=layout)
    expected = functional.conv3d(x, conv.weight, conv.bias)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_grid_norm_is_group_norm_in_higher_precision(layout: torch.memory_format) -> None:
    norm, conv = GridNorm(8, 16), PointwiseConv(16, 4, 1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = features(16).to(memory_format=layout)
    before = x.clone()
    exact = nn.GroupNorm(8, 16).double()
    exact.load_state_dict(norm.state_dict())
    expected = functional.gelu(exact(x.double())).float()
    with torch.no_grad():
        torch.testing.assert_close(norm.activated(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(norm.activated_conv(x, conv), conv(expected))
    assert torch.equal(x, before)


def test_detail_sums_equal_the_plain_formula() -> None:
    conv, half, full = PointwiseConv(6, 16, 1), features(6), features(16)
    weights = torch.randn(2, 3, 16)
    expected = detail_sums(conv, half, full, weights)  # with gradients: library calls
    with torch.no_grad():
        torch.testing.assert_close(detail_sums(conv, half, full, weights), expected)


def test_memory_is_used_again_only_where_no_gradient_is_recorded() -> None:
    x, other = torch.randn(5), torch.randn(5)
    kept = x.clone()
    activate(x)
    add_to(x, other)
    assert torch.equal(x, kept)
    with torch.no_grad():
        assert add_to(x, other) is x
        assert activate(x) is x


def test_inference_equals_the_path_that_training_takes() -> None:
    torch.manual_seed(0)
    config = replace(HR_S, image_size=32, embed_dim=48, depth=2, num_heads=2, out_dim=48)
    model = build_model(config).eval()
    image, points = torch.randn(2, 1, 32, 32, 32), 32 * torch.rand(2, 2, 3)
    labels = torch.ones(2, 2)

    def answer() -> tuple[torch.Tensor, ...]:
        embedding = model.encode_image(image)
        logits, quality = model.decode_masks(embedding, points, labels, multimask=True)
        return embedding.tokens, *embedding.skips, logits, quality

    recorded = answer()
    with torch.inference_mode():
        first, second = answer(), answer()
    for a, b, c in zip(recorded, first, second, strict=True):
        torch.testing.assert_close(b, a.detach(), rtol=1e-4, atol=1e-5)
        assert torch.equal(b, c)


@pytest.mark.parametrize("factor", [2, 4])
def test_enlarging_is_trilinear_interpolation(factor: int) -> None:
    x = torch.randn(2, 3, 4, 6, 5)
    expected = torch.nn.functional.interpolate(x, scale_factor=factor, mode="trilinear")
    with torch.inference_mode():
        torch.testing.assert_close(enlarge(x, factor), expected)
    assert torch.equal(enlarge(x, factor), expected), "training takes the library's"
