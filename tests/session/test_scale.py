"""The choice of the ROI, by table."""

import numpy as np
import pytest
import torch

from fastsam3d.errors import ConfigError
from fastsam3d.preprocess.roi import Roi, roi_region, voxel_to_roi
from fastsam3d.prompts import Box
from fastsam3d.session import scale
from fastsam3d.session.extent import MaskExtent, clicked_parts, measure_mask
from fastsam3d.session.scale import ScalePolicy
from fastsam3d.volume import Geometry, Region

POLICY = ScalePolicy()
NO_CLICKS = np.zeros((0, 3))


def grid(shape, spacing):
    return Geometry(shape, np.diag([*spacing, 1.0]))


def extent(size, *, cut=0, click=True):
    half = size / 2
    return MaskExtent(
        start=(64 - half,) * 3, stop=(64 + half,) * 3, num_cut_faces=cut, has_click=click
    )


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((512, 512, 400), (0.7, 0.7, 1.0), (0.75, 1.5, 3.0)),
        # Not finer than half the finest voxel.
        ((512, 512, 400), (2.0, 2.0, 2.0), (1.0, 1.5, 3.0)),
        ((200, 200, 200), (8.0, 8.0, 8.0), (4.0,)),
        # Thick slices do not forbid looking finely along the others.
        ((900, 900, 100), (0.4, 0.4, 5.0), (0.75, 1.5, 3.0)),
        # Not coarser than what holds the whole volume: 60.5 mm on each side of the click.
        ((121, 121, 121), (1.0, 1.0, 1.0), (0.75, 60.5 / 63.5)),
        # A micro-CT of 10 mm: all candidates are one.
        ((1001, 1001, 1001), (0.01, 0.01, 0.01), (5.005 / 63.5,)),
        ((5, 5, 5), (1.0, 1.0, 1.0), (0.5,)),
        ((1, 1, 1), (3.0, 3.0, 3.0), (1.5,)),
    ],
)
def test_candidate_spacings(shape, spacing, expected):
    geometry = grid(shape, spacing)
    middle = (np.array(shape) - 1) / 2
    rois = scale.candidate_rois(POLICY, geometry, middle, size=128)
    assert [roi.spacing_mm for roi in rois] == pytest.approx(expected)
    assert {roi.centre_voxel for roi in rois} == {tuple(middle)}


def test_at_the_covering_spacing_the_roi_holds_the_volume_from_any_click():
    geometry = grid((50, 40, 30), (1.0, 2.0, 0.5))
    for click in [(0, 0, 0), (49, 39, 29), (10, 30, 5)]:
        spacing = scale.covering_spacing(geometry, np.array(click), 32)
        roi = Roi.around(click, geometry, spacing, 32)
        assert roi_region(geometry, roi) == geometry.region


@pytest.mark.parametrize(
    ("quality", "mask", "expected"),
    [
        (0.8, extent(40), 0.8),
        (0.8, extent(40, cut=2), 0.55),
        (0.8, extent(6), 0.65),
        (0.8, extent(40, click=False), 0.3),
        (0.8, MaskExtent(), -0.2),
    ],
)
def test_score(quality, mask, expected):
    assert scale.score(POLICY, quality, mask) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (76.8, None),  # 0.6 of the side: as aimed at
        (39, None),
        (102, None),
        (19.2, 0.5),  # 0.15 of the side at 2 mm
        (6.4, 0.25),  # would be 0.17, the volume's limit is 0.25
        (120, 3.125),
    ],
)
def test_refined_spacing(size, expected):
    geometry = grid((800, 800, 800), (0.5, 0.5, 0.5))
    roi = Roi.around((400, 400, 400), geometry, 2.0)
    assert scale.refined_spacing(POLICY, geometry, roi, extent(size)) == (
        None if expected is None else pytest.approx(expected)
    )


def test_a_mask_that_is_cut_off_or_empty_is_not_refined():
    geometry = grid((800, 800, 800), (0.5, 0.5, 0.5))
    roi = Roi.around((400, 400, 400), geometry, 2.0)
    assert scale.refined_spacing(POLICY, geometry, roi, extent(10, cut=1)) is None
    assert scale.refined_spacing(POLICY, geometry, roi, MaskExtent()) is None


@pytest.mark.parametrize(
    ("before", "after", "is_kept"),
    [
        ((0.7, 2.0, extent(20)), (0.8, 1.0, extent(90)), True),  # better
        ((0.7, 2.0, extent(20)), (0.65, 1.0, extent(42)), True),  # a little worse, same size
        ((0.7, 2.0, extent(20)), (0.65, 1.0, extent(90)), False),  # a little worse, other size
        ((0.7, 2.0, extent(20)), (0.5, 1.0, extent(40)), False),  # much worse
        ((-0.9, 2.0, extent(20)), (-0.2, 1.0, MaskExtent()), False),  # lost
    ],
)
def test_refinement_is_kept(before, after, is_kept):
    assert scale.is_refinement_kept(POLICY, before, after) == is_kept


def test_growth_keeps_the_known_object_and_all_clicks_inside():
    geometry = grid((400, 400, 400), (1.0, 1.0, 1.0))
    roi = Roi.around((100, 100, 100), geometry, 1.0)
    clicks = voxel_to_roi([(100, 100, 100), (100, 100, 190)], geometry, roi)
    grown = scale.grown_roi(POLICY, geometry, roi, MaskExtent(), clicks)
    assert grown is not None
    assert (
        roi_region(geometry, grown).intersection(Region((100, 100, 100), (101, 101, 191))).shape[2]
        == 91
    )
    # 90 mm to one side are 0.75 of half the ROI.
    assert grown.spacing_mm == pytest.approx(90 / (0.75 * 64))


def test_growth_moves_to_a_click_in_the_middle_of_an_elongated_object():
    geometry = grid((400, 400, 400), (1.0, 1.0, 1.0))
    roi = Roi.around((200, 200, 50), geometry, 1.0)
    clicks = voxel_to_roi([(200, 200, k) for k in (50, 150, 250)], geometry, roi)
    grown = scale.grown_roi(POLICY, geometry, roi, MaskExtent(), clicks)
    assert grown is not None
    assert grown.centre_voxel == pytest.approx((200, 200, 150))


def test_a_cut_mask_grows_by_at_least_the_factor_until_the_volume_is_covered():
    geometry = grid((100, 100, 100), (1.0, 1.0, 1.0))
    roi = Roi.around((50, 50, 50), geometry, 0.4)
    policy, spacings = ScalePolicy(growth=1.6), []
    while roi is not None:
        spacings.append(roi.spacing_mm)
        roi = scale.grown_roi(policy, geometry, roi, extent(20, cut=1), np.full((1, 3), 64.0))
    assert spacings == pytest.approx([0.4, 0.64, 50.5 / 63.5])


def ball(radius, size=32, centre=(16, 16, 16)):
    axis = np.indices((size,) * 3) - np.array(centre)[:, None, None, None]
    return torch.as_tensor(radius - np.linalg.norm(axis, axis=0))


def test_measuring_finds_the_object_that_was_clicked():
    geometry = grid((100, 100, 100), (1.0, 1.0, 1.0))
    roi = Roi.around((50, 50, 50), geometry, 1.0, 32)
    two = torch.maximum(ball(4.5), ball(3.0, centre=(27, 27, 27)))
    policy = ScalePolicy(trim=0.0)
    found = measure_mask(policy, geometry, roi, two, np.full((1, 3), 16.0))
    assert found.has_click
    assert found.num_cut_faces == 0
    np.testing.assert_allclose(found.start, 11.5)
    np.testing.assert_allclose(found.stop, 21.5)
    missed = measure_mask(policy, geometry, roi, two, np.full((1, 3), 2.0))
    assert not missed.has_click
    assert missed.largest > found.largest


def test_the_extent_does_not_follow_a_thin_spike():
    geometry = grid((100, 100, 100), (1.0, 1.0, 1.0))
    roi = Roi.around((50, 50, 50), geometry, 1.0, 32)
    logits = ball(12.0)
    logits[27:32, 16, 16] = 1.0
    found = measure_mask(POLICY, geometry, roi, logits, np.full((1, 3), 16.0))
    assert found.stop[0] <= 28


@pytest.mark.parametrize(
    ("click", "num_cut_faces"), [((50, 50, 50), 6), ((8, 50, 50), 5), ((8, 8, 95), 3)]
)
def test_faces_cut_only_where_the_scan_goes_on(click, num_cut_faces):
    geometry = grid((100, 100, 100), (1.0, 1.0, 1.0))
    roi = Roi.around(click, geometry, 1.0, 32)
    full = torch.ones(32, 32, 32)
    found = measure_mask(POLICY, geometry, roi, full, np.full((1, 3), 16.0))
    assert found.num_cut_faces == num_cut_faces


def test_mask_in_the_padding_does_not_count():
    geometry = grid((100, 100, 100), (1.0, 1.0, 1.0))
    roi = Roi.around((2, 50, 50), geometry, 1.0, 32)
    logits = torch.full((32, 32, 32), -1.0)
    logits[:13] = 1.0
    assert measure_mask(POLICY, geometry, roi, logits, NO_CLICKS).is_empty


def test_a_box_takes_the_extent_aimed_at():
    geometry = grid((100, 100, 100), (1.0, 1.0, 2.0))
    region = Region((10, 20, 30), (20, 50, 50))
    roi = scale.roi_of_region(POLICY, geometry, region, size=128)
    assert roi.centre_voxel == (14.5, 34.5, 39.5)
    assert roi.spacing_mm == pytest.approx(40 / (0.6 * 128))


@pytest.mark.parametrize(
    ("direction", "expected"),
    [((1, 1, 1), (11, 10, 14, 21, 22, 18)), ((-1, 1, -1), (12, 10, 15, 22, 22, 19))],
)
def test_boxes_keep_their_faces_in_every_orientation(direction, expected):
    # Voxels 10..19, 12..23 and 14..17; ROI voxel 16 is on voxel (15, 18, 16).
    geometry = grid((40, 40, 40), direction)
    roi = Roi.around((15, 18, 16), geometry, 1.0, 32)
    box = scale.box_to_roi(Box.voxel((10, 12, 14), (20, 24, 18)), geometry, roi)
    np.testing.assert_allclose(box, expected)


@pytest.mark.parametrize(
    "values",
    [
        {"spacings_mm": ()},
        {"spacings_mm": (0.0, 1.0)},
        {"smallest_extent": 0.7},
        {"growth": 1.0},
        {"max_growths": -1},
        {"box_tissues": 1},
    ],
)
def test_impossible_policies_are_refused(values):
    with pytest.raises(ConfigError):
        ScalePolicy(**values)


def test_parts_without_a_click_become_background():
    logits = torch.full((32, 32, 32), -3.0)
    logits[4:10, 4:10, 4:10] = 2.0
    logits[20:26, 20:26, 20:26] = 2.0
    kept = clicked_parts(logits, np.array([[6.0, 6.0, 6.0]]))
    assert torch.equal(kept[:16], logits[:16])
    assert (kept[16:] < 0).all()
    both = clicked_parts(logits, np.array([[6.0, 6.0, 6.0], [22.0, 22.0, 22.0]]))
    assert torch.equal(both, logits)


@pytest.mark.parametrize("clicks", [np.zeros((0, 3)), np.array([[15.0, 15.0, 15.0]])])
def test_a_mask_that_no_click_hits_is_left_alone(clicks):
    logits = torch.full((32, 32, 32), -3.0)
    logits[4:10, 4:10, 4:10] = 2.0
    assert torch.equal(clicked_parts(logits, clicks), logits)
