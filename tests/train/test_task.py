"""The simulated user's first prompts, and what the loss asks of a corrective click."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastsam3d.train.config import MAX_POINTS, RunConfig, recipe
from fastsam3d.train.families import family_of
from fastsam3d.train.rendering import TrainingBatch
from fastsam3d.train.task import SegmentationTask
from tests.train.toy import SIZE, toy_model


def task(**changes: object) -> SegmentationTask:
    config: RunConfig = replace(recipe("debug"), **changes)  # type: ignore[arg-type]
    return SegmentationTask(family_of(toy_model()), config)


def batch() -> TrainingBatch:
    targets = torch.zeros(2, 2, SIZE, SIZE, SIZE, dtype=torch.bool)
    targets[:, 0, 8:24, 8:24, 8:24] = True
    targets[:, 1, 4:10, 4:28, 4:28] = True
    image = targets.any(1, keepdim=True).float() + 0.1 * torch.randn(2, 1, SIZE, SIZE, SIZE)
    return TrainingBatch(image=image, targets=targets, weights=torch.ones(2, 2))


def test_a_scribble_is_many_positive_points_of_the_target_at_once() -> None:
    torch.manual_seed(0)
    plain = recipe("debug").prompts
    prompts = replace(plain, share_scribble=1.0, share_box=0.0, share_prior=0.0)
    drawn = task(prompts=prompts)
    given = batch()
    shown = drawn.converse(given, drawn.encode(given.image), 0).prompts
    is_given = shown.labels_BN == 1
    assert (is_given.sum(1) > 1).all()
    assert is_given.sum() > 2 * len(is_given)
    assert not is_given[:, 1:MAX_POINTS].any()  # kept free for the corrective clicks
    for row, target in enumerate(given.targets.flatten(0, 1)):
        cells = shown.points_BN3[row, is_given[row]].long()
        assert target[cells[:, 0], cells[:, 1], cells[:, 2]].all()


def test_without_scribbles_only_the_first_point_is_given() -> None:
    drawn = task()
    given = batch()
    shown = drawn.converse(given, drawn.encode(given.image), 0).prompts
    assert (shown.labels_BN[:, 1:] == -1).all()


def test_a_click_that_loses_dice_costs_what_it_lost() -> None:
    torch.manual_seed(0)
    strict, lax = task(regress_weight=1.0), task(regress_weight=0.0)
    given = batch()
    answer = strict.converse(given, strict.encode(given.image), 1)
    perfect_before = answer._replace(dice_before=torch.ones_like(answer.dice_before))
    worse = strict.losses(perfect_before, 1)["loss"] - lax.losses(perfect_before, 1)["loss"]
    assert 0.2 < worse < 1
    nothing_before = answer._replace(dice_before=torch.zeros_like(answer.dice_before))
    assert strict.losses(nothing_before, 1)["loss"] == lax.losses(nothing_before, 1)["loss"]


def test_the_dice_before_is_that_of_the_mask_which_was_clicked_on() -> None:
    drawn = task()
    given = batch()
    parts = drawn.encode(given.image)
    assert not drawn.converse(given, parts, 0).dice_before.any()
    before = drawn.converse(given, parts, 2).dice_before
    assert ((before > 0) & (before < 1)).all()
