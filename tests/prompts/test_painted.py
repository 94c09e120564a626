"""Painted voxels: what they hold, what they refuse, and that they go through JSON unchanged."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsam3d.errors import PromptError
from fastsam3d.prompts import Painted, PromptLog, PromptSet
from fastsam3d.prompts.painted import fill_outline
from fastsam3d.volume import Geometry, Region

GRID = Geometry((9, 8, 7), np.diag([1.0, 2.0, 3.0, 1.0]))


def stroke(*voxels, **options) -> Painted:
    array = np.zeros(GRID.shape, np.uint8)
    array[tuple(np.transpose(voxels))] = 3
    return Painted.of(array, GRID, **options)


@given(
    st.lists(st.tuples(*(st.integers(0, side - 1) for side in GRID.shape)), min_size=1),
    st.booleans(),
)
def test_json_and_pickle_give_the_same_prompt_back(voxels, positive) -> None:
    painted = stroke(*voxels, positive=positive)
    np.testing.assert_array_equal(painted.voxels(GRID), sorted(set(voxels)))
    prompts = PromptSet((painted,))
    assert PromptSet.from_json(prompts.to_json()) == prompts
    log = PromptLog().add(painted)
    assert PromptLog.from_json(log.to_json()) == log
    assert pickle.loads(pickle.dumps(painted)) == painted  # noqa: S301 - our own bytes
    assert hash(pickle.loads(pickle.dumps(painted))) == hash(painted)  # noqa: S301


def test_a_crop_in_its_box_is_the_same_prompt_as_the_whole_array() -> None:
    whole = np.zeros(GRID.shape, bool)
    whole[2:5, 3, 4] = True
    box = Region((1, 2, 3), (6, 5, 6))
    assert Painted.of(whole[box.slices], GRID, region=box) == Painted.of(whole, GRID)


def test_signs_and_kinds_are_different_prompts() -> None:
    kinds = [{}, {"positive": False}, {"lasso_axis": 2}, {"lasso_axis": 2, "positive": False}]
    assert len({stroke((1, 1, 1), (2, 1, 1), **kind) for kind in kinds}) == 4


def test_an_area_knows_the_rest_of_its_slice() -> None:
    area = stroke((1, 1, 4), (2, 1, 4), lasso_axis=2)
    outside = area.outside(GRID)
    assert len(outside) == 9 * 8 - 2
    assert set(outside[:, 2].tolist()) == {4}
    assert [1, 1, 4] not in outside.tolist()


def test_outlines_are_filled_and_areas_stay_as_they_are() -> None:
    full = np.zeros((1, 8, 7), bool)
    full[0, 2:7, 1:6] = True
    outline = full.copy()
    outline[0, 3:6, 2:5] = False
    np.testing.assert_array_equal(fill_outline(outline, 0), full)
    np.testing.assert_array_equal(fill_outline(full, 0), full)


def test_what_cannot_be_painted_is_refused() -> None:
    empty = np.zeros(GRID.shape, bool)
    with pytest.raises(PromptError, match="at least one"):
        Painted.of(empty, GRID)
    with pytest.raises(PromptError, match="shape"):
        Painted.of(empty[:-1], GRID)
    with pytest.raises(PromptError, match="one slice"):
        stroke((0, 0, 0), (1, 1, 1), lasso_axis=1)
    with pytest.raises(PromptError, match="another grid"):
        stroke((0, 0, 0)).to_voxel(Geometry(GRID.shape, np.eye(4)))
    with pytest.raises(PromptError, match="no outside"):
        stroke((0, 0, 0)).outside(GRID)
    with pytest.raises(PromptError, match="lie in a grid"):
        Painted(GRID, Region((8, 7, 6), (10, 8, 7)), b"\xff")
    with pytest.raises(PromptError, match="fill their box"):
        Painted(GRID, Region((0, 0, 0), (9, 1, 1)), b"\xff")


@pytest.mark.parametrize("broken", [{"positive": 1}, {"lasso_axis": 5}, {"mask": {}}])
def test_malformed_json_is_refused(broken) -> None:
    plain = json.loads(PromptSet((stroke((1, 2, 3)),)).to_json())
    plain["prompts"][0] |= broken
    with pytest.raises(PromptError):
        PromptSet.from_json(json.dumps(plain))


def test_too_many_voxels_are_refused() -> None:
    big = Geometry((1, 2049, 2048), np.eye(4))
    with pytest.raises(PromptError, match="at once"):
        Painted.of(np.ones(big.shape, bool), big)
