"""Many sessions take turns on one predictor, and none notices the others."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastsam3d.model.config import HR_S
from fastsam3d.model.hr import HighResSam3D
from fastsam3d.prompts import Box
from fastsam3d.session import Predictor, ScalePolicy, Session
from fastsam3d.volume import Region
from tests.session.phantoms import ball_volume, fake_predictor

# One look for each prompt.
POLICY = ScalePolicy(spacings_mm=(1.0,), max_growths=0, max_tiles=0)
VOLUMES = [
    ball_volume(shape=(28, 30, 26), centre_mm=(14.2, 15.1, 13.0), radius_mm=radius)
    for radius in (3.0, 5.5)
]


def decoding_predictor() -> Predictor:
    """The default engine of a CPU with a toy of the default model, trained on nothing."""
    torch.manual_seed(3)
    config = replace(HR_S, image_size=32, embed_dim=48, depth=1, num_heads=2, out_dim=48)
    model = HighResSam3D(config).eval().to(memory_format=torch.channels_last_3d)
    model.decoder.is_limited = True
    return Predictor(model)


def deeds(script: int) -> list[tuple[str, tuple[int, ...]]]:
    """Return what the user of a script does, one word and its numbers at a time."""
    rng = np.random.default_rng(script)
    around = rng.integers(-3, 4, (2, 3)) + np.array((14, 15, 13))
    found = [("positive", tuple(voxel)) for voxel in around.tolist()]
    found[1] = ("negative", found[1][1])
    if script % 2:
        found[0] = ("box", (8, 9, 7, 20, 21, 19))
    if script % 3 == 0:
        found.append(("undo", ()))
    return found


def act(session: Session, word: str, numbers: tuple[int, ...]) -> tuple[Region, bytes, float]:
    if word == "undo":
        answer = session.undo()
    elif word == "box":
        answer = session.add_box(Box.voxel(numbers[:3], numbers[3:]))
    else:
        answer = session.add_point(numbers, positive=word == "positive")
    assert answer is not None
    return answer.region, answer.region_mask.tobytes(), answer.predicted_quality


def start(predictor: Predictor, script: int) -> Session:
    session = Session(predictor, policy=POLICY)
    session.set_volume(VOLUMES[script % len(VOLUMES)])
    return session


@pytest.mark.parametrize(
    ("make_predictor", "num_sessions"), [(fake_predictor, 100), (decoding_predictor, 12)]
)
def test_mixed_clicks_of_many_sessions_give_the_masks_of_each_alone(make_predictor, num_sessions):
    predictor = make_predictor()
    scripts = range(6)
    alone = {}
    for script in scripts:
        session = start(predictor, script)
        alone[script] = [act(session, *deed) for deed in deeds(script)]
    assert len({answers[-1][1] for answers in alone.values()}) > 2

    sessions = [start(predictor, n % len(scripts)) for n in range(num_sessions)]
    order = [n for n in range(num_sessions) for _ in deeds(n % len(scripts))]
    np.random.default_rng(0).shuffle(order)
    answers = [[] for _ in sessions]
    for n in order:
        deed = deeds(n % len(scripts))[len(answers[n])]
        answers[n].append(act(sessions[n], *deed))
    for n, found in enumerate(answers):
        assert found == alone[n % len(scripts)]
