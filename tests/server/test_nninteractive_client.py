"""nnInteractive's own client (PyPI ``nninteractive-client``), on a real port."""

import time

import numpy as np
import pytest

from fastsam3d.prompts import Box, Lasso, MaskPrompt, Painted, Point, PromptSet, Scribble, SliceBox
from fastsam3d.server.nninteractive_messages import image_geometry
from fastsam3d.session import Session
from fastsam3d.session.channels import channels_of
from fastsam3d.volume import Volume
from tests.server.conftest import run_live, toy_app
from tests.session.phantoms import ball_volume, fake_predictor

remote = pytest.importorskip(
    "nnInteractive.inference.remote.remote_session",
    reason="needs: pip install nninteractive-client",
)

# Refused by the server, it leaves its connection to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SPACING = (3.0, 1.5, 1.0)  # As 3D Slicer sends it: of k, j, i.
SHAPE = (24, 40, 60)
CENTRE_MM = (35.0, 31.0, 29.5)
BALL = ball_volume(shape=SHAPE, spacing=SPACING, centre_mm=CENTRE_MM, radius_mm=11.0)
VOLUME = Volume(BALL.array, image_geometry(SHAPE, SPACING))
GRID = VOLUME.geometry
CENTRE = (12, 21, 30)
LINE = Scribble.voxel([(12, 17, 30), (12, 25, 33)])
AREA = Lasso.voxel([(12, 14, 20), (12, 14, 40), (12, 28, 40), (12, 28, 20)], axis=0)


def as_mask(prompt, dtype=np.uint8):
    array = np.zeros(SHAPE, dtype)
    array[tuple(prompt.voxels(GRID).T)] = 1
    return array


def of_api(*prompts, volume=VOLUME):
    """The mask of our own Python API."""
    session = Session(fake_predictor())
    session.set_volume(volume)
    return session.predict(PromptSet(prompts)).mask.array


def open_session(url, *, array=BALL.array[None], dtype=np.uint8, spacing=SPACING, **options):
    session = remote.nnInteractiveRemoteInferenceSession(url, **options)
    session.set_image(array, {"spacing": spacing})
    session.set_target_buffer(np.zeros(array.shape[1:], dtype))
    return session


@pytest.fixture
def session(live):
    with open_session(live.url) as opened:
        yield opened


PAINTED = Painted.of(as_mask(LINE), GRID)
ERASED = Painted.of(as_mask(LINE), GRID, positive=False)
PROMPTS = {
    "point": (Point.voxel(CENTRE), lambda s: s.add_point_interaction(CENTRE, True)),
    "box": (
        Box.voxel((8, 13, 19), (17, 30, 42)),
        lambda s: s.add_bbox_interaction([[8, 17], [13, 30], [19, 42]], True),
    ),
    "box on a slice": (
        SliceBox.voxel(0, 12, (13, 19), (30, 42)),
        lambda s: s.add_bbox_interaction([[12, 13], [13, 30], [19, 42]], True),
    ),
    "scribble": (PAINTED, lambda s: s.add_scribble_interaction(as_mask(LINE), True)),
    "scribble in its box": (
        PAINTED,
        lambda s: s.add_scribble_interaction(
            as_mask(LINE, bool)[12:13, 10:30, 20:50],
            True,
            interaction_bbox=[[12, 13], [10, 30], [20, 50]],
        ),
    ),
    "lasso": (AREA, lambda s: s.add_lasso_interaction(as_mask(AREA), True)),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_every_prompt_gives_the_mask_of_our_api(session, kind):
    prompt, send = PROMPTS[kind]
    box = send(session)
    expected = of_api(prompt)
    assert expected.any()
    np.testing.assert_array_equal(session.target_buffer, expected)
    inside = tuple(slice(*edge) for edge in box)
    assert expected[inside].sum() == expected.sum()


def test_corrections_build_on_each_other_and_undo_is_exact(session):
    steps = [
        (Point.voxel(CENTRE), lambda: session.add_point_interaction(CENTRE, True)),
        (
            Point.voxel((12, 21, 36), positive=False),
            lambda: session.add_point_interaction((12, 21, 36), False),
        ),
        (ERASED, lambda: session.add_scribble_interaction(as_mask(LINE), False)),
        (
            Lasso.voxel(AREA.outline, axis=0, positive=False),
            lambda: session.add_lasso_interaction(as_mask(AREA), False),
        ),
    ]
    seen = [session.target_buffer.copy()]
    for count, (_, send) in enumerate(steps, start=1):
        send()
        expected = of_api(*(prompt for prompt, _ in steps[:count]))
        np.testing.assert_array_equal(session.target_buffer, expected)
        seen.append(expected)
    assert len({mask.tobytes() for mask in seen}) == 5
    for before in seen[-2::-1]:
        assert session.undo() is True
        np.testing.assert_array_equal(session.target_buffer, before)
    assert session.undo() is False


def test_prompts_wait_for_a_prediction_and_are_undone_one_by_one(session):
    session.add_point_interaction(CENTRE, True, run_prediction=False)
    session.add_point_interaction((12, 21, 36), False, run_prediction=False)
    session.add_point_interaction((2, 2, 2), True, run_prediction=False)
    assert not session.target_buffer.any()
    assert session.undo() is True  # The one that waits last.
    assert session._predict() is not None
    first, second = Point.voxel(CENTRE), Point.voxel((12, 21, 36), positive=False)
    np.testing.assert_array_equal(session.target_buffer, of_api(first, second))
    assert session._predict() is None
    session.undo()
    np.testing.assert_array_equal(session.target_buffer, of_api(first))


def test_an_initial_segmentation_is_gone_on_from_and_taken_back(session):
    session.add_point_interaction(CENTRE, True)
    clicked = session.target_buffer.copy()
    start = np.zeros(SHAPE, np.uint8)
    start[8:16, 15:27, 22:38] = 1
    session.add_initial_seg_interaction(start)
    np.testing.assert_array_equal(session.target_buffer, start)
    session.add_point_interaction(CENTRE, True)
    np.testing.assert_array_equal(
        session.target_buffer, of_api(MaskPrompt(start, GRID), Point.voxel(CENTRE))
    )
    session.undo()
    np.testing.assert_array_equal(session.target_buffer, start)
    session.undo()
    np.testing.assert_array_equal(session.target_buffer, clicked)


def test_reset_begins_the_next_object_on_the_same_image(session):
    session.add_point_interaction(CENTRE, True)
    session.reset_interactions()
    assert not session.target_buffer.any()
    assert session.undo() is False
    session.add_point_interaction((13, 20, 31), True)
    np.testing.assert_array_equal(session.target_buffer, of_api(Point.voxel((13, 20, 31))))


def test_a_new_buffer_is_sent_the_whole_mask(session):
    session.add_point_interaction(CENTRE, True)
    session.set_target_buffer(np.zeros(SHAPE, bool))
    session.add_point_interaction((12, 21, 36), False)
    assert session.target_buffer.dtype == bool
    expected = of_api(Point.voxel(CENTRE), Point.voxel((12, 21, 36), positive=False))
    np.testing.assert_array_equal(session.target_buffer, expected)


def test_negative_boxes_say_that_all_within_is_not_the_object(session):
    session.add_point_interaction(CENTRE, True)
    session.add_bbox_interaction([[8, 17], [13, 22], [19, 42]], False)
    assert not session.target_buffer[8:17, 13:22, 19:42].any()
    assert session.target_buffer.any()
    session.add_bbox_interaction([[12, 13], [0, 40], [0, 60]], False)
    assert not session.target_buffer[12].any()


def test_outlines_and_filled_lassos_are_the_same(live):
    filled = as_mask(AREA)
    outline = filled.copy()
    outline[12, 16:27, 22:39] = 0
    with open_session(live.url) as a, open_session(live.url) as b:
        a.add_lasso_interaction(filled, True)
        b.add_lasso_interaction(outline, True)
        np.testing.assert_array_equal(a.target_buffer, b.target_buffer)
        assert a.target_buffer.any()


def test_all_channels_of_an_image_are_kept(live):
    channels = np.stack([BALL.array, BALL.array[::-1]])
    with open_session(live.url, array=channels) as opened:
        assert opened.original_image_shape == (2, *SHAPE)
        volume = live.app.state.leases.rooms[-1].volume
        for kept, sent in zip(channels_of(volume), channels, strict=True):
            np.testing.assert_array_equal(kept.array, sent)


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float64", "int64", "float16", "bool"])
def test_images_of_any_number_type_are_read(live, dtype):
    array = (BALL.array > 500).astype(dtype)
    with open_session(live.url, array=array[None]) as opened:
        opened.add_point_interaction(CENTRE, True)
        expected = of_api(Point.voxel(CENTRE), volume=Volume(array.astype(np.float32), GRID))
        np.testing.assert_array_equal(opened.target_buffer, expected)


def test_the_array_order_of_the_client_is_kept(live):
    """As 3D Slicer sends it: arrayFromVolume is k, j, i, and the spacing is turned to match."""
    turned = np.ascontiguousarray(BALL.array.transpose(2, 1, 0))
    with open_session(live.url, array=turned[None], spacing=SPACING[::-1]) as opened:
        opened.add_point_interaction(CENTRE[::-1], True)
        volume = Volume(turned, image_geometry(turned.shape, SPACING[::-1]))
        expected = of_api(Point.voxel(CENTRE[::-1]), volume=volume)
        np.testing.assert_array_equal(opened.target_buffer, expected)
        assert expected[CENTRE[::-1]]


def test_two_clients_do_not_mix(live):
    with open_session(live.url) as a, open_session(live.url, array=1000 - BALL.array[None]) as b:
        a.add_point_interaction(CENTRE, True)
        b.add_point_interaction((2, 2, 2), True)
        mine = a.target_buffer.copy()
        b.undo()
        b.reset_interactions()
        a.add_point_interaction((12, 21, 36), False)
        a.undo()
        np.testing.assert_array_equal(a.target_buffer, mine)
        np.testing.assert_array_equal(mine, of_api(Point.voxel(CENTRE)))


def test_it_knows_what_can_be_asked_for(session):
    assert session.ping()
    assert session.license == "Apache-2.0"
    assert session.supports_undo
    assert session.supports_initial_label
    assert all(session.supported_interactions.values())
    assert session.channel_mapping["points"] == (3, 4)
    session.set_do_autozoom(False)
    assert session.heartbeat() > 590
    assert session.lease_status()["idle_timeout_seconds"] == 600


def test_a_full_server_says_so_and_a_released_place_is_free():
    for live in run_live(toy_app(port=0, max_sessions=1)):
        first = remote.nnInteractiveRemoteInferenceSession(live.url)
        with pytest.raises(remote.ServerAtCapacityError, match="in use"):
            remote.nnInteractiveRemoteInferenceSession(live.url)
        first.close()
        first.close()
        with remote.nnInteractiveRemoteInferenceSession(live.url) as second:
            assert second.ping()


def test_an_expired_session_says_so():
    for live in run_live(toy_app(port=0, idle_s=0.3)):
        with open_session(live.url) as opened:
            time.sleep(0.5)
            with pytest.raises(remote.SessionExpiredError, match="begin a new one"):
                opened.add_point_interaction(CENTRE, True)


def test_a_key_is_needed_where_there_is_one():
    key = "a-key-for-tests-only"
    for live in run_live(toy_app(port=0, api_key=key)):
        with pytest.raises(remote.httpx.HTTPStatusError, match="401"):
            remote.nnInteractiveRemoteInferenceSession(live.url)
        with open_session(live.url, api_key=key) as opened:
            opened.add_point_interaction(CENTRE, True)
            assert opened.target_buffer[CENTRE]
