"""Intensity and resolution changes of training ROIs, batched on the device.

`draw_axis_matrices` (CPU) builds one S x S matrix per ROI and axis that blurs, samples slices and
interpolates back; three matrix products apply it. `recolour` changes contrast, `degrade` adds bias
field, blur and noise.

Shape legend: B batch, S ROI side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

NUM_KNOTS = 6
NUM_FILTERS = 4
# Voxels on each side of the ROI centre, along each axis, whose median is the clicked tissue.
FOCUS_REACH = 3
# Chosen on the development CT, for weights that had seen CT through random windows
# (docs/training/log.md); what cards say of weights that were trained with windows.
FOCUS_HALF_WIDTH_HU = 150.0


@dataclass(frozen=True, kw_only=True)
class DegradeConfig:
    """Ranges of the artefacts; shares are probabilities.

    Attributes:
        share_blur: ROIs with isotropic loss of resolution, 1 to `max_blur` voxels.
        max_blur: Largest isotropic slice spacing in ROI voxels.
        share_thick: ROIs with thick slices along one axis.
        max_thick: Largest slice spacing in ROI voxels.
        share_nearest: Share of the thick-slice ROIs shown as steps rather than interpolated.
        bias: Largest standard deviation of the logarithm of the bias field (synthetic, real).
        noise: Largest standard deviation of the noise (synthetic, real).
        gamma: Standard deviation of the logarithm of gamma.
        share_remap: ROIs whose intensities pass a random piecewise linear map.
        share_invert: ROIs with inverted intensities.
        share_window: CT ROIs shown through a random window.
        share_focus: CT ROIs shown through the window of the tissue at the ROI centre, as sessions
            show them, see `fastsam3d.preprocess.window`; none of these has a random window.
        share_filter: ROIs whose voxels pass random filters of their neighbourhood, which changes
            contrasts and textures but no borders.
    """

    share_blur: float = 0.3
    max_blur: float = 3.0
    share_thick: float = 0.3
    max_thick: float = 10.0
    share_nearest: float = 0.4
    bias: tuple[float, float] = (0.6, 0.3)
    noise: tuple[float, float] = (0.12, 0.05)
    gamma: float = 0.35
    share_remap: float = 0.2
    share_invert: float = 0.12
    share_window: float = 0.35
    share_focus: float = 0.0
    share_filter: float = 0.0


def draw_axis_matrices(
    rng: np.random.Generator, batch: int, size: int, config: DegradeConfig
) -> NDArray[np.float32]:
    """Draw the resampling matrices of a batch.

    Returns:
        float32 (B, 3, S, S); rows sum to 1. Row i gives output voxel i from the input line.
    """
    spacing = np.ones((batch, 3))
    blurred = rng.random(batch) < config.share_blur
    spacing[blurred] = rng.uniform(1.0, config.max_blur, (int(blurred.sum()), 1))
    thick = np.flatnonzero(rng.random(batch) < config.share_thick)
    spacing[thick, rng.integers(3, size=len(thick))] = np.exp(
        rng.uniform(0, np.log(config.max_thick), len(thick))
    )
    nearest = rng.random((batch, 1, 1)) < config.share_nearest
    phase = rng.uniform(0, 1, (batch, 3, 1)) * spacing[..., None]
    sigma = np.maximum(0.42 * spacing * rng.uniform(0.7, 1.1, (batch, 3)), 0.25)
    matrices = np.tile(np.eye(size, dtype=np.float32), (batch, 3, 1, 1))
    # Unit spacing without blur is the identity: the slice phase must not shift the image.
    changed = spacing > 1.0
    step, phase, sigma = spacing[changed][:, None], phase[changed], sigma[changed]
    is_nearest = np.broadcast_to(nearest[..., 0], (batch, 3))[changed][:, None]
    slot = (np.arange(size) - phase) / step
    low = np.where(is_nearest, np.round(slot), np.floor(slot))
    share = np.where(is_nearest, 0.0, slot - low)[..., None]
    near = _profile(low * step + phase, sigma, size)
    far = _profile((low + 1) * step + phase, sigma, size)
    matrices[changed] = (1 - share) * near + share * far
    return matrices


def _profile(
    position: NDArray[np.float64], sigma: NDArray[np.float64], size: int
) -> NDArray[np.float64]:
    """Return normalised Gaussian weights of the input voxels around each position."""
    position = np.clip(position, 0, size - 1)
    offset = np.arange(size) - position[..., None]
    weights = np.exp(-0.5 * (offset / sigma[..., None, None]) ** 2) + 1e-12
    return weights / weights.sum(-1, keepdims=True)


def recolour(image: Tensor, is_ct: Tensor, *, config: DegradeConfig, ct_width: float) -> Tensor:
    """Window, filter, remap, invert and apply gamma.

    Args:
        image: Intensities of about 0..1, float32 (B, S, S, S).
        is_ct: CT ROIs, bool (B,).
        config: Ranges.
        ct_width: Hounsfield units per unit of a CT image.

    Returns:
        Intensities in 0..1, same shape.
    """
    batch, device = image.shape[0], image.device

    def draw() -> Tensor:
        return torch.rand(batch, 1, 1, 1, device=device)

    centre = (1024.0 - 150.0 + 450.0 * draw()) / ct_width
    width = 200.0 * torch.exp(2.3 * draw()) / ct_width
    chosen = draw()
    if config.share_focus:
        focus, focus_width = _focus_window(image, ct_width)
        is_focus = chosen < config.share_focus
        centre = torch.where(is_focus, focus, centre)
        width = torch.where(is_focus, focus_width, width)
    windowed = ((image - centre) / width + 0.5).clamp(0, 1)
    use = (chosen < config.share_focus + config.share_window) & is_ct[:, None, None, None]
    image = stretch(torch.where(use, windowed, image))
    if config.share_filter:
        image = torch.where(draw() < config.share_filter, random_filters(image), image)
    remapped = _remap(image, batch)
    image = torch.where(draw() < config.share_remap, remapped, image)
    image = torch.where(draw() < config.share_invert, 1 - image, image)
    gamma = torch.exp(config.gamma * torch.randn(batch, 1, 1, 1, device=device))
    return image.clamp(1e-4, 1).pow(gamma)


def _focus_window(image: Tensor, ct_width: float) -> tuple[Tensor, Tensor]:
    """Return centre and width of the window of the clicked tissue, up to a third off, (B, 1, 1, 1).

    The session's rule, see `fastsam3d.preprocess.window`, on intensities of 0..1.
    """
    batch, middle = image.shape[0], image.shape[1] // 2
    near = slice(middle - FOCUS_REACH, middle + FOCUS_REACH + 1)
    tissue = image[:, near, near, near].flatten(1).median(1).values[:, None, None, None]
    distance = (tissue * ct_width - 1024.0).abs()
    off = torch.exp(0.3 * (2 * torch.rand(batch, 1, 1, 1, device=image.device) - 1))
    return tissue, 2 * distance.clamp(min=FOCUS_HALF_WIDTH_HU) / ct_width * off


def random_filters(image: Tensor) -> Tensor:
    """Pass each ROI through a small random network of a voxel and its six neighbours.

    What lies side by side and looks different still does, mostly; which of the two is brighter,
    and how their textures look, is drawn anew.

    Args:
        image: Intensities in 0..1, float32 (B, S, S, S).

    Returns:
        Intensities in 0..1, same shape.

    Source: random networks as augmentation, GIN (arXiv 2111.12525), with a smaller neighbourhood.
    """
    batch, device = image.shape[0], image.device
    padded = functional.pad(image[:, None], (1,) * 6, mode="replicate")[:, 0] - 0.5
    inner = slice(1, -1)
    places: list[tuple[slice, ...]] = [(inner, inner, inner)]
    for axis in range(3):
        for side in (slice(0, -2), slice(2, None)):
            places.append(tuple(side if a == axis else inner for a in range(3)))  # noqa: PERF401
    weights = torch.randn(batch, NUM_FILTERS, len(places), device=device)
    weights[:, :, 0] *= 2.0
    shift = 0.3 * torch.randn(batch, NUM_FILTERS, device=device)
    share = torch.randn(batch, NUM_FILTERS, device=device)
    total = torch.zeros_like(image)
    for n in range(NUM_FILTERS):
        value = shift[:, n, None, None, None]
        for m, place in enumerate(places):
            value = value + weights[:, n, m, None, None, None] * padded[:, *place]
        bent = functional.leaky_relu(value, 0.2)
        total = total + share[:, n, None, None, None] * bent
    kept = torch.rand(batch, 1, 1, 1, device=device)
    return stretch(kept * image + (1 - kept) * stretch(total))


def stretch(image: Tensor) -> Tensor:
    """Map the 1st and 99th percentile of each ROI to 0 and 1, and clip.

    Artefacts are then in proportion to what the ROI shows: noise that is slight in a whole body
    would drown the contrast inside a liver.
    """
    sample = image[:, 4::8, 4::8, 4::8].flatten(1).sort(1).values
    last = sample.shape[1] - 1
    low, high = (sample[:, round(q * last), None, None, None] for q in (0.01, 0.99))
    return ((image - low) / (high - low).clamp(min=1e-3)).clamp(0, 1)


def _remap(image: Tensor, batch: int) -> Tensor:
    """Pass intensities through a random piecewise linear map, mostly but not always rising."""
    knots = torch.rand(batch, NUM_KNOTS, device=image.device)
    rising = torch.rand(batch, 1, device=image.device) < 0.6
    knots = torch.where(rising, knots.sort(1).values, knots)
    position = image * (NUM_KNOTS - 1)
    low = position.floor().clamp(0, NUM_KNOTS - 2)
    share = position - low
    index = low.long().flatten(1)
    first = knots.gather(1, index).view(image.shape)
    second = knots.gather(1, index + 1).view(image.shape)
    return first + share * (second - first)


def degrade(
    image: Tensor, axis_matrices: Tensor, *, num_real: int, config: DegradeConfig
) -> Tensor:
    """Add bias field, noise, loss of resolution and noise again, in the order of a scanner.

    Args:
        image: float32 (B, S, S, S); the last `num_real` are real.
        axis_matrices: From `draw_axis_matrices`, (B, 3, S, S).
        num_real: Number of real ROIs: they carry their own artefacts, so they get less.
        config: Ranges.

    Returns:
        float32, same shape.
    """
    batch, size, device = image.shape[0], image.shape[1], image.device
    is_real = torch.arange(batch, device=device) >= batch - num_real

    def draw(limits: tuple[float, float]) -> Tensor:
        limit = torch.where(is_real, limits[1], limits[0])
        # Squared: most scans are nearly clean, a few are bad.
        return (limit * torch.rand(batch, device=device).square())[:, None, None, None]

    grid = torch.randn(batch, 1, 4, 4, 4, device=device)
    field = functional.interpolate(grid, (size,) * 3, mode="trilinear", align_corners=True)[:, 0]
    image = image * torch.exp(draw(config.bias) * field)
    image = image + draw(config.noise) * torch.randn_like(image)
    image = apply_axis_matrices(image, axis_matrices)
    late = torch.where(torch.rand(batch, 1, 1, 1, device=device) < 0.4, 0.8, 0.0)
    return image + late * draw(config.noise) * torch.randn_like(image)


def apply_axis_matrices(image: Tensor, matrices: Tensor) -> Tensor:
    """Multiply the lines of (B, S, S, S) along each axis by their (B, 3, S, S) matrices.

    On CUDA the products run in float16: intensities are about 0..1 and rows sum to 1, so the error
    stays near 1e-3, under the noise that is added anyway.
    """
    batch, size = image.shape[0], image.shape[1]
    dtype = torch.float16 if image.is_cuda else image.dtype
    x, m = image.to(dtype), matrices.to(dtype)
    x = torch.bmm(m[:, 0], x.reshape(batch, size, size * size)).view(batch, size, size, size)
    x = torch.matmul(m[:, 1, None], x)
    x = torch.matmul(x, m[:, 2, None].transpose(2, 3))
    return x.to(image.dtype)
