"""The distillation task: a frozen teacher, a student that learns stage by stage.

While layers or the neck are learnt there are no prompts: the student sees the same normalised ROIs
as its teacher and is compared in features. Then the decoder is in the loop: both answer the same
clicks, and the student learns from the truth and from the teacher's masks.

Shape legend: B ROIs, N prompt sets, T tokens, C channels, S ROI side.

Source: FastSAM3D (arXiv 2403.09827) for the order; EdgeSAM (arXiv 2312.06660) for clicks into the
disagreement of student and teacher.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsam3d.errors import ConfigError
from fastsam3d.model.hr_decoder import Prompts
from fastsam3d.train.config import RunConfig
from fastsam3d.train.distill_losses import (
    FeatureLossConfig,
    feature_error,
    feature_loss,
    hard_dice,
    imitation_loss,
)
from fastsam3d.train.distill_schedule import Stage, StagePlan, layer_pairs, stage_at
from fastsam3d.train.families import Family, Parts, Trace
from fastsam3d.train.rendering import TrainingBatch, Wrap
from fastsam3d.train.task import Answer, Losses, Moment, SegmentationTask

PROJECTIONS = "projections."


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How a student learns from its teacher.

    Attributes:
        mode: Name of the way, see `fastsam3d.train.distill.mode_config`; kept for the record.
        layers_share, neck_share, is_progressive: See `StagePlan`.
        has_teacher: Without, the student is trained on the truth alone.
        copies_blocks: Start each block of the student from the teacher's block that it imitates.
        layer_loss, neck_loss: How features are compared.
        kept_layers: Weight of the layer losses while the neck is learnt.
        kept_neck: Weight of the neck loss while the decoder is in the loop.
        mask_weight: Weight of the teacher's masks; the truth has weight 1.
        min_teacher_dice: Where the teacher's own Dice is lower, its mask is not imitated.
        share_disagreement: Share of targets whose corrective click goes where student and teacher
            differ instead of where the student is wrong.
        decoder_rate: Factor on the learning rates while the decoder is in the loop.
    """

    mode: str = "progressive"
    layers_share: float = 0.3
    neck_share: float = 0.1
    is_progressive: bool = True
    has_teacher: bool = True
    copies_blocks: bool = False
    layer_loss: FeatureLossConfig = field(default_factory=FeatureLossConfig)
    neck_loss: FeatureLossConfig = field(default_factory=FeatureLossConfig)
    kept_layers: float = 0.1
    kept_neck: float = 0.25
    mask_weight: float = 1.0
    min_teacher_dice: float = 0.7
    share_disagreement: float = 0.5
    decoder_rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class DistillRunConfig(RunConfig):
    """One distillation run.

    Attributes:
        teacher: Name of the teacher's weights, for the record.
        distill: What is particular to distillation.
    """

    teacher: str = ""
    distill: DistillConfig = field(default_factory=DistillConfig)


def stage_plan(config: DistillConfig, student: Family, teacher: Family, steps: int) -> StagePlan:
    """Return the plan of a run of so many steps.

    Raises:
        ConfigError: The student is deeper than its teacher, or the shares are impossible.
    """
    return StagePlan(
        num_steps=steps,
        student_depth=student.model.config.depth,
        teacher_depth=teacher.model.config.depth,
        layers_share=config.layers_share,
        neck_share=config.neck_share,
        is_progressive=config.is_progressive,
    )


class DistillTask:
    """Stage-wise distillation of one student.

    The teacher is put into evaluation mode and never changes. The student's prompt encoder, copied
    from the teacher, never changes either; a copied convolutional stem rests until the decoder,
    which reads it directly, is in the loop.

    Args:
        student: The model to train, with the teacher's weights where `transplant` put them.
        teacher: The trained model.
        config: Stages, losses, prompts.
        copied: Names of the student's parameters that hold the teacher's values.
        compile_with: Wraps whole encoders and decoders, for example ``torch.compile``; partial
            encoders always run eagerly, since their length changes with the stage.
        autocast: Compute the networks in bfloat16.
    """

    def __init__(
        self,
        student: Family,
        teacher: Family,
        config: DistillRunConfig,
        *,
        copied: frozenset[str],
        compile_with: Wrap | None = None,
        autocast: bool = False,
    ) -> None:
        self.student, self.teacher, self.config = student, teacher, config
        self.distill, self.autocast = config.distill, autocast
        stage_plan(self.distill, student, teacher, 1)  # refuses what cannot work
        teacher.model.eval().requires_grad_(False)
        self.guide = SegmentationTask(teacher, config, compile_with=compile_with, autocast=autocast)
        self.pupil = SegmentationTask(student, config, compile_with=compile_with, autocast=autocast)
        wrap: Wrap = compile_with or (lambda function: function)
        self._imitate = wrap(imitation_loss)
        self.projections = _projections(student, teacher)
        self.copied = copied
        self._kind: str | None = None

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the student's parameters and the projections that only training needs."""
        extra = [(PROJECTIONS + n, p) for n, p in self.projections.named_parameters()]
        return [*self.student.model.named_parameters(), *extra]

    def rate(self, moment: Moment) -> float:
        """Train more gently once the decoder is in the loop."""
        return self.distill.decoder_rate if self.stage(moment).kind == "decoder" else 1.0

    def stage(self, moment: Moment) -> Stage:
        """Return what is learnt now.

        Raises:
            ConfigError: The length of the run is not known.
        """
        if moment.num_steps is None:
            msg = "A distillation needs its number of steps beforehand; set num_steps."
            raise ConfigError(msg)
        plan = stage_plan(self.distill, self.student, self.teacher, moment.num_steps)
        return stage_at(moment.step, plan)

    def __call__(self, batch: TrainingBatch, moment: Moment) -> Losses:
        """Return the loss of this stage, the errors of each layer that it compares, and more."""
        stage = self.stage(moment)
        self._freeze(stage)
        if stage.kind == "decoder":
            return self._decoder_losses(batch, moment)
        return self._feature_losses(batch.image, stage)

    def _freeze(self, stage: Stage) -> None:
        if self._kind == stage.kind:
            return
        self._kind = stage.kind
        resting = self.student.prompt_prefixes
        if stage.kind != "decoder":
            resting = (*resting, *self.student.skip_prefixes)
        for name, parameter in self.student.model.named_parameters():
            parameter.requires_grad_(not (name in self.copied and name.startswith(resting)))

    def _trace(self, family: Family, image: Tensor, num_blocks: int | None) -> Trace:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.autocast):
            return family.trace(image, num_blocks)

    def _feature_losses(self, image: Tensor, stage: Stage) -> Losses:
        """Return the mean over the active layers, and the neck's loss in its stage."""
        last, has_neck, weight = stage.pairs[-1], stage.kind == "neck", self.distill.kept_layers
        with torch.no_grad():
            theirs = self._trace(self.teacher, image, None if has_neck else last.teacher)
        ours = self._trace(self.student, image, None if has_neck else last.student)
        losses: Losses = {}
        total = image.new_zeros(())
        if not has_neck or weight:
            terms: list[Tensor] = []
            for pair in stage.pairs:
                wanted = theirs.blocks[pair.teacher - 1]
                given = self._project(f"layer{pair.student}", ours.blocks[pair.student - 1])
                terms.append(feature_loss(given, wanted, self.distill.layer_loss))
                losses[f"layer{pair.student}_error"] = feature_error(given, wanted)
            losses["layers_loss"] = torch.stack(terms).mean()
            total = total + (weight if has_neck else 1.0) * losses["layers_loss"]
        if has_neck:
            total = total + self._neck_loss(ours.parts, theirs.parts, losses)
        return {"loss": total, **losses}

    def _neck_loss(self, ours: Parts, theirs: Parts, losses: Losses) -> Tensor:
        given = self._project("neck", ours[0].flatten(2).transpose(1, 2))
        wanted = theirs[0].flatten(2).transpose(1, 2)
        losses["neck_error"] = feature_error(given, wanted)
        losses["neck_loss"] = feature_loss(given, wanted, self.distill.neck_loss)
        return losses["neck_loss"]

    def _project(self, name: str, tokens: Tensor) -> Tensor:
        return self.projections[name](tokens.float()) if name in self.projections else tokens

    def _decoder_losses(self, batch: TrainingBatch, moment: Moment) -> Losses:
        """Return the loss from truth and teacher on the same clicks, and the neck's."""
        with torch.no_grad():
            theirs = self.guide.encode(batch.image)
        ours = self.pupil.encode(batch.image)

        def wish(prompts: Prompts, half: Tensor) -> Tensor:
            logits, _, _ = self.guide.decode(theirs, prompts, False)
            believed = functional.avg_pool3d(torch.sigmoid(logits.float()), 2)[:, 0] > 0.5
            chance = torch.rand(half.shape[0], 1, 1, 1, device=half.device)
            return torch.where(chance < self.distill.share_disagreement, believed, half)

        answer = self.pupil.converse(batch, ours, moment.num_rounds, wish)
        losses = self.pupil.losses(answer, moment.num_rounds)
        loss = losses.pop("loss")
        with torch.no_grad():
            wanted = self.guide.decode(theirs, answer.prompts, False)[0][:, 0]
        loss = loss + self.distill.mask_weight * self._mask_loss(answer, wanted, losses)
        if self.distill.kept_neck:
            loss = loss + self.distill.kept_neck * self._neck_loss(ours, theirs, losses)
        return {"loss": loss, **losses}

    def _mask_loss(self, answer: Answer, wanted: Tensor, losses: Losses) -> Tensor:
        """Return the mean imitation loss over the targets that the teacher knows well."""
        with torch.no_grad():
            dice = hard_dice(wanted, answer.targets)
            trusted = answer.weights * (dice > self.distill.min_teacher_dice)
        imitation = self._imitate(answer.logits[:, 0], wanted)
        loss = (imitation * trusted).sum() / answer.weights.sum().clamp(min=1)
        losses["mask_loss"] = loss
        losses["trusted_share"] = trusted.sum() / answer.weights.sum().clamp(min=1)
        return loss


def transplant(student: Family, teacher: Family, *, copies_blocks: bool) -> frozenset[str]:
    """Copy the teacher's weights into the student, where name and shape agree.

    Everything outside the trunk's blocks is copied; the blocks only on request, each from the
    teacher's block that it will imitate.

    Args:
        student: Changed in place.
        teacher: Left as it is.
        copies_blocks: Copy blocks, too.

    Returns:
        Names of what was copied.

    Raises:
        ConfigError: Blocks were asked for, but those of the teacher have another width.
    """
    given, own = teacher.model.state_dict(), student.model.state_dict()
    renamed = _block_names(student, teacher) if copies_blocks else {}
    copied = {
        name
        for name, value in own.items()
        if (source := renamed.get(name, name)) in given
        and given[source].shape == value.shape
        and (name in renamed or not name.startswith(student.block_prefix))
    }
    widths = (student.model.config.embed_dim, teacher.model.config.embed_dim)
    if copies_blocks and widths[0] != widths[1]:
        msg = (
            f"The teacher's blocks are {widths[1]} wide and the student's {widths[0]}, so they "
            "cannot be copied; choose another mode or a student of the teacher's width."
        )
        raise ConfigError(msg)
    with torch.no_grad():
        for name in copied:
            own[name].copy_(given[renamed.get(name, name)])
    return frozenset(copied)


def _block_names(student: Family, teacher: Family) -> dict[str, str]:
    """Return from each of the student's block parameters to the teacher's of the same place."""
    pairs = layer_pairs(student.model.config.depth, teacher.model.config.depth)
    sources = {pair.student - 1: pair.teacher - 1 for pair in pairs}
    prefix = student.block_prefix
    names: dict[str, str] = {}
    for name in student.model.state_dict():
        if name.startswith(prefix):
            number, _, rest = name.removeprefix(prefix).partition(".")
            names[name] = f"{prefix}{sources[int(number)]}.{rest}"
    return names


def _projections(student: Family, teacher: Family) -> nn.ModuleDict:
    """Return linear maps to the teacher's widths, where they differ."""
    ours, theirs = student.model.config, teacher.model.config
    maps = nn.ModuleDict()
    if ours.embed_dim != theirs.embed_dim:
        for layer in range(1, ours.depth + 1):
            maps[f"layer{layer}"] = nn.Linear(ours.embed_dim, theirs.embed_dim)
    if ours.out_dim != theirs.out_dim:
        maps["neck"] = nn.Linear(ours.out_dim, theirs.out_dim)
    return maps.to(next(student.model.parameters()).device)
