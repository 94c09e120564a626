"""What a voxel grid promises, over all 48 orientations and oblique, anisotropic affines."""

import copy
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsam3d.errors import GeometryError
from fastsam3d.volume import AxisReorder, Geometry, Region

SIGNED_PERMUTATIONS = [
    np.eye(3)[list(axes)] * signs
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
SPACINGS = [(1.0, 1.0, 1.0), (0.4, 0.4, 5.0), (3.0, 0.7, 1.5)]


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[[a, a, b, b], [a, b, a, b]] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        matrix = matrix @ turn
    return matrix


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    angle = st.floats(-3.2, 3.2)
    direction = draw(st.sampled_from(SIGNED_PERMUTATIONS))
    if draw(st.booleans()):
        direction = direction @ rotation(draw(st.tuples(angle, angle, angle)))
    affine = np.eye(4)
    affine[:3, :3] = direction * draw(st.sampled_from(SPACINGS))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return Geometry(draw(st.tuples(*[st.integers(1, 9)] * 3)), affine)


voxel_points = st.lists(st.tuples(*[st.floats(-20, 20)] * 3), min_size=1, max_size=4)
counts = st.tuples(*[st.integers(0, 4)] * 3)


@given(geometries(), voxel_points)
def test_voxel_to_world_and_back_is_the_identity(geometry: Geometry, points: list) -> None:
    back = geometry.world_to_voxel(geometry.voxel_to_world(points))
    np.testing.assert_allclose(back, points, atol=1e-9)


@given(geometries(), counts, counts)
def test_cropping_a_padded_grid_gives_the_grid(
    geometry: Geometry, before: tuple, after: tuple
) -> None:
    padded = geometry.pad(before, after)
    back = padded.crop(geometry.region.shift(before))
    assert padded.shape == tuple(np.add(geometry.shape, before) + after)
    assert back.is_close(geometry, tolerance_voxels=1e-9)


@given(geometries())
def test_cropped_voxels_stay_where_they_were(geometry: Geometry) -> None:
    cropped = geometry.crop(Region((1, -2, 3), (2, 5, 4)))
    np.testing.assert_allclose(
        cropped.voxel_to_world((0, 6, 0)), geometry.voxel_to_world((1, 4, 3)), atol=1e-9
    )


@given(geometries())
def test_reorientation_is_closest_to_ras_and_exactly_inverted(geometry: Geometry) -> None:
    reorder = geometry.canonical_reorder()
    canonical = geometry.reorient()
    # One permutation of rows cannot beat the diagonal of a canonical direction.
    trace = np.trace(canonical.direction)
    assert all(
        trace >= np.trace(canonical.direction[list(p)]) - 1e-9
        for p in itertools.permutations(range(3))
    )
    assert np.all(np.diag(canonical.direction) >= 0)
    array = np.arange(np.prod(geometry.shape)).reshape(geometry.shape)
    moved = reorder.apply(array)
    assert moved.shape == canonical.shape
    np.testing.assert_array_equal(reorder.invert(moved), array)
    assert canonical.reorient(reorder.inverse).is_close(geometry, tolerance_voxels=1e-9)


@given(geometries(), st.data())
def test_a_voxel_keeps_its_value_and_place_when_reoriented(
    geometry: Geometry, data: st.DataObject
) -> None:
    reorder = geometry.canonical_reorder()
    voxel = data.draw(st.tuples(*[st.integers(0, n - 1) for n in geometry.shape]))
    array = np.arange(np.prod(geometry.shape)).reshape(geometry.shape)
    moved = tuple(reorder.apply_points(voxel).astype(int))
    assert reorder.apply(array)[moved] == array[voxel]
    np.testing.assert_allclose(
        geometry.reorient().voxel_to_world(moved), geometry.voxel_to_world(voxel), atol=1e-9
    )
    np.testing.assert_array_equal(reorder.invert_points(moved), voxel)


@given(geometries(), st.data())
def test_a_region_holds_the_same_voxels_when_reoriented(
    geometry: Geometry, data: st.DataObject
) -> None:
    reorder = geometry.canonical_reorder()
    start = data.draw(st.tuples(*[st.integers(0, n - 1) for n in geometry.shape]))
    region = Region(
        start,
        tuple(data.draw(st.integers(s + 1, n)) for s, n in zip(start, geometry.shape, strict=True)),
    )
    array = np.arange(np.prod(geometry.shape)).reshape(geometry.shape)
    moved = reorder.apply_region(region)
    assert set(reorder.apply(array)[moved.slices].ravel()) == set(array[region.slices].ravel())
    assert reorder.invert_region(moved) == region


@given(geometries())
def test_itk_description_gives_the_same_grid(geometry: Geometry) -> None:
    size, spacing, origin, direction = geometry.to_itk()
    back = Geometry.from_itk(size, spacing, origin, direction)
    assert back.shape == geometry.shape
    np.testing.assert_allclose(back.affine, geometry.affine, rtol=1e-14, atol=1e-12)


def test_itk_is_lps() -> None:
    geometry = Geometry.from_itk((4, 5, 6), (1, 2, 3), (10, 20, 30), np.eye(3).ravel())
    np.testing.assert_array_equal(geometry.voxel_to_world((1, 1, 1)), (-11, -22, 33))
    assert geometry.orientation == "LPS"


def test_orientations_have_48_different_codes() -> None:
    codes = {Geometry((2, 3, 4), _affine(matrix)).orientation for matrix in SIGNED_PERMUTATIONS}
    assert len(codes) == 48
    assert Geometry((2, 3, 4), np.eye(4)).orientation == "RAS"


def _affine(matrix: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = matrix
    return affine


@given(geometries(), st.sampled_from([0.5, 1.5, (1.0, 2.0, 3.0)]))
def test_resampling_keeps_the_outer_corner_and_sets_the_spacing(
    geometry: Geometry, spacing: object
) -> None:
    resampled = geometry.resample(spacing)
    np.testing.assert_allclose(resampled.spacing, np.broadcast_to(spacing, 3), rtol=1e-12)
    np.testing.assert_allclose(
        resampled.voxel_to_world((-0.5,) * 3), geometry.voxel_to_world((-0.5,) * 3), atol=1e-9
    )
    extent = np.multiply(geometry.shape, geometry.spacing)
    new_extent = np.multiply(resampled.shape, resampled.spacing)
    wide = extent >= np.asarray(resampled.spacing) / 2
    assert np.all(
        np.abs(extent - new_extent)[wide] <= np.asarray(resampled.spacing)[wide] / 2 + 1e-9
    )


def test_anisotropic_spacing_and_origin_are_read_off() -> None:
    affine = np.diag([-0.4, 0.4, 5.0, 1.0])
    affine[:3, 3] = 7, 8, 9
    geometry = Geometry((256, 256, 30), affine)
    assert geometry.spacing == (0.4, 0.4, 5.0)
    assert geometry.origin == (7.0, 8.0, 9.0)
    assert geometry.orientation == "LAS"
    assert repr(geometry) == "Geometry((256, 256, 30), spacing=(0.4, 0.4, 5) mm, orientation=LAS)"


@pytest.mark.parametrize(
    ("voxel", "expected"),
    [
        ((0, 0, 0), True),
        ((-0.5, 1, 1), True),
        ((-0.51, 1, 1), False),
        ((3, 1, 1), False),
        ((2.5, 1, 1), True),
    ],
)
def test_contains_reaches_to_the_faces_of_the_outer_voxels(voxel: tuple, *, expected: bool) -> None:
    assert Geometry((3, 3, 3), np.eye(4)).contains(voxel) is expected


def test_geometry_is_a_value() -> None:
    affine = np.eye(4)
    geometry = Geometry((1, 2, 3), affine)
    affine[0, 0] = 5
    same = Geometry(np.array([1, 2, 3]), np.where(np.eye(4), 1.0, -0.0))
    assert geometry == same
    assert hash(geometry) == hash(same)
    assert geometry != Geometry((1, 2, 4), np.eye(4))
    assert geometry != "geometry"
    assert pickle.loads(pickle.dumps(geometry)) == copy.deepcopy(geometry) == geometry  # noqa: S301
    with pytest.raises(ValueError, match="read-only"):
        copy.deepcopy(geometry).affine[0, 0] = 2
    with pytest.raises(AttributeError):
        geometry.shape = (3, 3, 3)


def test_grids_that_differ_are_not_close() -> None:
    geometry = Geometry((100, 100, 100), np.eye(4))
    assert geometry.is_close(Geometry((100, 100, 100), np.diag([1 + 1e-6, 1, 1, 1])))
    assert not geometry.is_close(Geometry((100, 100, 100), np.diag([1 + 1e-4, 1, 1, 1])))
    assert not geometry.is_close(Geometry((100, 100, 99), np.eye(4)))


def with_value(row: int, column: int, value: float) -> np.ndarray:
    affine = np.eye(4)
    affine[row, column] = value
    return affine


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.eye(3), r"4x4 voxel to world matrix, got shape \(3, 3\)"),
        ("affine", "4x4 matrix of numbers"),
        (with_value(0, 0, np.nan), "finite"),
        (with_value(1, 3, np.inf), "finite"),
        (with_value(2, 2, 0.0), "singular"),
        (with_value(0, 0, 1e200), r"below 1e\+09 mm"),
        (np.array([[1, 1, 0, 0], [0, 1e-9, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "singular"),
        (with_value(3, 0, 1.0), "end with the row 0 0 0 1"),
    ],
)
def test_impossible_affines_are_refused(affine: object, words: str) -> None:
    with pytest.raises(GeometryError, match=words):
        Geometry((2, 2, 2), affine)


@pytest.mark.parametrize("shape", [(0, 2, 2), (2, -1, 2)])
def test_empty_shapes_are_refused(shape: tuple) -> None:
    with pytest.raises(GeometryError, match="at least 1 voxel"):
        Geometry(shape, np.eye(4))


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 2, 2), (2.0, 2, 2), (True, 2, 2), ("2", 2, 2)])
def test_shapes_must_be_three_integers(shape: tuple) -> None:
    with pytest.raises(GeometryError, match="Shape must be three integers"):
        Geometry(shape, np.eye(4))


def test_wrong_arguments_are_refused() -> None:
    geometry = Geometry((4, 5, 6), np.eye(4))
    with pytest.raises(GeometryError, match="must hold a voxel"):
        geometry.crop(Region((1, 1, 1), (1, 3, 3)))
    with pytest.raises(GeometryError, match="Padding must not be negative"):
        geometry.pad((0, -1, 0), (0, 0, 0))
    for spacing in (0, -1.0, np.nan, np.inf):
        with pytest.raises(GeometryError, match="Spacing must be positive"):
            geometry.resample(spacing)
    with pytest.raises(GeometryError, match=r"Points must have shape \(\.\.\., 3\)"):
        geometry.voxel_to_world([1, 2])
    with pytest.raises(GeometryError, match=r"for shape \(1, 1, 1\)"):
        geometry.reorient(AxisReorder((0, 1, 2), (False,) * 3, (1, 1, 1)))
    with pytest.raises(GeometryError, match="Permutation must hold 0, 1 and 2 once"):
        AxisReorder((0, 0, 2), (False,) * 3, (1, 1, 1))
    with pytest.raises(GeometryError, match=r"must have shape \(4, 5, 6\)"):
        geometry.canonical_reorder().apply(np.zeros((6, 5, 4)))


def test_reorientation_of_a_canonical_grid_is_the_identity() -> None:
    assert Geometry((4, 5, 6), np.eye(4)).canonical_reorder().is_identity
    assert not Geometry((4, 5, 6), np.diag([-1, 1, 1, 1])).canonical_reorder().is_identity
