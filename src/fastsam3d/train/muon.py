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
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.gate: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            by_shape: defaultdict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape[0], parameter[0].numel()].append(parameter)
            for shape, parameters in by_shape.items():
                self._update(shape, parameters, group)

    def _update(
        self, shape: tuple[int, int], parameters: list[nn.Parameter], group: dict[str, Any]
    ) -> None:
        momentum, rate = float(group["momentum"]), float(group["lr"])
        grads: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        buffers: list[Tensor] = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            buffers.append(state["momentum"])
        foreach.lerp_(buffers, grads, 1 - momentum)
        looked_ahead = foreach.lerp(grads, buffers, momentum)
        matrices = torch.stack([u.reshape(shape) for u in looked_ahead])
        updates = orthogonalise(matrices) * max(1.0, shape[0] / shape[1]) ** 0.5
        if self.gate is not None:
            updates = updates * self.gate
        foreach.mul_(parameters, 1 - rate * float(group["weight_decay"]))
        parts = [u.view_as(p) for u, p in zip(updates, parameters, strict=True)]
        foreach.add_(parameters, parts, alpha=-rate)
