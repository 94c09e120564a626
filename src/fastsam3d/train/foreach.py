"""Operations on many tensors in one kernel each, the way torch's own optimisers do them.

Torch keeps these under private names. They are called from here only, so that a change in torch is
met in one place. A trailing underscore means that the first argument is changed in place.
"""
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all values of all tensors together, a scalar."""
    norms = torch.stack(torch._foreach_norm(list(tensors)))
    return cast("Tensor", norms.norm())  # pyright: ignore[reportUnknownMemberType]


def lerp(starts: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> Sequence[Tensor]:
    """Return ``start + weight * (end - start)`` for each pair."""
    return torch._foreach_lerp(list(starts), list(ends), weight)


def lerp_(starts: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """Do `lerp` in place."""
    torch._foreach_lerp_(list(starts), list(ends), weight)


def mul_(tensors: Sequence[Tensor], factor: Tensor | float) -> None:
    """Multiply every tensor by one factor."""
    torch._foreach_mul_(list(tensors), factor)


def add_(tensors: Sequence[Tensor], others: Sequence[Tensor], *, alpha: float) -> None:
    """Add `alpha` times the other tensor to each."""
    torch._foreach_add_(list(tensors), list(others), alpha=alpha)


def copy_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target."""
    torch._foreach_copy_(list(targets), list(sources))
