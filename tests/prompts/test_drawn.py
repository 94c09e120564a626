"""What is drawn on slices gives the same voxels in every frame, and refuses nonsense."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsam3d.errors import PromptError
from fastsam3d.prompts import Lasso, PromptSet, Scribble, SliceBox
from fastsam3d.volume import Geometry, Region

# Anisotropic, flipped, permuted, off the origin: a mix-up of frames cannot go unseen.
AFFINE = np.array([[0, -0.4, 0, 30], [0.4, 0, 0, -20], [0, 0, 5.0, 100], [0, 0, 0, 1]])
GEOMETRY = Geometry((20, 24, 8), AFFINE)
TURN = np.deg2rad(20)
OBLIQUE = Geometry(
    (20, 24, 18),
    np.array(
        [
            [np.cos(TURN), -np.sin(TURN), 0, 7],
            [np.sin(TURN), np.cos(TURN), 0, -3],
            [0, 0, 1.3, 11],
            [0, 0, 0, 1],
        ]
    ),
)
# Array axis of a world axis, in GEOMETRY: x runs along j, y along i.
WORLD_AXIS = {0: 1, 1: 0, 2: 2}

halves = st.integers(0, 30).map(lambda n: n / 2)
in_plane = st.tuples(halves, halves)
axes = st.integers(0, 2)
slices = st.integers(0, 7)


def on_slice(points: list, axis: int, index: float) -> np.ndarray:
    return np.insert(np.array(points, dtype=float), axis, index, axis=1)


def in_frames(points: np.ndarray, geometry: Geometry = GEOMETRY) -> dict[str, np.ndarray]:
    ras = geometry.voxel_to_world(points)
    return {"RAS": ras, "LPS": ras * (-1, -1, 1)}


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(np.unique(a, axis=0), np.unique(b, axis=0))


@settings(deadline=None)
@given(st.lists(in_plane, min_size=1, max_size=6), axes, slices, st.sampled_from([0.0, 0.9, 2.0]))
def test_a_scribble_marks_the_same_voxels_in_every_frame(
    path: list, axis: int, index: int, radius_mm: float
) -> None:
    voxel_path = on_slice(path, axis, index)
    drawn = Scribble.voxel(voxel_path, radius_mm=radius_mm, axis=axis)
    try:
        expected = drawn.voxels(GEOMETRY)
    except PromptError:
        expected = None
    for frame, world_path in in_frames(voxel_path).items():
        world = Scribble.world(world_path, frame, radius_mm=radius_mm, axis=WORLD_AXIS[axis])
        if expected is None:
            with pytest.raises(PromptError, match="outside"):
                world.voxels(GEOMETRY)
        else:
            np.testing.assert_array_equal(world.voxels(GEOMETRY), expected)
            np.testing.assert_array_equal(world.to_voxel(GEOMETRY).voxels(GEOMETRY), expected)
            np.testing.assert_array_equal(world.line(GEOMETRY), drawn.line(GEOMETRY))


@settings(deadline=None)
@given(st.lists(in_plane, min_size=3, max_size=7), axes, slices)
def test_a_lasso_holds_the_same_voxels_in_every_frame(outline: list, axis: int, index: int) -> None:
    voxel_outline = on_slice(outline, axis, index)
    drawn = Lasso.voxel(voxel_outline, axis=axis)
    try:
        expected = drawn.voxels(GEOMETRY)
    except PromptError:
        expected = None
    for frame, world_outline in in_frames(voxel_outline).items():
        world = Lasso.world(world_outline, frame, axis=WORLD_AXIS[axis])
        if expected is None:
            with pytest.raises(PromptError, match="no voxel centre"):
                world.voxels(GEOMETRY)
        else:
            np.testing.assert_array_equal(world.voxels(GEOMETRY), expected)
            np.testing.assert_array_equal(world.to_voxel(GEOMETRY).voxels(GEOMETRY), expected)


@settings(deadline=None)
@given(st.data(), axes, slices)
def test_a_slice_box_holds_the_same_voxels_in_every_frame(
    data: st.DataObject, axis: int, index: int
) -> None:
    start = data.draw(st.tuples(st.integers(0, 5), st.integers(0, 5)))
    last = data.draw(st.tuples(st.integers(start[0], 7), st.integers(start[1], 7)))
    drawn = SliceBox.voxel(axis, index, start, (last[0] + 1, last[1] + 1))
    a, b = on_slice([start, last], axis, index)
    for frame, corners in in_frames(np.array([a - (axis != 0) * 0.1, b + 0.1])).items():
        world = SliceBox.world(*corners, frame, axis=WORLD_AXIS[axis])
        assert world.to_voxel(GEOMETRY) == drawn.to_voxel(GEOMETRY)


def test_on_an_oblique_volume_a_slice_box_keeps_to_the_volumes_axes() -> None:
    a, b = OBLIQUE.voxel_to_world([(4, 15, 9), (12, 3, 9)])
    expected = Region((4, 3, 9), (13, 16, 10))
    assert SliceBox.world(a, b, axis=2).to_voxel(OBLIQUE).region == expected


def test_a_lasso_is_filled_by_the_even_odd_rule() -> None:
    square = [(2, 2, 3), (2, 12, 3), (12, 12, 3), (12, 2, 3)]
    hole = [(5, 5, 3), (5, 9, 3), (9, 9, 3), (9, 5, 3), (5, 5, 3), (2, 2, 3)]
    whole = Lasso.voxel(square, axis=2).voxels(GEOMETRY)
    ring = Lasso.voxel([*square, (2, 2, 3), *hole], axis=2).voxels(GEOMETRY)
    expected = np.zeros(GEOMETRY.shape, bool)
    expected[2:12, 2:12, 3] = True  # the outline counts where the inside is towards higher indices
    assert same(whole, np.argwhere(expected))
    expected[5:9, 5:9, 3] = False
    assert same(ring, np.argwhere(expected))


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 15), st.floats(0, 15)), min_size=3, max_size=8))
def test_the_filling_agrees_with_a_count_of_crossings(outline: list) -> None:
    def is_inside(u: float, v: float) -> bool:
        count = 0
        for (u0, v0), (u1, v1) in zip(outline, outline[1:] + outline[:1], strict=True):
            if (u0 <= u) != (u1 <= u):
                count += v0 + (u - u0) * (v1 - v0) / (u1 - u0) <= v
        return count % 2 == 1

    # Away from the outline, where ties do not count: compare with a nudged position.
    expected = {(u, v) for u in range(16) for v in range(16) if is_inside(u + 1e-4, v + 0.618e-4)}
    lasso = Lasso.voxel(on_slice(outline, 2, 4), axis=2)
    try:
        found = {(u, v) for u, v, _ in lasso.voxels(GEOMETRY).tolist()}
    except PromptError:
        found = set()
    assert found == expected


def test_a_lasso_across_oblique_slices_follows_its_plane() -> None:
    outline = OBLIQUE.voxel_to_world([(3, 3, 5), (15, 3, 8), (15, 20, 8), (3, 20, 5)])
    voxels = Lasso.world(outline, axis=2).voxels(OBLIQUE)
    expected = 5 + (voxels[:, 0] - 3) / 4
    np.testing.assert_allclose(voxels[:, 2], expected, atol=0.51)
    assert len(np.unique(voxels[:, :2], axis=0)) == len(voxels) == 12 * 17


def test_a_crumpled_lasso_is_refused() -> None:
    with pytest.raises(PromptError, match=r"must be flat.*slices 3 to 6"):
        Lasso.voxel([(2, 2, 3), (12, 2, 6), (12, 12, 3), (2, 12, 6)], axis=2).voxels(GEOMETRY)


def test_a_line_is_connected_and_ends_where_it_should() -> None:
    line = Scribble.voxel([(1, 2, 3), (14, 20, 6), (14, 1, 6)]).line(GEOMETRY)
    assert line[0].tolist() == [1, 2, 3]
    assert line[-1].tolist() == [14, 1, 6]
    assert np.abs(np.diff(line, axis=0)).max() == 1


def test_a_brush_is_round_in_millimetres_and_flat_on_a_slice() -> None:
    geometry = Geometry((21, 21, 21), np.diag([0.5, 1.0, 2.0, 1.0]))
    dab = [(10, 10, 10)]
    offsets = (np.argwhere(np.ones((21, 21, 21), bool)) - 10) * (0.5, 1, 2)
    ball = np.argwhere(np.ones((21, 21, 21), bool))[np.linalg.norm(offsets, axis=1) <= 3]
    assert same(Scribble.voxel(dab, radius_mm=3).voxels(geometry), ball)
    assert same(Scribble.voxel(dab, radius_mm=3, axis=2).voxels(geometry), ball[ball[:, 2] == 10])
    assert same(Scribble.voxel(dab).voxels(geometry), np.array(dab))


def test_what_reaches_outside_is_cut_off_and_what_lies_outside_refused() -> None:
    across = Scribble.voxel([(-5, 3, 3), (40, 3, 3)], axis=2)
    assert across.line(GEOMETRY)[[0, -1], 0].tolist() == [0, 19]
    half = Lasso.voxel([(-9, 2, 3), (-9, 8, 3), (9, 8, 3), (9, 2, 3)], axis=2)
    assert half.voxels(GEOMETRY).min(axis=0).tolist() == [0, 2, 3]
    assert SliceBox.voxel(2, 3, (-5, 2), (50, 4)).to_voxel(GEOMETRY).region == Region(
        (0, 2, 3), (20, 4, 4)
    )
    for prompt in (
        Scribble.voxel([(30, 3, 3), (40, 3, 3)]),
        Lasso.voxel([(30, 3, 3), (40, 3, 3), (35, 9, 3)], axis=2),
        Lasso.voxel([(2, 3, 30), (8, 3, 30), (5, 9, 30)], axis=2),
        SliceBox.voxel(2, 8, (1, 1), (4, 4)),
    ):
        with pytest.raises(PromptError, match=r"outside of the volume|no voxel centre"):
            PromptSet((prompt,)).to_voxel(GEOMETRY)


def test_a_flat_scribble_stays_on_its_slice() -> None:
    with pytest.raises(PromptError, match=r"one slice, got 3 to 5 of array axis 2; leave axis out"):
        Scribble.voxel([(1, 1, 3), (9, 9, 5)], axis=2).to_voxel(GEOMETRY)


def test_a_slice_box_between_slices_is_refused() -> None:
    a, b = OBLIQUE.voxel_to_world([(4, 4, 9), (12, 12, 12)])
    with pytest.raises(PromptError, match=r"one slice, .* on 9 and 12 of array axis 2; give a Box"):
        SliceBox.world(a, b, axis=2).to_voxel(OBLIQUE)
    with pytest.raises(PromptError, match="convert it with to_voxel"):
        _ = SliceBox.world(a, b, axis=2).region


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Scribble.voxel([]), "1 to 10000 vertices, got 0"),
        (lambda: Scribble.voxel([(0, 0, 0)] * 10_001), "got 10001"),
        (lambda: Scribble.voxel([(0, 0)]), "three numbers"),
        (lambda: Scribble.voxel([(0, 0, float("nan"))]), "finite"),
        (lambda: Scribble.voxel([(0, 0, 0)], radius_mm=-1), "radius must be 0 to 500 mm, got -1"),
        (lambda: Scribble.voxel([(0, 0, 0)], radius_mm=float("nan")), "radius"),
        (lambda: Scribble.voxel([(0, 0, 0)], axis=3), "axis must be 0, 1 or 2 .* got 3"),
        (lambda: Scribble.voxel([(0, 0, 0)], positive=1), "sign must be True or False"),
        (lambda: Scribble.world([(0, 0, 0)], "voxel"), "World frame"),
        (lambda: Lasso.voxel([(0, 0, 0), (1, 1, 0)], axis=2), "3 to 10000 vertices, got 2"),
        (lambda: Lasso.voxel([(0, 0, 0)] * 3, axis=True), "axis must be"),
        (lambda: Lasso.world([(0, 0, 0)] * 3, "ras", axis=2), "World frame"),
        (lambda: SliceBox.voxel(2, 3, (1, 1), (1, 5)), "whole corners on one slice"),
        (lambda: SliceBox.voxel(2, 3, (1.5, 1), (4, 5)), "whole corners"),
        (lambda: SliceBox((0, 0, 0), (5, 5, 2), 2, "voxel"), "one slice"),
        (lambda: SliceBox.voxel(5, 3, (1, 1), (4, 5)), "axis must be"),
        (lambda: SliceBox.world((1, 1, 1), (1, 1, 1), axis=0), "size"),
        (
            lambda: Scribble.voxel([(0, 0, 0), (1e8, 0, 0)]).line(GEOMETRY),
            "voxels long; at most 500000",
        ),
    ],
)
def test_nonsense_is_refused(make: object, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        make()


def test_drawn_prompts_go_through_json_exactly() -> None:
    prompts = PromptSet(
        (
            SliceBox.voxel(1, 3, (1, 1), (4, 5)),
            SliceBox.world((0.1, 1, 1), (9, 0.2, 1), "LPS", axis=0),
            Scribble.world([(0.1, 0.2, 1 / 3)], positive=False, radius_mm=0.7, axis=1),
            Scribble.voxel([(1, 2, 3), (4, 5, 6)]),
            Lasso.world([(0, 0, 0), (1, 0, 0), (0, 1 / 3, 0)], "LPS", axis=2, positive=False),
        )
    )
    assert PromptSet.from_json(prompts.to_json()) == prompts
    assert len({hash(prompt) for prompt in prompts}) == 5
