"""What it costs a student to differ from its teacher: in features, and in masks.

Shape legend: B batch, T tokens, C channels, N prompt sets, S ROI side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from fastsam3d.errors import ConfigError
from fastsam3d.train.losses import DICE_SMOOTH


@dataclass(frozen=True, kw_only=True)
class FeatureLossConfig:
    """Weights of the ways to compare features; several may be combined.

    Attributes:
        norm: Of the Euclidean norm of the difference of each token (the paper's loss).
        mse: Of the mean squared difference.
        cosine: Of one minus the cosine between tokens.
        relation: Of the mean squared difference between the two matrices of cosines among tokens.
        is_relative: Divide norm and mse by what a student that says nothing would get, so that a
            layer does not count more because its features are larger, and features weigh the
            same against masks in every model. False is the paper's letter.
        has_layer_norm: Normalise each token to mean 0 and deviation 1 before any of them.
    """

    norm: float = 1.0
    mse: float = 0.0
    cosine: float = 0.0
    relation: float = 0.0
    is_relative: bool = True
    has_layer_norm: bool = False

    def __post_init__(self) -> None:
        weights = (self.norm, self.mse, self.cosine, self.relation)
        if min(weights) < 0 or sum(weights) == 0:
            msg = f"Feature losses need weights >= 0 and one above 0, got {weights}; set one."
            raise ConfigError(msg)


def feature_loss(student: Tensor, teacher: Tensor, config: FeatureLossConfig) -> Tensor:
    """Compare the tokens of student and teacher.

    Unless it is relative, the norm is divided by sqrt(C), which makes it the root mean square over
    channels: a constant factor on the paper's loss.

    Args:
        student: (B, T, C).
        teacher: Same shape, without gradient.
        config: Which comparisons, how weighted.

    Returns:
        A scalar, float32.
    """
    student, teacher, width = student.float(), teacher.float(), student.shape[-1]
    if config.has_layer_norm:
        student = functional.layer_norm(student, (width,))
        teacher = functional.layer_norm(teacher, (width,))
    total = student.new_zeros(())
    if config.norm:
        unit = _norms(teacher).mean().clamp(min=1e-12) if config.is_relative else width**0.5
        total = total + config.norm * _norms(student - teacher).mean() / unit
    if config.mse:
        unit = teacher.square().mean().clamp(min=1e-12) if config.is_relative else 1.0
        total = total + config.mse * functional.mse_loss(student, teacher) / unit
    if config.cosine:
        cosine = functional.cosine_similarity(student, teacher, dim=-1)
        total = total + config.cosine * (1 - cosine).mean()
    if config.relation:
        total = total + config.relation * functional.mse_loss(_gram(student), _gram(teacher))
    return total


def feature_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the relative error of features: norm of the difference over norm of the teacher."""
    student, teacher = student.detach().float(), teacher.float()
    error, whole = _norms((student - teacher).flatten()), _norms(teacher.flatten())
    return error / whole.clamp(min=1e-12)


def imitation_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return soft Dice loss plus cross entropy against the teacher's probabilities.

    Args:
        logits: The student's, (N, S, S, S).
        teacher: The teacher's logits, same shape, without gradient.

    Returns:
        Loss (N,).
    """
    logits, wanted = logits.float(), torch.sigmoid(teacher.float())
    probabilities = torch.sigmoid(logits)
    axes = (1, 2, 3)
    overlap = (probabilities * wanted).sum(axes)
    # Squares: with soft targets the plain sum is not smallest where both agree.
    total = probabilities.square().sum(axes) + wanted.square().sum(axes)
    dice = 1 - (2 * overlap + DICE_SMOOTH) / (total + DICE_SMOOTH)
    # Above the entropy of the teacher itself, so that perfect imitation costs nothing.
    entropy = functional.softplus(logits) - logits * wanted
    own = functional.softplus(teacher.float()) - teacher.float() * wanted
    return dice + (entropy - own).mean(axes)


def hard_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Return the Dice coefficient (N,) of thresholded logits and targets, both (N, S, S, S)."""
    mask, axes = logits > 0, (1, 2, 3)
    overlap = (mask & target).sum(axes).float()
    return (2 * overlap + DICE_SMOOTH) / (mask.sum(axes) + target.sum(axes) + DICE_SMOOTH)


def _norms(vectors: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(vectors, dim=-1)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return cast("Tensor", norms)


def _gram(tokens: Tensor) -> Tensor:
    unit = functional.normalize(tokens, dim=-1)
    return unit @ unit.transpose(1, 2)
