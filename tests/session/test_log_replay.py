"""A mask follows from the log of prompts: bit by bit, in whatever way the log came about."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsam3d.errors import ConfigError
from fastsam3d.prompts import (
    Box,
    Lasso,
    MaskPrompt,
    Point,
    PromptLog,
    PromptSet,
    Scribble,
    SliceBox,
)
from fastsam3d.session import Predictor, ScalePolicy, Session
from fastsam3d.session.history import StateCache
from tests.session.phantoms import BrightModel, ball_volume

VOLUME = ball_volume(shape=(40, 40, 40), centre_mm=(20.2, 19.7, 20.4), radius_mm=7.3)
PROMPTS = [
    Point.voxel((20, 20, 20)),
    Point.voxel((24, 20, 20)),
    Point.voxel((20, 25, 20), positive=False),
    Point.voxel((33, 33, 33)),
    Box.voxel((12, 12, 12), (28, 28, 28)),
    Scribble.voxel([(18, 18, 20), (22, 22, 20)], radius_mm=1.5, axis=2),
    Scribble.voxel([(30, 30, 30)], positive=False),
    Lasso.voxel([(14, 14, 20), (27, 14, 20), (27, 27, 20), (14, 27, 20)], axis=2),
    SliceBox.voxel(1, 20, (12, 12), (28, 28)),
    MaskPrompt(VOLUME.array > 700, VOLUME.geometry),
]


def make_session(**options: int) -> Session:
    policy = ScalePolicy(spacings_mm=(1.0,), max_refinements=0, max_growths=0)
    session = Session(Predictor(BrightModel()), policy=policy, **options)
    session.set_volume(VOLUME)
    return session


USED = make_session()  # has answered everything before: caches must not show


def assert_same_answer(log: PromptLog) -> None:
    fresh = make_session(cache_bytes=0, state_bytes=0).predict(log.prompts)
    used = USED.predict(log.prompts)
    np.testing.assert_array_equal(used.mask.array, fresh.mask.array)
    assert used.region == fresh.region
    assert used.predicted_quality == fresh.predicted_quality


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(PROMPTS), min_size=2, max_size=5), st.data())
def test_removing_prompt_k_equals_never_having_given_it(given_prompts: list, data) -> None:
    k = data.draw(st.integers(0, len(given_prompts) - 1))
    log = PromptLog()
    for prompt in given_prompts:
        log = log.add(prompt)
        USED.predict(log.prompts)
    without = log.remove(k + 1)
    assert without.prompts == PromptSet((*given_prompts[:k], *given_prompts[k + 1 :]))
    assert_same_answer(without)
    assert_same_answer(without.undo())


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=4), st.sampled_from(PROMPTS))
def test_a_log_through_json_gives_the_same_mask(given_prompts: list, edited: object) -> None:
    log = PromptLog().add(*given_prompts).edit(1, edited)
    assert_same_answer(PromptLog.from_json(log.to_json()))


def test_coming_back_costs_nothing() -> None:
    session = make_session()
    log = PromptLog().add(PROMPTS[0]).add(PROMPTS[1])
    first = session.predict(log.prompts)
    session.predict(log.add(PROMPTS[2]).prompts)
    session.predict(log.remove(1).prompts)
    decoded = len(session.predictor.model.decoded)
    again = session.predict(log.prompts)
    assert len(session.predictor.model.decoded) == decoded
    assert again.region_mask is first.region_mask
    assert again.encode_ms == again.click_ms == 0


def test_states_are_bounded_by_bytes_and_the_oldest_go_first() -> None:
    session = make_session()
    session.predict(PromptSet((PROMPTS[0], PROMPTS[1])))
    states = [session._states.longest(PromptSet(tuple(PROMPTS[: n + 1]))) for n in range(2)]
    cache = StateCache(states[0].num_bytes + states[1].num_bytes - 1)
    cache.put(states[0])
    cache.put(states[1])
    assert len(cache) == 1
    assert cache.longest(states[0].prompts) is None
    assert cache.longest(states[1].prompts.add(PROMPTS[2])) is states[1]
    cache.put(states[1])
    assert len(cache) == 1
    with pytest.raises(ConfigError, match="at least 0 bytes"):
        StateCache(-1)


def test_another_policy_forgets_answers() -> None:
    session = make_session()
    first = session.add_point((20, 20, 20))
    session.policy = ScalePolicy(spacings_mm=(2.0,), max_refinements=0, max_growths=0)
    assert session.predict(session.prompts).spacing_mm != first.spacing_mm
