"""Training keeps channels last: same numbers, and no convolution sees a grid turned round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from fastsam3d.model import channels_last
from fastsam3d.model.hr import HighResSam3D
from fastsam3d.model.hr_decoder import Prompts
from fastsam3d.model.hr_layers import space_to_depth
from fastsam3d.train.config import recipe
from fastsam3d.train.families import family_of
from fastsam3d.train.task import SegmentationTask
from tests.train.toy import SIZE, TOY, toy_model

LAST = torch.channels_last_3d
LAYOUTS = [torch.contiguous_format, LAST]


def is_last(grid: Tensor) -> bool:
    return grid.is_contiguous(memory_format=LAST)


@pytest.fixture
def as_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the ways of a compiled stage, without the compiler."""
    # Not the function: a compiler that first looks at it meanwhile would not know it afterwards.
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_group_norm_is_the_librarys_in_values_gradients_and_layout(
    layout: torch.memory_format,
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(24, dtype=torch.float64, requires_grad=True)
    grid = (5 + 3 * torch.randn(2, 24, 3, 4, 5, dtype=torch.float64)).to(memory_format=layout)
    grid.requires_grad_()
    pull = torch.randn(2, 24, 3, 4, 5, dtype=torch.float64).to(memory_format=layout)
    found: list[list[Tensor]] = []
    for norm in (channels_last.group_norm, functional.group_norm):
        values = norm(grid, 8, weight, bias, 1e-5)
        found.append([values, *torch.autograd.grad(values, (grid, weight, bias), pull)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert all(each.is_contiguous(memory_format=layout) for each in found[0][:2])


def test_group_norm_of_half_precision_counts_in_that_of_the_weights() -> None:
    torch.manual_seed(0)
    grid = (40 + torch.randn(1, 16, 16, 16, 16)).bfloat16()
    ones, zeros = torch.ones(16), torch.zeros(16)
    ours = channels_last.group_norm(grid, 8, ones, zeros, 1e-5)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, functional.group_norm(grid.float(), 8, ones, zeros, 1e-5))


def test_reshapes_move_the_same_values_into_channels_that_lie_last() -> None:
    grid = torch.arange(2 * 3 * 4**3).view(2, 3, 4, 4, 4).float()
    maps = list(grid.unbind(1))
    assert torch.equal(channels_last.stack(maps), torch.stack(maps, 1))
    assert torch.equal(channels_last.repeat(grid, 3), grid.repeat_interleave(3, 0))
    with torch.no_grad():
        assert torch.equal(channels_last.space_to_depth(grid), space_to_depth(grid))
    made = (channels_last.stack(maps), channels_last.repeat(grid, 2), space_to_depth(grid))
    assert all(map(is_last, made))


def prompts(count: int) -> Prompts:
    torch.manual_seed(1)
    side = SIZE // 2
    return Prompts(
        torch.rand(count, 3, 3) * SIZE,
        torch.tensor([1.0, 0.0, -1.0]).expand(count, 3),
        torch.tensor([4.0, 4, 4, 20, 20, 20]).expand(count, 6),
        torch.randn(count, 1, side, side, side).clamp(-1, 1),
    )


def loss_and_gradients(model: HighResSam3D) -> list[Tensor]:
    task = SegmentationTask(family_of(model), recipe("debug"))
    torch.manual_seed(2)
    parts = task.encode(torch.randn(1, 1, SIZE, SIZE, SIZE))
    logits, quality, rough = task.decode(parts, prompts(2), True)
    loss = torch.sigmoid(logits).mean() + quality.square().mean() + torch.sigmoid(rough).mean()
    model.zero_grad()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def test_a_compiled_step_has_the_loss_and_gradients_of_an_eager_one(
    request: pytest.FixtureRequest,
) -> None:
    plain = loss_and_gradients(toy_model())
    request.getfixturevalue("as_compiled")
    laid_out = loss_and_gradients(toy_model().to(memory_format=LAST))
    for ours, theirs in zip(laid_out, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


class _Convolutions(TorchDispatchMode):
    """Note the grids that convolutions and their gradients are given."""

    def __init__(self) -> None:
        super().__init__()
        self.grids: list[tuple[Tensor, ...]] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.grids.append(args[:2])
        if func is torch.ops.aten.convolution_backward.default:
            self.grids.append(args[:3])
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("as_compiled")
def test_every_convolution_of_a_step_is_given_grids_with_channels_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What a GPU's library does: channels last as soon as the input or the weights have it.
    monkeypatch.setattr(
        torch._C,
        "_conv_determine_backend_memory_format",
        lambda x, w, _: LAST if is_last(x) or is_last(w) else torch.contiguous_format,
    )
    with FakeTensorMode(), _Convolutions() as seen:
        model = HighResSam3D(TOY)
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                if weight.ndim == 5:
                    setattr(
                        module, name, torch.nn.Parameter(weight.detach().to(memory_format=LAST))
                    )
        task = SegmentationTask(family_of(model), recipe("debug"), autocast=True)
        parts = task.encode(torch.randn(2, 1, SIZE, SIZE, SIZE))
        logits, quality, rough = task.decode(parts, prompts(4), True)
        (logits.float().mean() + quality.float().mean() + rough.float().mean()).backward()
    assert len(seen.grids) == 2 * 28
    assert all(is_last(grid) for grids in seen.grids for grid in grids)
