"""Every kind of prompt gives the same mask in voxels, RAS and LPS, however the file is stored."""

import numpy as np
import pytest

from fastsam3d.prompts import Box, Lasso, MaskPrompt, Point, PromptSet, Scribble, SliceBox
from fastsam3d.session import Predictor, ScalePolicy, Session
from fastsam3d.volume import Geometry, Volume
from tests.session.phantoms import BrightModel

SHAPE = (26, 24, 22)
CENTRE = np.array((13, 12, 11))
AFFINES = {
    "RAS": np.diag([1.0, 1.0, 1.0, 1.0]),
    "LPS": np.array([[-1.0, 0, 0, 30], [0, -1, 0, 20], [0, 0, 1, -5], [0, 0, 0, 1]]),
    "permuted": np.array([[0, -1.0, 0, 30], [0, 0, 1.2, -20], [0.9, 0, 0, 100], [0, 0, 0, 1]]),
}
# World axis across the slices of array axis 2.
ACROSS = {"RAS": 2, "LPS": 2, "permuted": 1}


def ball(affine):
    index = np.moveaxis(np.indices(SHAPE), 0, -1)
    distance = np.linalg.norm(index - CENTRE, axis=-1) - 6
    array = (1000 / (1 + np.exp(distance / 0.5))).astype(np.int16)
    return Volume(array, Geometry(SHAPE, affine))


def make_prompt(kind, frame, geometry, across):
    """Return a prompt of a kind about the same voxels in a frame."""

    def at(*voxels):
        points = CENTRE + np.array(voxels, dtype=float)
        if frame == "voxel":
            return points.tolist()
        world = geometry.voxel_to_world(points)
        return (world if frame == "RAS" else world * (-1, -1, 1)).tolist()

    axis = 2 if frame == "voxel" else across
    if kind in {"point", "negative point"}:
        return Point(at((1, 0, 2))[0], frame, kind == "point")
    if kind == "box":  # Half-open in voxels, around centres in mm.
        ends = at((-6, -6, -6), (7, 7, 7)) if frame == "voxel" else at((-6, -6, -6), (6, 6, 6))
        return Box(*ends, frame)
    if kind == "slice box":
        ends = at((-6, -6, 0), (7, 7, 1)) if frame == "voxel" else at((-6, -6, 0), (6, 6, 0))
        return SliceBox(*ends, axis, frame)
    if kind == "scribble":
        return Scribble(at((-3, 0, 0), (3, 2, 0)), frame, radius_mm=1.5, axis=axis)
    if kind == "negative scribble":
        return Scribble(at((-3, 4, -2), (3, 4, 2)), frame, positive=False)
    return Lasso(at((-5, -5, 0), (5, -5, 0), (5, 5, 0), (-5, 5, 0)), axis, frame)


KINDS = ("point", "box", "slice box", "scribble", "lasso", "negative point", "negative scribble")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", AFFINES)
def test_a_prompt_gives_the_same_mask_in_every_frame(kind, stored):
    volume = ball(AFFINES[stored])
    policy = ScalePolicy(spacings_mm=(1.0,), max_refinements=0, max_growths=0)
    answers = []
    for frame in ("voxel", "RAS", "LPS"):
        session = Session(Predictor(BrightModel()), policy=policy)
        session.set_volume(volume)
        prompt = make_prompt(kind, frame, volume.geometry, ACROSS[stored])
        first = [Point.voxel(CENTRE.tolist())] if "negative" in kind else []
        answers.append(session.predict(PromptSet((*first, prompt))))
    assert not answers[0].region.is_empty
    for other in answers[1:]:
        np.testing.assert_array_equal(other.mask.array, answers[0].mask.array)


def test_a_mask_prompt_has_the_frame_of_its_grid():
    volume = ball(AFFINES["permuted"])
    session = Session(Predictor(BrightModel()))
    session.set_volume(volume)
    given = (volume.array > 500).astype(np.uint8)
    answer = session.add(MaskPrompt(given, volume.geometry))
    np.testing.assert_array_equal(answer.mask.array, given)
