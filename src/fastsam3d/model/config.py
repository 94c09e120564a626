"""Model configuration: one frozen dataclass describes every variant of the family.

A variant is a config, not a file: `sam_med3d_b`, `fastsam3d_6l`, `hr_s` and `hr_b` differ only in
the values below. The module imports nothing heavy, so that listing models does not load torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar, cast, get_args

from fastsam3d.errors import ConfigError
from fastsam3d.model.sparse_attention_pattern import SparsePattern

Family = Literal["sam_med3d", "hr"]
AttentionPath = Literal["fast", "reference"]
DENSE = "dense"
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class PatchEncoderConfig:
    """Options of the officially compatible patch-16 encoder (SAM-Med3D and FastSAM3D).

    Attributes:
        window_size: Side of the padded attention window in tokens; 0 means global everywhere.
        global_blocks: Indices of blocks whose attention is global although `window_size` > 0.
        num_attention_free_blocks: Leading blocks with a feed-forward part only.
        residual_after_norm: ``x = norm2(x); x = x + mlp(x)`` (FastSAM3D) in place of the
            pre-norm residual of SAM-Med3D.
        attention: ``fast`` is exact without padded tokens; ``reference`` is the readable original.
    """

    window_size: int = 0
    global_blocks: tuple[int, ...] = ()
    num_attention_free_blocks: int = 0
    residual_after_norm: bool = False
    attention: AttentionPath = "fast"


@dataclass(frozen=True, kw_only=True)
class HighResConfig:
    """Options of our own high-resolution variants (convolutional pyramid, dense prompts).

    Attributes:
        stem_channels: Channels of the pyramid at 1, 1/2, 1/4 and 1/8 of the ROI resolution.
        decoder_channels: Channels of the decoder at 1/8, 1/4 and 1/2 of the ROI resolution.
        focus_widths: Half widths, in units of the normalised intensity, of the soft windows
            around the intensity at the ROI centre that are fed as further input channels.
        click_sigmas: Standard deviations (ROI voxels) of the Gaussian maps drawn for each click.
        num_decoder_layers: Two-way attention layers between prompt tokens and image tokens.
    """

    stem_channels: tuple[int, int, int, int] = (8, 32, 64, 128)
    decoder_channels: tuple[int, int, int] = (128, 64, 32)
    focus_widths: tuple[float, ...] = (0.5, 0.15)
    click_sigmas: tuple[float, float] = (2.5, 8.0)
    num_decoder_layers: int = 2


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything needed to build one variant.

    Attributes:
        name: Registry name of the variant.
        family: ``sam_med3d`` (official arithmetic) or ``hr`` (our own).
        image_size: Side of the cubic ROI in voxels.
        patch_size: ROI voxels per image token and axis.
        embed_dim: Width of the transformer trunk.
        depth: Number of trunk blocks.
        num_heads: Attention heads of the trunk.
        mlp_ratio: Hidden width of the feed-forward parts over `embed_dim`.
        out_dim: Channels of the image embedding and width of prompt encoder and mask decoder.
        attention: ``dense``, or the pattern by which image tokens attend to each other, see
            `SparsePattern.parse`; every second block takes the pattern's shifted form. The
            official relative-position tables belong to dense attention and are absent otherwise.
        patch: Options of the ``sam_med3d`` family.
        highres: Options of the ``hr`` family.
    """

    name: str
    family: Family
    image_size: int = 128
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    out_dim: int = 384
    attention: str = DENSE
    patch: PatchEncoderConfig = field(default_factory=PatchEncoderConfig)
    highres: HighResConfig = field(default_factory=HighResConfig)

    def __post_init__(self) -> None:
        if self.family not in get_args(Family) or self.patch.attention not in get_args(
            AttentionPath
        ):
            msg = (
                f"family must be one of {get_args(Family)} and patch.attention one of "
                f"{get_args(AttentionPath)}, got {self.family!r} and {self.patch.attention!r}."
            )
            raise ConfigError(msg)
        if min(self.image_size, self.patch_size, self.embed_dim, self.num_heads, self.out_dim) < 1:
            msg = f"Sizes must be positive, got {self!r}; correct the one that is not."
            raise ConfigError(msg)
        if self.embed_dim % self.num_heads:
            msg = (
                f"embed_dim must be a multiple of num_heads, got {self.embed_dim} and "
                f"{self.num_heads}; change one of them."
            )
            raise ConfigError(msg)
        if self.image_size % self.patch_size:
            msg = (
                f"image_size must be a multiple of patch_size, got {self.image_size} and "
                f"{self.patch_size}; change one of them."
            )
            raise ConfigError(msg)
        SparsePattern.parse(self.attention)
        if self.family == "sam_med3d":
            self._check_official_limits()

    def _check_official_limits(self) -> None:
        # Three thirds of position encoding, and eight heads on half the width, must come out even.
        if self.out_dim % 48:
            msg = (
                f"out_dim must be a multiple of 48, got {self.out_dim}; choose 48, 96, ... or 384."
            )
            raise ConfigError(msg)
        if self.attention == DENSE and 0 < self.patch.window_size < self.grid_size:
            msg = (
                f"window_size must be 0 or at least the {self.grid_size} tokens per axis, "
                f"got {self.patch.window_size}; windows that split the grid are not supported."
            )
            raise ConfigError(msg)

    @property
    def grid_size(self) -> int:
        """Image tokens per axis."""
        return self.image_size // self.patch_size

    @property
    def logits_size(self) -> int:
        """Side of the cube of mask logits that the decoder returns, and takes as mask prompt."""
        return self.image_size if self.family == "hr" else 4 * self.grid_size

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-compatible data (tuples become lists)."""
        return cast("dict[str, Any]", _tuples_to_lists(asdict(self)))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """Build a config from `to_dict` data.

        Raises:
            ConfigError: A key is unknown or a value breaks a rule of the config.
        """
        values = dict(data)
        if "patch" in values:
            values["patch"] = _build(PatchEncoderConfig, values["patch"])
        if "highres" in values:
            values["highres"] = _build(HighResConfig, values["highres"])
        return _build(cls, values)


def _build(kind: type[_T], data: dict[str, Any]) -> _T:
    known = {item.name for item in fields(cast("Any", kind))}
    unknown = sorted(set(data) - known)
    if unknown:
        msg = f"{kind.__name__} has no field {unknown[0]!r}; known fields are {sorted(known)}."
        raise ConfigError(msg)
    frozen = {
        key: tuple(cast("list[Any]", v)) if isinstance(v, list) else v for key, v in data.items()
    }
    try:
        return kind(**frozen)
    except TypeError as error:
        msg = f"{kind.__name__} could not be built: {error}."
        raise ConfigError(msg) from error


def _tuples_to_lists(value: object) -> object:
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return {key: _tuples_to_lists(item) for key, item in items}
    if isinstance(value, list | tuple):
        return [_tuples_to_lists(item) for item in cast("list[object]", value)]
    return value


SAM_MED3D_B = ModelConfig(
    name="sam_med3d_b",
    family="sam_med3d",
    patch=PatchEncoderConfig(window_size=14, global_blocks=(2, 5, 8, 11)),
)
FASTSAM3D_6L = ModelConfig(
    name="fastsam3d_6l",
    family="sam_med3d",
    depth=6,
    num_heads=6,
    patch=PatchEncoderConfig(num_attention_free_blocks=2, residual_after_norm=True),
)
HR_S = ModelConfig(name="hr_s", family="hr", embed_dim=384, depth=8, num_heads=6)
HR_B = ModelConfig(name="hr_b", family="hr", embed_dim=768, depth=12, num_heads=12)

MODEL_CONFIGS: dict[str, ModelConfig] = {
    config.name: config for config in (HR_S, HR_B, SAM_MED3D_B, FASTSAM3D_6L)
}
DEFAULT_MODEL = "hr_s"
