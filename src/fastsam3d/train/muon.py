"""Muon: momentum whose matrix updates are orthogonalised, batched over matrices of one shape.

Source: Keller Jordan et al., "Muon: an optimizer for hidden layers" (2024), quintic Newton-Schulz
iteration with its published coefficients; written anew and batched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastsam3d.train import foreach

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_STEPS = 5
# Parts of the names of first and last layers and of embeddings.
EDGE_NAMES = (
    "stem.",
    "output_tokens",
    "kinds",
    "position",
    "hyper.2",
    "hyper4.2",
    "quality.2",
    "detail",
    "patch_embed",
    "pos_embed",
    "rel_pos",
    "_token.",
    "_tokens.",
    "point_embeddings",
    "_point_embed",
    "_mask_embed",
    "mask_downscaling",  # idle at first clicks, where Muon would go on at full size
    "mlps.0.layers.2",
    "mlps.1.layers.2",
    "mlps.2.layers.2",
    "mlps.3.layers.2",
    "prediction_head.layers.2",
)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Push the singular values of each matrix (N, R, C) towards 1; computes in bfloat16 on CUDA."""
    a, b, c = COEFFICIENTS
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    is_tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if is_tall else x
    norms = cast("Tensor", x.flatten(1).norm(dim=1))  # pyright: ignore[reportUnknownMemberType]
    x = x / (norms[:, None, None] + 1e-7)
    for _ in range(NUM_STEPS):
        gram = x @ x.transpose(1, 2)
        # a x + (b gram + c gram gram) x, each sum inside the product's own kernel.
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.transpose(1, 2) if is_tall else x).to(matrices.dtype)


def is_muon_parameter(name: str, parameter: nn.Parameter) -> bool:
    """Tell whether a parameter is a hidden matrix or convolution, hence for Muon.

    The first and last layers, embeddings and everything one-dimensional stay with AdamW.
    """
    return parameter.ndim >= 2 and not any(part in name for part in EDGE_NAMES)


class Muon(torch.optim.Optimizer):
    """Muon over parameters with two or more axes; convolutions count as (out, in * kernel).

    Attributes:
        gate: Factor on the next updates, a scalar on the device, or None for 1. Zero skips a step
            without waiting for the device; a zero gradient would not, since any momentum that is
            left is orthogonalised to full size.

    Args:
        params: Parameters to update.
        lr: Learning rate, the root-mean-square size of an update of a square matrix.
        momentum: Nesterov momentum.
        weight_decay: Decoupled weight decay.
        replays: Record the orthogonalisation as a CUDA graph: asking for its hundreds of small
            products one by one takes longer than computing them.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        replays: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.gate: Tensor | None = None
        self._replays = replays
        self._recorded: dict[tuple[torch.Size, ...], _Recorded] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, group)

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        momentum, rate = float(group["momentum"]), float(group["lr"])
        weights, grads, buffers = zip(*(self._matrices(p) for p in parameters), strict=True)
        foreach.lerp_(buffers, grads, 1 - momentum)
        by_shape: defaultdict[torch.Size, list[int]] = defaultdict(list)
        for index, matrix in enumerate(weights):
            by_shape[matrix.shape].append(index)
        looked_ahead = foreach.lerp(grads, buffers, momentum)
        stacks = tuple(torch.stack([looked_ahead[i] for i in each]) for each in by_shape.values())
        directions = self._directions(stacks)
        if self.gate is not None:
            foreach.mul_(directions, self.gate)
        foreach.mul_(weights, 1 - rate * float(group["weight_decay"]))
        ordered = [weights[i] for each in by_shape.values() for i in each]
        updates = [update for stack in directions for update in stack.unbind()]
        foreach.add_(ordered, updates, alpha=-rate)

    def _matrices(self, parameter: nn.Parameter) -> tuple[Tensor, Tensor, Tensor]:
        """Return a parameter, its gradient and its momentum as matrices of one layout.

        Columns are in the order of the parameter's memory, so that nothing is copied: their order
        is no matter to the orthogonalisation.
        """
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        rows = len(parameter)
        if parameter.ndim != 5 or parameter.is_contiguous():
            return (
                parameter.view(rows, -1),
                grad.reshape(rows, -1),
                state["momentum"].view(rows, -1),
            )
        order = (0, 2, 3, 4, 1)
        return (
            parameter.permute(order).view(rows, -1),
            grad.permute(order).reshape(rows, -1),
            state["momentum"].permute(order).view(rows, -1),
        )

    def _directions(self, stacks: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the updates at learning rate 1; the next call may overwrite them."""
        if not self._replays:
            return _directions_of(*stacks)
        shapes = tuple(stack.shape for stack in stacks)
        if shapes not in self._recorded:
            self._recorded[shapes] = _Recorded(stacks)
        return self._recorded[shapes](stacks)


def _directions_of(*stacks: Tensor) -> tuple[Tensor, ...]:
    """Return the orthogonalised matrices of each stack (N, R, C), as large as they should be."""
    return tuple(orthogonalise(s) * max(1.0, s.shape[1] / s.shape[2]) ** 0.5 for s in stacks)


class _Recorded:
    """`_directions_of` stacks of certain shapes as one CUDA graph."""

    def __init__(self, stacks: tuple[Tensor, ...]) -> None:
        self._inputs = [stack.clone() for stack in stacks]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries choose kernels and take memory outside the graph
            _directions_of(*self._inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        # Another thread pins memory for the batches to come meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs = _directions_of(*self._inputs)

    def __call__(self, stacks: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        foreach.copy_(self._inputs, stacks)
        self._graph.replay()
        return self._outputs
