"""Small layers shared by the encoder, the prompt encoder and the mask decoder.

Only what two modules need lives here. Attribute names (`lin1`, `layers`, `weight`) are part of the
official state dict and must not change.

Shape legend: B batch, C channels, I J K grid axes.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# How torch's layers draw their first weights.
_DRAWS = frozenset(
    (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, Tensor.uniform_, Tensor.normal_)
)


class without_random_weights(TorchFunctionMode):  # noqa: N801 - reads as a context
    """Leave the weights of modules built within as the memory was, for those about to be loaded.

    Drawing them takes as long as reading a file of weights, and touches as much memory again. Only
    the thread that builds is affected.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call what is asked for, unless it draws random numbers into a tensor."""
        given = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


class FeedForward(nn.Module):
    """Two linear layers with an activation in between, the transformer's feed-forward part."""

    def __init__(self, dim: int, hidden_dim: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden_dim)
        self.lin2 = nn.Linear(hidden_dim, dim)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., dim)."""
        return self.lin2(self.act(self.lin1(x)))


class ChannelNorm3d(nn.Module):
    """Layer norm over the channel axis of a (B, C, I, J, K) grid, with one gain per channel."""

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x_BCIJK: Tensor) -> Tensor:
        """Return the normalised grid, same shape."""
        centred = x_BCIJK - x_BCIJK.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        gain, shift = (p.view(-1, 1, 1, 1) for p in (self.weight, self.bias))
        return gain * (centred * torch.rsqrt(variance + self.eps)) + shift


class HeadMLP(nn.Module):
    """Linear layers with ReLU between them: the decoder's small prediction heads."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [in_dim, *([hidden_dim] * (num_layers - 1)), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_dim) to (..., out_dim)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x).relu()
        return last(x)
