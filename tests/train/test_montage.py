"""The montage: a picture in which targets can be told from what surrounds them."""

from __future__ import annotations

import numpy as np
import torch

from fastsam3d.train.montage import COLOURS, CROSS_COLOUR, montage
from fastsam3d.train.rendering import TrainingBatch

SIZE = 16
TILE = SIZE + 2  # a black gap of two pixels follows every slice


def batch_with_two_boxes(count: int = 2) -> TrainingBatch:
    targets = torch.zeros(count, 2, SIZE, SIZE, SIZE, dtype=torch.bool)
    targets[:, 0, 2:14, 3:13, 4:12] = True
    targets[:, 1, 7:10, 7:10, 7:10] = True
    image = torch.zeros(count, 1, SIZE, SIZE, SIZE)
    return TrainingBatch(image, targets, torch.ones(count, 2))


def has_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (picture == np.array(colour)).all(-1)


def test_one_column_per_roi_and_one_row_per_axis() -> None:
    picture = montage(batch_with_two_boxes(3))
    assert picture.shape == (3 * TILE, 3 * TILE, 3)
    assert picture.dtype == np.uint8


def test_targets_are_outlined_in_their_colours_on_every_slice() -> None:
    picture = montage(batch_with_two_boxes())
    for row in range(3):
        for column in range(2):
            tile = picture[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
            for colour in COLOURS:
                assert has_colour(tile, colour).any()


def test_outline_follows_the_border_and_leaves_the_inside_visible() -> None:
    first = has_colour(montage(batch_with_two_boxes()), COLOURS[0])[:SIZE, :SIZE]
    expected = np.zeros((SIZE, SIZE), bool)
    expected[3:13, 4:12] = True  # the slice across the first axis shows axes j and k
    expected[4:12, 5:11] = False
    assert (first == expected).all()


def test_cross_marks_the_centre_of_the_roi() -> None:
    picture = montage(batch_with_two_boxes())
    assert tuple(picture[SIZE // 2, SIZE // 2]) == CROSS_COLOUR
    assert has_colour(picture[:SIZE, :SIZE], CROSS_COLOUR).sum() == 9
