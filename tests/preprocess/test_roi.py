"""ROIs: cutting, pasting and carrying masks over, on any grid."""

import itertools

import numpy as np
import pytest
import torch

from fastsam3d.errors import GeometryError
from fastsam3d.preprocess.roi import (
    MASK_PROMPT_LOGIT,
    Roi,
    cut_roi,
    foreground,
    mask_to_logits,
    paste_logits,
    resample_logits,
    roi_region,
    roi_to_voxel,
    voxel_to_roi,
)
from fastsam3d.volume import Geometry

SIZE = 32


def ramp_volume(shape=(20, 18, 16), spacing=(1.0, 1.2, 2.0)):
    """Return an array that is linear in millimetres, and its geometry."""
    geometry = Geometry(shape, np.diag([*spacing, 1.0]))
    world = geometry.voxel_to_world(np.moveaxis(np.indices(shape), 0, -1))
    return (world @ np.array([3.0, -2.0, 1.0])).astype(np.float32), geometry


def every_orientation(array, geometry):
    """Yield the same volume stored in all 48 axis orders and directions."""
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product([1, -1], repeat=3):
            view = array.transpose(axes)[tuple(slice(None, None, s) for s in signs)]
            start = [0 if s > 0 else n - 1 for s, n in zip(signs, view.shape, strict=True)]
            change = np.zeros((4, 4))
            change[3, 3] = 1
            for new, (old, sign) in enumerate(zip(axes, signs, strict=True)):
                change[old, new] = sign
                change[old, 3] = start[new]
            yield view, Geometry(view.shape, geometry.affine @ change)


def test_the_click_is_at_the_middle_voxel_exactly():
    array, geometry = ramp_volume()
    click = (7, 9, 4)
    for spacing in (0.6, 1.0):
        image, valid = cut_roi(array, geometry, Roi.around(click, geometry, spacing, SIZE))
        assert image[0, 0, 16, 16, 16] == array[click]
        assert valid[0, 0, 16, 16, 16]


def test_cutting_is_exact_on_a_linear_image_at_every_spacing():
    array, geometry = ramp_volume(shape=(60, 60, 60), spacing=(1.0, 1.0, 1.0))
    for spacing in (0.5, 1.0, 1.7):
        image, _ = cut_roi(array, geometry, Roi.around((30, 30, 30), geometry, spacing, SIZE))
        offsets = (np.indices((SIZE,) * 3) - SIZE // 2) * spacing + 30
        expected = np.tensordot([3.0, -2.0, 1.0], offsets, 1)
        np.testing.assert_allclose(image[0, 0].numpy(), expected, atol=1e-3)


def test_coarse_cuts_average_instead_of_picking_voxels():
    checker = np.indices((40, 40, 40)).sum(0) % 2
    geometry = Geometry(checker.shape, np.eye(4))
    image, valid = cut_roi(checker, geometry, Roi.around((20, 20, 20), geometry, 4.0, SIZE))
    np.testing.assert_allclose(image[valid].numpy(), 0.5, atol=0.13)


def test_valid_voxels_are_those_within_the_faces_of_the_scan():
    array, geometry = ramp_volume((5, 5, 1), (1.0, 1.0, 4.0))
    _, valid = cut_roi(array, geometry, Roi.around((2, 2, 0), geometry, 1.0, SIZE))
    hits = [valid[0, 0].sum(other).nonzero().flatten() - 16 for other in ((1, 2), (0, 2), (0, 1))]
    assert hits[0].tolist() == [-2, -1, 0, 1, 2]
    assert hits[2].tolist() == [-2, -1, 0, 1, 2]


def test_all_orientations_give_the_same_roi():
    array, geometry = ramp_volume()
    array = array + np.random.default_rng(0).normal(size=array.shape).astype(np.float32)
    world = geometry.voxel_to_world((8.0, 5.0, 6.0))
    expected, expected_valid = cut_roi(array, geometry, Roi.around((8, 5, 6), geometry, 0.9, SIZE))
    for view, stored in every_orientation(array, geometry):
        roi = Roi.around(stored.world_to_voxel(world), stored, 0.9, SIZE)
        image, valid = cut_roi(view, stored, roi)
        assert torch.equal(valid, expected_valid)
        torch.testing.assert_close(image, expected, atol=1e-3, rtol=1e-4)


def test_numpy_and_torch_volumes_are_cut_alike():
    array, geometry = ramp_volume()
    array.setflags(write=False)
    roi = Roi.around((3, 4, 5), geometry, 1.3, SIZE)
    from_tensor, _ = cut_roi(torch.tensor(array), geometry, roi)
    assert torch.equal(cut_roi(array, geometry, roi)[0], from_tensor)


def test_cutting_refuses_an_array_of_another_shape():
    array, geometry = ramp_volume()
    with pytest.raises(GeometryError, match="i, j, k order"):
        cut_roi(array.T, geometry, Roi((0.0, 0.0, 0.0), 1.0, SIZE))


@pytest.mark.parametrize(
    ("centre", "spacing"), [((np.nan, 0.0, 0.0), 1.0), ((0.0,) * 3, np.inf), ((0.0,) * 3, 0.0)]
)
def test_impossible_rois_are_refused(centre, spacing):
    with pytest.raises(GeometryError, match="ROI must have"):
        Roi(centre, spacing)


def test_points_convert_both_ways():
    _, geometry = ramp_volume()
    for _, stored in every_orientation(np.zeros(geometry.shape), geometry):
        roi = Roi.around((2.5, 3.0, 4.0), stored, 0.7, SIZE)
        points = np.array([[2.5, 3.0, 4.0], [0.0, 7.0, 1.5]])
        in_roi = voxel_to_roi(points, stored, roi)
        np.testing.assert_allclose(in_roi[0], SIZE // 2)
        np.testing.assert_allclose(roi_to_voxel(in_roi, stored, roi), points, atol=1e-9)


def ball_logits(radius_voxels, size=SIZE):
    axis = torch.arange(size) - size // 2
    distance = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    return radius_voxels - distance


@pytest.mark.parametrize("spacing", [0.6, 1.0, 1.9])
def test_a_pasted_ball_is_the_ball_on_every_orientation(spacing):
    _, geometry = ramp_volume()
    world = geometry.voxel_to_world((9.0, 8.0, 7.0))
    radius_mm = 5.3 * spacing
    for _, stored in every_orientation(np.zeros(geometry.shape, np.uint8), geometry):
        roi = Roi.around(stored.world_to_voxel(world), stored, spacing, SIZE)
        region, array = paste_logits(ball_logits(5.3), stored, roi)
        mask = np.zeros(stored.shape, np.uint8)
        mask[region.slices] = array
        positions = stored.voxel_to_world(np.moveaxis(np.indices(stored.shape), 0, -1))
        distance = np.linalg.norm(positions - world, axis=-1)
        # Linear interpolation of a distance is off by a fraction of an ROI voxel.
        assert mask[distance < radius_mm - 0.3 * spacing].all()
        assert not mask[distance > radius_mm + 0.3 * spacing].any()


def test_pasting_computes_only_the_box_of_the_foreground():
    _, geometry = ramp_volume((64, 64, 64), (1.0, 1.0, 1.0))
    roi = Roi.around((32, 32, 32), geometry, 1.0, SIZE)
    region, array = paste_logits(ball_logits(3.5), geometry, roi)
    assert array.shape == region.shape == (9, 9, 9)
    assert array[4, 4, 4] == 1


def test_pasting_fills_the_roi_and_nothing_beyond():
    _, geometry = ramp_volume((64, 64, 64), (1.0, 1.0, 1.0))
    roi = Roi.around((30.0, 31.0, 32.0), geometry, 1.0, SIZE)
    region, array = paste_logits(torch.ones(SIZE, SIZE, SIZE), geometry, roi)
    assert region == roi_region(geometry, roi)
    assert region.start == (14, 15, 16)
    assert region.shape == (SIZE, SIZE, SIZE)
    assert array.all()


@pytest.mark.parametrize("centre", [(10.0, 9.0, 8.0), (500.0, 0.0, 0.0)])
def test_pasting_nothing_gives_an_empty_region(centre):
    _, geometry = ramp_volume()
    logits = torch.full((SIZE,) * 3, 1.0 if centre[0] > 100 else -1.0)
    region, array = paste_logits(logits, geometry, Roi(centre, 1.0, SIZE))
    assert region.is_empty
    assert array.size == 0


def test_cut_then_paste_restores_a_mask():
    mask = np.zeros((24, 24, 24), np.uint8)
    mask[6:15, 8:19, 5:11] = 1
    geometry = Geometry(mask.shape, np.diag([-1.0, 2.0, 1.5, 1.0]))
    roi = Roi.around((12, 12, 8), geometry, 0.5, 96)
    region, array = paste_logits(mask_to_logits(mask, geometry, roi, size=96), geometry, roi)
    restored = np.zeros_like(mask)
    restored[region.slices] = array
    np.testing.assert_array_equal(restored, mask)


def test_mask_prompts_shrink_to_the_size_of_the_logits():
    mask = np.zeros((32, 32, 32), np.uint8)
    mask[16:] = 9
    geometry = Geometry(mask.shape, np.eye(4))
    logits = mask_to_logits(mask, geometry, Roi.around((16, 16, 16), geometry, 1.0, SIZE), size=8)
    assert logits.shape == (8, 8, 8)
    assert (logits[:4] == -MASK_PROMPT_LOGIT).all()
    assert (logits[4:] == MASK_PROMPT_LOGIT).all()


def test_logits_carried_to_the_same_roi_are_unchanged():
    _, geometry = ramp_volume()
    roi = Roi.around((9, 8, 7), geometry, 1.1, SIZE)
    for size in (SIZE, SIZE // 4):
        logits = torch.randn((size,) * 3, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(resample_logits(logits, geometry, roi, roi), logits)


@pytest.mark.parametrize("size", [SIZE, SIZE // 4])
def test_logits_carried_to_a_coarser_roi_keep_the_object_in_place(size):
    _, geometry = ramp_volume((64, 64, 64), (1.0, 1.0, 1.0))
    source = Roi.around((30, 30, 30), geometry, 1.0, SIZE)
    target = Roi.around((34, 30, 28), geometry, 2.0, SIZE)
    step = SIZE // size
    logits = torch.nn.functional.avg_pool3d(ball_logits(9.0)[None], step)[0]
    carried = resample_logits(logits, geometry, source, target)
    centre = (np.argwhere(carried.numpy() > 0).mean(0) + 0.5) * step - 0.5
    np.testing.assert_allclose(roi_to_voxel(centre, geometry, target), 30, atol=1.1)
    count_mm3 = (carried > 0).sum().item() * (2.0 * step) ** 3
    assert count_mm3 == pytest.approx(4 / 3 * np.pi * 9.0**3, rel=0.35)
    assert carried[0, 0, 0] == -MASK_PROMPT_LOGIT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_foreground_is_what_lies_above_the_threshold(dtype):
    logits = torch.tensor([-1.0, -0.0, 0.0, 1e-7, 3.0, torch.nan, torch.inf], dtype=dtype)
    assert foreground(logits).tolist() == (logits > 0).tolist()
