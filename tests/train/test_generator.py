"""The generator: what a batch must be, whatever was drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastsam3d.errors import ConfigError, DatasetError
from fastsam3d.train.bank import TrainingBank
from fastsam3d.train.config import recipe
from fastsam3d.train.degrade import DegradeConfig, apply_axis_matrices, draw_axis_matrices
from fastsam3d.train.drawing import (
    LESION_CORE_ID,
    MODE_LABEL,
    MODE_NESTED,
    MODE_OBJECT,
    SESSION_SPACING_MM,
    BatchDrawer,
    DrawnBatch,
)
from fastsam3d.train.rendering import Renderer, _members, _paint_lesions, _positions, _tint
from fastsam3d.train.shapes import (
    FIELD_SIDE,
    PRIMITIVE_ID0,
    REGION_ID0,
    ShapesConfig,
    draw_shapes,
    fill_labels,
    is_drawn,
)
from tests.train.toy import SIZE, toy_case

CONFIG = replace(recipe("debug").generator, num_shapes=2, num_painted=2, num_real=6)


@pytest.fixture(scope="module")
def bank() -> TrainingBank:
    return TrainingBank([toy_case(0), toy_case(1), toy_case(2, has_image=False)], device="cpu")


def drawn_batch(bank: TrainingBank, seed: int) -> DrawnBatch:
    torch.manual_seed(seed)
    return BatchDrawer(bank, CONFIG, seed=seed).draw()


@pytest.mark.parametrize("seed", range(3))
def test_batch_is_finite_normalised_and_centred_on_the_first_target(
    bank: TrainingBank, seed: int
) -> None:
    batch = Renderer(bank, CONFIG).render(drawn_batch(bank, seed))
    assert batch.image.shape == (CONFIG.batch_size, 1, SIZE, SIZE, SIZE)
    assert torch.isfinite(batch.image).all()
    assert batch.image.abs().max() < 50
    assert batch.targets.dtype == torch.bool
    centre = batch.targets[:, 0, SIZE // 2, SIZE // 2, SIZE // 2]
    assert centre[batch.weights[:, 0] > 0].all()
    assert batch.weights.mean() > 0.6
    share = batch.targets.float().mean((2, 3, 4))
    used = share[batch.weights > 0]
    assert ((used > CONFIG.min_share) & (used < CONFIG.max_share)).all()


def test_same_seed_same_batch(bank: TrainingBank) -> None:
    first = Renderer(bank, CONFIG).render(drawn_batch(bank, 5))
    torch.manual_seed(5)
    second = Renderer(bank, CONFIG).render(drawn_batch(bank, 5))
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.targets, second.targets)


def test_real_roi_shows_the_voxels_of_its_case(bank: TrainingBank) -> None:
    """Without pose and artefacts, the sampled image and ids are those of the case."""
    plain = replace(CONFIG, warp_voxels=(0.0, 0.0), share_lesion=0.0, share_supervoxel=0.0)
    drawn = BatchDrawer(bank, plain, seed=1).draw()
    rows = drawn.axes.shape[0]
    drawn.axes = torch.eye(3).repeat(rows, 1, 1)
    drawn.centre = torch.full((rows, 3), 20.0)
    mip = bank.cases[0].mips[0]
    drawn.image_offset[:] = mip.offset
    drawn.image_shape[:] = torch.tensor(mip.shape)
    drawn.image_scale[:] = 1
    _, image, inside = Renderer(bank, plain)._sample_bank(drawn)
    case = toy_case(0)
    assert case.image is not None
    assert case.levels is not None
    whole = torch.from_numpy((case.levels[case.image] + 1000) / 2000)
    torch.testing.assert_close(image[0], whole[4:36, 4:36, 4:36], atol=2e-3, rtol=0)
    assert inside.all()


def test_centre_of_the_roi_is_the_chosen_voxel(bank: TrainingBank) -> None:
    drawn = drawn_batch(bank, 3)
    at = _positions(drawn, SIZE)[:, :, SIZE // 2, SIZE // 2, SIZE // 2]
    torch.testing.assert_close(at, drawn.centre, atol=1e-4, rtol=0)


def test_bank_without_targets_is_refused() -> None:
    bare = replace(toy_case(0), labels=None, supervoxels=())
    with pytest.raises(DatasetError, match="No target was found in 1 cases"):
        TrainingBank([bare], device="cpu")


def test_neighbours_are_objects_that_touch(bank: TrainingBank) -> None:
    labels = bank.cases[0].labels
    assert labels is not None
    targets = [target for group in labels.targets for target in group]
    touching = {t.object_id: set(t.neighbours) for t in targets}
    assert any(touching.values())
    assert all(n in touching and n != own for own, near in touching.items() for n in near)


def test_primitives_cover_regions_and_spare_set_voxels() -> None:
    base = torch.zeros(1, 16, 16, 16, dtype=torch.int16)
    base[:, :4] = 9
    primitives = torch.zeros(1, 2, 16)
    primitives[0, 0, :9] = (torch.eye(3) / 0.5).flatten()
    primitives[0, 0, 13] = 2.0
    primitives[0, 1] = primitives[0, 0]
    primitives[0, 1, 9:12] = torch.tensor([-1.0, 0.0, 0.0])
    fields = torch.full((1, 12, 12, 12, 12), -1.0)
    fields[:, 4] = 1.0
    warp = torch.zeros(1, 3, 9, 9, 9)
    ids = fill_labels(base, fields, torch.ones(1), warp, primitives)
    assert ids[0, 8, 8, 8] == PRIMITIVE_ID0
    assert ids[0, 15, 15, 15] == REGION_ID0 + 4
    assert (ids[:, :4] == 9).all()
    ball = (ids == PRIMITIVE_ID0).sum() / 8**3  # volume in units of radius^3: 8 voxels per unit
    assert ball * 8 == pytest.approx(4 / 3 * np.pi, rel=0.1)
    primitives[0, 1, 15] = 1.0
    assert (fill_labels(base, fields, torch.ones(1), warp, primitives)[:, :4] != 9).any()


def test_shell_is_hollow_and_tube_is_one_object() -> None:
    config = ShapesConfig(num_blobs=(3, 3), num_tubes=(1, 1), share_shells=1.0, share_nested=0.0)
    shapes = draw_shapes(np.random.default_rng(0), 1, config)
    tube = shapes.groups[0, : config.tube_segments]
    assert set(tube.tolist()) == {0}
    blobs = shapes.primitives[0, config.tube_segments : config.tube_segments + 3]
    assert (blobs[:, 14] > 0.5).all()


def test_axis_matrices_keep_constants_and_blur() -> None:
    config = DegradeConfig(share_blur=1.0, share_thick=1.0)
    matrices = torch.from_numpy(draw_axis_matrices(np.random.default_rng(0), 4, SIZE, config))
    flat = apply_axis_matrices(torch.ones(4, SIZE, SIZE, SIZE), matrices)
    torch.testing.assert_close(flat, torch.ones_like(flat), atol=1e-4, rtol=0)
    noise = torch.randn(4, SIZE, SIZE, SIZE)
    assert apply_axis_matrices(noise, matrices).std() < 0.8 * noise.std()


def test_axis_matrices_without_artefacts_are_the_identity() -> None:
    config = DegradeConfig(share_blur=0.0, share_thick=0.0)
    matrices = torch.from_numpy(draw_axis_matrices(np.random.default_rng(0), 2, SIZE, config))
    image = torch.randn(2, SIZE, SIZE, SIZE)
    torch.testing.assert_close(apply_axis_matrices(image, matrices), image)


@pytest.mark.parametrize("counts", [(2, 3, 0), (0, 0, 3), (0, 3, 0), (3, 0, 2)])
def test_any_stream_may_be_left_out(bank: TrainingBank, counts: tuple[int, int, int]) -> None:
    shapes, painted, real = counts
    config = replace(CONFIG, num_shapes=shapes, num_painted=painted, num_real=real)
    batch = Renderer(bank, config).render(BatchDrawer(bank, config, seed=1).draw())
    assert batch.image.shape[0] == sum(counts)
    assert torch.isfinite(batch.image).all()
    assert batch.weights.sum() > 0


@pytest.mark.parametrize(
    "change",
    [{"num_real": -1}, {"num_painted": 0, "num_real": 0}, {"num_targets": 0}, {"min_share": 0.7}],
)
def test_a_generator_that_cannot_work_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        replace(CONFIG, **change)


@pytest.mark.parametrize("share_tube", [0.0, 1.0])
def test_lesions_lie_at_the_centre_however_the_shapes_are_warped(
    bank: TrainingBank, share_tube: float
) -> None:
    shapes = replace(CONFIG.shapes, warp=0.3)
    config = replace(CONFIG, share_lesion=1.0, share_lesion_tube=share_tube, shapes=shapes)
    found = 0
    for seed in range(6):
        drawn = BatchDrawer(bank, config, seed=seed).draw()
        blank = torch.zeros(config.batch_size, SIZE, SIZE, SIZE, dtype=torch.int16)
        fields = torch.zeros(config.batch_size, 1, FIELD_SIDE, FIELD_SIDE, FIELD_SIDE)
        ids = fill_labels(blank, fields, drawn.zoom.float(), drawn.shape_warp, drawn.primitives)
        middle = SIZE // 2
        found += int((ids[-config.num_real :, middle, middle, middle] >= PRIMITIVE_ID0).sum())
    total = 6 * config.num_real
    # Blobs may lie beside each other and all beside the centre; a tube leads through it.
    assert found == total if share_tube else found > 0.8 * total


def test_a_tube_is_one_object_thinner_than_long(bank: TrainingBank) -> None:
    config = replace(CONFIG, share_lesion=1.0, share_lesion_tube=1.0)
    drawn = BatchDrawer(bank, config, seed=1).draw()
    used = is_drawn(drawn.primitives)[-config.num_real :]
    assert (used.sum(1) == config.shapes.tube_segments).all()
    values = drawn.value_of_id[-config.num_real :, PRIMITIVE_ID0:][used]
    assert (values == PRIMITIVE_ID0).all()


def test_a_wall_and_its_core_are_two_objects_and_one_together(bank: TrainingBank) -> None:
    config = replace(
        CONFIG, share_lesion=1.0, share_lesion_wall=1.0, share_supervoxel=1.0, num_real=12
    )
    drawn = BatchDrawer(bank, config, seed=3).draw()
    first = config.batch_size - config.num_real
    blank = torch.ones(config.batch_size, SIZE, SIZE, SIZE, dtype=torch.int16)
    fields = torch.zeros(config.batch_size, 1, FIELD_SIDE, FIELD_SIDE, FIELD_SIDE)
    ids = fill_labels(blank, fields, drawn.zoom.float(), drawn.shape_warp, drawn.primitives)
    middle = ids[first:, SIZE // 2, SIZE // 2, SIZE // 2]
    assert {PRIMITIVE_ID0, LESION_CORE_ID} <= set(middle.tolist())
    assert (middle >= PRIMITIVE_ID0).float().mean() > 0.8
    assert (drawn.parent_of_id[first:, LESION_CORE_ID] == PRIMITIVE_ID0).all()
    own = torch.full((config.batch_size,), PRIMITIVE_ID0)
    for mode, has_core in ((MODE_OBJECT, False), (MODE_LABEL, False), (MODE_NESTED, True)):
        drawn.mode[:] = mode
        members = _members(own, drawn, 0, None)[first:]
        assert members[:, PRIMITIVE_ID0].all()
        assert (members[:, LESION_CORE_ID] == has_core).all()
    batch = Renderer(bank, config).render(drawn)
    assert batch.weights[first:, 0].mean() > 0.8


def test_a_core_has_a_contrast_of_its_own() -> None:
    torch.manual_seed(1)
    image = torch.rand(2, 16, 16, 16)
    lesion = torch.zeros(2, 16, 16, 16, dtype=torch.bool)
    lesion[:, 2:14, 2:14, 2:14] = True
    core = torch.zeros_like(lesion)
    core[:, 6:10, 6:10, 6:10] = True
    painted = _paint_lesions(image, lesion, 0.0, core)
    wall = lesion & ~core
    for n in range(2):
        assert (painted[n][core[n]].mean() - painted[n][wall[n]].mean()).abs() > 0.03


def test_a_lesion_may_show_what_another_roi_shows() -> None:
    torch.manual_seed(0)
    image = torch.rand(3, 16, 16, 16)
    image[2] = (torch.arange(16) % 2).float()  # stripes along the last axis
    lesion = torch.zeros(3, 16, 16, 16, dtype=torch.bool)
    lesion[0, 4:12, 4:12, 4:12] = True
    painted = _paint_lesions(image, lesion, 1.0)
    assert torch.equal(painted[~lesion], image[~lesion])
    inside = painted[0, 4:12, 4:12, 4:12] - image[0, 4:12, 4:12, 4:12]
    stripes = inside.mean((0, 1))
    assert (stripes[::2].mean() - stripes[1::2].mean()).abs() > 0.01


def test_supervoxels_are_painted_like_label_maps() -> None:
    """Objects of one label share a value; supervoxels are each their own."""
    only_image = TrainingBank([replace(toy_case(0), labels=None)], device="cpu")
    config = replace(CONFIG, num_shapes=0, num_painted=3, num_real=1, share_painted_supervoxel=1.0)
    config = replace(config, share_supervoxel=1.0)
    drawn = BatchDrawer(only_image, config, seed=4).draw()
    assert (drawn.first_id[:3] > 0).all()
    batch = Renderer(only_image, config).render(drawn)
    assert batch.weights[:3, 0].all()


def test_bones_are_drawn_from_the_cases_that_have_them() -> None:
    """Where they are asked for, and only there; each is its own object."""
    bones = toy_case(1).supervoxels[0]
    cases = [toy_case(0), replace(toy_case(2), anatomy=bones)]
    found = TrainingBank(cases, device="cpu")
    rng = np.random.default_rng(0)
    drawn = [found.draw_anatomy(rng) for _ in range(40)]
    assert {case.name for case, _, _ in drawn} == {"toy2"}
    assert {target.object_id for _, _, target in drawn} == set(bones.table.ids.tolist())
    config = replace(CONFIG, num_shapes=0, num_painted=1, num_real=6, share_supervoxel=0.0)
    for share in (0.0, 1.0):
        drawer = BatchDrawer(found, replace(config, share_anatomy=share), seed=3)
        offsets = set(drawer.draw().map_offset[1:].tolist())
        assert found.cases[1].anatomy is not None
        assert (offsets == {found.cases[1].anatomy.grid.offset}) == (share == 1.0)
        assert (found.cases[1].anatomy.grid.offset in offsets) == (share == 1.0)


def test_a_roi_at_the_scale_of_sessions_is_as_fine_whatever_it_shows(bank: TrainingBank) -> None:
    config = replace(CONFIG, size=128, share_session_scale=1.0)
    drawer = BatchDrawer(bank, config, seed=2)
    case = bank.cases[0]
    large = replace(case, shape=(400, 400, 400))
    assert case.labels is not None
    for group in case.labels.targets:
        for target in group:
            spacing = drawer._spacing(large, target)
            assert np.exp(-0.25) <= spacing / SESSION_SPACING_MM <= np.exp(0.25)
    # A scan smaller than such a ROI is shown as large as it fits.
    assert drawer._spacing(case, case.labels.targets[0][0]) == pytest.approx(80 / 128)


@pytest.mark.parametrize(("share", "deep"), [(1.0, True), (0.0, False)])
def test_clicks_start_deep_inside_or_anywhere(bank: TrainingBank, share: float, deep: bool) -> None:
    labels = bank.cases[0].labels
    assert labels is not None
    target = labels.targets[0][0]
    rng = np.random.default_rng(0)
    numbered = replace(target, seeds=np.arange(3 * len(target.seeds), dtype=np.float32))
    numbered = replace(numbered, seeds=numbered.seeds.reshape(-1, 3))
    drawn = {int(numbered.draw_seed(rng, share)[0]) // 3 for _ in range(50)}
    assert all((n < target.num_deep) == deep for n in drawn)
    assert len(drawn) > 4


def test_large_scans_are_drawn_more_often_where_voxels_count() -> None:
    large = replace(toy_case(1, side=80), source="large")
    two = TrainingBank([toy_case(0, side=20), large], device="cpu")
    rng = np.random.default_rng(0)
    for draw in (two.draw_supervoxel, two.draw_painted):
        counts = [
            sum(draw(rng, by_voxels=chosen)[0].shape[0] == 80 for _ in range(300))
            for chosen in (False, True)
        ]
        assert 120 < counts[0] < 180
        assert counts[1] > 220


def test_tint_changes_objects_and_leaves_the_rest() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 16, 16, 16)
    ids = torch.zeros(2, 16, 16, 16, dtype=torch.long)
    ids[:, :8] = 3
    ids[:, 12:] = REGION_ID0
    changed = _tint(image, ids, 1.0) - image
    assert changed[:, 9:].abs().max() < 1e-6
    inner = changed[:, :7].flatten(1)
    assert (inner.std(1) < 1e-5).all()
    assert (inner.mean(1).abs() > 1e-3).all()
    assert torch.equal(_tint(image, ids, 0.0), image)
