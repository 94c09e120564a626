from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastsam3d.errors import DatasetError
from fastsam3d.eval.boxed import BoxedMask
from fastsam3d.eval.challenge import predict_classes, read_challenge, without_overlaps
from fastsam3d.prompts import Box, Point, PromptSet
from fastsam3d.segmenter import Prediction
from fastsam3d.volume import Region, Volume
from tests.eval.test_challenge_npz import objects
from tests.eval.test_folders import write_challenge
from tests.eval.toy import BoxedThreshold, make_case

# Closed intervals of array indices z, y, x; the liver lies at voxels 2..8, 2..8, 2..7 of (x, y, z).
LIVER = {
    "z_min": 2,
    "z_max": 7,
    "z_mid": 4,
    "z_mid_y_min": 2,
    "z_mid_y_max": 8,
    "z_mid_x_min": 2,
    "z_mid_x_max": 8,
}
SPLEEN = {**LIVER, "z_min": 1, "z_max": 8, "z_mid_y_min": 5, "z_mid_y_max": 11}
SPLEEN |= {"z_mid_x_min": 11, "z_mid_x_max": 15}


def test_axes_are_turned_round_and_places_with_them(tmp_path: Path) -> None:
    clicks = [
        {"fg": [[4, 5, 6], [np.int64(1), np.int64(2), np.int64(3)]], "bg": [[0, 1, 17]]},
        {"fg": [], "bg": []},
    ]
    order = objects(["fg", "bg", "fg"], [])
    path = tmp_path / "a.npz"
    write_challenge(path, boxes=[LIVER, SPLEEN], clicks=clicks, clicks_order=order)
    given = read_challenge(path)
    case = make_case()
    np.testing.assert_array_equal(given.volume.array, case.volume.array.astype(np.uint8))
    assert given.volume.geometry.spacing == (1.0, 1.0, 1.5)
    # x runs to the left, y to the back, z up: the nearest canonical axes are -x, -y, +z.
    assert given.volume.geometry.canonical_reorder().flips == (True, True, False)
    assert given.boxes == (Region((2, 2, 2), (9, 9, 8)), Region((11, 5, 1), (16, 12, 9)))
    assert given.prompts(0).prompts == (
        Box.voxel((2, 2, 2), (9, 9, 8)),
        Point.voxel((6, 5, 4)),
        Point.voxel((17, 1, 0), positive=False),
        Point.voxel((3, 2, 1)),
    )
    assert given.prompts(1).prompts == (Box.voxel((11, 5, 1), (16, 12, 9)),)
    assert given.num_classes == 2
    assert read_challenge(path, spacing_order="zyx").volume.geometry.spacing == (1.5, 1.0, 1.0)


def test_without_an_order_foreground_clicks_come_first(tmp_path: Path) -> None:
    write_challenge(tmp_path / "a.npz", clicks=[{"fg": [[4, 5, 6]], "bg": [[0, 0, 0]]}])
    given = read_challenge(tmp_path / "a.npz")
    assert given.boxes is None
    assert [p.positive for p in given.clicks[0]] == [True, False]


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"spacing": None}, "lacks imgs or spacing"),
        ({"imgs": None}, "lacks imgs or spacing"),
        ({"imgs": np.zeros((2, 3, 4, 3), np.uint8)}, "shape"),
        ({"imgs": np.zeros((0, 3, 4), np.uint8)}, "shape"),
        ({"spacing": (1.0, 2.0)}, "spacing"),
        ({"spacing": (1.0, 0.0, 2.0)}, "spacing"),
        ({"spacing": (1.0, np.nan, 2.0)}, "spacing"),
        ({"gts": np.zeros((3, 3, 3), np.uint8)}, "gts of shape"),
        ({"gts": np.full((10, 16, 18), -1)}, "not labels"),
        ({"gts": np.full((10, 16, 18), 0.5)}, "fractions"),
        ({"gts": np.full((10, 16, 18), np.nan)}, "not labels"),
        ({"gts": np.full((10, 16, 18), 70000)}, "not labels"),
        ({"prev_pred": np.zeros((10, 16), np.uint8)}, "prev_pred of shape"),
        ({"boxes": objects({"z_min": 1})}, "a box without numbers"),
        ({"boxes": objects(3)}, "a box without numbers"),
        ({"boxes": objects({**LIVER, "z_min": "1"})}, "a box without numbers"),
        ({"boxes": objects({**LIVER, "z_min": 1.5})}, "box at 1.5"),
        ({"boxes": objects({**LIVER, "z_min": float("inf")})}, "box at inf"),
        ({"boxes": objects({**LIVER, "z_min": 2**40})}, "box at"),
        ({"boxes": objects({**LIVER, "z_min": 9, "z_max": 3})}, "outside"),
        ({"boxes": objects(*[LIVER] * 1001)}, "at most 1000 classes"),
        ({"clicks": objects({"fg": [[1, 2, 3]]})}, "fg and bg"),
        ({"clicks": objects({"fg": [[1, 2]], "bg": []})}, "three numbers"),
        ({"clicks": objects({"fg": ["abc"], "bg": []})}, "three numbers"),
        ({"clicks": objects({"fg": [[10, 0, 0]], "bg": []})}, r"click at \(10, 0, 0\) outside"),
        ({"clicks": objects({"fg": [[0, 0, -1]], "bg": []})}, "outside"),
        (
            {"clicks": objects({"fg": [[1, 1, 1]], "bg": []}), "clicks_order": [["bg"]]},
            "does not match",
        ),
        (
            {"clicks": objects({"fg": [], "bg": []}), "clicks_order": [["bg"], ["fg"]]},
            "1 classes and an order for 2",
        ),
    ],
)
def test_what_does_not_fit_together_is_told(
    tmp_path: Path, members: dict[str, Any], named: str
) -> None:
    write_challenge(tmp_path / "a.npz", **members)
    with pytest.raises(DatasetError, match=named):
        read_challenge(tmp_path / "a.npz")


class AnsweringAll(BoxedThreshold):
    """Answers a set of prompts by giving them one by one."""

    def predict(self, prompts: PromptSet) -> Prediction:
        self.points = []
        for prompt in prompts.prompts:
            answer = self.add_box(prompt) if isinstance(prompt, Box) else self.add_point(prompt)
        return answer


def test_classes_are_numbered_in_the_order_of_their_prompts(tmp_path: Path) -> None:
    write_challenge(tmp_path / "a.npz", boxes=[SPLEEN, LIVER])
    given = read_challenge(tmp_path / "a.npz")
    segmenter = AnsweringAll()
    labels = predict_classes(segmenter, given)
    truth = make_case().labels.transpose()
    np.testing.assert_array_equal(labels == 1, truth == 4)
    np.testing.assert_array_equal(labels == 2, truth == 1)
    assert labels.flags.c_contiguous
    assert all(isinstance(thing, (Volume, Point)) for thing in segmenter.given)


def test_a_class_without_prompts_keeps_the_previous_prediction(tmp_path: Path) -> None:
    previous = np.zeros((10, 16, 18), np.uint8)
    previous[9, 15, :4] = 1
    previous[0, 0, :3] = 3
    clicks = [{"fg": [], "bg": []}, {"fg": [[4, 8, 13]], "bg": []}]
    write_challenge(tmp_path / "a.npz", clicks=clicks, prev_pred=previous)
    labels = predict_classes(AnsweringAll(), read_challenge(tmp_path / "a.npz"))
    np.testing.assert_array_equal(labels == 1, previous == 1)
    np.testing.assert_array_equal(labels == 2, make_case().labels.transpose() == 4)
    np.testing.assert_array_equal(labels == 3, previous == 3)


def test_a_file_without_prompts_gives_an_empty_answer(tmp_path: Path) -> None:
    write_challenge(tmp_path / "a.npz")
    assert not predict_classes(AnsweringAll(), read_challenge(tmp_path / "a.npz")).any()


def test_where_masks_overlap_the_smaller_one_has_the_voxel() -> None:
    shape = (6, 6, 6)
    whole = Region((0, 0, 0), shape)

    def cube(low: int, high: int) -> BoxedMask:
        array = np.zeros(shape, bool)
        array[low:high, low:high, low:high] = True
        return BoxedMask.of(shape, whole, array)

    large, small, middle = cube(0, 6), cube(2, 3), cube(1, 4)
    found = [mask.whole() for mask in without_overlaps([large, small, middle])]
    assert sum(mask.astype(int) for mask in found).max() == 1
    np.testing.assert_array_equal(found[1], small.whole())
    np.testing.assert_array_equal(found[2], middle.whole() & ~small.whole())
    np.testing.assert_array_equal(found[0], large.whole() & ~middle.whole())
    same = [mask.whole() for mask in without_overlaps([small, small])]
    assert not same[0].any()
    assert same[1].any()
