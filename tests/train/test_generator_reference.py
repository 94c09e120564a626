"""The generator against slow, plain references on small grids."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastsam3d.preprocess.intensity import normalise
from fastsam3d.preprocess.roi import Roi
from fastsam3d.preprocess.window import ct_window
from fastsam3d.train.bank import CT_RANGE_HU, TrainingBank
from fastsam3d.train.config import recipe
from fastsam3d.train.degrade import (
    FOCUS_HALF_WIDTH_HU,
    DegradeConfig,
    apply_axis_matrices,
    random_filters,
    recolour,
    stretch,
)
from fastsam3d.train.drawing import MODE_LABEL, MODE_NESTED, BatchDrawer, DrawnBatch
from fastsam3d.train.rendering import _choose_targets, _degrade_and_normalise
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
    fill_labels_reference,
)
from fastsam3d.volume import Geometry, Volume
from tests.train.toy import SIZE, toy_case

PLAIN = DegradeConfig(
    share_blur=0.0,
    share_thick=0.0,
    bias=(0.0, 0.0),
    noise=(0.0, 0.0),
    gamma=0.0,
    share_remap=0.0,
    share_invert=0.0,
    share_window=0.0,
)
CONFIG = replace(
    recipe("debug").generator, num_shapes=2, num_painted=1, num_real=3, share_cut_view=0.3
)


@pytest.fixture(scope="module")
def drawn() -> DrawnBatch:
    bank = TrainingBank([toy_case(0), toy_case(1)], device="cpu")
    return BatchDrawer(bank, CONFIG, seed=3).draw()


def trilinear(grid: NDArray[np.float32], at: NDArray[np.float64]) -> float:
    """Sample a cube at coordinates in -1..1, clamped, corner by corner."""
    size = grid.shape[0]
    position = np.clip((at + 1) * 0.5 * (size - 1), 0, size - 1)
    low = np.minimum(position.astype(int), size - 2)
    share = position - low
    total = 0.0
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, share, 1 - share))
        total += weight * grid[tuple(low + corner)]
    return float(total)


def slow_label(
    voxel: tuple[int, ...], base: int, side: int, *arrays: NDArray[np.float32], zoom: float
) -> int:
    """Fill one voxel as the docstring of `fill_labels` says."""
    fields, warp, primitives = arrays
    at = (np.array(voxel) - side / 2) * 2 / side
    at = at + np.array([trilinear(part, at) for part in warp])
    values = [trilinear(field, at * zoom) for field in fields]
    label = base or REGION_ID0 + int(np.argmax(values))
    for row, p in enumerate(primitives):
        inverse, centre, half, exponent, inner, over = p[:9], p[9:12], *p[12:16]
        q = np.abs(inverse.reshape(3, 3) @ (at - centre))
        q[0] = max(q[0] - half, 0)
        reach = (np.maximum(q, 1e-6) ** exponent).sum()
        if inner**exponent <= reach < 1 and (base == 0 or over > 0):
            label = PRIMITIVE_ID0 + row
    return label


def shape_inputs(side: int, batch: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = ShapesConfig(num_blobs=(3, 5), num_tubes=(1, 1), share_shells=0.5)
    primitives = torch.from_numpy(draw_shapes(rng, batch, config).primitives)
    primitives[:, 2, 15] = 1.0  # draws over set voxels
    base = torch.zeros(batch, side, side, side, dtype=torch.int16)
    base[:, : side // 3] = 7
    fields = torch.randn(batch, MAX_REGIONS, FIELD_SIDE, FIELD_SIDE, FIELD_SIDE)
    fields[:, 6:] = UNUSED_FIELD
    warp = 0.1 * torch.randn(batch, 3, WARP_SIDE, WARP_SIDE, WARP_SIDE)
    return base, fields, torch.linspace(0.3, 0.9, batch), warp, primitives


def test_labels_equal_those_filled_voxel_by_voxel() -> None:
    side, batch = 9, 2
    base, fields, zoom, warp, primitives = shape_inputs(side, batch)
    ids = fill_labels(base, fields, zoom, warp, primitives).numpy()
    for b in range(batch):
        arrays = (fields[b].numpy(), warp[b].numpy(), primitives[b].numpy())
        for voxel in np.ndindex(ids.shape[1:]):
            if sum(voxel) % 3:  # every third voxel is enough
                continue
            label = slow_label(voxel, int(base[b][voxel]), side, *arrays, zoom=float(zoom[b]))
            assert ids[b][voxel] == label
    assert {7, PRIMITIVE_ID0} & set(np.unique(ids).tolist())
    assert len(np.unique(ids)) > 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel needs a GPU")
def test_kernel_equals_its_reference() -> None:
    inputs = [part.cuda() for part in shape_inputs(64, 3)]
    base, fields, zoom, warp, primitives = inputs
    kernel = fill_labels(base, fields, zoom, warp, primitives)
    reference = fill_labels_reference(base, fields, zoom, warp, primitives)
    # Voxels on a boundary may fall either way by rounding.
    assert (kernel != reference).float().mean() < 1e-4


def test_line_products_equal_the_sum_over_all_voxels() -> None:
    torch.manual_seed(0)
    image, matrices = torch.randn(2, 6, 6, 6), torch.rand(2, 3, 6, 6)
    m = matrices.unbind(1)
    slow = torch.einsum("bia,bjc,bke,bace->bijk", m[0], m[1], m[2], image)
    torch.testing.assert_close(apply_axis_matrices(image, matrices), slow)


def test_training_sees_what_inference_sees(drawn: DrawnBatch) -> None:
    """Without artefacts an ROI is normalised as the weights card tells every session to do."""
    torch.manual_seed(0)
    image = torch.rand(CONFIG.batch_size, SIZE, SIZE, SIZE) * 0.7 + 0.1
    inside = torch.ones(CONFIG.num_real, SIZE, SIZE, SIZE, dtype=torch.bool)
    inside[:, :, :, 25:] = False
    image[-CONFIG.num_real :][~inside] = 99.0  # must not matter
    identity = torch.eye(SIZE).expand(CONFIG.batch_size, 3, SIZE, SIZE)
    plain = replace(drawn, axis_matrices=identity)
    config = replace(CONFIG, degrade=PLAIN)
    seen, valid = _degrade_and_normalise(image, inside, plain, config)

    middle = slice(SIZE // 2 - 1, SIZE // 2 + 2)
    for b in range(CONFIG.batch_size):
        is_real = b >= CONFIG.batch_size - CONFIG.num_real
        scanned = inside[b - CONFIG.batch_size] if is_real else torch.ones_like(inside[0])
        filled = torch.where(scanned, image[b], image[b, middle, middle, middle].mean())
        view = torch.zeros_like(scanned)
        start, stop = drawn.view_start[b].tolist(), drawn.view_stop[b].tolist()
        view[tuple(slice(low, high) for low, high in zip(start, stop, strict=True))] = True
        assert torch.equal(valid[b], view & scanned)
        stretched = stretch(filled[None]).clamp(1e-4, 1)[:, None]
        expected = normalise(stretched, valid[b][None, None], method="roi_percentile_zscore")
        torch.testing.assert_close(seen[b], expected[0])
        assert seen[b, 0][~valid[b]].unique().numel() <= 1


@pytest.mark.parametrize("tissue_hu", [-800.0, 40.0, 600.0])
def test_a_ct_is_shown_through_the_window_of_the_session(
    tissue_hu: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a factor that is drawn anew, and here is drawn as 1."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, 0.5))
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: torch.zeros(shape))
    side, width_hu = 32, CT_RANGE_HU[1] - CT_RANGE_HU[0]
    ramp = torch.linspace(-1000, 1500, side).expand(side, side, side)
    hu = ramp.clone()
    middle = slice(side // 2 - 4, side // 2 + 5)
    hu[middle, middle, middle] = tissue_hu
    volume = Volume(hu.numpy(), Geometry(hu.shape, np.eye(4)))
    roi = Roi.around((side / 2,) * 3, volume.geometry, 1.0)
    monkeypatch.setattr(Volume, "is_hounsfield", True)
    low, high = ct_window(volume, roi, FOCUS_HALF_WIDTH_HU) or (0, 0)

    config = replace(PLAIN, share_focus=1.0)
    image = (hu[None] - CT_RANGE_HU[0]) / width_hu
    shown = recolour(image, torch.tensor([True]), config=config, ct_width=width_hu)
    wanted = stretch(((hu[None] - low) / (high - low)).clamp(0, 1)).clamp(1e-4, 1)
    torch.testing.assert_close(shown, wanted, atol=1e-5, rtol=0)


def test_random_filters_are_small_networks_of_a_voxel_and_its_six_neighbours() -> None:
    """A voxel depends on no other one, and not all ROIs are filtered alike."""
    torch.manual_seed(3)
    image = torch.rand(2, 16, 16, 16)
    image[1] = image[0]
    torch.manual_seed(4)
    first = random_filters(image)
    assert not torch.equal(first[0], first[1])
    assert first.min() >= 0
    assert first.max() <= 1
    changed = image.clone()
    changed[:, 7, 7, 7] += 1e-3  # not a voxel by which the range is stretched
    torch.manual_seed(4)
    at = (random_filters(changed) != first).any(0).nonzero().float()
    assert (at - 7).abs().sum(1).max() <= 1
    assert len(at) > 1


def slow_members(drawn: DrawnBatch, b: int, m: int, chosen: int) -> set[int]:
    """Return the ids that make a target, as the modes are described."""
    if chosen == 0:
        return set()
    values, parents = drawn.value_of_id[b].tolist(), drawn.parent_of_id[b].tolist()
    mode = int(drawn.mode[b, m])
    members = {chosen}
    if mode == MODE_LABEL or chosen >= PRIMITIVE_ID0:
        members |= {i for i in range(NUM_IDS) if values[i] == values[chosen]}
    if mode == MODE_NESTED:
        children = {i for i in range(NUM_IDS) if parents[i] == chosen}
        members |= children | {i for i in range(NUM_IDS) if parents[i] in children}
    if m == 0 and int(drawn.partner_id[b]) > 0:
        members.add(int(drawn.partner_id[b]))
    return members - {0}


def test_targets_are_the_members_and_weigh_only_within_the_limits(drawn: DrawnBatch) -> None:
    torch.manual_seed(0)
    side, middle = 16, 8
    config = replace(CONFIG, size=side, min_share=0.02, max_share=0.08)
    parents = torch.full_like(drawn.parent_of_id, -1)
    parents[:, 2], parents[:, 3] = 1, 2  # 3 lies in 2, 2 in 1
    mode = torch.full_like(drawn.mode, MODE_NESTED)
    mode[1::2] = MODE_LABEL
    first_id = torch.tensor([0, 0, 1, 1, 2, 3])
    values = drawn.value_of_id.clone()
    values[:, 3] = values[:, 1]  # two objects of one label
    drawn = replace(drawn, parent_of_id=parents, value_of_id=values, mode=mode, first_id=first_id)
    outcomes: set[str] = set()
    shape = (config.batch_size, side // 4, side // 4, side // 4)
    kinds = torch.tensor([0, 1, 2, 3, REGION_ID0, REGION_ID0 + 1, *range(100, NUM_IDS, 9)])
    coarse = kinds[torch.randint(len(kinds), shape)]
    ids = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    ids = ids.to(torch.int16)
    valid = torch.rand(ids.shape) < 0.9
    targets, weights = _choose_targets(ids, valid, drawn, config)

    for b in range(config.batch_size):
        first = int(drawn.first_id[b]) or int(ids[b, middle, middle, middle])
        for m in range(config.num_targets):
            options = [first] if m == 0 else range(NUM_IDS)
            found = [
                chosen
                for chosen in options
                if torch.equal(
                    targets[b, m],
                    torch.isin(ids[b], torch.tensor(sorted(slow_members(drawn, b, m, chosen))))
                    & valid[b],
                )
            ]
            assert found
            share = float(targets[b, m].float().mean())
            is_filler = all(
                REGION_ID0 <= chosen < PRIMITIVE_ID0 and b >= config.num_shapes for chosen in found
            )
            if weights[b, m] > 0:
                assert config.min_share < share < config.max_share
                assert not is_filler
                outcomes.add("used")
            elif m == 0 and first > 0 and not is_filler:
                assert not config.min_share < share < config.max_share
                outcomes.add("too small" if share <= config.min_share else "too large")
    assert {"used", "too large"} <= outcomes
    assert set(weights.unique().tolist()) == {0.0, 1.0}
