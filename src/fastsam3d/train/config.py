"""Configuration of a training run, and the named recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fastsam3d.errors import ConfigError
from fastsam3d.model.config import ModelConfig
from fastsam3d.model.registry import find_config
from fastsam3d.train.degrade import DegradeConfig
from fastsam3d.train.drawing import GeneratorConfig
from fastsam3d.train.shapes import ShapesConfig

MAX_POINTS = 8
# Further points of a scribble that is given at once; they follow the clicks.
SCRIBBLE_TAIL = 4
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs")


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How users are simulated.

    Attributes:
        round_shares: Probability of 0, 1, 2, ... corrective clicks before the round that is
            trained on.
        share_off_centre: Share of first targets whose first click is not the ROI centre.
        share_box: Share of targets that start with a loose box.
        share_box_only: Share of those that start without a click.
        share_prior: Share of targets that start from a wrong earlier mask.
        share_scribble: Share of targets whose first prompt is a scribble: points along a curve,
            all at once.
    """

    round_shares: tuple[float, ...] = (0.42, 0.2, 0.13, 0.1, 0.06, 0.05, 0.04)
    share_off_centre: float = 0.12
    share_box: float = 0.12
    share_box_only: float = 0.4
    share_prior: float = 0.08
    share_scribble: float = 0.0

    def __post_init__(self) -> None:
        if len(self.round_shares) > MAX_POINTS:
            msg = (
                f"round_shares may have {MAX_POINTS} entries at most, got "
                f"{len(self.round_shares)}; shorten it or raise MAX_POINTS."
            )
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run.

    Attributes:
        model: Registry name of the variant.
        depth: Trunk blocks, None for the variant's own number.
        attention: Pattern of the image tokens' attention, None for the variant's own; see
            `ModelConfig`.
        initial_weights: Weights to start from, or None for a fresh model.
        seed: Of weights, drawing and rendering.
        num_steps: Steps of the run; None to fit `minutes`.
        minutes: Wall clock of the training loop, used when `num_steps` is None.
        calibration_steps: Steps timed before the number of steps is fixed.
        muon_rate, adam_rate: Peak learning rates of matrices and of the rest.
        weight_decay: Decoupled decay of both.
        warmup_steps: Linear warm-up.
        decay_share: Share of the steps at the end over which the rates fall linearly to zero.
        ema: Decay of the averaged weights.
        clip: Largest gradient norm.
        quality_weight: Weight of the quality head's squared error.
        candidate_weight: Weight of the best-of-three loss on first clicks.
        rough_weight: Weight of the loss on the mask at a quarter of the resolution.
        regress_weight: Weight of the soft Dice lost by the last corrective click, where it was
            lost: a click should not make the mask worse.
        trained_rounds: How many of a step's clicks are learnt from, the last ones; where there are
            fewer, all. Each costs a decode with its gradient.
        fine_side: Side in voxels, a multiple of 8, of the central box of the ROI in which the
            finest stage of `hr` models is computed and trained; outside of it the mask is that of
            a quarter of the resolution, which is trained everywhere. None: the whole ROI.
        compile: Compile the stages (CUDA).
        compile_mode: How, see ``torch.compile``; ``reduce-overhead`` records CUDA graphs.
        inlined_reads: What a compiled stage makes of so many values or fewer, it makes again
            wherever it is needed instead of storing it. The compiler's own 4 stores every
            normalised grid in single precision.
        replay_muon: Record Muon's products as a CUDA graph, where the stages are compiled.
        fuse_adam: AdamW in one kernel (CUDA).
        time_convolutions: Let cuDNN choose its kernels by timing them (CUDA).
        draw_workers: Processes that draw batches ahead (CUDA), for each training process.
        log_every, save_every: Steps between log lines and checkpoints.
        prompts, generator: Parts of their own.
    """

    model: str = "hr_s"
    depth: int | None = None
    attention: str | None = None
    initial_weights: str | None = None
    seed: int = 1
    num_steps: int | None = None
    minutes: float = 8.0
    calibration_steps: int = 120
    muon_rate: float = 0.02
    adam_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 150
    decay_share: float = 0.3
    ema: float = 0.9985
    clip: float = 1.0
    quality_weight: float = 1.0
    candidate_weight: float = 0.5
    rough_weight: float = 0.3
    regress_weight: float = 0.0
    trained_rounds: int = 1
    fine_side: int | None = None
    compile: bool = True
    compile_mode: str = "default"
    inlined_reads: int = 8
    replay_muon: bool = True
    fuse_adam: bool = True
    time_convolutions: bool = False
    draw_workers: int = 3
    log_every: int = 25
    save_every: int = 1000
    prompts: PromptConfig = field(default_factory=PromptConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)

    def __post_init__(self) -> None:
        if self.num_steps is None and self.minutes <= 0:
            msg = f"A run needs num_steps or positive minutes, got {self.minutes}; set one."
            raise ConfigError(msg)
        if self.trained_rounds < 1:
            msg = f"trained_rounds must be at least 1, got {self.trained_rounds}; set 1 or more."
            raise ConfigError(msg)
        size = self.generator.size
        if self.fine_side is not None and (self.fine_side % 8 or not 0 < self.fine_side <= size):
            msg = (
                f"fine_side must be a multiple of 8 up to the ROI's side of {size} voxels, got "
                f"{self.fine_side}; choose another or none."
            )
            raise ConfigError(msg)
        if self.compile_mode not in COMPILE_MODES:
            msg = (
                f"compile_mode must be one of {', '.join(COMPILE_MODES)}, got "
                f"{self.compile_mode!r}; choose one of them."
            )
            raise ConfigError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for the record of the run."""
        return asdict(self)


def architecture_of(config: dict[str, Any]) -> ModelConfig:
    """Return the architecture that a run trains, from `RunConfig.to_dict` data or its record.

    The run decides the ROI size: the debug recipe trains on smaller ones.

    Raises:
        ModelNotFoundError: The variant is unknown.
        ConfigError: The ROI size does not suit it.
    """
    variant = find_config(config["model"])
    depth = config.get("depth") or variant.depth
    attention = config.get("attention") or variant.attention
    size = config["generator"]["size"]
    return replace(variant, image_size=size, depth=depth, attention=attention)


def rate_factor(step: int, num_steps: int | None, config: RunConfig) -> float:
    """Return the learning rate at `step` over its peak: warm-up, plateau, linear decay to zero.

    Args:
        step: Steps done so far.
        num_steps: Steps of the whole run, None while still unknown.
        config: Gives warm-up and decay.
    """
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    if num_steps is None:
        return warm
    left = (num_steps - step) / max(config.decay_share * num_steps, 1)
    return max(0.0, min(warm, left, 1.0))


def _debug() -> RunConfig:
    """Tiny and quick, for the tests and for a first look on a CPU."""
    generator = GeneratorConfig(
        size=32,
        num_shapes=1,
        num_painted=1,
        num_real=2,
        shapes=ShapesConfig(num_blobs=(2, 5), num_tubes=(0, 1)),
        degrade=DegradeConfig(max_blur=2.0),
    )
    return RunConfig(
        num_steps=4,
        warmup_steps=2,
        compile=False,
        log_every=1,
        save_every=2,
        generator=generator,
        prompts=PromptConfig(round_shares=(0.5, 0.5)),
    )


def _default() -> RunConfig:
    """The mix that trained the bundled weights; see docs/training/log.md."""
    return RunConfig()


def _continue() -> RunConfig:
    """A further run from earlier weights: more real images and drawn prompts, gentler rates.

    CT is mostly shown as sessions show it.
    """
    base = _default()
    degrade = replace(base.generator.degrade, share_focus=0.6, share_window=0.15, share_filter=0.2)
    generator = replace(base.generator, num_shapes=3, num_painted=6, num_real=15, degrade=degrade)
    prompts = replace(
        base.prompts,
        round_shares=(0.36, 0.22, 0.15, 0.11, 0.07, 0.05, 0.04),
        share_box=0.2,
        share_box_only=0.55,
        share_scribble=0.1,
    )
    return replace(
        base,
        muon_rate=0.01,
        adam_rate=5e-4,
        decay_share=0.5,
        regress_weight=2.0,
        generator=generator,
        prompts=prompts,
    )


def _broaden() -> RunConfig:
    """A long run from trained weights, that sees more of what no scan of the pack has shown.

    Supervoxels are painted like label maps, objects of scans change their contrast, and more of
    the ROIs are shown and clicked as in a session; more of the steps are later clicks.
    """
    base = _continue()
    generator = replace(
        base.generator,
        num_shapes=4,
        num_painted=9,
        num_real=11,
        is_drawn_by_voxels=True,
        share_painted_supervoxel=0.4,
        share_supervoxel=0.25,
        share_lesion=0.2,
        share_lesion_tube=0.3,
        share_lesion_texture=0.5,
        share_tint=0.25,
        share_session_scale=0.4,
        share_deep_seed=0.5,
        degrade=replace(base.generator.degrade, share_filter=0.25),
    )
    prompts = replace(base.prompts, round_shares=(0.3, 0.2, 0.16, 0.13, 0.1, 0.07, 0.04))
    return replace(
        base,
        muon_rate=0.012,
        adam_rate=6e-4,
        decay_share=0.9,
        generator=generator,
        prompts=prompts,
    )


def _skeleton() -> RunConfig:
    """A long run from trained weights with the bones and air spaces of every CT as targets.

    What a first click on a bone means, no label of the pack says, but Hounsfield units do. Some
    painted lesions have a wall around a core.
    """
    base = _broaden()
    generator = replace(
        base.generator, share_anatomy=0.35, share_supervoxel=0.2, share_lesion_wall=0.2
    )
    return replace(base, muon_rate=0.01, adam_rate=5e-4, generator=generator)


def _polish() -> RunConfig:
    """A last run from trained weights, at rates so low that nothing they know is lost at first.

    A click that loses Dice costs three times as much: what a long run of `broaden` made worse.
    """
    return replace(_broaden(), muon_rate=0.003, adam_rate=2e-4, decay_share=1.0, regress_weight=6.0)


def _compat_teacher() -> RunConfig:
    """A teacher of the official architecture, trained on the same data as our own."""
    return replace(_default(), model="sam_med3d_b")


RECIPES: dict[str, Callable[[], RunConfig]] = {
    "debug": _debug,
    "default": _default,
    "continue": _continue,
    "broaden": _broaden,
    "polish": _polish,
    "skeleton": _skeleton,
    "compat_teacher": _compat_teacher,
}


def recipe(name: str) -> RunConfig:
    """Return a named recipe.

    Raises:
        ConfigError: There is no such recipe.
    """
    if name not in RECIPES:
        msg = f"Recipe must be one of {', '.join(RECIPES)}, got {name!r}; choose one of them."
        raise ConfigError(msg)
    return RECIPES[name]()
