"""Objects longer than an ROI: tiles along them, no seam, no cut edge, the same on replay."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastsam3d.errors import ConfigError
from fastsam3d.preprocess.roi import MASK_PROMPT_LOGIT, Roi
from fastsam3d.prompts import Lasso, PromptSet
from fastsam3d.session import Predictor, ScalePolicy, Session
from fastsam3d.session.budget import policy_within
from fastsam3d.session.mosaic import Mosaic
from fastsam3d.volume import Geometry, Volume
from tests.session.phantoms import SIZE, BrightModel, dice

# A tenth of the face of these small ROIs is still thin.
LONG = ScalePolicy(spacings_mm=(1.0,), face_contact=0.15)


class HonestModel(BrightModel):
    """Finds bright voxels and paints no balls, so that every edge is the object's own."""

    def decode_masks(self, embedding, points, labels, **prompts):
        logits, quality = super().decode_masks(embedding, points, labels * 0 - 1, **prompts)
        return logits, quality


def tube(
    *, shape=(28, 28, 112), spacing=(1.0, 1.0, 1.0), slope=(0.0, 0.0), radius_mm=5.0, direction=None
):
    """Return a bright tube along the last axis that ends inside the scan, and its truth."""
    geometry = Geometry(shape, np.diag([*spacing, 1.0]) if direction is None else direction)
    at = np.moveaxis(np.indices(shape), 0, -1) * np.array(spacing)
    length = shape[2] * spacing[2]
    along = at[..., 2]
    middle = [
        (shape[axis] - 1) * spacing[axis] / 2 + slope[axis] * (along - length / 2)
        for axis in range(2)
    ]
    distance = np.hypot(at[..., 0] - middle[0], at[..., 1] - middle[1])
    inside = (distance < radius_mm) & (along > 8) & (along < length - 8)
    # A little unevenness, so that no ROI is constant.
    array = 1000.0 * inside + 0.01 * at[..., 0]
    return Volume(array.astype(np.float32), geometry), inside


def make_session(volume, policy=LONG):
    session = Session(Predictor(HonestModel()), policy=policy)
    session.set_volume(volume)
    return session


def middle_of(truth):
    voxels = np.argwhere(truth)
    return voxels[np.square(voxels - voxels.mean(0)).sum(1).argmin()].tolist()


@pytest.mark.parametrize(
    "phantom",
    [
        pytest.param({}, id="straight"),
        pytest.param({"shape": (70, 50, 100), "slope": (0.4, -0.2)}, id="oblique to the grid"),
        pytest.param({"shape": (28, 28, 28), "spacing": (1.0, 1.0, 4.0)}, id="thick slices"),
        pytest.param({"shape": (40, 40, 110), "spacing": (0.7, 0.7, 1.0)}, id="anisotropic"),
    ],
)
def test_a_tube_of_several_rois_is_found_whole_by_one_click(phantom):
    volume, truth = tube(**phantom)
    found = make_session(volume).add_point(middle_of(truth))
    assert dice(found.mask.array, truth) > 0.93
    assert found.warnings == ()
    assert found.spacing_mm == 1.0


def test_without_tiles_the_same_tube_ends_at_a_face_and_the_user_is_told():
    volume, truth = tube()
    one = replace(LONG, max_tiles=0, max_growths=0)
    found = make_session(volume, one).add_point(middle_of(truth))
    assert found.region.shape[2] <= SIZE + 1
    assert any("border" in warning for warning in found.warnings)


def test_a_ball_larger_than_the_roi_gets_a_coarser_one():
    geometry = Geometry((80, 80, 80), np.eye(4))
    at = np.moveaxis(np.indices(geometry.shape), 0, -1)
    truth = np.linalg.norm(at - 39.5, axis=-1) < 26
    volume = Volume((1000.0 * truth + 0.01 * at[..., 0]).astype(np.float32), geometry)
    found = make_session(volume).add_point((39, 39, 39))
    assert found.spacing_mm > 1.2
    assert dice(found.mask.array, truth) > 0.93
    assert found.warnings == ()


def test_the_same_anatomy_gives_the_same_mask_however_the_file_is_stored():
    volume, truth = tube(shape=(60, 50, 110), slope=(0.3, 0.1))
    flipped = Volume(
        np.ascontiguousarray(volume.array[:, ::-1].transpose(2, 0, 1)),
        Geometry((110, 60, 50), _stored_otherwise(volume.geometry)),
    )
    click = middle_of(truth)
    expected = make_session(volume).add_point(click).mask.array
    there = (click[2], click[0], 49 - click[1])
    found = make_session(flipped).add_point(there).mask.array
    np.testing.assert_array_equal(found.transpose(1, 2, 0)[:, ::-1], expected)


def _stored_otherwise(geometry):
    affine = np.zeros((4, 4))
    affine[:, 0], affine[:, 1] = geometry.affine[:, 2], geometry.affine[:, 0]
    affine[:, 2] = -geometry.affine[:, 1]
    affine[:, 3] = geometry.affine @ [0, geometry.shape[1] - 1, 0, 1]
    return affine


def test_clicks_far_apart_leave_each_others_tiles_alone():
    volume, truth = tube()
    session = make_session(volume, replace(LONG, max_tiles=2))
    i, j, k = middle_of(truth)
    first = session.add_point((i, j, k))
    assert first.warnings  # two tiles more do not reach the ends
    second = session.add_point((i, j, k + 40))
    assert dice(second.mask.array, truth) > dice(first.mask.array, truth)
    third = session.add_point((i, j, k - 40))
    assert dice(third.mask.array, truth) > 0.93
    before = session.prediction.mask.array.copy()
    session.add_point((1, 1, k + 40), positive=False)
    np.testing.assert_array_equal(session.prediction.mask.array[:, :, :k], before[:, :, :k])


def test_undo_and_replay_of_a_mosaic_are_exact():
    volume, truth = tube(shape=(60, 50, 110), slope=(0.3, 0.1))
    i, j, k = middle_of(truth)
    clicks = [(i, j, k), (i, j, k + 20), (i + 9, j, k)]
    session = make_session(volume)
    masks = [session.add_point(click).mask.array for click in clicks]
    for expected in masks[-2::-1]:
        np.testing.assert_array_equal(session.undo().mask.array, expected)
    again = make_session(volume)
    session.add_point(clicks[1])
    replayed = again.predict(PromptSet(session.prompts.prompts))
    np.testing.assert_array_equal(replayed.mask.array, masks[1])


def test_a_prompt_beyond_the_budget_returns_what_it_has_and_says_so():
    volume, truth = tube()
    prices = {"encode_ms": 100.0, "click_ms": 20.0}
    session = make_session(volume, replace(LONG, budget_ms=3 * 120.0, **prices))
    found = session.add_point(middle_of(truth))
    assert len(session.predictor.model.encoded) == 3
    assert any("budget of 360 ms" in warning for warning in found.warnings)
    assert 0.4 < dice(found.mask.array, truth) < 0.9
    again = session.add_point(middle_of(truth))
    # The tile at the click is at hand and costs a decode only: two further tiles are affordable.
    assert dice(again.mask.array, truth) > dice(found.mask.array, truth)


def test_a_drawing_spends_one_budget_on_all_of_its_corrections():
    volume, truth = tube()
    policy = replace(LONG, max_tiles=0, max_growths=0)
    i, j, k = middle_of(truth)
    # Next to the tube as well, which the model does not find: each round leaves a disagreement.
    drawn = Lasso.voxel([(i - 9, j - 9, k), (i - 9, j + 9, k), (i + 9, j, k)], axis=2)
    free = make_session(volume, policy)
    free.add(drawn)
    assert len(free.predictor.model.decoded) == 7  # a point, its box, and five corrections
    bound = make_session(volume, replace(policy, budget_ms=150.0, encode_ms=100.0, click_ms=20.0))
    found = bound.add(drawn)
    # An encode and two decodes; a third would cost 160 ms.
    assert len(bound.predictor.model.decoded) == 2
    assert any("budget of 150 ms" in warning for warning in found.warnings)


def test_the_clock_is_read_when_the_budget_is_set_and_never_again():
    ticks = iter(np.cumsum([0.0, 0.4, 0.1, 9.0, 0.3, 0.05]).tolist())
    policy = policy_within(LONG, Predictor(BrightModel()), 900, clock=lambda: next(ticks))
    assert (policy.encode_ms, policy.click_ms) == pytest.approx((300, 50))
    assert policy.budget_ms == 900


@pytest.mark.parametrize("budget", [-1.0, float("nan")])
def test_an_impossible_budget_is_refused(budget):
    with pytest.raises(ConfigError, match="at least 0 milliseconds"):
        policy_within(LONG, Predictor(BrightModel()), budget)


# The picture itself

GEOMETRY = Geometry((100, 100, 100), np.eye(4))
FIRST = Roi((50.0, 50.0, 50.0), 1.0, 32)


def test_tiles_lie_on_one_lattice_in_millimetres():
    thick = Geometry((100, 100, 40), np.diag([0.5, 0.5, 4.0, 1.0]))
    tile = Mosaic.of(FIRST, torch.zeros(32, 32, 32), 1.0).roi((8, 0, -8), thick)
    assert tile.centre_voxel == (66.0, 50.0, 48.0)


def test_a_blend_of_equals_is_the_same_everywhere():
    known = Mosaic.of(FIRST, torch.full((32, 32, 32), 2.0), 1.0)
    both = known.with_tile((16, 5, 0), torch.full((32, 32, 32), 2.0), 0.5)
    assert tuple(both.logits.shape) == (48, 37, 32)
    inside = both.logits > -MASK_PROMPT_LOGIT
    assert torch.allclose(both.logits[inside], torch.tensor(2.0))
    assert both.quality == pytest.approx(0.75)


def test_at_the_face_of_a_tile_the_other_one_decides_and_no_step_is_seen():
    known = Mosaic.of(FIRST, torch.full((32, 32, 32), 1.0), 1.0)
    both = known.with_tile((16, 0, 0), torch.full((32, 32, 32), -1.0), 1.0)
    line = both.logits[:, 16, 16]
    # From the face of the second tile to the face of the first.
    assert line[15] == 1.0
    assert line[16] == pytest.approx(1.0, abs=0.01)
    assert line[31] == pytest.approx(-1.0, abs=0.01)
    assert line[32] == -1.0
    assert float(line.diff().abs().max()) < 0.6


def test_a_tile_looked_at_again_counts_more_than_what_was_known():
    known = Mosaic.of(FIRST, torch.full((32, 32, 32), 1.0), 1.0)
    both = known.with_tile((16, 0, 0), torch.full((32, 32, 32), 1.0), 1.0)
    again = both.with_tile((0, 0, 0), torch.full((32, 32, 32), -1.0), 1.0)
    assert again.origins == ((16, 0, 0), (0, 0, 0))
    assert again.logits[23, 16, 16] < -0.8
    assert again.logits[32, 16, 16] == 1.0


def test_a_mask_that_ends_before_the_faces_or_with_the_scan_needs_no_tile():
    logits = torch.full((32, 32, 32), -1.0)
    logits[10:20, 10:20, 10:20] = 1.0
    assert Mosaic.of(FIRST, logits, 1.0).next_seed(GEOMETRY, 0.002) is None
    logits[:, 10:20, 10:20] = 1.0
    narrow = Geometry((32, 100, 100), np.eye(4))
    whole = Mosaic.of(Roi((16.0, 50.0, 50.0), 1.0, 32), logits, 1.0)
    assert whole.next_seed(narrow, 0.002) is None
    assert Mosaic.of(FIRST, logits, 1.0).next_seed(GEOMETRY, 0.002) is not None


def test_the_next_tile_is_put_in_the_middle_of_the_larger_cut():
    logits = torch.full((32, 32, 32), -1.0)
    logits[10:, 4:7, 4:7] = 1.0
    logits[10:, 14:23, 14:23] = 1.0
    seed = Mosaic.of(FIRST, logits, 1.0).next_seed(GEOMETRY, 0.002)
    assert seed is not None
    assert seed[0] >= 22
    assert seed[1:] == (18, 18)


def test_a_cut_below_the_contact_is_let_be():
    logits = torch.full((32, 32, 32), -1.0)
    logits[16:, 16, 16] = 1.0
    known = Mosaic.of(FIRST, logits, 1.0)
    assert known.next_seed(GEOMETRY, 2 / 32**2) is None
    assert known.next_seed(GEOMETRY, 1 / 32**2) is not None


def test_a_mosaic_is_bounded():
    known = Mosaic.of(FIRST, torch.zeros(32, 32, 32), 1.0)
    assert known.fits((64, 64, 64))
    assert not known.fits((4000, 4000, 4000))
