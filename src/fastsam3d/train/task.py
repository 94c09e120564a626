"""The training task: from rendered ROIs to a loss, with a simulated user in the loop.

Each target starts with a first prompt; a drawn number of rounds without gradient lets the user
correct the model's own masks; the round after that is trained on.

Shape legend: B ROIs, M targets per ROI, N = B * M prompt sets, S ROI side.

Source: iterative click training as in RITM (arXiv 2102.06583).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsam3d.model import channels_last
from fastsam3d.model.hr import previous_mask_map
from fastsam3d.model.hr_decoder import Prompts, central_part
from fastsam3d.train.clicks import corrupted_masks, jittered_boxes, next_clicks
from fastsam3d.train.config import MAX_POINTS, SCRIBBLE_TAIL, RunConfig
from fastsam3d.train.families import Family, Parts
from fastsam3d.train.losses import (
    Overlap,
    boundary_weights,
    mask_losses,
    rough_loss,
    rough_overlap,
    soft_dice,
)
from fastsam3d.train.rendering import TrainingBatch, Wrap
from fastsam3d.train.scribbles import draw_scribbles, scribble_points

# Targets of a voxel or two survive the halving of the grid when a third of a cell suffices.
HALF_GRID_SHARE = 0.3


LOSS_NAMES = ("loss", "dice_loss", "iou", "quality_error")

Losses = dict[str, Tensor]


class Moment(NamedTuple):
    """Where a run stands.

    Attributes:
        step: Steps done so far.
        num_steps: Of the whole run, None while still unknown.
        num_rounds: Corrective clicks before the round that is trained on.
    """

    step: int
    num_steps: int | None
    num_rounds: int


class Task(Protocol):
    """What a `fastsam3d.train.loop.Trainer` minimises.

    A parameter that gets no gradient at a step is left as it is, weight decay included.
    """

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return all that may ever be trained, the model's parameters under their own names."""
        ...

    def rate(self, moment: Moment) -> float:
        """Return a further factor on the learning rates."""
        ...

    def __call__(self, batch: TrainingBatch, moment: Moment) -> Losses:
        """Return scalars to log by name; ``loss``, which has the gradient, among them."""
        ...


# From the clicks made so far and the true half-resolution masks to the masks that are clicked for.
Wish = Callable[[Prompts, Tensor], Tensor]


class Answer(NamedTuple):
    """What was decoded in the trained round, and for what; N targets.

    Attributes:
        prompts: What the decoder was given.
        logits: (N, M, S, S, S), or of a central box.
        quality: (N, M).
        rough: (N, 1, S/4, S/4, S/4).
        targets: bool (N, S, S, S).
        weights: (N,).
        dice_before: Soft Dice of the mask that the last click corrects, (N,); 0 if it is the first.
    """

    prompts: Prompts
    logits: Tensor
    quality: Tensor
    rough: Tensor
    targets: Tensor
    weights: Tensor
    dice_before: Tensor


@dataclass
class _Conversation:
    """Prompts so far of N targets; replaced field by field as the user goes on."""

    points: Tensor
    labels: Tensor
    boxes: Tensor
    previous: Tensor

    def prompts(self) -> Prompts:
        return Prompts(self.points, self.labels, self.boxes, self.previous)


class SegmentationTask:
    """Prompted segmentation of one model.

    Args:
        family: The model to train.
        config: Prompts and loss weights.
        compile_with: Wraps the stages, for example ``torch.compile``; None runs eagerly.
        autocast: Compute the networks in bfloat16.
    """

    def __init__(
        self,
        family: Family,
        config: RunConfig,
        *,
        compile_with: Wrap | None = None,
        autocast: bool = False,
    ) -> None:
        wrap: Wrap = compile_with or (lambda function: function)
        self.family, self.config, self.autocast = family, config, autocast
        self.encode = wrap(self._encode_now)
        self.decode = wrap(self._decode_now) if family.has_fixed_prompts else self._decode_now
        self._loss = wrap(self._loss_now)
        self._half_grid = wrap(_half_grid)
        self._corrupted_masks = wrap(corrupted_masks)
        self._jittered_boxes = wrap(jittered_boxes)
        self._next_clicks = wrap(next_clicks)
        self._see = wrap(_see)

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the model's parameters."""
        return list(self.family.model.named_parameters())

    def rate(self, moment: Moment) -> float:
        """Leave the learning rates as they are."""
        del moment
        return 1.0

    def __call__(self, batch: TrainingBatch, moment: Moment) -> Losses:
        """Return the loss after the corrective clicks, the mean of all trained rounds."""
        parts = self.encode(batch.image)
        trained = self.config.trained_rounds
        answers = self.rounds(batch, parts, moment.num_rounds, num_trained=trained)
        first = moment.num_rounds + 1 - len(answers)
        each = [self.losses(answer, first + n) for n, answer in enumerate(answers)]
        loss = torch.stack([losses["loss"] for losses in each]).mean()
        return {**each[-1], "loss": loss}

    def converse(
        self, batch: TrainingBatch, parts: Parts, num_rounds: int, wish: Wish | None = None
    ) -> Answer:
        """Let the user correct the masks, and decode once more, with gradient; as `rounds`."""
        return self.rounds(batch, parts, num_rounds, wish)[-1]

    def rounds(
        self,
        batch: TrainingBatch,
        parts: Parts,
        num_rounds: int,
        wish: Wish | None = None,
        *,
        num_trained: int = 1,
    ) -> list[Answer]:
        """Let the user correct the masks, and return the last answers, those with gradient.

        Args:
            batch: ROIs and targets.
            parts: Their encoding.
            num_rounds: Corrective clicks.
            wish: What the user clicks for; the targets by default.
            num_trained: How many answers have a gradient, or as many as there are. No gradient
                passes from one to the next.
        """
        count = batch.targets.shape[1]
        targets, weights = batch.targets.flatten(0, 1), batch.weights.flatten()
        half = self._half_grid(targets)
        frozen = tuple(part.detach() for part in parts)
        dice_before = torch.zeros(len(targets), device=targets.device)
        with torch.no_grad():
            talk = self._begin(half, count)
        answers: list[Answer] = []
        for done in range(num_rounds + 1):
            prompts = self.family.prompts(talk.prompts(), done + 1)
            if done > num_rounds - num_trained:
                logits, quality, rough = self.decode(parts, prompts, True)
                given = (prompts, logits, quality, rough, targets, weights, dice_before)
                answers.append(Answer(*given))
                logits, rough = logits[:, :1].detach(), rough.detach()
            else:
                with torch.no_grad():
                    logits, _, rough = self.decode(frozen, prompts, False)
            if done < num_rounds:
                with torch.no_grad():
                    wanted = half if wish is None else wish(prompts, half)
                    shown, dice_before = self._see(logits, rough, targets)
                    talk = self._correct(talk, (shown, rough), wanted, done + 1)
        return answers

    def losses(self, answer: Answer, num_rounds: int) -> Losses:
        """Return the loss of an answer against the targets, and its parts."""
        first = torch.full((), 1.0 if num_rounds == 0 else 0.0, device=answer.logits.device)
        values = self._loss(*answer[1:], first)
        return dict(zip(LOSS_NAMES, values, strict=True))

    def _encode_now(self, image: Tensor) -> Parts:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.autocast):
            return self.family.encode(image)

    def _decode_now(
        self, parts: Parts, prompts: Prompts, multimask: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Repeated in here, where a compiler need not write the copies.
        shared = repeated(parts, len(prompts.points_BN3) // len(parts[0]))
        with torch.autocast(parts[0].device.type, torch.bfloat16, enabled=self.autocast):
            return self.family.decode(shared, prompts, multimask)

    def _begin(self, half: Tensor, count: int) -> _Conversation:
        """Draw the first prompts of all targets."""
        config, device = self.config.prompts, half.device
        total, side = half.shape[0], half.shape[1]

        def chance(share: float) -> Tensor:
            return torch.rand(total, device=device) < share

        has_prior = chance(config.share_prior)
        prior = self._corrupted_masks(half) & has_prior[:, None, None, None]
        point, label = self._next_clicks(prior, half)
        # The ROI is centred on the first click of its first target, as in inference.
        is_first = torch.arange(total, device=device) % count == 0
        central = is_first & ~has_prior & ~chance(config.share_off_centre)
        point = torch.where(central[:, None], float(side), point)
        label = torch.where(central, 1.0, label)
        has_box = chance(config.share_box)
        label = torch.where(has_box & chance(config.share_box_only), -1.0, label)
        points = torch.zeros(total, MAX_POINTS + SCRIBBLE_TAIL, 3, device=device)
        labels = torch.full((total, MAX_POINTS + SCRIBBLE_TAIL), -1.0, device=device)
        points[:, 0], labels[:, 0] = point, label
        if config.share_scribble:
            has_scribble = chance(config.share_scribble) & ~has_box
            self._add_scribbles(points, labels, (prior, half), has_scribble)
        boxes = self._jittered_boxes(half) * has_box[:, None]
        previous = (2 * prior.float() - 1) * has_prior[:, None, None, None]
        return _Conversation(points, labels, boxes, self.family.prior(previous[:, None]))

    @staticmethod
    def _add_scribbles(
        points: Tensor, labels: Tensor, masks: tuple[Tensor, Tensor], has_scribble: Tensor
    ) -> None:
        """Put a scribble in the place of the first clicks of some prompt sets."""
        path, labels_path = scribble_points(draw_scribbles(*masks), 1 + SCRIBBLE_TAIL)
        columns = [0, *range(MAX_POINTS, MAX_POINTS + SCRIBBLE_TAIL)]
        points[:, columns] = torch.where(has_scribble[:, None, None], path, points[:, columns])
        labels[:, columns] = torch.where(has_scribble[:, None], labels_path, labels[:, columns])

    def _correct(
        self, talk: _Conversation, seen: tuple[Tensor, Tensor], wanted: Tensor, index: int
    ) -> _Conversation:
        """Let the user see the mask and add the click `index`."""
        shown, rough = seen
        point, label = self._next_clicks(shown[:, 0] > 0, wanted)
        previous = self.family.memory(shown, rough)
        points, labels = talk.points.clone(), talk.labels.clone()
        points[:, index], labels[:, index] = point, label
        return _Conversation(points, labels, talk.boxes, previous)

    def _loss_now(
        self,
        logits: Tensor,
        quality: Tensor,
        rough: Tensor,
        targets: Tensor,
        weights: Tensor,
        dice_before: Tensor,
        is_first: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        config, side = self.config, logits.shape[-1]
        near, band = _central(targets, side), _central(boundary_weights(targets), side)
        beyond, beyond_coarse = None, None
        if side < targets.shape[-1]:
            beyond = rough_overlap(rough, targets, side)
            beyond_coarse = Overlap(*(part / 8 for part in beyond))
        settled, settled_iou = mask_losses(logits[:, :1], near, band, beyond)
        candidates, candidate_iou = mask_losses(
            _coarse(logits[:, 1:]), _coarse(near), _coarse(band), beyond_coarse
        )
        iou = torch.cat((settled_iou, candidate_iou), 1)
        error = (quality.float() - iou).square()
        total = weights.sum().clamp(min=1)

        def mean(values: Tensor) -> Tensor:
            return (values * weights).sum() / total

        loss = mean(settled[:, 0]) + config.quality_weight * mean(error.mean(1))
        loss = loss + config.rough_weight * mean(rough_loss(rough, targets))
        lost = dice_before - soft_dice(_coarse(logits[:, 0]), _coarse(near))
        loss = loss + config.regress_weight * mean(lost.clamp(min=0))
        # Not `amin`: its gradient divides by the number of entries equal to the minimum, and a
        # compiled backward pass that recomputes them may find none: 0 / 0.
        best = candidates.gather(1, candidates.detach().argmin(1, keepdim=True))[:, 0]
        loss = loss + config.candidate_weight * is_first * mean(best)
        # Every output keeps a gradient in every round, so no parameter is ever without one.
        loss = loss + 1e-3 * mean(candidates.mean(1))
        return loss, mean(settled[:, 0]).detach(), mean(settled_iou[:, 0]), mean(error[:, 0])


def _half_grid(targets: Tensor) -> Tensor:
    """Return targets (N, S, S, S) at half resolution, bool."""
    return functional.avg_pool3d(targets[:, None].float(), 2)[:, 0] > HALF_GRID_SHARE


def _see(logits: Tensor, rough: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a user sees of masks at half resolution (N, 1, S/2, ...), and their soft Dice.

    Where logits are those of a central box, what is seen around it is rough, and Dice (N,) is that
    of the box.
    """
    side, whole = logits.shape[-1], targets.shape[-1]
    dice = soft_dice(_coarse(logits[:, 0]), _coarse(_central(targets, side)))
    shown = previous_mask_map(torch.sigmoid(logits.float()))
    if side < whole:
        around = functional.interpolate(rough.float(), scale_factor=2, mode="trilinear")
        around = 2 * torch.sigmoid(around) - 1
        part = central_part(side // 2, whole // 2)
        around[..., part, part, part] = shown
        shown = around
    return shown, dice


def _central(values: Tensor, side: int) -> Tensor:
    """Return the central cube of `side` voxels along the last three axes."""
    part = central_part(side, values.shape[-1])
    return values[..., part, part, part]


def _coarse(values: Tensor) -> Tensor:
    """Return every second voxel along each of the last three axes."""
    return values[..., ::2, ::2, ::2]


def repeated(parts: Parts, count: int) -> Parts:
    """Return every ROI's encoding `count` times in a row, for as many prompt sets."""
    return tuple(channels_last.repeat(part, count) for part in parts)
