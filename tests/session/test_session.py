"""Sessions: prompts in order, exact undo, the same mask on any grid."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastsam3d.errors import CheckpointError, ConfigError, PromptError, SessionStateError
from fastsam3d.prompts import Box, MaskPrompt, Point, PromptSet
from fastsam3d.segmenter import Segmenter
from fastsam3d.session import Predictor, ScalePolicy, Session
from fastsam3d.volume import Geometry, Mask, Region, SourceHeader, Volume
from tests.session.phantoms import SIZE, BrightModel, ball_truth, ball_volume, dice

CLICK = (30, 30, 30)


def make_session(volume=None, *, model=None, **policy):
    session = Session(Predictor(model or BrightModel()), policy=ScalePolicy(**policy))
    session.set_volume(ball_volume() if volume is None else volume)
    return session


def test_one_click_gives_the_object_on_the_volumes_grid():
    volume = ball_volume()
    session = make_session(volume)
    result = session.add_point(CLICK)
    assert result.mask.geometry == volume.geometry
    assert dice(result.mask.array, ball_truth(volume.geometry)) > 0.95
    assert result.predicted_quality == pytest.approx(0.8)
    assert result.warnings == ()
    assert result.encode_ms > 0
    assert result.click_ms > 0


def test_a_session_is_a_segmenter():
    assert isinstance(make_session(), Segmenter)


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.add_point(CLICK),
        lambda s: s.add_box(Box.voxel((0, 0, 0), (2, 2, 2))),
        lambda s: s.predict(PromptSet().add(Point.voxel(CLICK))),
    ],
)
def test_prompts_need_a_volume(use):
    with pytest.raises(SessionStateError, match=r"call set_volume\(volume\) first"):
        use(Session(Predictor(BrightModel())))


def test_candidates_are_encoded_one_by_one_on_a_cpu():
    model = BrightModel()
    make_session(model=model, spacings_mm=(0.6, 0.9, 1.4), max_refinements=0).add_point(CLICK)
    assert model.encoded[:3] == [1, 1, 1]


@pytest.mark.parametrize(("radius_mm", "finest", "coarsest"), [(3.3, 0.5, 0.8), (12.1, 0.9, 1.8)])
def test_the_roi_fits_the_object(radius_mm, finest, coarsest):
    volume = ball_volume(radius_mm=radius_mm)
    result = make_session(volume).add_point(CLICK)
    assert finest <= result.spacing_mm <= coarsest
    truth = ball_truth(volume.geometry, radius_mm=radius_mm)
    assert dice(result.mask.array, truth) > 0.9


def test_an_object_larger_than_the_first_roi_is_not_cut_off():
    volume = ball_volume(radius_mm=20.0)
    result = make_session(volume, spacings_mm=(0.6,), max_growths=4).add_point((38, 30, 30))
    assert result.warnings == ()
    assert dice(result.mask.array, ball_truth(volume.geometry, radius_mm=20.0)) > 0.9


def test_an_object_that_stays_cut_off_is_said_to_be():
    session = make_session(ball_volume(radius_mm=20.0), spacings_mm=(0.6,), max_growths=0)
    (warning,) = session.add_point(CLICK).warnings
    assert "19 mm cube" in warning
    assert "may be cut off" in warning


def test_later_clicks_use_the_same_embedding():
    model = BrightModel()
    session = make_session(model=model)
    first = session.add_point(CLICK)
    count = len(model.encoded)
    second = session.add_point((33, 30, 30), positive=False)
    assert len(model.encoded) == count
    assert second.encode_ms == 0
    assert second.roi == first.roi
    assert first.mask.array[33, 30, 30] == 1
    assert second.mask.array[33, 30, 30] == 0


def test_every_round_is_fed_the_mask_before_and_all_points():
    model = BrightModel()
    session = make_session(model=model, max_refinements=0, spacings_mm=(1.2,))
    session.add_point(CLICK)
    _, logits = session.logits
    session.add_point((33, 30, 30), positive=False)
    first, second = model.decoded
    assert first["mask"] is None
    assert torch.equal(second["mask"][0, 0], logits)
    assert second["labels"].tolist() == [[1, 0]]
    expected = torch.tensor([[[16.0, 16.0, 16.0], [18.5, 16.0, 16.0]]])
    torch.testing.assert_close(second["points"], expected)


def test_a_positive_click_outside_of_the_roi_makes_it_larger():
    session = make_session(spacings_mm=(0.6,), max_refinements=0, max_growths=0)
    first = session.add_point(CLICK)
    assert first.roi.union(Region((55, 55, 55), (56, 56, 56))) != first.roi
    second = session.add_point((55, 55, 55))
    assert second.roi.union(Region((55, 55, 55), (56, 56, 56))) == second.roi
    assert second.mask.array[55, 55, 55] == 1
    assert second.mask.array[CLICK] == 1


def test_a_negative_click_outside_of_the_roi_changes_nothing_else():
    model = BrightModel()
    session = make_session(model=model, spacings_mm=(0.6,), max_refinements=0, max_growths=0)
    first = session.add_point(CLICK)
    second = session.add_point((55, 55, 55), positive=False)
    assert second.roi == first.roi
    assert model.decoded[-1]["labels"].tolist() == [[1]]


PROMPTS = PromptSet().add(
    Point.voxel(CLICK),
    Point.voxel((33, 30, 30), positive=False),
    Box.voxel((18, 18, 18), (44, 44, 44)),
    Point.voxel((45, 45, 45)),
)


def assert_same(a, b):
    assert a.region == b.region
    np.testing.assert_array_equal(a.region_mask, b.region_mask)
    assert (a.roi, a.spacing_mm, a.predicted_quality) == (b.roi, b.spacing_mm, b.predicted_quality)


def test_a_prompt_set_is_the_same_as_its_prompts_one_by_one():
    at_once, one_by_one = make_session(), make_session()
    result = at_once.predict(PROMPTS)
    for prompt in PROMPTS:
        add = one_by_one.add_box if isinstance(prompt, Box) else one_by_one.add_point
        last = add(prompt)
    assert_same(result, last)
    assert at_once.prompts == one_by_one.prompts == PROMPTS
    assert torch.equal(at_once.logits[1], one_by_one.logits[1])


def test_undo_takes_exactly_the_latest_prompt_back():
    session = make_session()
    answers = [session.predict(PromptSet(PROMPTS.prompts[: n + 1])) for n in range(len(PROMPTS))]
    logits = session.logits[1]
    for answer in reversed(answers[:-1]):
        assert_same(session.undo(), answer)
    again = session.predict(PROMPTS)
    assert_same(again, answers[-1])
    assert torch.equal(session.logits[1], logits)


def test_undo_of_the_only_prompt_leaves_none():
    session = make_session()
    session.add_point(CLICK)
    assert session.undo() is None
    assert session.prediction is None
    assert session.logits is None
    assert len(session.prompts) == 0
    with pytest.raises(SessionStateError, match="nothing to undo"):
        session.undo()


def test_prompts_shared_with_the_set_before_are_not_played_again():
    model = BrightModel()
    session = make_session(model=model)
    session.predict(PROMPTS)
    count = len(model.decoded)
    session.predict(PROMPTS.without_last())
    assert len(model.decoded) == count


def test_reset_forgets_prompts_but_not_embeddings():
    model = BrightModel()
    session = make_session(model=model)
    first = session.add_point(CLICK)
    count = len(model.encoded)
    session.reset()
    assert session.prediction is None
    assert_same(session.add_point(CLICK), first)
    assert len(model.encoded) == count


def test_a_new_volume_starts_anew():
    session = make_session()
    session.add_point(CLICK)
    session.set_volume(ball_volume(centre_mm=(20.3, 20.1, 20.4)))
    assert session.prediction is None
    truth = ball_truth(session.volume.geometry, centre_mm=(20.3, 20.1, 20.4))
    assert dice(session.add_point((20, 20, 20)).mask.array, truth) > 0.95


def test_changes_bring_an_earlier_mask_up_to_date():
    session = make_session()
    shown = np.zeros(session.volume.shape, np.uint8)
    steps = [
        lambda: session.add_point(CLICK),
        lambda: session.predict(PROMPTS),
        session.undo,
        session.undo,
        lambda: session.predict(PromptSet().add(Point.voxel((45, 45, 45)))),
    ]
    for step in steps:
        result = step()
        outside = result.mask.array != shown
        outside[result.changed.slices] = False
        assert not outside.any()
        result.paste_changes(shown)
        np.testing.assert_array_equal(shown, result.mask.array)


def stored_in(volume, axes, signs):
    """Return the same anatomy with other axis order and directions."""
    steps = tuple(slice(None, None, sign) for sign in signs)
    array = volume.array.transpose(axes)[steps]
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for new, (old, sign) in enumerate(zip(axes, signs, strict=True)):
        change[old, new] = sign
        change[old, 3] = 0 if sign > 0 else array.shape[new] - 1
    geometry = Geometry(array.shape, volume.geometry.affine @ change)
    return Volume(array, geometry), lambda mask: np.transpose(mask[steps], np.argsort(axes))


OBLIQUE = np.array(
    [[0.9, -0.3, 0.1, -20.0], [0.35, 1.0, -0.2, 5.0], [0.0, 0.3, 1.7, 9.0], [0.0, 0.0, 0.0, 1.0]]
)


@pytest.mark.parametrize("affine", [np.diag([0.8, 1.0, 1.9, 1.0]), OBLIQUE])
def test_the_mask_is_the_same_in_the_world_however_the_file_is_stored(affine):
    index = np.moveaxis(np.indices((30, 28, 26)), 0, -1)
    distance = np.linalg.norm((index - (14.3, 13.2, 12.4)) * (1, 1, 1.3), axis=-1)
    array = (900 / (1 + np.exp(distance - 7.3)) + index[..., 0]).astype(np.float32)
    volume = Volume(array, Geometry(array.shape, affine))
    world = volume.geometry.voxel_to_world([(14, 13, 12), (17, 13, 12), (24, 24, 22)])
    prompts = PromptSet().add(
        *(
            Point.world(xyz, positive=sign)
            for xyz, sign in zip(world, (True, False, True), strict=True)
        )
    )
    expected = make_session(volume).predict(prompts)
    assert expected.region_mask.any()
    orientations = list(
        itertools.product(itertools.permutations(range(3)), itertools.product([1, -1], repeat=3))
    )
    for axes, signs in orientations[::5]:
        stored, restore = stored_in(volume, axes, signs)
        result = make_session(stored).predict(prompts)
        np.testing.assert_array_equal(restore(result.mask.array), expected.mask.array)
        assert result.spacing_mm == pytest.approx(expected.spacing_mm)


@pytest.mark.parametrize(
    ("shape", "spacing", "click"),
    [
        ((60, 60, 1), (1.0, 1.0, 5.0), (30, 30, 0)),
        ((1, 60, 60), (1.0, 1.0, 1.0), (0, 30, 30)),
        ((150, 150, 13), (0.4, 0.4, 5.0), (75, 74, 6)),
        ((61, 53, 47), (1.0, 1.1, 1.3), (30, 27, 23)),
    ],
)
def test_thin_and_anisotropic_volumes(shape, spacing, click):
    centre_mm = np.array(click) * spacing + 0.1
    volume = ball_volume(shape=shape, spacing=spacing, centre_mm=centre_mm)
    result = make_session(volume).add_point(click)
    assert dice(result.mask.array, ball_truth(volume.geometry, centre_mm)) > 0.9


def test_a_tiny_volume():
    array = np.zeros((5, 5, 5), np.int16)
    array[1:4, 1:4, 1:4] = 700
    volume = Volume(array, Geometry(array.shape, np.eye(4)))
    result = make_session(volume).add_point((2, 2, 2))
    np.testing.assert_array_equal(result.mask.array, array > 0)


def test_the_cost_does_not_grow_with_the_volume():
    # 2 TB, of which the memory of one column exists: reading it whole would not end.
    column = np.zeros((1, 1, 20000), np.uint16)
    column[..., 9990:10010] = 4000
    array = np.broadcast_to(column, (10000, 10000, 20000))
    session = make_session(Volume(array, Geometry(array.shape, np.eye(4))), max_growths=0)
    result = session.add_point((5000, 5000, 10000))
    assert result.region_mask.any()
    assert max(result.region.shape) < 100


def test_a_constant_volume_gives_an_empty_mask_and_says_why():
    volume = Volume(np.full((40, 40, 40), 1234.5, np.float32), Geometry((40, 40, 40), np.eye(4)))
    session = make_session(volume)
    result = session.add_point((20, 20, 20))
    assert not result.mask.array.any()
    assert result.region.is_empty
    assert "constant" in result.warnings[0]


def test_an_answer_without_foreground_is_empty_and_says_what_to_do():
    class Blind(BrightModel):
        def decode_masks(self, *args, **kwargs):
            logits, quality = super().decode_masks(*args, **kwargs)
            return logits.clamp(max=0.0), quality

    result = make_session(model=Blind()).add_point(CLICK)
    assert result.region.is_empty
    assert result.predicted_quality == 0
    assert "add a positive point" in result.warnings[0]


def test_a_negative_point_alone_selects_nothing_and_counts_later():
    model = BrightModel()
    session = make_session(model=model)
    first = session.add_point((33, 30, 30), positive=False)
    assert first.region.is_empty
    assert "negative point selects nothing" in first.warnings[0]
    assert model.encoded == []
    second = session.add_point(CLICK)
    assert second.mask.array[CLICK] == 1
    assert second.mask.array[33, 30, 30] == 0


def test_a_box_places_the_roi():
    volume = ball_volume(centre_mm=(25.3, 31.2, 28.4), radius_mm=6.3)
    session = make_session(volume)
    result = session.add_box(Box.voxel((19, 25, 22), (32, 38, 35)))
    assert dice(result.mask.array, ball_truth(volume.geometry, (25.3, 31.2, 28.4), 6.3)) > 0.95
    first, second, _ = session.predictor.model.decoded
    np.testing.assert_allclose(first["boxes"], [[6.9, 6.9, 6.9, 26.1, 26.1, 26.1]], atol=1e-5)
    assert first["labels"].tolist() == [[-1]]
    # Once more from the middle of what was found, at the spacing that a click there would get.
    assert result.spacing_mm == 0.75
    assert second["labels"].tolist() == [[1]]
    assert second["points"].tolist() == [[[16, 16, 16]]]
    assert second["boxes"] is not None


def test_a_box_around_a_ring_is_answered_from_the_ring():
    volume = ball_volume(centre_mm=(30, 30, 30), radius_mm=9)
    array = volume.array.copy()
    array[25:36, 25:36] = array.min()
    session = make_session(Volume(array, volume.geometry))
    session.add_box(Box.voxel((20, 20, 20), (41, 41, 41)))
    middle = np.rint(session.logits[0].centre_voxel).astype(int)
    assert array[tuple(middle)] > (array.min() + array.max()) / 2


@pytest.mark.parametrize("tissues", [0, 3])
def test_a_box_in_which_nothing_is_found_stays_empty(tissues):
    class Blind(BrightModel):
        def decode_masks(self, *args, **options):
            logits, quality = super().decode_masks(*args, **options)
            return torch.full_like(logits, -3.0), quality

    session = make_session(model=Blind())
    session.policy = replace(session.policy, box_tissues=tissues)
    assert session.add_box(Box.voxel((20, 20, 20), (40, 40, 40))).region.is_empty
    assert (len(session.predictor.model.decoded) == 1) == (tissues == 0)


class TissueModel(BrightModel):
    """Finds what is as bright as the middle of the ROI, and is sure of what is dark."""

    def decode_masks(self, embedding, points, labels, *, multimask=False, **given):
        _, quality = super().decode_masks(embedding, points, labels, multimask=multimask, **given)
        image = embedding.tokens[0, 0]
        tissue = image[(SIZE // 2,) * 3]
        logits = 0.5 - (image - tissue).abs()
        return logits.expand(1, quality.shape[1], -1, -1, -1), quality


@pytest.mark.parametrize(("tissues", "is_found"), [(0, False), (2, True), (3, True)])
def test_a_box_that_its_middle_does_not_fill_is_looked_at_in_its_other_tissues(tissues, is_found):
    # A dark bar through the middle of a bright box: what is in the middle fills little of it.
    array = np.full((60, 60, 60), 50, np.float32)
    array[20:41, 20:41, 20:41] = 100
    array[26:35, 26:35, 26:35] = 0
    session = make_session(Volume(array, Geometry((60, 60, 60), np.eye(4))), model=TissueModel())
    session.policy = replace(session.policy, box_tissues=tissues)
    answer = session.add_box(Box.voxel((20, 20, 20), (41, 41, 41)))
    assert (answer.mask.array[22, 22, 22] == 1) == is_found
    assert (answer.mask.array[30, 30, 30] == 1) != is_found


def test_a_mask_prompt_by_itself_is_the_answer():
    session = make_session()
    drawn = np.zeros(session.volume.shape, np.uint8)
    drawn[20:41, 25:35, 28:30] = 1
    result = session.add_mask(Mask(drawn, session.volume.geometry))
    np.testing.assert_array_equal(result.mask.array, drawn)
    assert result.predicted_quality == 1
    assert session.predictor.model.decoded == []


def test_a_click_goes_on_from_a_mask_prompt():
    session = make_session()
    drawn = ball_truth(session.volume.geometry, radius_mm=6.0)
    session.add_mask(MaskPrompt(drawn, session.volume.geometry))
    roi, logits = session.logits
    assert roi.centre_voxel == pytest.approx((30, 30, 30), abs=1)
    result = session.add_point((33, 30, 30), positive=False)
    fed = session.predictor.model.decoded[0]["mask"]
    assert torch.equal(fed[0, 0], logits)
    assert (fed > 0).sum() == pytest.approx(4 / 3 * np.pi * (6.0 / roi.spacing_mm) ** 3, rel=0.1)
    assert result.mask.array[33, 30, 30] == 0


def test_an_empty_mask_prompt_changes_nothing():
    session = make_session()
    first = session.add_point(CLICK)
    second = session.add_mask(Mask(np.zeros((60, 60, 60), np.uint8), session.volume.geometry))
    assert_same(first, second)
    assert "no voxel" in second.warnings[0]


@pytest.mark.parametrize(
    "prompt",
    [
        Point.voxel((60, 0, 0)),
        Box.voxel((70, 70, 70), (80, 80, 80)),
        MaskPrompt(np.ones((2, 2, 2), bool), Geometry((2, 2, 2), np.eye(4))),
    ],
)
def test_a_prompt_that_does_not_fit_leaves_the_session_as_it_was(prompt):
    session = make_session()
    first = session.add_point(CLICK)
    with pytest.raises(PromptError):
        session.predict(session.prompts.add(prompt))
    assert len(session.prompts) == 1
    assert_same(session.prediction, first)


def test_an_empty_prompt_set_is_refused():
    with pytest.raises(PromptError, match="no prompt"):
        make_session().predict(PromptSet())


def test_a_point_with_two_signs_is_refused():
    with pytest.raises(PromptError, match="drop one"):
        make_session().add_point(Point.voxel(CLICK), positive=False)


@pytest.mark.parametrize("broken", ["logits", "quality"])
def test_broken_weights_are_named_and_leave_the_session_as_it_was(broken):
    class Broken(BrightModel):
        def decode_masks(self, *args, **kwargs):
            logits, quality = super().decode_masks(*args, **kwargs)
            return (logits * torch.nan, quality) if broken == "logits" else (logits, quality / 0)

    session = make_session(model=Broken())
    with pytest.raises(CheckpointError, match="Model fake returned logits that are not finite"):
        session.add_point(CLICK)
    assert session.prediction is None


def test_models_with_coarse_logits_are_fed_coarse_logits():
    volume = ball_volume()
    session = make_session(volume, model=BrightModel(logits_size=8))
    session.add_point(CLICK)
    result = session.add_point((24, 30, 30))
    assert session.logits[1].shape == (8, 8, 8)
    assert dice(result.mask.array, ball_truth(volume.geometry)) > 0.8


def test_candidates_of_an_ambiguous_click_are_asked_for_once():
    asked = []

    class Asked(BrightModel):
        def decode_masks(self, *args, **kwargs):
            asked.append(kwargs["multimask"])
            return super().decode_masks(*args, **kwargs)

    session = make_session(
        model=Asked(), first_click_candidates=True, spacings_mm=(1.2,), max_refinements=0
    )
    session.add_point(CLICK)
    session.add_point((33, 30, 30), positive=False)
    assert asked == [True, False]


@pytest.mark.parametrize("device", ["tpu", "cuda"])
def test_devices_that_are_not_there_are_refused(device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("has CUDA")
    with pytest.raises(ConfigError, match=r"[Dd]evice|CUDA"):
        Session.from_pretrained("hr_s", device=device)


def test_the_mask_is_written_with_the_volumes_header():
    plain = ball_volume()
    header = SourceHeader("itk", (1.0, 2.0))
    session = make_session(Volume(plain.array, plain.geometry, source=header))
    assert session.add_point(CLICK).mask.source is header


def test_a_box_that_does_not_fit_in_the_roi_moves_it():
    session = make_session(spacings_mm=(0.6,), max_refinements=0, max_growths=0)
    first = session.add_point(CLICK)
    second = session.add_box(Box.voxel((5, 5, 5), (45, 45, 45)))
    box = Region((5, 5, 5), (45, 45, 45))
    assert first.roi.union(box) != first.roi
    assert second.roi.union(box) == second.roi


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_mask_lies_in_memory_as_its_volume_does(order):
    volume = ball_volume(shape=(24, 25, 26), centre_mm=(12, 12, 12), radius_mm=5.0)
    session = make_session(Volume(np.array(volume.array, order=order), volume.geometry))
    mask = session.add_point((12, 12, 12)).mask.array
    assert mask.flags.f_contiguous is (order == "F")
    assert mask.any()
