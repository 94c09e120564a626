"""What a session can return to: immutable states, one for each prompt, bounded by bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from fastsam3d.errors import ConfigError
from fastsam3d.prompts import PromptSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from fastsam3d.preprocess.roi import Roi
    from fastsam3d.segmenter import Prediction
    from fastsam3d.session.mosaic import Mosaic
    from fastsam3d.volume import Region

DEFAULT_STATE_BYTES: Final = 512 * 2**20
"""About sixty rounds of a model with logits of 128^3."""


@dataclass(frozen=True, kw_only=True)
class RoundHint:
    """What a round is to know beside its prompts, where one prompt is played as several points.

    Attributes:
        spent_ms: Estimated work that the prompt has taken already.
        extent_mm: How large the object is where it was drawn; None where nobody said.
        fit: How well a mask in a box of the volume fits what was drawn, 0 to 1; None where nobody
            can tell.
        fit_margin: Another of the model's candidates answers where it fits better by more.
    """

    spent_ms: float = 0.0
    extent_mm: float | None = None
    fit: Callable[[Region, NDArray[np.uint8]], float] | None = None
    fit_margin: float = 1.0


BUDGET_WARNING: Final = (
    "The budget of {:.0f} ms was spent before everything was looked at; give the next prompt where "
    "the mask is still wrong, or raise the budget."
)
NO_HINT: Final = RoundHint()


@dataclass(frozen=True, eq=False, kw_only=True)
class RoundState:
    """Everything that the next round builds on.

    Attributes:
        prompts: Prompts up to and with this round's, as given.
        prediction: The answer.
        roi: What the model saw; None while no prompt has placed it.
        prompt_logits: The mask that the next round is fed; None where there is none.
        seen: The points, boxes and masks that the model was given for the prompts.
        channel: What of the volume the model saw.
        mosaic: All that was seen, where one ROI was not enough; `roi` is then one of its tiles.
        work_ms: Estimated work of the round, see `budget`.
    """

    prompts: PromptSet
    prediction: Prediction
    roi: Roi | None = None
    prompt_logits: Tensor | None = None
    seen: PromptSet = field(default_factory=PromptSet)
    channel: str = "all"
    mosaic: Mosaic | None = None
    work_ms: float = 0.0

    @property
    def num_bytes(self) -> int:
        """Memory held by the mask and the logits."""
        logits = self.prompt_logits
        held = 0 if logits is None else logits.numel() * logits.element_size()
        held += 0 if self.mosaic is None else self.mosaic.num_bytes
        return held + self.prediction.region_mask.nbytes


class StateCache:
    """States by the prompts that led to them; least recently used out first.

    A state is a function of volume and prompts, so one that is not at hand is played again and is
    the same: the cache makes undo, redo and going back and forth between objects instant, no more.
    Not for several threads at once.

    Args:
        max_bytes: Bound of the memory of all states; 0 keeps none.

    Raises:
        ConfigError: `max_bytes` is negative.
    """

    def __init__(self, max_bytes: int = DEFAULT_STATE_BYTES) -> None:
        if max_bytes < 0:
            message = f"Cache must hold at least 0 bytes, got {max_bytes}; give e.g. 2**29."
            raise ConfigError(message)
        self.max_bytes = max_bytes
        self._states: OrderedDict[int, RoundState] = OrderedDict()
        self._num_bytes = 0

    def __len__(self) -> int:
        """Return the number of states."""
        return len(self._states)

    def longest(self, prompts: PromptSet, channel: str = "all") -> RoundState | None:
        """Return the state after as many first prompts of a set as are at hand; None without.

        Args:
            prompts: The set.
            channel: What of the volume the model is to see.
        """
        best: RoundState | None = None
        for count, key in enumerate(_keys(prompts, channel), start=1):
            state = self._states.get(key)
            # Keys are hashes: equal ones may still belong to other prompts.
            if state is None or state.channel != channel:
                continue
            if state.prompts.prompts == prompts.prompts[:count]:
                self._states.move_to_end(key)
                best = state
        return best

    def put(self, state: RoundState) -> None:
        """Keep a state, at the cost of those not used for longest."""
        *_, key = _keys(state.prompts, state.channel)
        replaced = self._states.pop(key, None)
        self._states[key] = state
        self._num_bytes += state.num_bytes - (0 if replaced is None else replaced.num_bytes)
        while self._states and self._num_bytes > self.max_bytes:
            _, oldest = self._states.popitem(last=False)
            self._num_bytes -= oldest.num_bytes

    def clear(self) -> None:
        """Forget all states."""
        self._states.clear()
        self._num_bytes = 0


def _keys(prompts: PromptSet, channel: str) -> Iterator[int]:
    """Return one key for each prefix of a set, shortest first; each prompt is hashed once."""
    key = hash(channel)
    for prompt in prompts:
        key = hash((key, prompt))
        yield key
