"""How an interactive evaluation is run: which structures, how many clicks, placed how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastsam3d.errors import ConfigError
from fastsam3d.prompts.simulate import PLACEMENTS, Placement

if TYPE_CHECKING:
    from fastsam3d.eval.cases import EvalCase


@dataclass(frozen=True, kw_only=True)
class InteractionProtocol:
    """A click protocol; the truth places clicks and scores masks, nothing else.

    Attributes:
        num_clicks: Clicks per structure; the mask after each is scored, the last one counts.
        placement: Where clicks land in the largest mistake.
        min_voxels: Smaller structures are no targets.
        max_targets: Structures per case, evenly spread over its label values; None = all.
        seed: For placements that draw numbers.
    """

    num_clicks: int = 5
    placement: Placement = "centre"
    min_voxels: int = 30
    max_targets: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.num_clicks < 1 or self.min_voxels < 1:
            raise ConfigError(
                f"num_clicks and min_voxels must be at least 1, got {self.num_clicks} and "
                f"{self.min_voxels}."
            )
        if self.max_targets is not None and self.max_targets < 1:
            raise ConfigError(f"max_targets must be at least 1, got {self.max_targets}; or None.")
        if self.placement not in PLACEMENTS:
            raise ConfigError(f"placement must be one of {PLACEMENTS}, got {self.placement!r}.")

    def targets(self, case: EvalCase) -> list[int]:
        """Return the label values of a case that are evaluated, ascending."""
        counts = np.bincount(case.labels.ravel())
        values = [int(v) for v in np.flatnonzero(counts >= self.min_voxels) if v > 0]
        if self.max_targets is None or len(values) <= self.max_targets:
            return values
        picks = np.linspace(0, len(values) - 1, self.max_targets).round().astype(int)
        return [values[p] for p in picks]
