import numpy as np
import pytest

from fastsam3d.eval.boxed import BoxedMask
from fastsam3d.eval.metrics import MaskScorer
from fastsam3d.eval.scoring import TargetScorer
from fastsam3d.volume import Region

SHAPE = (24, 20, 16)
WHOLE = Region((0, 0, 0), SHAPE)
SPACING = (0.7, 1.0, 2.5)


def _blob(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low = rng.integers(0, np.array(SHAPE) - 4)
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(a, a + 3 + seed % 4) for a in low)] = True
    return mask & (rng.random(SHAPE) < 0.9)


@pytest.mark.parametrize("seed", range(6))
def test_scores_in_boxes_are_those_of_the_whole_volume(seed: int) -> None:
    truth = _blob(seed)
    boxed = TargetScorer(BoxedMask.of(SHAPE, WHOLE, truth), SPACING)
    whole = MaskScorer(truth, SPACING)
    # Masks inside, beside, beyond, at the border, everywhere and nowhere; the box must follow.
    masks = [truth, _blob(seed + 10), _blob(seed + 20), truth | _blob(seed + 30)]
    masks += [np.ones(SHAPE, bool), np.zeros(SHAPE, bool), truth]
    for mask in masks:
        found = boxed.score(BoxedMask.of(SHAPE, WHOLE, mask))
        wanted = whole.score(mask)
        assert vars(found) == pytest.approx(vars(wanted))


def test_volumes_are_in_millilitres() -> None:
    mask = BoxedMask.of(SHAPE, WHOLE, np.ones(SHAPE))
    scorer = TargetScorer(mask, SPACING)
    assert scorer.volume_ml(mask) == pytest.approx(24 * 20 * 16 * 0.7 * 2.5 / 1000)
