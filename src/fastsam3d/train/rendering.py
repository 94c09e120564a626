"""Rendering of drawn batches on the device: synthetic shapes, painted label maps, real images.

Samples voxels of the bank, paints intensities, degrades, normalises and chooses targets; see
`drawing` for what was decided before.

Shape legend: B batch, M targets per ROI, S ROI side, L ids (`NUM_IDS`), P painted and real ROIs.

Source: painting after SynthSeg (arXiv 2107.09559), supervoxel targets after ScribblePrompt
(arXiv 2312.07381).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastsam3d.preprocess.intensity import roi_percentile_zscore
from fastsam3d.train.bank import CT_RANGE_HU, TrainingBank
from fastsam3d.train.degrade import degrade, recolour
from fastsam3d.train.drawing import (
    LESION_CORE_ID,
    MODE_LABEL,
    MODE_NESTED,
    DrawnBatch,
    GeneratorConfig,
)
from fastsam3d.train.shapes import (
    FIELD_SIDE,
    MAX_REGIONS,
    NUM_IDS,
    PRIMITIVE_ID0,
    REGION_ID0,
    UNUSED_FIELD,
    fill_labels,
)

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]

CT_WIDTH_HU = CT_RANGE_HU[1] - CT_RANGE_HU[0]


@dataclass(frozen=True)
class TrainingBatch:
    """Rendered ROIs.

    Attributes:
        image: Normalised image, float32 (B, 1, S, S, S).
        targets: bool (B, M, S, S, S); the first target covers the ROI centre.
        weights: 1 where the target is worth training on, else 0; float32 (B, M).
    """

    image: Tensor
    targets: Tensor
    weights: Tensor


class Renderer:
    """Turn drawn batches into images and targets on the device of the bank.

    Args:
        bank: Training cases; its device is used.
        config: The config of the drawer.
        compile_with: Wraps each stage, for example ``torch.compile``; None runs eagerly.
    """

    def __init__(
        self,
        bank: TrainingBank,
        config: GeneratorConfig,
        *,
        compile_with: Wrap | None = None,
    ) -> None:
        self.bank, self.config = bank, config
        wrap: Wrap = compile_with or (lambda function: function)
        self._sample = wrap(self._sample_bank)
        self._paint = wrap(_paint_all)
        self._degrade = wrap(_degrade_and_normalise)
        self._choose = wrap(_choose_targets)

    def render(self, drawn: DrawnBatch) -> TrainingBatch:
        """Render one batch."""
        config = self.config
        labels, image, inside = self._sample(drawn)
        base = functional.pad(labels, (0, 0, 0, 0, 0, 0, config.num_shapes, 0))
        fields_shape = (config.batch_size, MAX_REGIONS, FIELD_SIDE, FIELD_SIDE, FIELD_SIDE)
        noise = torch.randn(fields_shape, device=base.device)
        unused = torch.arange(MAX_REGIONS, device=base.device) >= drawn.num_fields[:, None]
        noise = noise.masked_fill(unused[:, :, None, None, None], UNUSED_FIELD)
        ids = fill_labels(base, noise, drawn.zoom.float(), drawn.shape_warp, drawn.primitives)
        painted = self._paint(ids, image, drawn, config)
        image, valid = self._degrade(painted, inside, drawn, config)
        targets, weights = self._choose(ids, valid, drawn, config)
        return TrainingBatch(image, targets, weights)

    def _sample_bank(self, drawn: DrawnBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Gather ids (P, S, S, S) and image (R, S, S, S), and whether the ROI voxel is scanned."""
        at = _positions(drawn, self.config.size)
        ids, _ = _gather_nearest(self.bank.maps, drawn, at)
        image, inside = _gather_linear(self.bank.images, drawn, at[self.config.num_painted :])
        return ids.to(torch.int16), image, inside


def _positions(drawn: DrawnBatch, size: int) -> Tensor:
    """Return the case voxel under every ROI voxel, (P, 3, S, S, S); ROI centre = `centre`."""
    coarse, fine = (
        functional.interpolate(grid, (size,) * 3, mode="trilinear", align_corners=True)
        for grid in (drawn.coarse_warp, drawn.fine_warp)
    )
    warp = coarse + fine
    middle = size // 2
    warp = warp - warp[:, :, middle, middle, middle][:, :, None, None, None]
    step = torch.arange(size, device=warp.device, dtype=warp.dtype) - middle
    offset = (
        warp[:, 0] + step[:, None, None],
        warp[:, 1] + step[None, :, None],
        warp[:, 2] + step[None, None, :],
    )
    axes = drawn.axes[:, :, :, None, None, None]
    rows = [
        drawn.centre[:, a, None, None, None] + sum(axes[:, a, b] * offset[b] for b in range(3))
        for a in range(3)
    ]
    return torch.stack(rows, dim=1)


def _gather_nearest(flat: Tensor, drawn: DrawnBatch, at: Tensor) -> tuple[Tensor, Tensor]:
    scale = drawn.map_scale[:, :, None, None, None]
    shape = drawn.map_shape[:, :, None, None, None]
    index = torch.floor((at + 0.5) / scale).long()
    inside = ((index >= 0) & (index < shape)).all(1)
    index = torch.minimum(index.clamp(min=0), shape - 1)
    where = (index[:, 0] * shape[:, 1] + index[:, 1]) * shape[:, 2] + index[:, 2]
    values = flat[where + drawn.map_offset[:, None, None, None]]
    return torch.where(inside, values, 0), inside


def _gather_linear(flat: Tensor, drawn: DrawnBatch, at: Tensor) -> tuple[Tensor, Tensor]:
    scale = drawn.image_scale[:, :, None, None, None]
    shape = drawn.image_shape[:, :, None, None, None]
    position = (at + 0.5) / scale - 0.5
    inside = ((position > -0.5) & (position < shape - 0.5)).all(1)
    position = torch.minimum(position.clamp(min=0), (shape - 1).to(position.dtype))
    low = torch.minimum(position.floor().long(), (shape - 2).clamp(min=0))
    share = position - low
    high = torch.minimum(low + 1, shape - 1)
    corners = (low, high)
    total = torch.zeros_like(position[:, 0])
    for a in (0, 1):
        for b in (0, 1):
            for c in (0, 1):
                where = (corners[a][:, 0] * shape[:, 1] + corners[b][:, 1]) * shape[:, 2]
                where = where + corners[c][:, 2] + drawn.image_offset[:, None, None, None]
                weight = _side(share[:, 0], a) * _side(share[:, 1], b) * _side(share[:, 2], c)
                total = total + weight * flat[where].float()
    return total, inside


def _side(share: Tensor, upper: int) -> Tensor:
    return share if upper else 1 - share


def _paint_all(ids: Tensor, real: Tensor, drawn: DrawnBatch, config: GeneratorConfig) -> Tensor:
    """Give synthetic ROIs intensities and put lesions into real ones; (B, S, S, S), about 0..1."""
    num_synthetic = config.num_shapes + config.num_painted
    synthetic = ids[:num_synthetic].long()
    count, device = num_synthetic, ids.device
    mean, std = _draw_palette(drawn.value_of_id[:num_synthetic], count)
    noise = torch.randn(synthetic.shape, device=device)
    coarse = _smooth_noise((count, 1), config.size, device)[:, 0]
    grain = torch.rand(count, 1, 1, 1, device=device)
    flat = synthetic.flatten(1)
    level = mean.gather(1, flat).view(synthetic.shape)
    spread = std.gather(1, flat).view(synthetic.shape)
    image = level + spread * (grain * noise + (1 - grain) * coarse)
    if not config.num_real:
        return image
    if config.share_tint:
        real = _tint(real, ids[num_synthetic:].long(), config.share_tint)
    lesion = ids[num_synthetic:] >= PRIMITIVE_ID0
    core = None
    if config.share_lesion_wall:
        values = drawn.value_of_id[num_synthetic:].gather(1, ids[num_synthetic:].long().flatten(1))
        core = (values == LESION_CORE_ID).view(lesion.shape)
    painted = _paint_lesions(real, lesion, config.share_lesion_texture, core)
    return torch.cat((image, painted))


def _draw_palette(value_of_id: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw mean and deviation of every id; ids of one label share them, some labels look alike."""
    device = value_of_id.device
    mean = torch.rand(count, NUM_IDS, device=device)
    other = mean.gather(1, torch.randint(NUM_IDS, (count, NUM_IDS), device=device))
    weak = torch.rand(count, NUM_IDS, device=device) < 0.5 * torch.rand(count, 1, device=device)
    mean = torch.where(weak, other + 0.08 * (torch.rand_like(mean) - 0.5), mean)
    black = torch.rand(count, 1, device=device) < 0.35
    dark = torch.zeros(NUM_IDS, dtype=torch.bool, device=device)
    dark[REGION_ID0 : REGION_ID0 + 3] = True
    mean = torch.where(black & dark, 0.0, mean)
    std = (0.005 + 0.115 * torch.rand_like(mean)) * torch.rand(count, 1, device=device)
    std = torch.where(black & dark, 0.0, std)
    return mean.gather(1, value_of_id), std.gather(1, value_of_id)


def _smooth_noise(lead: tuple[int, int], size: int, device: torch.device) -> Tensor:
    """Return noise of several grain sizes with about unit deviation."""
    total = torch.zeros(*lead, size, size, size, device=device)
    for divisor in (2, 4, 8, 16):
        grid = torch.randn(*lead, *(size // divisor,) * 3, device=device)
        weight = 1.6 * torch.rand(lead[0], 1, 1, 1, 1, device=device)
        total = total + weight * functional.interpolate(
            grid, (size,) * 3, mode="trilinear", align_corners=False
        )
    return 0.8 * total


def _tint(image: Tensor, ids: Tensor, share: float) -> Tensor:
    """Add to each object of some real ROIs (R, S, S, S) an amount of its own, with soft borders."""
    count, device = image.shape[0], image.device
    spread = image[:, ::4, ::4, ::4].std((1, 2, 3), keepdim=True)
    is_tinted = torch.rand(count, 1, 1, 1, device=device) < share
    strength = is_tinted * spread * torch.rand(count, 1, 1, 1, device=device)
    amount = torch.randn(count, NUM_IDS, device=device)
    amount[:, 0] = 0
    amount[:, REGION_ID0:] = 0  # what is no object, and lesions, which have a contrast already
    added = amount.gather(1, ids.flatten(1)).view(image.shape)
    added = functional.avg_pool3d(added[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
    return image + strength * added


def _paint_lesions(
    image: Tensor, lesion: Tensor, share_texture: float, core: Tensor | None = None
) -> Tensor:
    """Paint lesions (R, S, S, S) into real ROIs; a core has a contrast of its own."""
    count, device = image.shape[0], image.device
    middle = image.shape[-1] // 2
    near = slice(middle - 6, middle + 7)
    host = image[:, near, near, near].mean((1, 2, 3), keepdim=True)
    spread = image[:, ::4, ::4, ::4].std((1, 2, 3), keepdim=True)
    contrast = _lesion_contrast(spread)
    if core is not None:
        contrast = torch.where(core, _lesion_contrast(spread), contrast)
    opacity = 0.6 + 0.4 * torch.rand(count, 1, 1, 1, device=device)
    texture = _smooth_noise((count, 1), image.shape[-1], device)[:, 0]
    if share_texture:
        other = image.roll(1, 0).flip(1)  # what is shown beside, so that no pose is drawn for it
        deviation, mean = torch.std_mean(other[:, ::4, ::4, ::4], (1, 2, 3), keepdim=True)
        other = (other - mean) / deviation.clamp(min=1e-3)
        is_other = torch.rand(count, 1, 1, 1, device=device) < share_texture
        texture = torch.where(is_other, other, texture)
    texture = texture * spread * 0.3 * torch.rand(count, 1, 1, 1, device=device)
    painted = (1 - opacity) * image + opacity * host + contrast + texture
    return torch.where(lesion, painted, image)


def _lesion_contrast(spread: Tensor) -> Tensor:
    sign = torch.where(torch.rand_like(spread) < 0.5, -1.0, 1.0)
    return sign * (0.2 + 1.0 * torch.rand_like(spread)) * spread


def _degrade_and_normalise(
    image: Tensor, inside: Tensor, drawn: DrawnBatch, config: GeneratorConfig
) -> tuple[Tensor, Tensor]:
    num_synthetic = config.num_shapes + config.num_painted
    num_real = image.shape[0] - num_synthetic
    is_ct = functional.pad(drawn.is_ct, (num_synthetic, 0))
    middle = config.size // 2
    near = slice(middle - 1, middle + 2)
    host = image[num_synthetic:, near, near, near].mean((1, 2, 3), keepdim=True)
    # Padding takes the intensity at the centre, so that it does not set the range.
    image = torch.cat((image[:num_synthetic], torch.where(inside, image[num_synthetic:], host)))
    image = recolour(image, is_ct, config=config.degrade, ct_width=CT_WIDTH_HU)
    image = degrade(image, drawn.axis_matrices, num_real=num_real, config=config.degrade)
    step = torch.arange(config.size, device=image.device)
    shown = (step >= drawn.view_start[..., None]) & (step < drawn.view_stop[..., None])
    shown = shown[:, 0, :, None, None] & shown[:, 1, None, :, None] & shown[:, 2, None, None, :]
    scanned = torch.cat((inside.new_ones(num_synthetic, *inside.shape[1:]), inside))
    valid = shown & scanned
    return roi_percentile_zscore(image[:, None], valid[:, None]), valid


def _choose_targets(
    ids: Tensor, valid: Tensor, drawn: DrawnBatch, config: GeneratorConfig
) -> tuple[Tensor, Tensor]:
    """Return targets (B, M, S, S, S) and their weights (B, M)."""
    batch, device = ids.shape[0], ids.device
    middle = config.size // 2
    centre = ids[:, middle, middle, middle].long()
    first = torch.where(drawn.first_id > 0, drawn.first_id, centre)
    chosen = [first]
    if config.num_targets > 1:
        coarse = (slice(None), slice(1, None, 4), slice(1, None, 4), slice(1, None, 4))
        seen = torch.where(valid[coarse], ids[coarse], 0).flatten(1).long()
        counts = torch.zeros(batch, NUM_IDS, device=device)
        counts = counts.scatter_add(1, seen, torch.ones_like(seen, dtype=counts.dtype))
        is_region = torch.arange(NUM_IDS, device=device)
        is_region = (is_region >= REGION_ID0) & (is_region < PRIMITIVE_ID0)
        taste = counts.pow(0.3) * (counts >= 2)
        # Regions fill what is no object in painted and real ROIs; in pure shapes they are objects.
        is_shape = torch.arange(batch, device=device)[:, None] < config.num_shapes
        taste = taste * torch.where(is_region & ~is_shape, 0.0, 1.0)
        taste[:, 0] = 0
        taste = taste.scatter(1, first[:, None], 1e-6)
        further = torch.multinomial(taste + 1e-12, config.num_targets - 1, replacement=True)
        chosen += list(further.unbind(1))
    members = [
        _members(chosen[m], drawn, m, drawn.partner_id if m == 0 else None)
        for m in range(config.num_targets)
    ]
    flat = ids.flatten(1).long()
    targets = torch.stack([member.gather(1, flat).view(ids.shape) for member in members], 1)
    targets = targets & valid[:, None]
    share = targets.flatten(2).float().mean(2)
    is_object = torch.stack(chosen, 1) > 0
    filler = (torch.stack(chosen, 1) >= REGION_ID0) & (torch.stack(chosen, 1) < PRIMITIVE_ID0)
    filler = filler & (torch.arange(batch, device=device)[:, None] >= config.num_shapes)
    good = (share > config.min_share) & (share < config.max_share) & is_object & ~filler
    return targets, good.float()


def _members(chosen: Tensor, drawn: DrawnBatch, index: int, partner: Tensor | None) -> Tensor:
    """Return which ids belong to the target of id `chosen`, bool (B, L)."""
    own = chosen[:, None]
    all_ids = torch.arange(NUM_IDS, device=chosen.device)
    mode = drawn.mode[:, index, None]
    values, parents = drawn.value_of_id, drawn.parent_of_id
    member = all_ids == own
    # Tubes and lesions are several primitives with one value: one object in every mode.
    joined = (mode == MODE_LABEL) | (own >= PRIMITIVE_ID0)
    member = member | (joined & (values == values.gather(1, own)))
    grandparents = torch.where(parents >= 0, parents.gather(1, parents.clamp(min=0)), -1)
    inside = (parents == own) | (grandparents == own)
    member = member | ((mode == MODE_NESTED) & inside)
    if partner is not None:
        member = member | ((partner > 0)[:, None] & (all_ids == partner[:, None]))
    return member & (all_ids > 0)
