"""Sets of models and settings that belong together, for ``fastsam3d bench --preset``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastsam3d.errors import ConfigError

if TYPE_CHECKING:
    from fastsam3d.eval.bench_worker import Precision


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a preset stands for; words of the command line come before it.

    Attributes:
        models: Labels of `BenchConfig.models`.
        reference: What ratios refer to.
        device: "cpu" or "cuda".
        precision: As `BenchConfig`.
        threads: CPU threads; 0 takes all cores.
    """

    models: tuple[str, ...]
    reference: str = ""
    device: str = "cpu"
    precision: Precision = "float32"
    threads: int = 0

    @property
    def num_threads(self) -> int:
        """CPU threads, all cores where the preset says so."""
        return self.threads or os.cpu_count() or 1


# The network of the published teacher as published, then what this package makes of the family.
_FAMILY: Final = ("sam_med3d_b@reference", "sam_med3d_b", "fastsam3d_6l", "hr_s")
# The same by the engine for GPUs, and by its graph alone, without compiling.
_ENGINES: Final = (
    "sam_med3d_b@cuda_graph",
    "fastsam3d_6l@cuda_graph",
    "hr_s@cuda_graph",
    "hr_s@cuda_graph_plain",
    "hr_b@cuda_graph",
)
PRESETS: Final = {
    "cpu": Preset(models=_FAMILY, reference=_FAMILY[0]),
    "gpu": Preset(
        models=(*_FAMILY, "hr_b", *_ENGINES),
        reference=_FAMILY[0],
        device="cuda",
        precision="tf32",
    ),
}


def find_preset(name: str) -> Preset:
    """Return a preset.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"Preset must be one of {', '.join(PRESETS)}, got {name!r}; choose one.")
    return PRESETS[name]
