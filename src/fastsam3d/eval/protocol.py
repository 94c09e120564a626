"""How an interactive evaluation is run: which structures, how many clicks, placed how, what counts.

The truth places clicks and scores masks, nothing else: a segmenter gets a volume and prompts.
Every protocol says where it comes from; see `PROTOCOLS`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from fastsam3d.errors import ConfigError
from fastsam3d.eval.boxed import BoxedMask, boxed_labels, components, union
from fastsam3d.prompts.simulate import PLACEMENTS, Placement

if TYPE_CHECKING:
    from fastsam3d.eval.cases import EvalCase

ProtocolName = Literal["clicks", "cvpr25", "paper"]


@dataclass(frozen=True, kw_only=True)
class ProtocolFacts:
    """What is printed wherever figures of a protocol are.

    Attributes:
        label: One line.
        source: Where the protocol comes from.
        is_oracle: Whether the truth decides more than where a user clicks, so that the figures
            are an upper bound of what a user gets.
    """

    label: str
    source: str
    is_oracle: bool = False


PROTOCOLS: dict[ProtocolName, ProtocolFacts] = {
    "clicks": ProtocolFacts(
        label="Clicks on whole volumes: the last result after each click",
        source="Largest-mistake clicks as in RITM (arXiv 2102.06583) and nnInteractive "
        "(arXiv 2503.08373); random clicks after RClicks (arXiv 2410.11722)",
    ),
    "cvpr25": ProtocolFacts(
        label="CVPR 2025 challenge rules: a box, then clicks, all classes together",
        source="CVPR25_iter_eval.py and get_boxes.py of "
        "github.com/JunMa11/CVPR-MedSegFMCompetition",
    ),
    "paper": ProtocolFacts(
        label="Published scripts' protocol, an ORACLE UPPER BOUND: crop centred on the truth, best "
        "of the clicks so far",
        source="validation.py of github.com/arcadelab/FastSAM3D and "
        "github.com/uni-medical/SAM-Med3D",
        is_oracle=True,
    ),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Target:
    """One structure of one case.

    Attributes:
        label: Its label value, or what stands for a region; see `LabelRegion.label`.
        component: 0 for the whole structure, else 1, 2, ...: its parts, largest first.
        truth: Where it is, on the case's grid.
    """

    label: int
    component: int = 0
    truth: BoxedMask = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class InteractionProtocol:
    """A click protocol; the truth places clicks and scores masks, nothing else.

    Attributes:
        name: Key of `PROTOCOLS`.
        num_clicks: Clicks per structure; the mask after each is scored.
        placement: Where clicks land (protocol "clicks"; the others have their own rules).
        seeds: Simulated users, for placements that draw numbers; each plays every structure.
        use_components: Every 26-connected part of a structure is a target, in its place.
        min_voxels: Smaller structures are no targets.
        max_targets: Targets per case, evenly spread over its structures; None = all.

    Raises:
        ConfigError: A value is out of range or has no meaning in the protocol.
    """

    name: ProtocolName = "clicks"
    num_clicks: int = 5
    placement: Placement = "centre"
    seeds: tuple[int, ...] = (0,)
    use_components: bool = False
    min_voxels: int = 30
    max_targets: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.name not in PROTOCOLS:
            raise ConfigError(f"protocol must be one of {list(PROTOCOLS)}, got {self.name!r}.")
        if self.num_clicks < 1 or self.min_voxels < 1:
            raise ConfigError(
                f"num_clicks and min_voxels must be at least 1, got {self.num_clicks} and "
                f"{self.min_voxels}."
            )
        if self.max_targets is not None and self.max_targets < 1:
            raise ConfigError(f"max_targets must be at least 1, got {self.max_targets}; or None.")
        if self.placement not in PLACEMENTS:
            raise ConfigError(f"placement must be one of {PLACEMENTS}, got {self.placement!r}.")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds must be different numbers from 0, got {self.seeds}.")
        if self.name == "cvpr25" and (self.use_components or len(self.seeds) > 1):
            raise ConfigError(
                "The protocol cvpr25 evaluates whole classes with one fixed rule; leave components "
                "and further seeds out."
            )
        if self.name != "clicks" and self.placement != "centre":
            raise ConfigError(
                f"The protocol {self.name} has its own clicks, got policy {self.placement!r}; "
                "leave the policy out."
            )

    @property
    def rounds(self) -> range:
        """The numbers of the rounds that every target has; round 0 is a box."""
        return range(0 if self.name == "cvpr25" else 1, self.num_clicks + 1)

    def targets(self, case: EvalCase) -> list[Target]:
        """Return what is evaluated in a case: ascending labels, then components."""
        found: list[Target] = []
        for label, truth in self._structures(case).items():
            if not self.use_components:
                found.append(Target(label=label, truth=truth))
                continue
            parts = components(truth, min_voxels=self.min_voxels)
            found.extend(
                Target(label=label, component=number, truth=part)
                for number, part in enumerate(parts, start=1)
            )
        if self.max_targets is None or len(found) <= self.max_targets:
            return found
        picks = np.linspace(0, len(found) - 1, self.max_targets).round().astype(int)
        return [found[pick] for pick in picks]

    def _structures(self, case: EvalCase) -> dict[int, BoxedMask]:
        """Return the regions of a case, or its labels if it has none, that are large enough."""
        if not case.regions:
            labels = boxed_labels(case.labels, min_voxels=self.min_voxels)
            return {label: truth for label, truth in labels.items() if label not in case.ignored}
        i, j, k = case.labels.shape
        labels = boxed_labels(case.labels, min_voxels=1)  # small labels may make a large region
        regions = {
            region.label: union((labels[v] for v in region.values if v in labels), (i, j, k))
            for region in case.regions
        }
        return {n: truth for n, truth in regions.items() if truth.num_voxels >= self.min_voxels}


def user_rng(seed: int, case: EvalCase, target: Target) -> np.random.Generator:
    """Return the random numbers of a simulated user: the same whatever is evaluated besides."""
    part = [target.component] if target.component else []
    return np.random.default_rng([seed, target.label, *part, *case.name.encode()])
