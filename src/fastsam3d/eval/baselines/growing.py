"""Region growing: connected voxels whose intensity is like that around the click."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastsam3d.eval.baselines.workbox import BoxBaseline, WorkBox

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMOOTHING_MM = 0.7
SAMPLE_MM = 3.0
LEAST_DEVIATION = 0.02
"""Of the box's intensity range; a flat sample would otherwise grow nothing."""
TOLERANCES = tuple(0.5 * 1.4**step for step in range(11))
"""In standard deviations of the sample, tried upwards."""
LEAK_MM = 20.0


class RegionGrowing(BoxBaseline):
    """Grows from every positive click within a tolerance that the scan itself suggests.

    The intensities within `SAMPLE_MM` of a click give a centre and a standard deviation. Of the
    tolerances `TOLERANCES` the widest is taken whose region does not leak, that is reach a face of
    the box; where even the narrowest leaks, it is cut off at `LEAK_MM` from the click. What is
    nearer to a negative click than to any positive one is barred. The regions of all positive
    clicks are united and their holes filled.
    """

    max_blocks = 1_000_000

    def _field(
        self, work: WorkBox, positive: NDArray[np.intp], negative: NDArray[np.intp]
    ) -> NDArray[np.bool_]:
        from scipy import ndimage  # noqa: PLC0415 - late, as all heavy imports here

        sigma = [SMOOTHING_MM / side for side in work.spacing]
        smooth = cast("Any", ndimage).gaussian_filter(work.array, sigma)
        allowed = np.ones(work.array.shape, dtype=np.bool_)
        if len(negative):
            allowed = _distance(work, negative) > _distance(work, positive)
        found = np.zeros(work.array.shape, dtype=np.bool_)
        for seed in positive:
            found |= self._grow(work, smooth, seed, allowed)
        return cast("Any", ndimage).binary_fill_holes(found) & allowed

    def _grow(
        self,
        work: WorkBox,
        smooth: NDArray[np.float32],
        seed: NDArray[np.intp],
        allowed: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        sample = work.ball(seed, SAMPLE_MM) & allowed
        sample[tuple(seed)] = True
        values = smooth[sample]
        spread = max(float(np.std(values)), LEAST_DEVIATION)
        deviation = np.where(allowed, np.abs(smooth - np.median(values)) / spread, np.inf)
        # The sample belongs to the region, or noise at the click could leave it alone.
        deviation[sample] = np.minimum(deviation[sample], TOLERANCES[0])
        rim = work.rim()
        grown: NDArray[np.bool_] | None = None
        for tolerance in TOLERANCES:
            region = _component(deviation <= tolerance, seed)
            if (region & rim).any():
                return region & work.ball(seed, LEAK_MM) if grown is None else grown
            grown = region
        return sample if grown is None else grown


def _distance(work: WorkBox, blocks: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the distance in mm of every block to the nearest of some."""
    from scipy import ndimage  # noqa: PLC0415 - late, as all heavy imports here

    away = np.ones(work.array.shape, dtype=np.bool_)
    away[tuple(blocks.T)] = False
    return cast("Any", ndimage).distance_transform_edt(away, sampling=work.spacing)


def _component(allowed: NDArray[np.bool_], seed: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Return the face-connected component of a block that is allowed itself."""
    from scipy import ndimage  # noqa: PLC0415 - late, as all heavy imports here

    labels = cast("Any", ndimage).label(allowed)[0]
    return np.asarray(labels == labels[tuple(seed)])
