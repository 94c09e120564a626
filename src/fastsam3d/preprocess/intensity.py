"""Intensity normalisation of ROIs: what the trainer and every session do alike.

All functions are batched, run on the ROI's device and never wait for the accelerator. A *valid*
voxel lies inside the scan; the others are padding of the ROI.

Shape legend: B batch, I J K ROI axes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastsam3d.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

LOWER_PERCENTILE = 0.5
UPPER_PERCENTILE = 99.5
# The statistics see every 4th voxel per axis, starting at 2: 32^3 of 128^3 are plenty.
SAMPLE_START = 2
SAMPLE_STRIDE = 4
MIN_STD = 1e-6
# Interpolating a constant scan leaves rounding noise of about 1e-6 of its brightness.
MIN_RELATIVE_STD = 1e-5
# Fewer valid voxels than this on the coarse sample mean a scan thinner than its stride, within the
# ROI; the statistics then come from the centre of the ROI, where the click is.
MIN_SAMPLES = 64
_CORE_HALF_WIDTH = 8
# Squares of clamped intensities still fit float32.
_MAX_INTENSITY = 1e15


def roi_percentile_zscore(image_B1IJK: Tensor, valid_B1IJK: Tensor) -> Tensor:
    """Clip each ROI to its percentiles and give it zero mean and unit deviation.

    Percentiles, mean and deviation are those of the valid voxels on a coarse sample (of the
    centre of the ROI, where the scan is too thin for the sample).

    Args:
        image_B1IJK: Raw intensities, float32, shape (B, 1, I, J, K).
        valid_B1IJK: Whether a voxel lies inside the scan; bool, same shape.

    Returns:
        Normalised image, float32, same shape; voxels outside the scan have the value of the
        lower percentile; all zeros where nothing is valid or the deviation is below `MIN_STD` or
        `MIN_RELATIVE_STD` of the brightness.
    """
    sample_BT, is_used_BT = _statistics_sample(image_B1IJK, valid_B1IJK)
    count_B1 = is_used_BT.sum(1, keepdim=True)
    low_B1, high_B1 = _percentiles(sample_BT, is_used_BT, count_B1)
    # Heights above the lower percentile: exactly zero for a constant image of any brightness.
    clipped_BT = torch.where(is_used_BT, sample_BT.clamp(low_B1, high_B1) - low_B1, 0.0)
    divisor_B1 = count_B1.clamp(min=1)
    mean_B1 = clipped_BT.sum(1, keepdim=True) / divisor_B1
    deviation_BT = torch.where(is_used_BT, clipped_BT - mean_B1, 0.0)
    std_B1 = (deviation_BT.square().sum(1, keepdim=True) / divisor_B1).sqrt()
    scale_B1 = _inverse(std_B1, brightness=torch.maximum(low_B1.abs(), high_B1.abs()))
    low, high, mean, scale = (
        value_B1[:, :, None, None, None] for value_B1 in (low_B1, high_B1, mean_B1, scale_B1)
    )
    # In place: on a CPU, memory never touched before costs more than the arithmetic.
    image = torch.where(valid_B1IJK, image_B1IJK.to(torch.float32), low)
    return image.clamp_(low, high).sub_(low).sub_(mean).mul_(scale)


def foreground_zscore(image_B1IJK: Tensor, valid_B1IJK: Tensor) -> Tensor:
    """Give the voxels above zero of each ROI zero mean and unit deviation.

    Voxels outside the scan count as zero, and zero and negative voxels are shifted and scaled
    like the others.

    Args:
        image_B1IJK: Raw intensities, float32, shape (B, 1, I, J, K).
        valid_B1IJK: Whether a voxel lies inside the scan; bool, same shape.

    Returns:
        Normalised image, float32, same shape; all zeros where the foreground has fewer than two
        voxels or too small a deviation, as above.

    Source: the preprocessing of SAM-Med3D (uni-medical/SAM-Med3D, Apache-2.0), which is
        torchio's ZNormalization with a mask of positive voxels and the unbiased deviation.
    """
    image = image_B1IJK.to(torch.float32).clamp(-_MAX_INTENSITY, _MAX_INTENSITY)
    image = torch.where(valid_B1IJK, image, 0.0)
    is_foreground = image > 0
    axes = (1, 2, 3, 4)
    # Depths below the brightest voxel: exactly zero for a constant foreground.
    brightest = image.amax(axes, keepdim=True)
    image = image - brightest
    count = is_foreground.sum(axes, keepdim=True)
    mean = torch.where(is_foreground, image, 0.0).sum(axes, keepdim=True) / count.clamp(min=1)
    squares = torch.where(is_foreground, image - mean, 0.0).square().sum(axes, keepdim=True)
    std = (squares / (count - 1).clamp(min=1)).sqrt()
    scale = _inverse(std, brightness=brightest.abs())
    return (image - mean) * torch.where(count > 1, scale, 0.0)


NORMALISATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "roi_percentile_zscore": roi_percentile_zscore,
    "foreground_zscore": foreground_zscore,
}


def normalise(image_B1IJK: Tensor, valid_B1IJK: Tensor, *, method: str) -> Tensor:
    """Normalise ROIs by the method that a weights card names.

    Args:
        image_B1IJK: Raw intensities, float32, shape (B, 1, I, J, K).
        valid_B1IJK: Whether a voxel lies inside the scan; bool, same shape.
        method: A key of `NORMALISATIONS`.

    Raises:
        ConfigError: `method` is unknown.
    """
    if method not in NORMALISATIONS:
        known = ", ".join(NORMALISATIONS)
        message = f"Normalisation must be one of {known}, got {method!r}; correct the weights card."
        raise ConfigError(message)
    return NORMALISATIONS[method](image_B1IJK, valid_B1IJK)


def _inverse(std: Tensor, *, brightness: Tensor) -> Tensor:
    """Return 1 / std, and 0 where the deviation is only noise of the arithmetic."""
    floor = (brightness * MIN_RELATIVE_STD).clamp(min=MIN_STD)
    return torch.where(std > floor, 1.0 / std.clamp(min=MIN_STD), 0.0)


def _statistics_sample(image_B1IJK: Tensor, valid_B1IJK: Tensor) -> tuple[Tensor, Tensor]:
    """Return intensities (B, T) and which of them make the statistics (B, T)."""
    coarse = slice(SAMPLE_START, None, SAMPLE_STRIDE)
    wide_valid_BT = valid_B1IJK[:, 0, coarse, coarse, coarse].flatten(1)
    is_wide_B1 = wide_valid_BT.sum(1, keepdim=True) >= MIN_SAMPLES
    values = [image_B1IJK[:, 0, coarse, coarse, coarse].flatten(1)]
    used = [wide_valid_BT & is_wide_B1]
    # The spare sample is always gathered and switched off by its mask: asking whether it is
    # needed would wait for the accelerator, and it adds little to the sort.
    for part in _central_parts(image_B1IJK.shape[2]):
        values.append(image_B1IJK[:, 0, *part].flatten(1))
        used.append(valid_B1IJK[:, 0, *part].flatten(1) & ~is_wide_B1)
    sample_BT = torch.cat(values, 1).to(torch.float32).clamp(-_MAX_INTENSITY, _MAX_INTENSITY)
    return sample_BT, torch.cat(used, 1)


def _central_parts(size: int) -> list[tuple[slice, slice, slice]]:
    """Index of the three central planes (every 4th voxel) and of the central cube."""
    coarse = slice(SAMPLE_START, None, SAMPLE_STRIDE)
    centre = size // 2
    plane = slice(centre, centre + 1)
    core = slice(max(0, centre - _CORE_HALF_WIDTH), centre + _CORE_HALF_WIDTH)
    return [
        (plane, coarse, coarse),
        (coarse, plane, coarse),
        (coarse, coarse, plane),
        (core, core, core),
    ]


def _percentiles(sample_BT: Tensor, is_used_BT: Tensor, count_B1: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lower and upper percentile (B, 1) of the used voxels; 0 without any."""
    ordered_BT = torch.where(is_used_BT, sample_BT, torch.inf).sort(1).values

    def percentile(percent: float) -> Tensor:
        rank_B1 = (count_B1 - 1).clamp(min=0) * (percent / 100.0)
        below_B1 = rank_B1.floor()
        fraction_B1 = rank_B1 - below_B1
        first_B1 = ordered_BT.gather(1, below_B1.long())
        second_B1 = ordered_BT.gather(1, rank_B1.ceil().long())
        return torch.where(count_B1 > 0, first_B1 + fraction_B1 * (second_B1 - first_B1), 0.0)

    return percentile(LOWER_PERCENTILE), percentile(UPPER_PERCENTILE)
