"""How well a mask agrees with the truth; the rules for empty masks are stated here only.

============  =====================================  ============  ==========
figure        what it is                             both empty    one empty
============  =====================================  ============  ==========
Dice          shared volume over mean volume         1             0
NSD           shared surface over mean surface       1             0
HD95          95th percentile of surface distances   0             undefined
============  =====================================  ============  ==========

Surfaces are those of `fastsam3d.eval.surface`. Masks are (I, J, K) on one grid, spacing in mm.

Source: NSD and HD95 as defined by DeepMind's surface-distance (see `fastsam3d.eval.surface`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsam3d.errors import DatasetError
from fastsam3d.eval.surface import Spacing, surface_of
from fastsam3d.eval.surface_distance import SurfaceTree, robust_maximum
from fastsam3d.prompts.simulate import bounding_box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CHALLENGE_MIN_DSC = 0.2


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Agreement of one mask with the truth.

    Attributes:
        dice: 0 to 1.
        nsd_1mm: Normalised surface Dice at a tolerance of 1 mm, 0 to 1.
        nsd_2mm: The same at 2 mm.
        hd95_mm: 95th percentile of the surface distances; None where one mask is empty.
    """

    dice: float
    nsd_1mm: float
    nsd_2mm: float
    hd95_mm: float | None


class MaskScorer:
    """Scores masks against one truth, whose surface is found once.

    Args:
        truth: The structure, any dtype, non-zero inside, (I, J, K).
        spacing: Voxel size in mm.

    Raises:
        DatasetError: `truth` is not 3-D or the spacing is not positive.
    """

    def __init__(self, truth: NDArray[Any], spacing: Spacing) -> None:
        if np.ndim(truth) != 3 or not all(np.isfinite(mm) and mm > 0 for mm in spacing):
            raise DatasetError(
                f"Truth must be 3-D with positive spacing, got shape {np.shape(truth)} and "
                f"{spacing} mm; take both from one volume."
            )
        self._truth = _inside(truth)
        self._spacing = spacing
        self._box = bounding_box(self._truth)
        self._voxels = int(np.count_nonzero(self._truth))
        self._surface = surface_of(self._truth, spacing)
        self._tree = SurfaceTree(self._surface, spacing) if self._voxels else None

    def score(self, mask: NDArray[Any]) -> Scores:
        """Compare a mask with the truth.

        Args:
            mask: Any dtype, non-zero inside, shape of the truth.

        Raises:
            DatasetError: The shapes differ.
        """
        _check_shapes(mask, self._truth)
        inside = _inside(mask)
        box = bounding_box(inside)
        if box is None or self._box is None or self._tree is None:
            both = 1.0 if box is None and self._box is None else 0.0
            return Scores(
                dice=both, nsd_1mm=both, nsd_2mm=both, hd95_mm=0.0 if both == 1.0 else None
            )
        shared = int(np.count_nonzero(inside[self._box] & self._truth[self._box]))
        total = self._voxels + int(np.count_nonzero(inside[box]))
        found = surface_of(inside, self._spacing)
        to_mask = SurfaceTree(found, self._spacing).distances(self._surface)
        to_truth = self._tree.distances(found)
        pairs = ((to_mask, self._surface.areas), (to_truth, found.areas))
        return Scores(
            dice=2.0 * shared / total,
            nsd_1mm=_surface_dice(pairs, 1.0),
            nsd_2mm=_surface_dice(pairs, 2.0),
            hd95_mm=max(robust_maximum(distances, areas) for distances, areas in pairs),
        )


def dice(mask: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the Dice overlap of two masks of one shape, non-zero inside.

    Raises:
        DatasetError: The shapes differ.
    """
    _check_shapes(mask, truth)
    inside, wanted = mask != 0, truth != 0
    total = int(np.count_nonzero(inside)) + int(np.count_nonzero(wanted))
    if total == 0:
        return 1.0
    return 2.0 * int(np.count_nonzero(inside & wanted)) / total


def volume_ml(mask: NDArray[Any], spacing: Spacing) -> float:
    """Return the volume of a mask in millilitres; spacing in mm."""
    return int(np.count_nonzero(mask)) * float(np.prod(spacing)) / 1000.0


def trapezoid_area(values: Sequence[float]) -> float:
    """Return the area under figures after clicks 1, 2, ..., clicks one unit apart.

    Five clicks give at most 4, as in the CVPR 2025 challenge, whose box round does not count.

    Raises:
        DatasetError: There are fewer than two values, so that there is no area.
    """
    if len(values) < 2:
        raise DatasetError(f"An area needs at least two rounds, got {len(values)}; click more.")
    return float(sum(values)) - 0.5 * (values[0] + values[-1])


def challenge_nsd(mean_dsc: float, mean_nsd_2mm: float) -> float:
    """Return the surface Dice that the CVPR 2025 challenge counts for one case and round.

    Args:
        mean_dsc: Mean Dice over the classes of the case.
        mean_nsd_2mm: Mean NSD at 2 mm over its classes.

    Returns:
        `mean_nsd_2mm`, or 0 unless `mean_dsc` is above 0.2.

    Source: CVPR25_iter_eval.py of JunMa11/CVPR-MedSegFMCompetition (Apache-2.0).
    """
    return mean_nsd_2mm if mean_dsc > CHALLENGE_MIN_DSC else 0.0


DistancesAndAreas = tuple["NDArray[np.float64]", "NDArray[np.float64]"]


def _surface_dice(pairs: Sequence[DistancesAndAreas], tolerance_mm: float) -> float:
    near = sum(float(areas[distances <= tolerance_mm].sum()) for distances, areas in pairs)
    return near / sum(float(areas.sum()) for _, areas in pairs)


def _inside(mask: NDArray[Any]) -> NDArray[np.bool_]:
    return mask if mask.dtype == np.bool_ else mask != 0


def _check_shapes(mask: NDArray[Any], truth: NDArray[Any]) -> None:
    if mask.shape != truth.shape:
        raise DatasetError(
            f"Mask has shape {mask.shape} and truth {truth.shape}; put both on one grid."
        )
