"""Random walker: every voxel goes to the seed that a random walk would meet first."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from fastsam3d.eval.baselines.workbox import (
    OBJECT_SEED,
    BoxBaseline,
    WorkBox,
    import_segmentation,
    plant_seeds,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

BETA = 20_000.0
"""How strongly an intensity step stops a walk; chosen on the development cases."""
SEED_MM = 4.0
TOLERANCE = 1e-3


class RandomWalker(BoxBaseline):
    """Solves for the probability that a walk meets an object seed before a background seed.

    Object seeds are balls of `SEED_MM` around the positive clicks; background seeds are those of
    the negative clicks and the rim of the box.

    Source: L. Grady, "Random walks for image segmentation", IEEE TPAMI 28, 2006; scikit-image's
    solver.
    """

    reach_mm = 45.0
    max_blocks = 80_000

    def _field(
        self, work: WorkBox, positive: NDArray[np.intp], negative: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        segmentation = import_segmentation()
        seeds = plant_seeds(work, positive, negative, SEED_MM)
        if seeds.all() or not work.array.std():  # the solver scales by the deviation
            return (seeds == OBJECT_SEED).astype(np.float32)
        with warnings.catch_warnings():
            # Probabilities a little outside of 0 to 1 still tell object from background.
            warnings.simplefilter("ignore", UserWarning)
            solved = segmentation.random_walker(
                work.array,
                seeds,
                beta=BETA,
                mode="cg_j",
                tol=TOLERANCE,
                spacing=np.array(work.spacing),
                return_full_prob=True,
            )
        return np.asarray(solved[0], dtype=np.float32)
