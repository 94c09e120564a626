"""Many prompt sets at once are what they are one by one, with a real architecture of toy size."""

import numpy as np
import pytest
import torch

from fastsam3d.model.config import HighResConfig
from fastsam3d.model.registry import create_model
from fastsam3d.preprocess.roi import Roi
from fastsam3d.session.channels import stack_channels
from fastsam3d.session.predictor import Predictor, RoiPrompts
from tests.session.ambiguous_model import CENTRE, NestedModel, nested_session, nested_volume

VOLUMES = {
    "one": nested_volume(),
    "logits": stack_channels([nested_volume(), nested_volume(seed=1)]),
    "probabilities": stack_channels(
        [nested_volume(), nested_volume(seed=1)], combination="probabilities"
    ),
}


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(3)
    model = create_model(
        "hr_s",
        image_size=32,
        embed_dim=48,
        depth=1,
        num_heads=2,
        out_dim=48,
        highres=HighResConfig(stem_channels=(8, 8, 8, 8), decoder_channels=(8, 8, 8)),
    )
    return Predictor(model.eval())


def prompt_sets(*, num_points: int, has_box: bool) -> list[RoiPrompts]:
    rng = np.random.default_rng(num_points)
    return [
        RoiPrompts(
            rng.uniform(4, 28, (num_points, 3)),
            rng.random(num_points) < 0.5,
            np.array([5, 6, 7, 20 + n, 24, 25.5]) if has_box else None,
        )
        for n in range(3)
    ]


@pytest.mark.parametrize("volume", VOLUMES)
@pytest.mark.parametrize(
    ("num_points", "has_box", "has_mask"),
    [(1, False, False), (3, False, True), (0, True, False), (2, True, True)],
)
def test_a_batch_is_what_its_parts_are(predictor, volume, num_points, has_box, has_mask):
    encoded = predictor.embed(VOLUMES[volume], [Roi(CENTRE, 1.2, 32)])[0]
    mask = torch.linspace(-3, 3, 32**3).reshape(32, 32, 32) if has_mask else None
    sets = prompt_sets(num_points=num_points, has_box=has_box)
    together = predictor.decode_batch(encoded, sets, mask_logits_SSS=mask)
    assert together.shape == (3, 32, 32, 32)
    for one, prompts in zip(together, sets, strict=True):
        alone = predictor.decode(encoded, prompts, mask_logits_SSS=mask)
        torch.testing.assert_close(one, alone.logits, atol=2e-4, rtol=1e-3)


def test_all_masks_of_a_prompt_are_three_and_the_best_is_what_is_answered(predictor):
    encoded = predictor.embed(VOLUMES["logits"], [Roi(CENTRE, 1.2, 32)])[0]
    (prompts, *_) = prompt_sets(num_points=1, has_box=False)
    masks = predictor.decode_all(encoded, prompts)
    assert len(masks) == 3
    best = max(masks, key=lambda mask: mask.quality)
    assert predictor.decode(encoded, prompts, multimask=True).logits.equal(best.logits)


def test_models_with_coarse_logits_have_candidates_and_uncertainty_too():
    session = nested_session(NestedModel(logits_size=16))
    session.add_point(CENTRE)
    assert len(session.candidates()) == 3
    shown = session.prediction.mask.array > 0
    found = session.uncertainty(samples=1)
    np.testing.assert_array_equal(found.to_volume().array > 0.5, shown)
    session.choose(session.candidates()[-1])
    session.add_point((20, 20, 22))
    assert session.uncertainty(samples=2).stability > 0.5
