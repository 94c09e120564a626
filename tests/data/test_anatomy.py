"""Bones and air spaces of made-up CT scans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastsam3d.data.anatomy import AnatomyConfig, anatomy_objects, parts_of

ONE_MM = (1.0, 1.0, 1.0)
SHAPE = (64, 64, 64)
SOFT, BONE, FAT, AIR = 40.0, 400.0, -90.0, -850.0
AT_I, AT_J, AT_K = np.indices(SHAPE)
BODY = np.ones(SHAPE, np.bool_)


def soft_tissue() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (SOFT + rng.normal(0, 8, SHAPE)).astype(np.float32)


def ball(i: float, j: float, k: float, radius: float) -> np.ndarray:
    return (AT_I - i) ** 2 + (AT_J - j) ** 2 + (AT_K - k) ** 2 <= radius**2


def rod(i: float, j: float, radius: float) -> np.ndarray:
    return (AT_I - i) ** 2 + (AT_J - j) ** 2 <= radius**2


def overlap(ids: np.ndarray, wanted: np.ndarray) -> float:
    """Return the Dice of the object that covers most of what is wanted."""
    best = int(np.bincount(ids[wanted]).argmax())
    return 2 * ((ids == best) & wanted).sum() / ((ids == best).sum() + wanted.sum()) * (best > 0)


def test_two_bones_that_touch_are_two_and_a_long_one_is_one() -> None:
    image = soft_tissue()
    ribs = [rod(20, 20, 5), rod(20, 44, 5)]
    bridge = (abs(AT_I - 20) <= 1) & (AT_J > 20) & (AT_J < 44) & (abs(AT_K - 32) <= 1)
    image[ribs[0] | ribs[1] | bridge] = BONE
    ids = anatomy_objects(image, BODY, ONE_MM)
    assert ids.max() == 2
    assert all(overlap(ids, rib) > 0.93 for rib in ribs)


@pytest.mark.parametrize("marrow", [FAT, 20.0, 120.0])
def test_a_shaft_is_found_with_its_marrow(marrow: float) -> None:
    image = soft_tissue()
    shaft = rod(32, 32, 11)
    image[shaft] = BONE
    image[rod(32, 32, 7)] = marrow
    assert overlap(anatomy_objects(image, BODY, ONE_MM), shaft) > 0.95


def test_the_spinal_canal_is_not_bone_but_fat_as_large_is() -> None:
    for inside, is_bone in ((25.0, False), (FAT, True)):
        image = soft_tissue()
        image[rod(32, 32, 18)] = BONE
        canal = rod(32, 32, 11)
        image[canal] = inside
        ids = anatomy_objects(image, BODY, ONE_MM)
        assert (ids[canal] > 0).mean() == pytest.approx(float(is_bone), abs=0.1)


def test_lungs_that_touch_are_two_whatever_vessels_cross_them() -> None:
    image = soft_tissue()
    lungs = [ball(32, 16, 32, 13), ball(32, 47, 32, 13)]
    image[
        lungs[0] | lungs[1] | ((abs(AT_I - 32) <= 1) & (abs(AT_K - 32) <= 1) & (abs(AT_J - 32) < 8))
    ] = AIR
    image[(abs(AT_I - 30) <= 1) & (abs(AT_K - 30) <= 1)] = SOFT
    ids = anatomy_objects(image, BODY, ONE_MM)
    assert ids.max() == 2
    assert all(overlap(ids, lung) > 0.9 for lung in lungs)


def test_small_and_thin_things_and_what_is_outside_are_no_objects() -> None:
    image = soft_tissue()
    image[ball(20, 20, 20, 4)] = BONE  # 0.3 ml
    image[abs(AT_J - 50) < 1] = BONE  # a sheet
    outside = ball(44, 20, 44, 10)
    image[outside] = BONE
    assert not anatomy_objects(image, BODY & ~outside, ONE_MM).any()


def test_nothing_is_found_where_intensities_or_voxels_do_not_allow_it() -> None:
    image = soft_tissue()
    image[rod(32, 32, 8)] = BONE
    assert anatomy_objects(image, BODY, ONE_MM).any()
    assert not anatomy_objects(image + 1000, BODY, ONE_MM).any()
    assert not anatomy_objects(image, BODY, (3.9, 3.9, 2.5)).any()


def test_largest_parts_come_first_and_only_so_many() -> None:
    mask = ball(12, 12, 12, 8) | ball(48, 48, 48, 12) | ball(12, 48, 12, 10)
    ids = parts_of(mask, ONE_MM, 0.7, AnatomyConfig())
    sizes = np.bincount(ids.ravel())[1:]
    assert len(sizes) == 3
    assert (np.diff(sizes) < 0).all()
    assert parts_of(mask, ONE_MM, 0.7, replace(AnatomyConfig(), most=2)).max() == 2
    assert not parts_of(np.zeros(SHAPE, np.bool_), ONE_MM, 0.7, AnatomyConfig()).any()
