"""The simulated user's first prompts, and what the loss asks of a corrective click."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from fastsam3d.errors import ConfigError
from fastsam3d.train.config import MAX_POINTS, RunConfig, recipe
from fastsam3d.train.families import family_of
from fastsam3d.train.losses import mask_losses, rough_overlap
from fastsam3d.train.rendering import TrainingBatch
from fastsam3d.train.task import Answer, Moment, SegmentationTask
from tests.train.toy import SIZE, toy_model


def task(**changes: object) -> SegmentationTask:
    config: RunConfig = replace(recipe("debug"), **changes)  # type: ignore[arg-type]
    return SegmentationTask(family_of(toy_model(), config.fine_side), config)


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


def test_several_rounds_may_be_learnt_from() -> None:
    """Each is the round that would be last had the user stopped there; the last is as ever."""
    given = batch()
    one, three = task(), task(trained_rounds=3)
    parts = one.encode(given.image)
    answers: list[list[Answer]] = []
    for trained in (1, 3):
        torch.manual_seed(0)
        answers.append(one.rounds(given, parts, 2, num_trained=trained))
    assert [len(found) for found in answers] == [1, 3]
    last, alone = answers[1][-1], answers[0][-1]
    assert torch.equal(last.prompts.points_BN3, alone.prompts.points_BN3)
    assert torch.allclose(last.logits, alone.logits, atol=1e-5)
    assert torch.allclose(last.dice_before, alone.dice_before, atol=1e-5)
    assert not answers[1][0].dice_before.any()
    assert not any(answer.prompts.previous_B1IJK.requires_grad for answer in answers[1])
    each = [one.losses(answer, n)["loss"] for n, answer in enumerate(answers[1])]
    three.family.model.load_state_dict(one.family.model.state_dict())
    torch.manual_seed(0)
    together = three(given, Moment(0, 1, 2))
    assert torch.allclose(together["loss"], torch.stack(each).mean(), atol=1e-5)
    together["loss"].backward()
    assert all(p.grad is not None for _, p in three.named_parameters())
    torch.manual_seed(0)
    assert len(one.rounds(given, parts, 0, num_trained=3)) == 1


def test_the_finest_stage_in_a_box_is_that_of_the_whole_but_for_the_rim() -> None:
    torch.manual_seed(0)
    whole, box = task(), task(fine_side=16)
    box.family.model.load_state_dict(whole.family.model.state_dict())
    given = batch()
    parts = whole.encode(given.image)
    prompts = whole.converse(given, parts, 0).prompts
    wanted, quality, rough = whole.decode(parts, prompts, True)
    found, found_quality, found_rough = box.decode(parts, prompts, True)
    rim, start = 4, (SIZE - 16) // 2
    inner = slice(start + rim, start + 16 - rim)
    kept = slice(rim, 16 - rim)
    torch.testing.assert_close(found[..., kept, kept, kept], wanted[..., inner, inner, inner])
    assert torch.equal(found_quality, quality)
    assert torch.equal(found_rough, rough)


def test_a_box_as_large_as_the_roi_changes_nothing() -> None:
    losses = []
    for side in (None, SIZE):
        torch.manual_seed(0)
        trained = task(fine_side=side)
        given = batch()
        answer = trained.converse(given, trained.encode(given.image), 1)
        losses.append(trained.losses(answer, 1))
    assert losses[0] == losses[1]


def test_around_the_box_the_user_sees_the_rough_mask() -> None:
    torch.manual_seed(0)
    drawn = task(fine_side=16)
    targets = batch().targets.flatten(0, 1)
    logits, rough = torch.randn(4, 1, 16, 16, 16), torch.randn(4, 1, *(SIZE // 4,) * 3)
    shown, _ = drawn._see(logits, rough, targets)
    around = (
        2 * torch.sigmoid(functional.interpolate(rough, scale_factor=2.0, mode="trilinear")) - 1
    )
    inner = slice(SIZE // 4 - 4, SIZE // 4 + 4)
    inside = shown[..., inner, inner, inner]
    torch.testing.assert_close(inside, 2 * functional.avg_pool3d(torch.sigmoid(logits), 2) - 1)
    is_around = torch.ones(shown.shape, dtype=torch.bool)
    is_around[..., inner, inner, inner] = False
    torch.testing.assert_close(shown[is_around], around[is_around])


def test_the_iou_counts_the_rough_mask_around_the_box() -> None:
    torch.manual_seed(0)
    side, inner = 32, 16
    target = functional.interpolate(torch.rand(2, 1, 8, 8, 8), size=side) > 0.5  # blocks of 4
    target = target[:, 0]
    rough = torch.randn(2, 1, 8, 8, 8)
    mask = functional.interpolate(rough, size=side)[:, 0] > 0
    part = slice(8, 24)
    logits = 8 * mask[:, None, part, part, part].float() - 4
    near = target[:, part, part, part]
    beyond = rough_overlap(rough, target, inner)
    _, iou = mask_losses(logits, near, torch.ones_like(near, dtype=torch.float32), beyond)
    wanted = (mask & target).flatten(1).sum(1) / (mask | target).flatten(1).sum(1)
    torch.testing.assert_close(iou[:, 0], wanted)


def test_a_step_with_a_box_has_gradients_everywhere() -> None:
    torch.manual_seed(0)
    trained = task(fine_side=16)
    given = batch()
    answer = trained.converse(given, trained.encode(given.image), 1)
    trained.losses(answer, 1)["loss"].backward()
    assert all(p.grad is not None for _, p in trained.named_parameters())


@pytest.mark.parametrize("side", [0, 12, 64])
def test_a_box_must_be_a_multiple_of_8_within_the_roi(side: int) -> None:
    with pytest.raises(ConfigError, match="multiple of 8"):
        replace(recipe("debug"), fine_side=side)
