"""How sure an answer is: the same prompts a little elsewhere, many times, decoded in batches.

A user who clicks again does not hit the same voxel. Where that would change the mask, or where the
model itself hesitates, the answer is uncertain: both are in the mean of the probabilities over the
moved prompts. What this does not see is a mistake that the model makes every time.

Shape legend: I J K axes of the ROI; S samples, N points.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch

from fastsam3d.errors import ConfigError
from fastsam3d.preprocess.roi import (
    MASK_LOGIT_THRESHOLD,
    paste_values,
    roi_region,
    roi_to_voxel,
    voxel_to_roi,
)
from fastsam3d.prompts import Point
from fastsam3d.prompts.simulate import bounding_box
from fastsam3d.session.extent import clicked_parts
from fastsam3d.session.predictor import RoiPrompts
from fastsam3d.volume import Region, Volume

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from fastsam3d.preprocess.roi import Roi
    from fastsam3d.session.looks import LookBack
    from fastsam3d.volume import Geometry

MAX_SAMPLES: Final = 256
MAX_JITTER_MM: Final = 100.0
BATCH_BYTES: Final = 4 * 2**30
"""Memory to decode in on an accelerator."""
# Decoding one more set takes as much memory as so many embeddings, measured for `hr_s`.
_COPIES_PER_SAMPLE: Final = 3
_NEGLIGIBLE: Final = 0.01
_UNCERTAIN: Final = (0.25, 0.75)


@dataclass(frozen=True, eq=False, kw_only=True)
class UncertaintyMap:
    """How likely each voxel belongs to the object.

    Attributes:
        geometry: Grid of the volume.
        region: Box of the volume; outside of it the probability is below one percent, or the
            model did not look there at the newest prompt. Empty where nothing is likely.
        probability: float32 from 0 to 1, shape `region.shape`, read-only.
        stability: Mean IoU of the samples' masks and of the mask that they agree on; 1 where
            moving the prompts changes nothing.
        num_samples: How many sets of prompts were decoded, the given ones included.
    """

    geometry: Geometry = field(repr=False)
    region: Region
    probability: NDArray[np.float32] = field(repr=False)
    stability: float
    num_samples: int

    @property
    def entropy(self) -> NDArray[np.float32]:
        """Uncertainty in bits: 0 where the probability is 0 or 1, 1 where it is one half."""
        p = np.clip(self.probability, 1e-7, 1 - 1e-7)
        bits = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
        return np.where((self.probability > 0) & (self.probability < 1), bits, 0.0)

    def to_volume(self, quantity: Literal["probability", "entropy"] = "probability") -> Volume:
        """Return the map on the volume's whole grid, to be written or shown; 0 outside."""
        whole = np.zeros(self.geometry.shape, np.float32)
        whole[self.region.slices] = getattr(self, quantity)
        return Volume(whole, self.geometry)

    def suggest_point(self) -> Point | None:
        """Return where a click would settle most: the middle of the largest uncertain part.

        That is the voxel deepest inside of what is neither likely nor unlikely (probability of
        0.25 to 0.75), so a thin rim counts little and a doubtful lobe much.

        Returns:
            A voxel point with the likelier sign, for the user to confirm or to flip; None where
            nothing is uncertain.
        """
        low, high = _UNCERTAIN
        is_uncertain = (self.probability >= low) & (self.probability <= high)
        if not is_uncertain.any():
            return None
        ndimage: Any = import_module("scipy.ndimage")
        # Padded, so that the box's own faces bound the depth.
        depth = ndimage.distance_transform_edt(
            np.pad(is_uncertain, 1), sampling=self.geometry.spacing
        )[1:-1, 1:-1, 1:-1]
        at = np.unravel_index(int(depth.argmax()), depth.shape)
        voxel = np.add(at, self.region.start).tolist()
        return Point.voxel(voxel, positive=bool(self.probability[at] >= 0.5))


def map_uncertainty(
    look: LookBack,
    *,
    samples: int = 16,
    jitter_mm: float = 2.0,
    seed: int = 0,
    batch_size: int | None = None,
) -> UncertaintyMap:
    """Decode an answer's prompts again from places nearby.

    All points and the faces of the box move, the mask that the newest prompt went on from stays.

    Args:
        look: The answer and what the model was given for it.
        samples: Sets of prompts; the first is the given one.
        jitter_mm: Standard deviation of a move along each axis.
        seed: Of the moves; the same seed gives the same map.
        batch_size: How many sets to decode at once; by default as many as fit in `BATCH_BYTES`
            on an accelerator, and one on a CPU, which takes half the time of a batch there.

    Raises:
        ConfigError: A number is out of range.
        CheckpointError: The model returned logits that are not finite.
    """
    _check(samples, jitter_mm)
    sets = jittered_prompts(look, samples=samples, jitter_mm=jitter_mm, seed=seed)
    predictor = look.encoder.predictor
    size = _batch_size(look) if batch_size is None else batch_size
    total = torch.zeros((look.roi.size,) * 3, device=predictor.device)
    masks: list[Tensor] = []
    for start in range(0, samples, size):
        part = sets[start : start + size]
        logits = predictor.decode_batch(look.encoded, part, mask_logits_SSS=look.fed_logits)
        for one, prompts in zip(logits, part, strict=True):
            kept = clicked_parts(one, prompts.points[prompts.is_positive])
            # What no click reaches is background, however likely the model finds it.
            total += one.sigmoid().masked_fill(kept != one, 0.0)
            masks.append(kept > MASK_LOGIT_THRESHOLD)
    return _map_of(total / samples, masks, look.geometry, look.roi)


def jittered_prompts(
    look: LookBack, *, samples: int, jitter_mm: float, seed: int
) -> tuple[RoiPrompts, ...]:
    """Return sets of prompts in the ROI's frame, the given one first, the others moved.

    Points stay inside of the ROI and of the scan, and a box keeps at least a voxel per side.
    """
    given, roi = look.prompts, look.roi
    rng = np.random.default_rng(seed)
    deviation = jitter_mm / roi.spacing_mm
    shape = look.geometry.shape
    ends = voxel_to_roi([(0, 0, 0), tuple(n - 1 for n in shape)], look.geometry, roi)
    low, high = np.maximum(ends.min(0), 0), np.minimum(ends.max(0), roi.size - 1)
    sets = [given]
    for _ in range(samples - 1):
        moved = given.points + rng.normal(0.0, deviation, given.points.shape)
        box = given.box
        if box is not None:
            faces = np.clip(box + rng.normal(0.0, deviation, 6), 0, roi.size)
            start = np.minimum(faces[:3], roi.size - 1)
            box = np.concatenate([start, np.maximum(faces[3:], start + 1)])
        sets.append(RoiPrompts(np.clip(moved, low, high), given.is_positive, box))
    return tuple(sets)


def _batch_size(look: LookBack) -> int:
    if look.encoder.predictor.device.type == "cpu":
        return 1
    return max(1, BATCH_BYTES // (_COPIES_PER_SAMPLE * look.encoded.embedding.num_bytes))


def _map_of(
    mean_IJK: Tensor, masks: Sequence[Tensor], geometry: Geometry, roi: Roi
) -> UncertaintyMap:
    consensus = mean_IJK > 0.5
    stability = float(np.mean([_iou(mask, consensus) for mask in masks]))
    region = _likely_region(mean_IJK, geometry, roi)
    probability = np.zeros((0, 0, 0), np.float32)
    if not region.is_empty:
        # Logits are interpolated, as for masks, so that one half lies on the mask's own surface.
        logits = paste_values(torch.logit(mean_IJK, eps=1e-6), geometry, roi, region)
        probability = (1 / (1 + np.exp(-logits))).astype(np.float32)
    probability.setflags(write=False)
    return UncertaintyMap(
        geometry=geometry,
        region=region,
        probability=probability,
        stability=stability,
        num_samples=len(masks),
    )


def _likely_region(mean_IJK: Tensor, geometry: Geometry, roi: Roi) -> Region:
    """Return the voxels of the volume between the outermost ROI voxels that may be object."""
    box = bounding_box((mean_IJK >= _NEGLIGIBLE).cpu().numpy())
    if box is None:
        return Region((0, 0, 0), (0, 0, 0))
    corners = np.array([[side.start, side.stop] for side in box]).T - 0.5
    low, high = np.sort(roi_to_voxel(corners, geometry, roi), axis=0)
    # The slack keeps a voxel centre that lies on a face, whatever the last bits say.
    i0, j0, k0 = np.ceil(low - 1e-6).astype(int).tolist()
    i1, j1, k1 = np.floor(high + 1e-6).astype(int).tolist()
    region = Region((i0, j0, k0), (i1 + 1, j1 + 1, k1 + 1))
    return region.intersection(roi_region(geometry, roi))


def _iou(a: Tensor, b: Tensor) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def _check(samples: int, jitter_mm: float) -> None:
    if not 1 <= samples <= MAX_SAMPLES:
        message = f"Uncertainty takes 1 to {MAX_SAMPLES} samples, got {samples}."
        raise ConfigError(message)
    if not 0 <= jitter_mm <= MAX_JITTER_MM:
        message = f"Prompts can be moved by 0 to {MAX_JITTER_MM:g} mm, got {jitter_mm}."
        raise ConfigError(message)
