"""What a preview shows: sides, shapes in mm, window, outline, clicks, header."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from fastsam3d.cli.preview import (
    GAP_PX,
    HEADER_PX,
    MARGIN_PX,
    MASK_COLOUR,
    NEGATIVE_COLOUR,
    PANEL_PX,
    POSITIVE_COLOUR,
    Click,
    display_window,
    mask_volume_ml,
    render_preview,
)
from fastsam3d.volume import Geometry, Mask, Volume

AXIAL, CORONAL, SAGITTAL = range(3)


def panels(
    array: NDArray[np.float32],
    inside: NDArray[np.bool_],
    affine: NDArray[np.float64],
    clicks: tuple[Click, ...] = (),
) -> list[NDArray[np.uint8]]:
    """Render a preview and cut it into its three square panels."""
    geometry = Geometry(array.shape, affine)
    picture = render_preview(
        Volume(array, geometry),
        Mask(inside.astype(np.uint8), geometry),
        clicks=clicks,
        title="scan.nii.gz",
    )
    pixels = np.asarray(picture)
    starts = [MARGIN_PX + number * (PANEL_PX + GAP_PX) for number in range(3)]
    return [pixels[HEADER_PX : HEADER_PX + PANEL_PX, x : x + PANEL_PX] for x in starts]


def outline_box(panel: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom pixel of the mask's outline, last one included."""
    rows, columns = np.nonzero((panel == MASK_COLOUR).all(axis=2))
    return columns.min(), rows.min(), columns.max(), rows.max()


def has_colour(panel: NDArray[np.uint8], colour: tuple[int, int, int]) -> bool:
    return bool((panel == colour).all(axis=2).any())


def oriented(
    permutation: tuple[int, ...], signs: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float64]]:
    """Store one scan (a block near right, anterior, superior) with other voxel axes."""
    ras = np.zeros((40, 44, 48), dtype=np.float32)
    ras[30:36, 28:40, 40:46] = 100
    array = np.transpose(ras, permutation)
    linear = np.eye(3)[:, permutation] * np.array(signs)
    array = array[tuple(slice(None, None, sign) for sign in signs)]
    affine = np.eye(4)
    affine[:3, :3] = linear
    return array, array > 0, affine


@pytest.mark.parametrize(
    ("permutation", "signs"),
    list(
        itertools.product([(0, 1, 2), (2, 0, 1), (1, 0, 2)], [(1, 1, 1), (-1, 1, -1), (1, -1, -1)])
    ),
)
def test_every_storage_order_gives_the_same_picture(
    permutation: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    expected = panels(*oriented((0, 1, 2), (1, 1, 1)))
    shown = panels(*oriented(permutation, signs))

    assert all(np.array_equal(a, b) for a, b in zip(shown, expected, strict=True))


def test_right_is_left_and_anterior_and_superior_are_up() -> None:
    axial, coronal, sagittal = panels(*oriented((0, 1, 2), (1, 1, 1)))
    middle = PANEL_PX / 2

    for panel in (axial, coronal):
        left, _, right, bottom = outline_box(panel)
        assert right < middle  # R is on the left of the picture
        assert bottom < middle  # A and S are up
    left, _, right, bottom = outline_box(sagittal)
    assert (left + right) / 2 < middle  # A is on the left of a sagittal slice
    assert bottom < middle


def test_a_ball_is_round_on_flat_voxels() -> None:
    spacing = np.array([0.8, 0.8, 5.0])
    indices = np.indices((120, 120, 20)).transpose(1, 2, 3, 0)
    inside = (((indices - (60, 60, 10)) * spacing) ** 2).sum(axis=-1) < 22**2
    shown = panels(inside.astype(np.float32), inside, np.diag([*spacing, 1.0]))

    left, top, right, bottom = outline_box(shown[AXIAL])
    diameter = right - left
    assert bottom - top == pytest.approx(diameter, abs=3)
    left, top, right, bottom = outline_box(shown[CORONAL])
    assert right - left == pytest.approx(diameter, abs=3)
    assert bottom - top == pytest.approx(diameter, rel=0.15)  # slices are 5 mm thick


def test_clicks_are_marked_only_in_slices_that_contain_them() -> None:
    array, inside, affine = oriented((0, 1, 2), (1, 1, 1))
    clicks = (Click((33, 34, 43)), Click((20, 34, 20), positive=False))
    axial, coronal, sagittal = panels(array, inside, affine, clicks)

    assert all(has_colour(panel, POSITIVE_COLOUR) for panel in (axial, coronal, sagittal))
    assert has_colour(coronal, NEGATIVE_COLOUR)
    assert not has_colour(axial, NEGATIVE_COLOUR)
    assert not has_colour(sagittal, NEGATIVE_COLOUR)


def test_an_empty_mask_shows_the_whole_scan() -> None:
    array, inside, affine = oriented((0, 1, 2), (1, 1, 1))
    shown = panels(array, np.zeros_like(inside), affine)

    assert not any(has_colour(panel, MASK_COLOUR) for panel in shown)


def test_a_volume_one_voxel_thick_can_be_drawn() -> None:
    array = np.arange(400, dtype=np.float32).reshape(20, 20, 1)

    assert len(panels(array, array > 300, np.eye(4))) == 3


def test_a_long_title_keeps_clear_of_the_facts() -> None:
    array, inside, affine = oriented((0, 1, 2), (1, 1, 1))
    geometry = Geometry(array.shape, affine)
    volume, mask = Volume(array, geometry), Mask(inside.astype(np.uint8), geometry)
    short = np.asarray(render_preview(volume, mask, title="a"))
    long = np.asarray(render_preview(volume, mask, title="folder/" * 60 + "scan.nii.gz"))

    facts = np.s_[:HEADER_PX, : short.shape[1] // 8]
    assert long.shape == short.shape
    assert np.array_equal(long[facts], short[facts])


@pytest.mark.parametrize(
    ("inside_value", "modality", "window"),
    [
        (60.0, "CT", (-160.0, 240.0)),
        (-800.0, "CT", (-1350.0, 150.0)),
        (700.0, "CT", (-450.0, 1050.0)),
        (60.0, None, (-160.0, 240.0)),
    ],
)
def test_ct_windows_follow_the_tissue(
    inside_value: float, modality: str | None, window: tuple[float, float]
) -> None:
    array = np.full((10, 10, 10), -1000.0)
    array[3:6, 3:6, 3:6] = inside_value

    assert display_window(array, array == inside_value, modality) == window


def test_mr_windows_ignore_the_black_background() -> None:
    array = np.zeros((10, 10, 10))
    array[5:] = np.linspace(50, 150, 500).reshape(5, 10, 10)
    low, high = display_window(array, array > 100, "MR")

    assert 50 <= low < 55
    assert 145 < high <= 150


def test_a_background_far_below_zero_is_neither_air_nor_signal() -> None:
    array = np.full((10, 10, 10), -1812.0)
    array[5:] = np.linspace(50, 150, 500).reshape(5, 10, 10)
    low, high = display_window(array, array > 100, None)

    assert 50 <= low < 55
    assert 145 < high <= 150


def test_pet_windows_start_at_zero() -> None:
    array = np.linspace(0.5, 9, 1000).reshape(10, 10, 10)

    assert display_window(array, array > 5, "PET")[0] == 0.0


def test_a_constant_volume_has_a_window() -> None:
    array = np.zeros((4, 4, 4))
    low, high = display_window(array, array > 0, None)

    assert low < high


def test_millilitres_come_from_the_determinant() -> None:
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    affine[0, 1] = 0.3  # a shear changes no volume
    array = np.zeros((10, 10, 10), dtype=np.uint8)
    array[:5, :5, :2] = 1

    assert mask_volume_ml(Mask(array, Geometry(array.shape, affine))) == pytest.approx(1.0)
