"""Painted voxels are answered as the scribble or lasso that paints the same voxels."""

import numpy as np
import pytest

from fastsam3d.prompts import Lasso, Painted, Point, PromptSet, Scribble
from fastsam3d.session import Session, Study
from tests.session.phantoms import ball_volume, fake_predictor

VOLUME = ball_volume()
GRID = VOLUME.geometry
LINE = [(24, 30, 30), (36, 31, 30)]
OUTLINE = [(20, 20, 30), (40, 21, 30), (41, 39, 30), (22, 40, 30)]


def painted(prompt, **options) -> Painted:
    array = np.zeros(VOLUME.shape, bool)
    array[tuple(prompt.voxels(GRID).T)] = True
    return Painted.of(array, GRID, positive=prompt.positive, **options)


def answer(*prompts):
    session = Session(fake_predictor())
    session.set_volume(VOLUME)
    return session.predict(PromptSet(prompts)).mask.array


@pytest.mark.parametrize(
    ("drawn", "options"),
    [
        (Scribble.voxel(LINE), {}),
        (Scribble.voxel(LINE, positive=False), {}),
        (Lasso.voxel(OUTLINE, axis=2), {"lasso_axis": 2}),
        (Lasso.voxel(OUTLINE, axis=2, positive=False), {"lasso_axis": 2}),
    ],
    ids=["scribble", "negative scribble", "lasso", "negative lasso"],
)
def test_the_mask_is_that_of_the_drawn_prompt(drawn, options) -> None:
    first = Point.voxel((30, 30, 34))
    same = answer(first, painted(drawn, **options))
    np.testing.assert_array_equal(same, answer(first, drawn))
    assert same.any()


def test_strokes_bind_whatever_the_model_makes_of_them() -> None:
    stroke = painted(Scribble.voxel([(3, 3, 3), (9, 3, 3)]))
    mask = answer(Point.voxel((30, 30, 30)), stroke)
    assert mask[3:10, 3, 3].all()
    erased = painted(Scribble.voxel([(30, 30, 24), (30, 30, 36)], positive=False))
    assert not answer(Point.voxel((30, 30, 34)), erased)[30, 30, 24:37].any()


def test_a_study_file_keeps_painted_prompts(tmp_path) -> None:
    study = Study(Session(fake_predictor()), VOLUME)
    area = painted(Lasso.voxel(OUTLINE, axis=2), lasso_axis=2)
    ball = study.add_object("ball", prompts=[area, painted(Scribble.voxel(LINE))])
    study.save(tmp_path / "a.study")
    again = Study.load(tmp_path / "a.study", Session(fake_predictor()), VOLUME)
    assert again.log(ball).prompts == study.log(ball).prompts
    assert again.replay() == ()
