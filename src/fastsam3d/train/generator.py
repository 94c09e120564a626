"""Training ROIs made on the device: synthetic shapes, painted label maps and real images.

A batch is drawn in two steps. On the CPU `BatchDrawer.draw` chooses objects, poses and shapes:
small arrays, no voxels. On the device `render` samples voxels, paints intensities, degrades,
normalises and returns images with targets.

Every ROI is centred on a voxel of its first target, as inference centres the ROI on the first
click. Shape legend: B batch, M targets per ROI, S ROI side, L ids (`NUM_IDS`).

Source: painting after SynthSeg (arXiv 2107.09559), supervoxel targets after ScribblePrompt
(arXiv 2312.07381).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fastsam3d.preprocess.intensity import roi_percentile_zscore
from fastsam3d.train.bank import CT_RANGE_HU, BankCase, BankMap, Target, TrainingBank
from fastsam3d.train.degrade import DegradeConfig, degrade, draw_axis_matrices, recolour
from fastsam3d.train.shapes import (
    FIELD_SIDE,
    MAX_REGIONS,
    NUM_IDS,
    PRIMITIVE_ID0,
    REGION_ID0,
    UNUSED_FIELD,
    WARP_SIDE,
    ShapesConfig,
    draw_shapes,
    fill_labels,
    log_uniform,
)

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]

COARSE_WARP_SIDE = 5
MODE_OBJECT, MODE_LABEL, MODE_NESTED = 0, 1, 2
CT_WIDTH_HU = CT_RANGE_HU[1] - CT_RANGE_HU[0]


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """What one batch holds and how it is varied.

    Attributes:
        size: ROI side in voxels.
        num_shapes: ROIs of pure shapes.
        num_painted: ROIs painted on real label maps.
        num_real: ROIs of real images.
        share_supervoxel: Share of the real ROIs whose targets are supervoxels.
        share_lesion: Share of the real ROIs with a painted lesion as target.
        num_targets: Targets per ROI.
        object_share: Range of object extent over ROI side (log-uniform); above 1 it is cut off.
        rotation_deg: Standard deviation of the rotation of real images and of painted maps.
        warp_voxels: Largest standard deviation of the displacement, of real and painted ROIs.
        modes: Probabilities of one object, all objects of a label, and an object with what lies
            inside it or beside it.
        min_share: Fewest target voxels over ROI voxels.
        max_share: Most target voxels over ROI voxels.
        share_cut_view: Share of ROIs whose scan ends inside the ROI, per face.
        shapes: Ranges of the synthetic shapes.
        degrade: Ranges of the artefacts.
    """

    size: int = 128
    num_shapes: int = 5
    num_painted: int = 6
    num_real: int = 13
    share_supervoxel: float = 0.3
    share_lesion: float = 0.1
    num_targets: int = 2
    object_share: tuple[float, float] = (0.07, 1.3)
    rotation_deg: tuple[float, float] = (12.0, 50.0)
    warp_voxels: tuple[float, float] = (2.5, 5.0)
    modes: tuple[float, float, float] = (0.6, 0.25, 0.15)
    min_share: float = 1.5e-5
    max_share: float = 0.6
    share_cut_view: float = 0.07
    shapes: ShapesConfig = field(default_factory=ShapesConfig)
    degrade: DegradeConfig = field(default_factory=DegradeConfig)

    @property
    def batch_size(self) -> int:
        """ROIs of one batch."""
        return self.num_shapes + self.num_painted + self.num_real


@dataclass
class DrawnBatch:
    """Everything `render` needs beside the bank: small arrays, pinned and copied in one go.

    Rows are ordered shapes, painted, real. P = painted + real, Q = shapes + painted.

    Attributes:
        image_offset, image_shape, image_scale: Per real ROI, the mip level to sample: first
            element, shape (3) and voxels of the level per case voxel (3).
        map_offset, map_shape, map_scale: Per P ROI, the same for the id map.
        centre: Case voxel at the ROI centre (P, 3).
        axes: Case voxels per ROI voxel (P, 3, 3).
        coarse_warp, fine_warp: Displacements in ROI voxels (P, 3, G, G, G).
        first_id: Id of the first target (B,), 0 to take the one at the ROI centre.
        partner_id: Further id joined to the first target (B,), 0 for none.
        value_of_id: Label value of every id (B, L).
        parent_of_id: Enclosing id of every id (B, L), -1 for none.
        mode: How an id becomes a target (B, M).
        primitives, shape_warp, zoom, num_fields: See `fill_labels`; rows for all B.
        is_ct: Per real ROI.
        is_lesion: Per real ROI.
        axis_matrices: Blur and slice profiles (B, 3, S, S).
        view_start, view_stop: The ROI voxels that the scan covers (B, 3).
    """

    image_offset: Tensor
    image_shape: Tensor
    image_scale: Tensor
    map_offset: Tensor
    map_shape: Tensor
    map_scale: Tensor
    centre: Tensor
    axes: Tensor
    coarse_warp: Tensor
    fine_warp: Tensor
    first_id: Tensor
    partner_id: Tensor
    value_of_id: Tensor
    parent_of_id: Tensor
    mode: Tensor
    primitives: Tensor
    shape_warp: Tensor
    zoom: Tensor
    num_fields: Tensor
    is_ct: Tensor
    is_lesion: Tensor
    axis_matrices: Tensor
    view_start: Tensor
    view_stop: Tensor

    def to(self, device: torch.device | str) -> DrawnBatch:
        """Copy to a device, without waiting where the memory is pinned."""
        moved = {
            item.name: getattr(self, item.name).to(device, non_blocking=True)
            for item in fields(self)
        }
        return DrawnBatch(**moved)

    def pin(self) -> DrawnBatch:
        """Return the batch in pinned memory."""
        return DrawnBatch(**{i.name: getattr(self, i.name).pin_memory() for i in fields(self)})


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


class BatchDrawer:
    """Draw batches on the CPU; one drawer per process, seeded."""

    def __init__(self, bank: TrainingBank, config: GeneratorConfig, *, seed: int) -> None:
        self.bank = bank
        self.config = config
        self.rng = np.random.default_rng(seed)

    def draw(self) -> DrawnBatch:
        """Draw one batch."""
        config, rng = self.config, self.rng
        batch = config.batch_size
        shapes = draw_shapes(rng, batch, config.shapes)
        parents = np.full((batch, NUM_IDS), -1, np.int64)
        drawn = shapes.parents >= 0
        parents[:, PRIMITIVE_ID0:][drawn] = shapes.parents[drawn] + PRIMITIVE_ID0
        values = np.tile(np.arange(NUM_IDS, dtype=np.int64), (batch, 1))
        values[:, PRIMITIVE_ID0:] = PRIMITIVE_ID0 + shapes.groups
        posed, lesions = self._draw_posed(shapes.primitives, values)
        first = np.zeros(batch, np.int64)
        partner = np.zeros(batch, np.int64)
        first[config.num_shapes :] = posed.pop("first_id")
        partner[config.num_shapes :] = posed.pop("partner_id")
        start, stop = self._draw_view()
        mode = rng.choice(3, (batch, config.num_targets), p=config.modes)
        return DrawnBatch(
            **{key: _tensor(value) for key, value in posed.items()},
            first_id=_tensor(first),
            partner_id=_tensor(partner),
            value_of_id=_tensor(values),
            parent_of_id=_tensor(parents),
            mode=_tensor(mode),
            primitives=_tensor(shapes.primitives),
            shape_warp=_tensor(
                rng.standard_normal((batch, 3, WARP_SIDE, WARP_SIDE, WARP_SIDE))
                * rng.uniform(0, config.shapes.warp, (batch, 1, 1, 1, 1))
            ),
            zoom=_tensor(rng.uniform(0.2, 1.0, batch)),
            num_fields=_tensor(rng.integers(2, MAX_REGIONS + 1, batch)),
            is_lesion=_tensor(lesions),
            axis_matrices=_tensor(draw_axis_matrices(rng, batch, config.size, config.degrade)),
            view_start=_tensor(start),
            view_stop=_tensor(stop),
        )

    def _draw_posed(
        self, primitives: NDArray[np.float32], values: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
        """Draw the ROIs that show a case; marks lesions in `primitives` and `values` in place."""
        config, rng = self.config, self.rng
        rows: list[dict[str, Any]] = []
        lesions = np.zeros(config.num_real, np.bool_)
        for p in range(config.num_painted + config.num_real):
            b, r = config.num_shapes + p, p - config.num_painted
            if r < 0:
                case, bank_map, target = self.bank.draw_painted(rng)
            elif rng.random() < config.share_supervoxel:
                case, bank_map, target = self.bank.draw_supervoxel(rng)
            else:
                case, bank_map, target = self.bank.draw_labelled(rng)
            values[b, : len(bank_map.value_of_id)] = bank_map.value_of_id
            if r >= 0:
                lesions[r] = rng.random() < config.share_lesion
                self._make_lesion(primitives[b], values[b], is_lesion=bool(lesions[r]))
            rows.append(self._pose(case, bank_map, target, is_real=r >= 0))
            if r >= 0 and lesions[r]:
                rows[-1].update(first_id=0, partner_id=0)
        real = rows[config.num_painted :]
        shared = [key for key in rows[0] if "image" not in key]
        columns = {key: np.stack([row[key] for row in rows]) for key in shared}
        columns |= {
            key: np.stack([row[key] for row in real])
            for key in ("image_offset", "image_shape", "image_scale")
        }
        columns["is_ct"] = columns["is_ct"][config.num_painted :]
        return columns, lesions

    def _make_lesion(
        self, primitives: NDArray[np.float32], values: NDArray[np.int64], *, is_lesion: bool
    ) -> None:
        """Keep up to three blobs around the ROI centre as one object, or no primitive at all."""
        rng = self.rng
        primitives[:, 9:12] = 100.0
        if not is_lesion:
            return
        radius = log_uniform(rng, (0.06, 0.4))
        for row in range(int(rng.integers(1, 4))):
            axes = radius * np.exp(rng.uniform(-0.4, 0.4, 3))
            primitives[row, :9] = (_random_rotation(rng, 60.0) / axes[:, None]).ravel()
            primitives[row, 9:12] = rng.uniform(-0.5, 0.5, 3) * radius
            primitives[row, 12:] = (0.0, 2.0, 0.0, 1.0)
            values[PRIMITIVE_ID0 + row] = PRIMITIVE_ID0

    def _pose(
        self, case: BankCase, bank_map: BankMap, target: Target, *, is_real: bool
    ) -> dict[str, Any]:
        config, rng = self.config, self.rng
        share = log_uniform(rng, config.object_share)
        finest, view_mm = case.spacing_mm.min(), (case.spacing_mm * case.shape).max()
        # Not finer than interpolation is worth, not so coarse that most of the ROI is padding.
        scale = np.clip(target.extent_mm / (config.size * share), 0.4 * finest, None)
        scale = min(scale, max(1.6 * view_mm / config.size, 0.4 * finest))
        pose = _random_rotation(rng, config.rotation_deg[0 if is_real else 1])
        pose = pose @ _random_turn(rng) @ np.diag(np.exp(rng.uniform(-0.12, 0.12, 3)))
        axes = pose * scale / case.spacing_mm[:, None]
        seed = target.seeds[rng.integers(len(target.seeds))]
        partners = target.neighbours if rng.random() < config.modes[2] else ()
        warp = rng.uniform(0, config.warp_voxels[0 if is_real else 1])
        side = COARSE_WARP_SIDE
        row: dict[str, Any] = {
            "map_offset": np.int64(bank_map.grid.offset),
            "map_shape": np.asarray(bank_map.grid.shape, np.int64),
            "map_scale": np.asarray(bank_map.grid.factor, np.float32),
            "centre": seed,
            "axes": axes.astype(np.float32),
            "coarse_warp": _noise(rng, (3, side, side, side), warp),
            "fine_warp": _noise(rng, (3, WARP_SIDE, WARP_SIDE, WARP_SIDE), 0.4 * warp),
            "first_id": np.int64(target.object_id),
            "partner_id": np.int64(partners[rng.integers(len(partners))] if partners else 0),
            "is_ct": np.bool_(case.is_ct),
        }
        if is_real:
            step = scale / finest
            usable = [m for m in case.mips if min(m.factor) <= max(step / 1.1, 1.0)]
            mip = usable[-1]
            row["image_offset"] = np.int64(mip.offset)
            row["image_shape"] = np.asarray(mip.shape, np.int64)
            row["image_scale"] = np.asarray(mip.factor, np.float32)
        return row

    def _draw_view(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw where the scan begins and ends within the ROI; the centre is always covered."""
        config, rng = self.config, self.rng
        shape = (config.batch_size, 3)
        cut = rng.random(shape) < config.share_cut_view
        half = config.size // 2
        start = np.where(cut, rng.integers(0, half - 2, shape), 0)
        cut = rng.random(shape) < config.share_cut_view
        stop = np.where(cut, config.size - rng.integers(0, half - 3, shape), config.size)
        return start, stop


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
        size, num_real = self.config.size, self.config.num_real
        at = _positions(drawn, size)
        ids, _ = _gather_nearest(self.bank.maps, drawn, at)
        image, inside = _gather_linear(self.bank.images, drawn, at[-num_real:])
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
    lesion = ids[num_synthetic:] >= PRIMITIVE_ID0
    return torch.cat((image, _paint_lesions(real, lesion)))


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


def _paint_lesions(image: Tensor, lesion: Tensor) -> Tensor:
    count, device = image.shape[0], image.device
    middle = image.shape[-1] // 2
    near = slice(middle - 6, middle + 7)
    host = image[:, near, near, near].mean((1, 2, 3), keepdim=True)
    spread = image[:, ::4, ::4, ::4].std((1, 2, 3), keepdim=True)
    sign = torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.5, -1.0, 1.0)
    contrast = sign * (0.2 + 1.0 * torch.rand(count, 1, 1, 1, device=device)) * spread
    opacity = 0.6 + 0.4 * torch.rand(count, 1, 1, 1, device=device)
    texture = _smooth_noise((count, 1), image.shape[-1], device)[:, 0]
    texture = texture * spread * 0.3 * torch.rand(count, 1, 1, 1, device=device)
    painted = (1 - opacity) * image + opacity * host + contrast + texture
    return torch.where(lesion, painted, image)


def _degrade_and_normalise(
    image: Tensor, inside: Tensor, drawn: DrawnBatch, config: GeneratorConfig
) -> tuple[Tensor, Tensor]:
    num_synthetic = config.num_shapes + config.num_painted
    num_real = image.shape[0] - num_synthetic
    is_ct = functional.pad(drawn.is_ct, (num_synthetic, 0))
    middle = config.size // 2
    near = slice(middle - 1, middle + 2)
    host = image[-num_real:, near, near, near].mean((1, 2, 3), keepdim=True)
    # Padding takes the intensity at the centre, so that it does not set the range.
    image = torch.cat((image[:num_synthetic], torch.where(inside, image[-num_real:], host)))
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


def _random_rotation(rng: np.random.Generator, degrees: float) -> NDArray[np.float64]:
    """Return a rotation whose angle about each axis is normal with this deviation."""
    a, b, c = np.deg2rad(rng.normal(0, degrees, 3))
    ra = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    rb = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rc = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return ra @ rb @ rc


def _random_turn(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a random flip of each axis, and half of the time a permutation of the axes."""
    turn = np.diag(rng.choice([-1.0, 1.0], 3))
    return turn[rng.permutation(3)] if rng.random() < 0.5 else turn


def _noise(
    rng: np.random.Generator, shape: tuple[int, ...], deviation: float
) -> NDArray[np.float32]:
    return (deviation * rng.standard_normal(shape)).astype(np.float32)


def _tensor(array: NDArray[Any]) -> Tensor:
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    return torch.as_tensor(np.ascontiguousarray(array))
