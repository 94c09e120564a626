"""Feature and mask losses: zero for equals, the right size for known differences."""

from __future__ import annotations

import pytest
import torch

from fastsam3d.errors import ConfigError
from fastsam3d.train.distill_losses import (
    FeatureLossConfig,
    feature_error,
    feature_loss,
    hard_dice,
    imitation_loss,
)

KINDS = ("norm", "mse", "cosine", "relation")


def only(kind: str, **more: bool) -> FeatureLossConfig:
    return FeatureLossConfig(**({"norm": 0.0} | {kind: 1.0}), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_features_cost_nothing_and_have_a_finite_gradient(kind: str) -> None:
    torch.manual_seed(0)
    teacher = torch.randn(2, 5, 8)
    student = teacher.clone().requires_grad_()
    loss = feature_loss(student, teacher, only(kind))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_norm_is_the_mean_length_of_each_tokens_error() -> None:
    student, teacher = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)
    student[0, 0] = torch.tensor([3.0, 4.0, 0.0, 0.0])  # length 5; the other token is right
    norm, mse = only("norm", is_relative=False), only("mse", is_relative=False)
    assert feature_loss(student, teacher, norm).item() == pytest.approx(5 / 2 / 4**0.5)
    assert feature_loss(student, teacher, mse).item() == pytest.approx(25 / 8)


@pytest.mark.parametrize("kind", ["norm", "mse"])
def test_saying_nothing_costs_one_whatever_the_size_of_the_features(kind: str) -> None:
    torch.manual_seed(0)
    teacher = 37 * torch.randn(2, 5, 8)
    silence = torch.zeros_like(teacher)
    assert feature_loss(silence, teacher, only(kind)).item() == pytest.approx(1)


def test_cosine_and_relation_see_directions_only() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(1, 6, 8)
    assert feature_loss(3 * teacher, teacher, only("cosine")).item() == pytest.approx(0, abs=1e-6)
    turned = teacher @ torch.linalg.qr(torch.randn(8, 8))[0]
    assert feature_loss(turned, teacher, only("relation")).item() == pytest.approx(0, abs=1e-6)
    assert feature_loss(turned, teacher, only("cosine")).item() > 0.1


def test_layer_norm_forgives_scale_and_shift() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(1, 6, 8)
    plain, normed = only("mse"), only("mse", has_layer_norm=True)
    assert feature_loss(5 * teacher + 2, teacher, plain).item() > 1
    assert feature_loss(5 * teacher + 2, teacher, normed).item() < 1e-4


def test_weights_add_up() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    both = FeatureLossConfig(norm=2.0, mse=0.5)
    parts = 2 * feature_loss(student, teacher, only("norm"))
    parts = parts + 0.5 * feature_loss(student, teacher, only("mse"))
    torch.testing.assert_close(feature_loss(student, teacher, both), parts)
    with pytest.raises(ConfigError, match="one above 0"):
        FeatureLossConfig(norm=0.0)


def test_relative_error_of_silence_is_one() -> None:
    teacher = torch.randn(1, 4, 8)
    assert feature_error(torch.zeros_like(teacher), teacher).item() == pytest.approx(1)


def test_imitating_soft_masks_is_cheapest_where_both_agree() -> None:
    teacher = torch.linspace(-2, 2, 64).reshape(1, 4, 4, 4)
    student = teacher.clone().requires_grad_()
    loss = imitation_loss(student, teacher)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6
    assert imitation_loss(-teacher, teacher).item() > 0.5


def test_hard_dice_counts_voxels() -> None:
    target = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    target[:, :2] = True
    logits = torch.full((1, 4, 4, 4), -1.0)
    logits[:, 1:3] = 1.0
    assert hard_dice(logits, target).item() == pytest.approx((2 * 16 + 1) / (32 + 32 + 1))
