"""Several images of one body on one grid: T1, T2 and FLAIR, the phases of a contrast study.

A `MultiVolume` is a `Volume` (its first channel) that knows the others, so everything that takes a
volume takes it. A session answers on all channels together or on one of them: each channel is
embedded and decoded by itself with the same prompts, and the masks are combined. The combination
is part of the value, so that an answer follows from volume, channel and prompts alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from fastsam3d.errors import ConfigError, GeometryError
from fastsam3d.preprocess.regrid import resample_volume
from fastsam3d.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Sequence

Combination = Literal["logits", "probabilities"]

ALL_CHANNELS: Final = "all"
COMBINATIONS: Final = ("logits", "probabilities")
MAX_CHANNELS: Final = 16


@dataclass(frozen=True, eq=False, kw_only=True)
class MultiVolume(Volume):
    """Volumes of one grid; make it with `stack_channels`.

    Array, modality and source are those of the first channel: that is what is shown and measured.

    Attributes:
        names: One for each channel.
        channels: The volumes, at least one.
        combination: Whether "all" takes the mean of the channels' logits or of their
            probabilities.

    Raises:
        ConfigError: No, too many, unnamed or equally named channels, or no such combination.
        GeometryError: The channels lie on different grids.
    """

    names: tuple[str, ...]
    channels: tuple[Volume, ...] = field(repr=False)
    combination: Combination = "logits"

    def __post_init__(self) -> None:
        """Check names and grids; the channels themselves were checked when they were made."""
        if not 0 < len(self.channels) <= MAX_CHANNELS or len(self.names) != len(self.channels):
            message = (
                f"A study has 1 to {MAX_CHANNELS} channels, each with a name, got "
                f"{len(self.channels)} channels and {len(self.names)} names."
            )
            raise ConfigError(message)
        is_usable = all(name and name != ALL_CHANNELS for name in self.names)
        if not is_usable or len(set(self.names)) != len(self.names):
            message = (
                f"Channels need different names other than {ALL_CHANNELS!r}, got {self.names}; "
                "rename them."
            )
            raise ConfigError(message)
        if self.combination not in COMBINATIONS:
            known = " or ".join(COMBINATIONS)
            message = f"Channels are combined by {known}, got {self.combination!r}; choose one."
            raise ConfigError(message)
        for name, channel in zip(self.names, self.channels, strict=True):
            if not channel.geometry.is_close(self.geometry):
                message = (
                    f"Channel {name!r} lies on another grid than {self.names[0]!r}, got "
                    f"{channel.geometry} beside {self.geometry}; resample_volume(…) or "
                    "stack_channels(…, resample=True) bring it there."
                )
                raise GeometryError(message)


def stack_channels(
    channels: Mapping[str, Volume] | Sequence[Volume],
    *,
    combination: Combination = "logits",
    resample: bool = False,
) -> MultiVolume:
    """Make one study of several co-registered volumes.

    Args:
        channels: By name, the first being the one to show and measure; or in order, such as what
            `io.read_time_points` reads of a 4-D file, with the names "0", "1" and so on.
        combination: See `MultiVolume`.
        resample: Bring channels on other grids onto that of the first, see
            `preprocess.regrid.resample_volume`; otherwise they are refused.

    Raises:
        ConfigError: As `MultiVolume`.
        GeometryError: As `MultiVolume`, or a channel has no voxel where the first has.

    Example:
        >>> study = stack_channels({"T1": t1, "FLAIR": flair})  # doctest: +SKIP
    """
    if isinstance(channels, Mapping):
        names, volumes = tuple(channels), tuple(channels.values())
    else:
        names, volumes = tuple(str(n) for n in range(len(channels))), tuple(channels)
    if not volumes:
        message = "A study needs at least one channel, got none; give its volumes."
        raise ConfigError(message)
    first = volumes[0]
    if resample:
        volumes = tuple(resample_volume(volume, first.geometry) for volume in volumes)
    return MultiVolume(
        first.array,
        first.geometry,
        first.modality,
        first.source,
        names=names,
        channels=volumes,
        combination=combination,
    )


def channels_of(volume: Volume) -> tuple[Volume, ...]:
    """Return what is seen together: all channels of a multi-channel volume, or the volume."""
    return volume.channels if isinstance(volume, MultiVolume) else (volume,)


def channel_names(volume: Volume) -> tuple[str, ...]:
    """Return the channels that can be chosen, "all" first."""
    return (ALL_CHANNELS, *(volume.names if isinstance(volume, MultiVolume) else ()))


def select_channel(volume: Volume, channel: str) -> Volume:
    """Return what the model shall see of a volume.

    Args:
        volume: With one channel or several.
        channel: A name, or "all".

    Raises:
        ConfigError: There is no such channel.
    """
    names = channel_names(volume)
    if channel not in names:
        message = f"There is no channel {channel!r} in this volume; choose of {', '.join(names)}."
        raise ConfigError(message)
    if not isinstance(volume, MultiVolume) or channel == ALL_CHANNELS:
        return volume
    return volume.channels[volume.names.index(channel)]
