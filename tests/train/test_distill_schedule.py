"""The schedule of a distillation: a table of what is learnt when."""

from __future__ import annotations

import pytest

from fastsam3d.errors import ConfigError
from fastsam3d.train.distill_schedule import StagePlan, layer_pairs, stage_at, stage_spans


def summary(step: int, plan: StagePlan) -> tuple[str, list[tuple[int, int]]]:
    stage = stage_at(step, plan)
    return stage.kind, [tuple(pair) for pair in stage.pairs]


TWELVE_TO_SIX = StagePlan(num_steps=100, student_depth=6, teacher_depth=12)
ALL_SIX = [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]


@pytest.mark.parametrize(
    ("step", "kind", "active"),
    [
        (0, "layers", 1),
        (4, "layers", 1),
        (5, "layers", 2),
        (10, "layers", 3),
        (15, "layers", 4),
        (20, "layers", 5),
        (25, "layers", 6),
        (29, "layers", 6),
        (30, "neck", 6),
        (39, "neck", 6),
        (40, "decoder", 6),
        (99, "decoder", 6),
    ],
)
def test_progressive_table(step: int, kind: str, active: int) -> None:
    assert summary(step, TWELVE_TO_SIX) == (kind, ALL_SIX[:active])


@pytest.mark.parametrize(
    ("student", "teacher", "partners"),
    [
        (6, 12, [2, 4, 6, 8, 10, 12]),
        (4, 12, [3, 6, 9, 12]),
        (3, 12, [4, 8, 12]),
        (8, 12, [2, 3, 5, 6, 8, 9, 11, 12]),
        (5, 12, [3, 5, 8, 10, 12]),
        (1, 12, [12]),
        (12, 12, list(range(1, 13))),
    ],
)
def test_any_depth_meets_any_depth_evenly(student: int, teacher: int, partners: list[int]) -> None:
    assert [pair.teacher for pair in layer_pairs(student, teacher)] == partners


def test_all_layers_at_once_and_no_layers_at_all() -> None:
    at_once = StagePlan(num_steps=10, student_depth=3, teacher_depth=6, is_progressive=False)
    assert summary(0, at_once) == ("layers", [(1, 2), (2, 4), (3, 6)])
    without = StagePlan(num_steps=10, student_depth=3, teacher_depth=6, layers_share=0.0)
    assert [stage_at(step, without).kind for step in (0, 1)] == ["neck", "decoder"]


def test_more_layers_than_steps_still_ends_in_the_decoder() -> None:
    short = StagePlan(num_steps=4, student_depth=12, teacher_depth=12, layers_share=0.5)
    assert [len(stage_at(step, short).pairs) for step in range(2)] == [1, 7]
    assert stage_at(3, short).kind == "decoder"


def test_spans_cover_the_run_once() -> None:
    spans = stage_spans(TWELVE_TO_SIX)
    assert [(first, count, stage.kind) for first, count, stage in spans[-3:]] == [
        (25, 5, "layers"),
        (30, 10, "neck"),
        (40, 60, "decoder"),
    ]
    assert sum(count for _, count, _ in spans) == 100


def test_impossible_plans_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match="student has 13 trunk blocks and its teacher 12; take"):
        StagePlan(num_steps=1, student_depth=13, teacher_depth=12)
    with pytest.raises(ConfigError, match=r"at most 1 together, got 0\.8 and 0\.3; lower one"):
        StagePlan(num_steps=1, student_depth=1, teacher_depth=1, layers_share=0.8, neck_share=0.3)
