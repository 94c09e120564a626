"""A hundred sessions take turns on one predictor, and none notices the others."""

import numpy as np

from fastsam3d.prompts import Box
from fastsam3d.session import Predictor, ScalePolicy, Session
from fastsam3d.volume import Region
from tests.session.phantoms import ball_volume, fake_predictor

NUM_SESSIONS = 100
# One look for each prompt.
POLICY = ScalePolicy(spacings_mm=(1.0,), max_growths=0, max_tiles=0)
VOLUMES = [
    ball_volume(shape=(28, 30, 26), centre_mm=(14.2, 15.1, 13.0), radius_mm=radius)
    for radius in (3.0, 5.5)
]


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


def test_mixed_clicks_of_a_hundred_sessions_give_the_masks_of_each_alone():
    predictor = fake_predictor()
    scripts = range(6)
    alone = {}
    for script in scripts:
        session = start(predictor, script)
        alone[script] = [act(session, *deed) for deed in deeds(script)]
    assert len({answers[-1][1] for answers in alone.values()}) > 2

    sessions = [start(predictor, n % len(scripts)) for n in range(NUM_SESSIONS)]
    order = [n for n in range(NUM_SESSIONS) for _ in deeds(n % len(scripts))]
    np.random.default_rng(0).shuffle(order)
    answers = [[] for _ in sessions]
    for n in order:
        deed = deeds(n % len(scripts))[len(answers[n])]
        answers[n].append(act(sessions[n], *deed))
    for n, found in enumerate(answers):
        assert found == alone[n % len(scripts)]
