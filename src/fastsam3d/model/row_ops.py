"""Few rows through a norm, a product and what follows, and attention among them.

The functions here are what is meant; where a Triton kernel serves, it computes the same in one
launch, see `fastsam3d.model.row_kernels`.

Shape legend: R rows, K inputs, N outputs, P places, B batch, Q queries, T tokens, H heads, D head
dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsam3d.model.fused_layers import unflatten
from fastsam3d.model.triton_kernels import HAS_TRITON

KERNELS = "fastsam3d.model.row_kernels"

Activation = Literal["none", "relu", "gelu"]
_ACTIVATIONS: tuple[Activation, ...] = ("none", "relu", "gelu")
_KERNEL_DTYPES = (torch.bfloat16, torch.float16)
_MOST_WHOLE = 512  # inputs that a program can hold to norm them
_MOST_DEPTH = 128
_ALIGNED = 16  # inputs of one step, and the fewest outputs of one program
FEW_ROWS = 64  # with more, the library's products are the faster ones


class RowLinear(nn.Module):
    """``residual + activation(product(norm(x) + place) + bias + table)``.

    Args:
        layer: Weights (N, K) and bias, copied.
        norm: Layer norm of the inputs, or None.
        table: Added to the product, (P, N), rows taken in turn; or None.
        placed: The place is added for so many outputs, the first ones.
        activation: After the sum, before the residual.
        is_stream: Return float32, in place of the weights' type.
        keeps: Return the normed rows as well.
    """

    weight: Tensor
    bias: Tensor
    gain: Tensor
    shift: Tensor
    table: Tensor

    def __init__(
        self,
        layer: nn.Linear,
        norm: nn.LayerNorm | None = None,
        *,
        table: Tensor | None = None,
        placed: int = 0,
        activation: Activation = "none",
        is_stream: bool = False,
        keeps: bool = False,
    ) -> None:
        super().__init__()
        self.placed, self.activation = placed, activation
        self.is_stream, self.keeps = is_stream, keeps
        self.eps = norm.eps if norm is not None else 0.0
        self.has_norm, self.has_table = norm is not None, table is not None
        parts = {"weight": layer.weight, "bias": layer.bias.float()}
        if norm is not None:
            parts |= {"gain": norm.weight.float(), "shift": norm.bias.float()}
        if table is not None:
            parts["table"] = table.float()
        for name, part in parts.items():
            self.register_buffer(name, part.detach().clone(), persistent=False)

    def reduce(self, dtype: torch.dtype) -> None:
        """Take the weights in another type; what is added stays in float32."""
        self.weight = self.weight.to(dtype)

    @property
    def _norm(self) -> list[Tensor]:
        return [self.gain, self.shift] if self.has_norm else []

    def forward(
        self, x: Tensor, *, place: Tensor | None = None, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the result (..., N), and with `keeps` the normed rows (..., K), else nothing.

        Args:
            x: Rows (..., K).
            place: As many values, or those of the last rows, taken in turn.
            residual: (..., N).
        """
        rows, places = x.flatten(0, -2), [] if place is None else [place.flatten(0, -2)]
        residuals = [] if residual is None else [residual.flatten(0, -2)]
        table = [self.table] if self.has_table else []
        is_served = self._serves(rows)
        linear = torch.ops.fastsam3d.row_linear if is_served else reference_linear
        found, kept = linear(
            rows,
            self.weight,
            self.bias,
            self._norm,
            places,
            table,
            residuals,
            self.eps,
            self.placed,
            _ACTIVATIONS.index(self.activation),
            self.is_stream,
            self.keeps,
        )
        return found.view(*x.shape[:-1], -1), kept.view(x.shape) if self.keeps else kept

    def _serves(self, rows: Tensor) -> bool:
        inputs, outputs = self.weight.shape[1], self.weight.shape[0]
        fits = len(rows) <= FEW_ROWS
        fits &= all(size % _ALIGNED == 0 for size in (inputs, outputs, self.placed))
        fits &= not self.has_norm or inputs <= _MOST_WHOLE
        return fits and _is_served(rows, self.weight.dtype)


def reference_linear(  # noqa: PLR0913, PLR0917 - arguments of the operator
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: Sequence[Tensor],
    place: Sequence[Tensor],
    table: Sequence[Tensor],
    residual: Sequence[Tensor],
    eps: float,
    placed: int,
    activation: int,
    is_stream: bool,
    keeps: bool,
) -> tuple[Tensor, Tensor]:
    """Return what `RowLinear` is, part by part; arguments as `row_kernels.row_linear`."""
    kept = x.new_empty(0, dtype=torch.float32)
    if norm:
        x = functional.layer_norm(x.float(), x.shape[-1:], norm[0], norm[1], eps)
        kept = x if keeps else kept
    found = functional.linear(x.to(weight.dtype), weight)
    if place:
        placed_x = x + _in_turn(place[0], len(x))
        first = functional.linear(placed_x.to(weight.dtype), weight[:placed])
        found = torch.cat([first, found[:, placed:]], dim=1)
    found = found.float() + bias
    if table:
        found = found + _in_turn(table[0], len(x))
    if activation:
        found = functional.relu(found) if activation == 1 else functional.gelu(found)
    if residual:
        found = found + residual[0]
    return found if is_stream else found.to(weight.dtype), kept


def row_attention(
    q_BQC: Tensor, k_BTC: Tensor, v_BTC: Tensor, num_heads: int, bias_BT: Tensor | None = None
) -> Tensor:
    """Return mixed values, (B, Q, H * D).

    Args:
        q_BQC: Queries, heads side by side.
        k_BTC: Keys.
        v_BTC: Values.
        num_heads: H.
        bias_BT: Added to the scores of each key, float32; or None.
    """
    bias = [] if bias_BT is None else [bias_BT]
    fits = q_BQC.shape[-1] <= num_heads * _MOST_DEPTH and _is_served(q_BQC, q_BQC.dtype)
    attend = torch.ops.fastsam3d.row_attention if fits else reference_attention
    return attend(q_BQC, k_BTC, v_BTC, bias, num_heads)


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Sequence[Tensor], heads: int
) -> Tensor:
    """Return what `row_attention` returns, by the library; arguments as the kernel's."""
    queries, keys, values = (unflatten(x, -1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    mask = bias[0][:, None, None].to(q.dtype) if bias else None
    mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return mixed.transpose(1, 2).flatten(2)


def _in_turn(places: Tensor, count: int) -> Tensor:
    return places if len(places) == count else places.repeat(count // len(places), 1)


def _is_served(x: Tensor, dtype: torch.dtype) -> bool:
    return HAS_TRITON and x.is_cuda and dtype in _KERNEL_DTYPES
