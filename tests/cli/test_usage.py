"""How the words of a command line become prompts, and what is refused."""

import pytest

from fastsam3d.cli.usage import PromptOptions, UsageError, parse_numbers, parse_voxels
from fastsam3d.prompts import Box, Point


def test_points_keep_their_order_and_sign() -> None:
    options = PromptOptions(point=("1,2,3", "4,5,6"), negative=("7,8,9",))

    assert options.to_prompt_set().points == (
        Point.voxel((1, 2, 3)),
        Point.voxel((4, 5, 6)),
        Point.voxel((7, 8, 9), positive=False),
    )


def test_prompts_go_from_coarse_to_fine() -> None:
    options = PromptOptions(point=("1,2,3",), negative=("7,8,9",), box="0,0,0,5,5,5")

    assert options.to_prompt_set().prompts == (
        Box.voxel((0, 0, 0), (5, 5, 5)),
        Point.voxel((1, 2, 3)),
        Point.voxel((7, 8, 9), positive=False),
    )


def test_a_box_alone_is_enough() -> None:
    prompts = PromptOptions(box="1,2,3,11,12,13").to_prompt_set()

    assert prompts.points == ()
    assert prompts.boxes == (Box.voxel((1, 2, 3), (11, 12, 13)),)


@pytest.mark.parametrize("frame", ["RAS", "LPS"])
def test_millimetres_carry_their_frame(frame: str) -> None:
    options = PromptOptions(
        point=("-12.5,3,40",),
        box="0,0,0,9,9,9.5",
        space="world",
        frame=frame,  # type: ignore[arg-type]
    )
    prompts = options.to_prompt_set()

    assert prompts.points == (Point.world((-12.5, 3, 40), frame=frame),)
    assert prompts.boxes == (Box.world((0, 0, 0), (9, 9, 9.5), frame=frame),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PromptOptions(), "Nothing to segment: give at least one --point"),
        (PromptOptions(negative=("1,2,3",)), "Nothing to segment"),
        (PromptOptions(point=("1,2,3",), space="world"), "--space world needs --frame"),
        (PromptOptions(point=("1,2,3",), frame="RAS"), "--frame is for --space world"),
        (PromptOptions(point=("1,2",)), "--point needs 3 numbers"),
        (PromptOptions(point=("1,2,3",), negative=("x",)), "--negative needs 3 numbers"),
        (PromptOptions(box="1,2,3,4,5"), "--box needs 6 numbers"),
        (PromptOptions(point=("1.5,2,3",)), "whole voxel indices"),
    ],
)
def test_wrong_usage_is_explained(options: PromptOptions, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options.to_prompt_set()


def test_numbers_may_be_negative_and_fractional() -> None:
    assert parse_numbers("--point", "-1,2.5,+3e1", count=3) == (-1.0, 2.5, 30.0)


@pytest.mark.parametrize("text", ["", "1,2,3,4", "1,,3", "a,b,c", "nan,1,2", "inf,1,2", "1;2;3"])
def test_numbers_that_cannot_be_read_are_quoted(text: str) -> None:
    with pytest.raises(UsageError, match=r"--point needs 3 numbers separated by commas, got '"):
        parse_numbers("--point", text, count=3)


def test_whole_floats_are_voxel_indices() -> None:
    assert parse_voxels("--point", "10.0,-2,3", count=3) == (10, -2, 3)
