"""The protocol "clicks": a careful user on the whole volume, and the last result counts.

The first click lands in the interior of the structure, every further one at the centre of the
largest mistake on the file's own grid (`fastsam3d.prompts.simulate.next_click`); with the policy
"random" uniformly in the mistakes, with "jitter" near the centre. A row holds the mask after its
round as it is, be it worse than the one before.

Source: largest-mistake clicks as in RITM (arXiv 2102.06583) and nnInteractive (arXiv 2503.08373);
random and jittered ones because people do not click centres (RClicks, arXiv 2410.11722).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsam3d.eval.runner import play_clicks, protocol_clicker
from fastsam3d.eval.scoring import PlayedTarget, TargetScorer, result_row

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from fastsam3d.eval.cases import EvalCase
    from fastsam3d.eval.protocol import InteractionProtocol, Target
    from fastsam3d.eval.runner import ClickSegmenter


def play_case(
    segmenter: ClickSegmenter,
    case: EvalCase,
    protocol: InteractionProtocol,
    *,
    done: Collection[tuple[int, int, int]] = (),
) -> Iterator[list[PlayedTarget]]:
    """Play all targets of a case that are not done.

    Args:
        segmenter: Gets `EvalCase.volume` and points only.
        case: Volume and truth.
        protocol: Targets, clicks and seeds.
        done: Label, component and seed of targets to leave out.

    Yields:
        One target at a time.
    """
    has_volume = False
    for target in protocol.targets(case):
        pending = [s for s in protocol.seeds if (target.label, target.component, s) not in done]
        scorer = TargetScorer(target.truth, case.volume.geometry.spacing)
        for seed in pending:
            if not has_volume:
                segmenter.set_volume(case.volume)
                has_volume = True
            segmenter.reset()
            yield [_play_target(segmenter, case, target, protocol, seed=seed, scorer=scorer)]


def _play_target(
    segmenter: ClickSegmenter,
    case: EvalCase,
    target: Target,
    protocol: InteractionProtocol,
    *,
    seed: int,
    scorer: TargetScorer,
) -> PlayedTarget:
    clicker = protocol_clicker(protocol, case, target, seed)
    states = list(play_clicks(segmenter, target.truth, clicker, num_clicks=protocol.num_clicks))
    return PlayedTarget(
        rows=[result_row(case, target, seed, state, scorer=scorer) for state in states],
        volume=case.volume,
        truth=target.truth,
        mask=states[-1].mask,
        clicks=tuple(state.click for state in states if state.click is not None),
    )
