"""The one road from a volume to a model's input, for training, evaluation and sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastsam3d.preprocess.intensity import normalise
from fastsam3d.preprocess.roi import cut_roi
from fastsam3d.preprocess.window import ct_window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fastsam3d.preprocess.roi import Roi
    from fastsam3d.volume import Volume


def prepare_rois(
    volume: Volume,
    rois: Sequence[Roi],
    *,
    normalisation: str,
    device: torch.device | str = "cpu",
    ct_window_hu: float | None = None,
) -> Tensor:
    """Cut ROIs out of a volume and normalise them.

    Args:
        volume: Where to cut; only the boxes of the ROIs are read.
        rois: What to cut, all of one size S; at least one.
        normalisation: A key of `intensity.NORMALISATIONS`.
        device: Where the result is wanted.
        ct_window_hu: Show CT through windows of at least this half-width, see `window.ct_window`;
            None shows all intensities.

    Returns:
        Model input, float32, shape (B, 1, S, S, S), RAS-canonical axes; exactly zero everywhere
        where a scan is constant.
    """
    # One at a time: the normalisation's passes then stay near the cache.
    parts: list[Tensor] = []
    for roi in rois:
        image, valid = cut_roi(volume.array, volume.geometry, roi)
        window = None if ct_window_hu is None else ct_window(volume, roi, ct_window_hu)
        if window is not None:
            image = image.clamp(*window)
        parts.append(normalise(image.to(device), valid.to(device), method=normalisation))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
