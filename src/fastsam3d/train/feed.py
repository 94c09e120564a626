"""Batches drawn ahead of their steps, by processes of their own.

Drawing is Python and numpy: in a thread of the training process it takes turns with the launching
of kernels, and a step waits for both.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any, cast

from torch.utils.data import DataLoader, Dataset, Sampler

from fastsam3d.train.drawing import DrawnBatch

AHEAD = 4  # batches per process


class _Drawings(Dataset[DrawnBatch]):
    """The batch of each step."""

    def __init__(self, draw: Callable[[int], DrawnBatch]) -> None:
        self.draw = draw

    def __getitem__(self, index: int) -> DrawnBatch:
        return self.draw(index)


class _Steps(Sampler[int]):
    """All steps from one on."""

    def __init__(self, first_step: int) -> None:
        self.first_step = first_step

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first_step)


def drawn_ahead(
    draw: Callable[[int], DrawnBatch], first_step: int, *, workers: int, pin: bool
) -> Iterator[DrawnBatch]:
    """Return the batches of one step after another, without end.

    Args:
        draw: Returns the batch of a step; must not touch an accelerator.
        first_step: Where to begin.
        workers: Processes that draw; 0 draws here, when asked. They are forked, so that they share
            the training cases; where that is not possible, batches are drawn here.
        pin: Put the batches into pinned memory.
    """
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    count = workers if can_fork else 0
    loader = DataLoader(
        _Drawings(draw),
        sampler=_Steps(first_step),
        batch_size=None,
        num_workers=count,
        prefetch_factor=AHEAD if count else None,
        multiprocessing_context="fork" if count else None,
        pin_memory=pin,
    )
    return iter(cast("Any", loader))
