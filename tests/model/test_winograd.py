"""The short way through a convolution gives the library's result but for rounding."""

import copy

import pytest
import torch

from fastsam3d.model import winograd
from fastsam3d.model.hr_layers import ResidualConv
from fastsam3d.model.winograd import CubeConv, convolve


@pytest.mark.parametrize(
    "shape", [(4, 4, 4), (1, 5, 3), (2, 3, 6), (7, 4, 5), (9, 2, 2), (16, 3, 3)]
)
@pytest.mark.parametrize("chunk", [1, 2**18])
def test_any_grid_in_any_chunks_equals_conv3d(
    shape: tuple[int, int, int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "CHUNK_ELEMENTS", chunk)
    x, weight, bias = torch.randn(2, 3, *shape), torch.randn(5, 3, 3, 3, 3), torch.randn(5)
    x, weight, bias = x.double(), weight.double(), bias.double()
    expected = torch.nn.functional.conv3d(x, weight, bias, padding=1)
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        found = convolve(x.to(memory_format=layout), weight, bias)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    without = torch.nn.functional.conv3d(x, weight, padding=1)
    torch.testing.assert_close(convolve(x, weight, None), without, rtol=0, atol=1e-12)


def test_rounding_stays_near_that_of_the_library() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 64, 8, 8, 8), torch.randn(64, 64, 3, 3, 3)
    exact = torch.nn.functional.conv3d(x.double(), weight.double(), padding=1)
    error = (convolve(x, weight, None) - exact).abs().max() / exact.abs().max()
    assert error < 1e-5


@pytest.fixture
def short_ways(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that took the short way."""
    taken: list[tuple[int, ...]] = []

    def noted(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        taken.append(tuple(x.shape))
        return convolve(x, *rest)

    monkeypatch.setattr(winograd, "convolve", noted)
    return taken


def test_the_short_way_is_for_large_inputs_without_gradients(
    short_ways: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    conv, x = CubeConv(4, 4, 3, padding=1), torch.randn(1, 4, 6, 6, 6)
    plain = conv(x)
    with torch.inference_mode():
        assert torch.equal(conv(x), plain), "too small to repay it"
        monkeypatch.setattr(winograd, "MIN_ELEMENTS", x.numel())
        torch.testing.assert_close(conv(x), plain, rtol=1e-4, atol=1e-5)
        assert short_ways == [(1, 4, 6, 6, 6)]
        with torch.autocast("cpu", torch.bfloat16):
            conv(x)
        copy.deepcopy(conv).half()(x.half())
    assert torch.equal(conv(x), plain)
    assert len(short_ways) == 1


def test_weights_have_the_names_of_conv3d() -> None:
    plain = torch.nn.Conv3d(16, 16, 3, padding=1)
    unit = ResidualConv(16)
    unit.conv.load_state_dict(plain.state_dict())
    with torch.inference_mode():
        x = torch.randn(1, 16, 26, 26, 26)
        torch.testing.assert_close(unit.conv(x), plain(x), rtol=1e-4, atol=1e-5)
