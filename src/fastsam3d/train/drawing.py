"""Drawing of training ROIs: which object, which pose, which shapes; small arrays, no voxels.

A batch is made in two steps: `BatchDrawer.draw` chooses on the CPU, `rendering.Renderer` makes
voxels of it on the device. Every ROI is centred on a voxel of its first target, as inference
centres the ROI on the first click.

Shape legend: B batch, M targets per ROI, S ROI side, L ids (`NUM_IDS`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsam3d.errors import ConfigError
from fastsam3d.train.bank import BankCase, BankMap, Target, TrainingBank
from fastsam3d.train.degrade import DegradeConfig, draw_axis_matrices
from fastsam3d.train.shapes import (
    FAR,
    MAX_REGIONS,
    NUM_IDS,
    PRIMITIVE_ID0,
    PRIMITIVE_VALUES,
    WARP_SIDE,
    ShapesConfig,
    draw_shapes,
    draw_tube,
    log_uniform,
)

COARSE_WARP_SIDE = 5
# Where sessions look at a first click, see the cards of our weights and `session.scale`.
SESSION_SPACING_MM = 1.1
MODE_OBJECT, MODE_LABEL, MODE_NESTED = 0, 1, 2
# Of a lesion that has a wall around a core; the wall is the first primitive.
LESION_CORE_ID = PRIMITIVE_ID0 + 1


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """What one batch holds and how it is varied.

    Attributes:
        size: ROI side in voxels.
        num_shapes: ROIs of pure shapes.
        num_painted: ROIs painted on real label maps.
        num_real: ROIs of real images.
        is_drawn_by_voxels: Groups of cases give label maps to paint and supervoxels by the voxels
            that they have, not by the number of their cases: a whole body is more than a crop.
        share_painted_supervoxel: Share of the painted ROIs painted on the supervoxels of an image
            in place of a label map: shapes of bodies that nobody has labelled.
        share_supervoxel: Share of the real ROIs whose targets are supervoxels.
        share_anatomy: Share of the other real ROIs whose targets are bones and air spaces of CT,
            see `fastsam3d.data.anatomy`.
        share_lesion: Share of the real ROIs with a painted lesion as target.
        share_lesion_tube: Share of those whose lesion is a tube, thin as a vessel may be.
        share_lesion_wall: Share of those that are no tube and have a wall around a core, each an
            object, as hearts, vessels and cysts do; the wall may be open at one end.
        share_lesion_texture: Share of all lesions filled with what another ROI of the batch shows,
            in place of smooth noise.
        share_tint: Share of the real ROIs whose objects are made brighter or darker, each by its
            own amount: textures stay, contrasts are drawn anew.
        num_targets: Targets per ROI.
        object_share: Range of object extent over ROI side (log-uniform); above 1 it is cut off.
        share_session_scale: Share of painted and real ROIs shown at `SESSION_SPACING_MM`, up to a
            quarter off, as sessions choose it, whatever the size of the object.
        share_deep_seed: Share of painted and real ROIs centred deep inside the object, where
            users mostly click first; the others anywhere in it. None: as the pack's seeds fall.
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
    is_drawn_by_voxels: bool = False
    share_painted_supervoxel: float = 0.0
    share_supervoxel: float = 0.3
    share_anatomy: float = 0.0
    share_lesion: float = 0.1
    share_lesion_tube: float = 0.0
    share_lesion_wall: float = 0.0
    share_lesion_texture: float = 0.0
    share_tint: float = 0.0
    num_targets: int = 2
    object_share: tuple[float, float] = (0.07, 1.3)
    share_session_scale: float = 0.0
    share_deep_seed: float | None = None
    rotation_deg: tuple[float, float] = (12.0, 50.0)
    warp_voxels: tuple[float, float] = (2.5, 5.0)
    modes: tuple[float, float, float] = (0.6, 0.25, 0.15)
    min_share: float = 1.5e-5
    max_share: float = 0.6
    share_cut_view: float = 0.07
    shapes: ShapesConfig = field(default_factory=ShapesConfig)
    degrade: DegradeConfig = field(default_factory=DegradeConfig)

    def __post_init__(self) -> None:
        """Check what would fail late or silently."""
        counts = (self.num_shapes, self.num_painted, self.num_real)
        if min(counts) < 0 or self.num_painted + self.num_real < 1 or self.num_targets < 1:
            msg = (
                "num_shapes, num_painted and num_real must not be negative, and num_painted + "
                f"num_real and num_targets at least 1, got {counts} and {self.num_targets}."
            )
            raise ConfigError(msg)
        if self.share_deep_seed is not None and not 0 <= self.share_deep_seed <= 1:
            msg = f"share_deep_seed must be within 0..1 or none, got {self.share_deep_seed}."
            raise ConfigError(msg)
        if not 0 < self.min_share < self.max_share <= 1:
            msg = (
                "The target's share of the ROI must rise from min_share to max_share within 0..1, "
                f"got {self.min_share} and {self.max_share}."
            )
            raise ConfigError(msg)

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

    def pin_memory(self) -> DrawnBatch:
        """Return the batch in pinned memory."""
        return DrawnBatch(**{i.name: getattr(self, i.name).pin_memory() for i in fields(self)})


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
        # Real images have no shapes but lesions, which are drawn with their pose.
        shapes = draw_shapes(rng, batch - config.num_real, config.shapes, num_empty=config.num_real)
        parents = np.full((batch, NUM_IDS), -1, np.int64)
        drawn = shapes.parents >= 0
        parents[:, PRIMITIVE_ID0:][drawn] = shapes.parents[drawn] + PRIMITIVE_ID0
        values = np.tile(np.arange(NUM_IDS, dtype=np.int64), (batch, 1))
        values[:, PRIMITIVE_ID0:] = PRIMITIVE_ID0 + shapes.groups
        posed, lesions = self._draw_posed(shapes.primitives, values, parents)
        shape_warp = rng.standard_normal((batch, 3, WARP_SIDE, WARP_SIDE, WARP_SIDE))
        shape_warp *= rng.uniform(0, config.shapes.warp, (batch, 1, 1, 1, 1))
        if config.num_real:
            _follow_warp(shapes.primitives[-config.num_real :], shape_warp[-config.num_real :])
        first = np.zeros(batch, np.int64)
        partner = np.zeros(batch, np.int64)
        first[config.num_shapes :] = posed.pop("first_id")
        partner[config.num_shapes :] = posed.pop("partner_id")
        num_fields = rng.integers(2, MAX_REGIONS + 1, batch)
        # Behind real images regions are neither seen nor asked for.
        num_fields[batch - config.num_real :] = 1
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
            shape_warp=_tensor(shape_warp),
            zoom=_tensor(rng.uniform(0.2, 1.0, batch)),
            num_fields=_tensor(num_fields),
            is_lesion=_tensor(lesions),
            axis_matrices=_tensor(draw_axis_matrices(rng, batch, config.size, config.degrade)),
            view_start=_tensor(start),
            view_stop=_tensor(stop),
        )

    def _draw_posed(
        self,
        primitives: NDArray[np.float32],
        values: NDArray[np.int64],
        parents: NDArray[np.int64],
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
        """Draw the ROIs that show a case; puts lesions into what it is given."""
        config, rng = self.config, self.rng
        rows: list[dict[str, Any]] = []
        lesions = np.zeros(config.num_real, np.bool_)
        for p in range(config.num_painted + config.num_real):
            b, r = config.num_shapes + p, p - config.num_painted
            # No number is drawn for what is off: a run resumes with what it was begun with.
            share = config.share_painted_supervoxel if r < 0 else config.share_supervoxel
            is_super = (r >= 0 or share > 0) and rng.random() < share
            by_voxels = config.is_drawn_by_voxels
            if is_super:
                case, bank_map, target = self.bank.draw_supervoxel(rng, by_voxels=by_voxels)
            elif r < 0:
                case, bank_map, target = self.bank.draw_painted(rng, by_voxels=by_voxels)
            elif config.share_anatomy > 0 and rng.random() < config.share_anatomy:
                case, bank_map, target = self.bank.draw_anatomy(rng)
            else:
                case, bank_map, target = self.bank.draw_labelled(rng)
            values[b, : len(bank_map.value_of_id)] = bank_map.value_of_id
            if r >= 0:
                lesions[r] = rng.random() < config.share_lesion
                primitives[b, :, 9:12] = FAR
                if lesions[r]:
                    self._make_lesion(primitives[b], values[b], parents[b])
            rows.append(self._pose(case, bank_map, target, is_real=r >= 0))
            if r >= 0 and lesions[r]:
                rows[-1].update(first_id=0, partner_id=0)
        real = rows[config.num_painted :]
        shared = [key for key in rows[0] if "image" not in key]
        columns = {key: np.stack([row[key] for row in rows]) for key in shared}
        empty = {"image_offset": (0,), "image_shape": (0, 3), "image_scale": (0, 3)}
        columns |= {
            key: np.stack([row[key] for row in real]) if real else np.zeros(shape, np.int64)
            for key, shape in empty.items()
        }
        columns["is_ct"] = columns["is_ct"][config.num_painted :]
        return columns, lesions

    def _make_lesion(
        self,
        primitives: NDArray[np.float32],
        values: NDArray[np.int64],
        parents: NDArray[np.int64],
    ) -> None:
        """Put one lesion around the ROI centre: blobs or a tube, or a wall with its core."""
        config, rng = self.config, self.rng
        is_wall = False
        if rng.random() < config.share_lesion_tube:
            rows = self._tube_through_centre()
        elif config.share_lesion_wall and rng.random() < config.share_lesion_wall:
            rows, is_wall = self._wall_and_core(), True
        else:
            rows = self._blobs_around_centre()
        rows[:, 15] = 1.0
        primitives[: len(rows)] = rows
        values[PRIMITIVE_ID0 : PRIMITIVE_ID0 + len(rows)] = PRIMITIVE_ID0
        if is_wall:
            values[LESION_CORE_ID], parents[LESION_CORE_ID] = LESION_CORE_ID, PRIMITIVE_ID0

    def _blobs_around_centre(self) -> NDArray[np.float32]:
        rng = self.rng
        radius = log_uniform(rng, (0.06, 0.4))
        rows = np.zeros((int(rng.integers(1, 4)), PRIMITIVE_VALUES), np.float32)
        for row in rows:
            axes = radius * np.exp(rng.uniform(-0.4, 0.4, 3))
            row[:9] = (_random_rotation(rng, 60.0) / axes[:, None]).ravel()
            row[9:12] = rng.uniform(-0.5, 0.5, 3) * radius
            row[13] = 2.0
        return rows

    def _wall_and_core(self) -> NDArray[np.float32]:
        """Draw two ellipsoids, the second in the first, about the ROI centre or beside it."""
        rng = self.rng
        axes = log_uniform(rng, (0.12, 0.5)) * np.exp(rng.uniform(-0.4, 0.4, 3))
        part = rng.uniform(0.4, 0.88) * np.exp(rng.uniform(-0.1, 0.1, 3))
        part = np.minimum(part, 0.92)
        # In units of the outer axes: how far the core lies off the middle, and where it opens.
        middle = rng.uniform(-0.6, 0.6, 3) * (1 - part)
        if rng.random() < 0.35:
            middle[rng.integers(3)] = rng.choice([-1.0, 1.0]) * rng.uniform(0.4, 0.8)
        at = middle
        if rng.random() < 0.65:
            in_wall = rng.uniform(-1, 1, (200, 3))
            reach = np.linalg.norm(in_wall, axis=1)
            depth = np.linalg.norm((in_wall - middle) / part, axis=1)
            found = in_wall[(reach < 0.97) & (depth > 1.03)]
            at = found[0] if len(found) else middle
        pose = _random_rotation(rng, 60.0)
        rows = np.zeros((2, PRIMITIVE_VALUES), np.float32)
        rows[0, :9] = (pose / axes[:, None]).ravel()
        rows[1, :9] = (pose / (axes * part)[:, None]).ravel()
        rows[0, 9:12] = -pose.T @ (axes * at)
        rows[1, 9:12] = pose.T @ (axes * (middle - at))
        rows[:, 13] = 2.0
        return rows

    def _tube_through_centre(self) -> NDArray[np.float32]:
        rows = draw_tube(self.rng, self.config.shapes)
        rows[:, 9:12] -= rows[self.rng.integers(len(rows)), 9:12]
        return rows

    def _pose(
        self, case: BankCase, bank_map: BankMap, target: Target, *, is_real: bool
    ) -> dict[str, Any]:
        config, rng = self.config, self.rng
        scale = self._spacing(case, target)
        finest = case.spacing_mm.min()
        pose = _random_rotation(rng, config.rotation_deg[0 if is_real else 1])
        pose = pose @ _random_turn(rng) @ np.diag(np.exp(rng.uniform(-0.12, 0.12, 3)))
        axes = pose * scale / case.spacing_mm[:, None]
        seed = target.draw_seed(rng, config.share_deep_seed)
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

    def _spacing(self, case: BankCase, target: Target) -> float:
        """Draw the side of an ROI voxel in mm."""
        config, rng = self.config, self.rng
        finest = float(case.spacing_mm.min())
        view_mm = float((case.spacing_mm * case.shape).max())
        if config.share_session_scale and rng.random() < config.share_session_scale:
            wanted = SESSION_SPACING_MM * float(np.exp(rng.uniform(-0.25, 0.25)))
            # A session would show a small scan yet smaller where the click is not in its middle.
            return max(min(wanted, view_mm / config.size), 0.5 * finest)
        share = log_uniform(rng, config.object_share)
        # Not finer than interpolation is worth, not so coarse that most of the ROI is padding.
        scale = max(target.extent_mm / (config.size * share), 0.4 * finest)
        return min(scale, max(1.6 * view_mm / config.size, 0.4 * finest))

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


def _follow_warp(primitives: NDArray[np.float32], shape_warp: NDArray[np.float64]) -> None:
    """Move the primitives (R, P, values), in place, so that the ROI centre stays where it is."""
    middle = WARP_SIDE // 2
    primitives[:, :, 9:12] += shape_warp[:, None, :, middle, middle, middle]


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
