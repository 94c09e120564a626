"""The training task: from rendered ROIs to a loss, with a simulated user in the loop.

Each target starts with a first prompt; a drawn number of rounds without gradient lets the user
correct the model's own masks; the round after that is trained on.

Shape legend: B ROIs, M targets per ROI, N = B * M prompt sets, S ROI side.

Source: iterative click training as in RITM (arXiv 2102.06583).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fastsam3d.model.hr import HighResSam3D, previous_mask_map
from fastsam3d.model.hr_decoder import Prompts
from fastsam3d.train.clicks import corrupted_masks, jittered_boxes, next_clicks
from fastsam3d.train.config import MAX_POINTS, RunConfig
from fastsam3d.train.losses import boundary_weights, mask_losses, rough_loss
from fastsam3d.train.rendering import TrainingBatch, Wrap

# Targets of a voxel or two survive the halving of the grid when a third of a cell suffices.
HALF_GRID_SHARE = 0.3


class LossParts(NamedTuple):
    """Loss to minimise and what to log, all scalars on the device."""

    loss: Tensor
    dice_loss: Tensor
    iou: Tensor
    quality_error: Tensor


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
        model: The model to train.
        config: Prompts and loss weights.
        compile_with: Wraps the stages, for example ``torch.compile``; None runs eagerly.
        autocast: Compute the networks in bfloat16.
    """

    def __init__(
        self,
        model: HighResSam3D,
        config: RunConfig,
        *,
        compile_with: Wrap | None = None,
        autocast: bool = False,
    ) -> None:
        wrap: Wrap = compile_with or (lambda function: function)
        self.model, self.config, self.autocast = model, config, autocast
        self._encode = wrap(self._encode_now)
        self._decode = wrap(self._decode_now)
        self._loss = wrap(self._loss_now)
        self._next_clicks = wrap(next_clicks)

    def __call__(self, batch: TrainingBatch, num_rounds: int) -> LossParts:
        """Return the loss after `num_rounds` corrective clicks."""
        embedding = self._encode(batch.image)
        count = batch.targets.shape[1]
        targets = batch.targets.flatten(0, 1)
        half = functional.avg_pool3d(targets[:, None].half().float(), 2)[:, 0] > HALF_GRID_SHARE
        shared = tuple(part.repeat_interleave(count, 0) for part in embedding)
        frozen = tuple(part.detach() for part in shared)
        with torch.no_grad():
            talk = self._begin(half, count)
        for done in range(num_rounds):
            with torch.no_grad():
                logits, _, _ = self._decode(frozen, talk.prompts(), False)
                talk = self._correct(talk, logits, half, done + 1)
        logits, quality, rough = self._decode(shared, talk.prompts(), True)
        is_first = 1.0 if num_rounds == 0 else 0.0
        first = torch.full((), is_first, device=logits.device)
        weights = batch.weights.flatten()
        return LossParts(*self._loss(logits, quality, rough, targets, weights, first))

    def _encode_now(self, image: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.autocast):
            return self.model.encoder(image)

    def _decode_now(
        self, embedding: tuple[Tensor, ...], prompts: Prompts, multimask: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(embedding[0].device.type, torch.bfloat16, enabled=self.autocast):
            return self.model.decoder(embedding, prompts, multimask=multimask)

    def _begin(self, half: Tensor, count: int) -> _Conversation:
        """Draw the first prompts of all targets."""
        config, device = self.config.prompts, half.device
        total, side = half.shape[0], half.shape[1]

        def chance(share: float) -> Tensor:
            return torch.rand(total, device=device) < share

        has_prior = chance(config.share_prior)
        prior = corrupted_masks(half) & has_prior[:, None, None, None]
        point, label = self._next_clicks(prior, half)
        # The ROI is centred on the first click of its first target, as in inference.
        is_first = torch.arange(total, device=device) % count == 0
        central = is_first & ~has_prior & ~chance(config.share_off_centre)
        point = torch.where(central[:, None], float(side), point)
        label = torch.where(central, 1.0, label)
        has_box = chance(config.share_box)
        label = torch.where(has_box & chance(config.share_box_only), -1.0, label)
        points = torch.zeros(total, MAX_POINTS, 3, device=device)
        labels = torch.full((total, MAX_POINTS), -1.0, device=device)
        points[:, 0], labels[:, 0] = point, label
        boxes = jittered_boxes(half) * has_box[:, None]
        previous = (2 * prior.float() - 1) * has_prior[:, None, None, None]
        return _Conversation(points, labels, boxes, previous[:, None])

    def _correct(
        self, talk: _Conversation, logits: Tensor, half: Tensor, index: int
    ) -> _Conversation:
        """Let the user see the mask and add the click `index`."""
        previous = previous_mask_map(torch.sigmoid(logits.float()))
        point, label = self._next_clicks(previous[:, 0] > 0, half)
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
        is_first: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        config = self.config
        band = boundary_weights(targets)
        settled, settled_iou = mask_losses(logits[:, :1], targets, band)
        coarse = (slice(None), slice(None, None, 2), slice(None, None, 2), slice(None, None, 2))
        candidates, candidate_iou = mask_losses(
            logits[:, 1:, ::2, ::2, ::2], targets[coarse], band[coarse]
        )
        iou = torch.cat((settled_iou, candidate_iou), 1)
        error = (quality.float() - iou).square()
        total = weights.sum().clamp(min=1)

        def mean(values: Tensor) -> Tensor:
            return (values * weights).sum() / total

        loss = mean(settled[:, 0]) + config.quality_weight * mean(error.mean(1))
        loss = loss + config.rough_weight * mean(rough_loss(rough, targets))
        # Not `amin`: its gradient divides by the number of entries equal to the minimum, and a
        # compiled backward pass that recomputes them may find none: 0 / 0.
        best = candidates.gather(1, candidates.detach().argmin(1, keepdim=True))[:, 0]
        loss = loss + config.candidate_weight * is_first * mean(best)
        # Every output keeps a gradient in every round, so no parameter is ever without one.
        loss = loss + 1e-3 * mean(candidates.mean(1))
        return loss, mean(settled[:, 0]).detach(), mean(settled_iou[:, 0]), mean(error[:, 0])
