"""What a session can return to: immutable states, one for each prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fastsam3d.preprocess.roi import Roi
    from fastsam3d.prompts import PromptSet
    from fastsam3d.segmenter import Prediction


@dataclass(frozen=True, eq=False, kw_only=True)
class RoundState:
    """Everything that the next round builds on.

    Attributes:
        prompts: Prompts up to and with this round's, as given.
        prediction: The answer.
        roi: What the model saw; None while no prompt has placed it.
        prompt_logits: The mask that the next round is fed; None where there is none.
    """

    prompts: PromptSet
    prediction: Prediction
    roi: Roi | None = None
    prompt_logits: Tensor | None = None


@dataclass(frozen=True)
class History:
    """The states of a session, oldest first; every change makes a new history.

    Attributes:
        states: State `n` is that after prompt `n`.
    """

    states: tuple[RoundState, ...] = ()

    @property
    def current(self) -> RoundState | None:
        """The latest state; None before the first prompt."""
        return self.states[-1] if self.states else None

    def push(self, state: RoundState) -> History:
        """Return the history with one more state."""
        return History((*self.states, state))

    def pop(self) -> History:
        """Return the history without its latest state; the empty history stays as it is."""
        return History(self.states[:-1])

    def shared_with(self, prompts: PromptSet) -> History:
        """Return the states whose prompts are the first prompts of a set."""
        if self.current is None:
            return self
        count = 0
        for mine, theirs in zip(self.current.prompts, prompts, strict=False):
            if mine != theirs:
                break
            count += 1
        return History(self.states[:count])
