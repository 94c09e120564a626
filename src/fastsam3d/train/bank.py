"""The training cases on the training device, flat in memory, and the drawing of targets from them.

Images are kept as float16 with averaged halves of themselves (mip levels) so that a coarse ROI is
sampled without aliasing, as inference does; id maps are kept as uint8. The CPU side draws which
object to show and where; the device side gathers voxels (`rendering`).

Coordinates: voxels of the case (centres are integers). A map of factor f has its voxel n centred
at ``(n + 0.5) * f - 0.5``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fastsam3d.errors import DatasetError
from fastsam3d.train.pack import PackedCase, PackedObjects

MAX_MAP_ID = 255
NUM_MIPS = 4
CT_RANGE_HU = (-1024.0, 1600.0)
GROUP_POWER = 0.35  # a group of 95 cases is shown 5 times as often as a single case, not 95 times


@dataclass(frozen=True)
class Grid:
    """Where one array lies in flat memory: first element, shape, voxels of the case per voxel."""

    offset: int
    shape: tuple[int, int, int]
    factor: tuple[float, float, float]


@dataclass(frozen=True)
class Target:
    """One object that can be shown."""

    object_id: int
    extent_mm: float
    seeds: NDArray[np.float32]  # (S, 3) voxels of the case, those deep inside first
    num_deep: int
    neighbours: tuple[int, ...]

    def draw_seed(self, rng: np.random.Generator, share_deep: float | None) -> NDArray[np.float32]:
        """Draw a seed (3,), with this probability a deep one; None: any, all alike."""
        if share_deep is None or not self.num_deep:
            return self.seeds[rng.integers(len(self.seeds))]
        is_deep = rng.random() < share_deep
        return self.seeds[
            rng.integers(self.num_deep) if is_deep else rng.integers(self.num_deep, len(self.seeds))
        ]


@dataclass(frozen=True)
class BankMap:
    """One id map with its objects, grouped by label value."""

    grid: Grid
    targets: tuple[tuple[Target, ...], ...]
    value_of_id: NDArray[np.int16]  # (MAX_MAP_ID + 1,), objects of one label share a value


@dataclass(frozen=True)
class BankCase:
    """One case: its image (all mip levels) and its maps."""

    name: str
    group: str
    is_ct: bool
    spacing_mm: NDArray[np.float64]
    shape: tuple[int, int, int]
    mips: tuple[Grid, ...]
    labels: BankMap | None
    supervoxels: tuple[BankMap, ...]
    anatomy: BankMap | None = None

    @property
    def num_voxels(self) -> int:
        """Voxels of the case."""
        return int(np.prod(self.shape))


class TrainingBank:
    """All cases on one device.

    Args:
        cases: Cases of a training pack.
        device: Where voxels are kept.

    Attributes:
        images: float16 (N,), normalised to about 0..1 per case (CT: `CT_RANGE_HU` to 0..1).
        maps: uint8 (M,).
        cases: One `BankCase` per case.

    Raises:
        DatasetError: There is no case with a target.
    """

    def __init__(self, cases: Sequence[PackedCase], *, device: torch.device | str) -> None:
        image_parts: list[Tensor] = []
        map_parts: list[Tensor] = []
        self.cases = tuple(_add_case(case, image_parts, map_parts) for case in cases)
        self.images = _concatenate(image_parts, torch.float16).to(device)
        self.maps = _concatenate(map_parts, torch.uint8).to(device)
        self._painted = _by_group(c for c in self.cases if c.labels is not None)
        self._labelled = _by_group(c for c in self.cases if c.labels is not None and c.mips)
        self._pictured = _by_group(c for c in self.cases if c.supervoxels)
        self._with_anatomy = [c for c in self.cases if c.anatomy is not None]
        if not self._painted and not self._pictured:
            msg = f"No target was found in {len(cases)} cases; pack labelled cases or supervoxels."
            raise DatasetError(msg)

    def draw_painted(
        self, rng: np.random.Generator, *, by_voxels: bool = False
    ) -> tuple[BankCase, BankMap, Target]:
        """Draw an object of a label map, whether or not its case has an image."""
        case = _draw_case(rng, self._painted, by_voxels=by_voxels)
        return case, *_draw_target(rng, case.labels)

    def draw_labelled(self, rng: np.random.Generator) -> tuple[BankCase, BankMap, Target]:
        """Draw a labelled object of a real image."""
        case = _draw_case(rng, self._labelled)
        return case, *_draw_target(rng, case.labels)

    def draw_anatomy(self, rng: np.random.Generator) -> tuple[BankCase, BankMap, Target]:
        """Draw a bone or an air space of a CT; cases with more of them are drawn more often."""
        cases = self._with_anatomy
        sizes = np.array([len(case.anatomy.targets) for case in cases if case.anatomy], np.float64)
        case = cases[rng.choice(len(cases), p=sizes / sizes.sum())]
        return case, *_draw_target(rng, case.anatomy)

    def draw_supervoxel(
        self, rng: np.random.Generator, *, by_voxels: bool = False
    ) -> tuple[BankCase, BankMap, Target]:
        """Draw a pseudo-object of a real image."""
        case = _draw_case(rng, self._pictured, by_voxels=by_voxels)
        maps = case.supervoxels
        return case, *_draw_target(rng, maps[rng.integers(len(maps))])


def _add_case(case: PackedCase, images: list[Tensor], maps: list[Tensor]) -> BankCase:
    mips = () if case.image is None else _add_image(case, images)
    labels = None
    if case.labels is not None and len(case.labels.table):
        labels = _add_map(case.labels, maps)
    supers = tuple(_add_map(s, maps) for s in case.supervoxels if len(s.table))
    anatomy = None
    if case.anatomy is not None and len(case.anatomy.table):
        anatomy = _add_map(case.anatomy, maps)
    reference = case.image if case.image is not None else case.labels and case.labels.id_map
    if reference is None:
        msg = f"Case {case.name} has neither image nor labels; remove it from the pack."
        raise DatasetError(msg)
    return BankCase(
        name=case.name,
        group=f"{case.source} {case.modality}",
        is_ct=case.is_ct,
        spacing_mm=np.asarray(case.spacing_mm, np.float64),
        shape=_shape(reference),
        mips=mips,
        labels=labels if labels is None or labels.targets else None,
        supervoxels=tuple(s for s in supers if s.targets),
        anatomy=anatomy if anatomy is None or anatomy.targets else None,
    )


def _add_image(case: PackedCase, images: list[Tensor]) -> tuple[Grid, ...]:
    assert case.image is not None
    assert case.levels is not None
    low, high = CT_RANGE_HU if case.is_ct else (float(case.levels.min()), float(case.levels.max()))
    scaled = (case.levels - low) / max(high - low, 1e-6)
    level = torch.as_tensor(scaled[case.image].astype(np.float32))
    mips: list[Grid] = []
    factor = np.ones(3)
    for _ in range(NUM_MIPS):
        mips.append(Grid(_total(images), _shape(level), (factor[0], factor[1], factor[2])))
        images.append(level.half().flatten())
        # Halve the axes that are finest in mm: thick slices are not averaged any thicker.
        fine = factor * np.asarray(case.spacing_mm)
        halve = [
            int(f < 1.5 * fine.min() and n >= 16) for f, n in zip(fine, level.shape, strict=True)
        ]
        if not any(halve):
            break
        kernel = [1 + h for h in halve]
        level = functional.avg_pool3d(level[None, None], kernel, kernel)[0, 0]
        factor = factor * np.asarray(kernel)
    return tuple(mips)


def _add_map(objects: PackedObjects, maps: list[Tensor]) -> BankMap:
    ids = np.where(objects.id_map > MAX_MAP_ID, 0, objects.id_map).astype(np.uint8)
    i, j, k = (float(f) for f in objects.factor)
    grid = Grid(_total(maps), _shape(ids), (i, j, k))
    maps.append(torch.as_tensor(ids).flatten())
    neighbours = _neighbours(ids)
    value_of_id = np.arange(MAX_MAP_ID + 1, dtype=np.int16)
    by_value: defaultdict[int, list[Target]] = defaultdict(list)
    first_id: dict[int, int] = {}
    for row, object_id in enumerate(objects.table.ids.tolist()):
        if object_id > MAX_MAP_ID:
            continue
        value = objects.values[row] if objects.names and objects.values[row] else -object_id
        value_of_id[object_id] = first_id.setdefault(value, object_id)
        drawn = np.concatenate((objects.deep_seeds[row], objects.table.seeds[row]))
        seeds = (drawn.astype(np.float32) + 0.5) * np.asarray(objects.factor, np.float32) - 0.5
        extent = float(objects.table.extent_mm[row].max())
        num_deep = len(objects.deep_seeds[row])
        target = Target(object_id, extent, seeds, num_deep, neighbours.get(object_id, ()))
        by_value[value].append(target)
    return BankMap(grid, tuple(tuple(group) for group in by_value.values()), value_of_id)


def _neighbours(ids: NDArray[np.uint8]) -> dict[int, tuple[int, ...]]:
    """Return the objects that touch each object, most contact first (at most three)."""
    contact = np.zeros((256, 256), np.int64)
    for axis in range(3):
        near = np.moveaxis(ids, axis, 0)[:-1:2].ravel().astype(np.int64)
        far = np.moveaxis(ids, axis, 0)[1::2].ravel()[: near.size].astype(np.int64)
        pairs = np.bincount(near * 256 + far, minlength=65536).reshape(256, 256)
        contact += pairs + pairs.T
    contact[:, 0] = 0
    np.fill_diagonal(contact, 0)
    found: dict[int, tuple[int, ...]] = {}
    for object_id in np.flatnonzero(contact.sum(1)).tolist():
        order = np.argsort(-contact[object_id])[:3]
        found[object_id] = tuple(int(n) for n in order if contact[object_id, n] > 4)
    return found


def _by_group(cases: Iterable[BankCase]) -> dict[str, list[BankCase]]:
    groups: defaultdict[str, list[BankCase]] = defaultdict(list)
    for case in cases:
        groups[case.group].append(case)
    return dict(groups)


def _draw_case(
    rng: np.random.Generator, groups: dict[str, list[BankCase]], *, by_voxels: bool = False
) -> BankCase:
    sizes = [sum(c.num_voxels for c in g) if by_voxels else len(g) for g in groups.values()]
    weights = np.array(sizes, np.float64) ** GROUP_POWER
    cases = list(groups.values())[rng.choice(len(weights), p=weights / weights.sum())]
    return cases[rng.integers(len(cases))]


def _draw_target(rng: np.random.Generator, bank_map: BankMap | None) -> tuple[BankMap, Target]:
    assert bank_map is not None
    targets = bank_map.targets[rng.integers(len(bank_map.targets))]
    weights = np.array([target.extent_mm for target in targets])
    return bank_map, targets[rng.choice(len(targets), p=weights / weights.sum())]


def _shape(array: NDArray[Any] | Tensor) -> tuple[int, int, int]:
    i, j, k = (int(n) for n in array.shape)
    return i, j, k


def _total(parts: list[Tensor]) -> int:
    return sum(part.numel() for part in parts)


def _concatenate(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(1, dtype=dtype)
