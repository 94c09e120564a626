"""What holds whatever people do: locks, undo, files and replay under random operations."""

from contextlib import suppress

import numpy as np
import pytest

from fastsam3d.errors import ConfigError, PromptError, SessionStateError
from fastsam3d.prompts import Box, Lasso, MaskPrompt, Point, Scribble
from fastsam3d.session import (
    FillHoles,
    KeepComponent,
    Predictor,
    RemoveSmall,
    ScalePolicy,
    Session,
    Smooth,
    Study,
)
from fastsam3d.session.drawn_rounds import DrawnPolicy
from fastsam3d.session.objects import OVERLAPS
from fastsam3d.volume import Region
from tests.session.phantoms import BrightModel, ball_volume

SIDE = 16
VOLUME = ball_volume(shape=(SIDE,) * 3, centre_mm=(8.2, 7.7, 8.4), radius_mm=3.6)
NUM_OPERATIONS = 1000
REFUSALS = (ConfigError, PromptError, SessionStateError)


def make_study() -> Study:
    policy = ScalePolicy(spacings_mm=(0.8,), max_refinements=0, max_growths=0)
    session = Session(Predictor(BrightModel()), policy=policy)
    session.drawn = DrawnPolicy(
        scribble_corrections=1, lasso_corrections=1, slice_box_corrections=1
    )  # for speed
    return Study(session, VOLUME, locked_negatives=1)


class User:
    """Does something at random; seldom asks the model, which is slow, and often draws."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def voxel(self) -> tuple[int, ...]:
        return tuple(self.rng.integers(0, SIDE, 3).tolist())

    def region(self) -> Region:
        a, b = self.voxel(), self.voxel()
        return Region(np.minimum(a, b).tolist(), (np.maximum(a, b) + 1).tolist())

    def prompt(self) -> object:
        kind = self.rng.choice(["mask"] * 30 + ["point", "box", "scribble", "lasso"])
        positive = bool(self.rng.random() < 0.7)
        if kind == "mask":
            region = self.region()
            return MaskPrompt.of_part(region, np.ones(region.shape, bool), VOLUME.geometry)
        if kind == "point":
            return Point.voxel(self.voxel(), positive=positive)
        if kind == "box":
            region = self.region()
            return Box.voxel(region.start, region.stop)
        if kind == "scribble":
            return Scribble.voxel([self.voxel(), self.voxel()], positive=positive, radius_mm=1)
        outline = [(*self.voxel()[:2], 8) for _ in range(4)]
        return Lasso.voxel(outline, axis=2, positive=positive)

    def step(self) -> object:
        steps = [Smooth(1.0), FillHoles(), KeepComponent(), RemoveSmall(0.01)]
        return steps[self.rng.integers(len(steps))]

    def act(self, study: Study, *, may_lock: bool = True, may_undo: bool = True) -> None:
        """Do one thing; what is refused counts as done."""
        ids = [item.id for item in study.objects] or [1]
        one, two = (int(i) for i in self.rng.choice(ids, 2))
        actions = {
            "add": (8, lambda: study.add(one, self.prompt())),
            "add_object": (2 if len(ids) < 6 else 0, study.add_object),
            "remove_prompt": (1, lambda: study.remove_prompt(one, int(self.rng.integers(1, 5)))),
            "undo_prompt": (1, lambda: study.undo_prompt(one)),
            "redo_prompt": (1, lambda: study.redo_prompt(one)),
            "set_steps": (1, lambda: study.set_steps(one, self.step())),
            "move": (2, lambda: study.move(one, int(self.rng.integers(0, len(ids))))),
            "delete": (1, lambda: study.delete(one)),
            "merge": (1, lambda: study.merge(one, two)),
            "split": (1, lambda: study.split(one, Point.voxel(self.voxel()))),
            "describe": (1, lambda: study.describe(one, name=f"{one} {two}")),
            "set_overlap": (1, lambda: study.set_overlap(str(self.rng.choice(OVERLAPS)))),
        }
        if may_lock:
            actions |= {
                "lock": (1, lambda: study.lock(one)),
                "unlock": (1, lambda: study.unlock(one)),
                "lock_voxels": (1, lambda: study.lock_voxels(self.region())),
                "unlock_voxels": (1, study.unlock_voxels),
            }
        if may_undo:
            actions |= {"undo": (2, study.undo), "redo": (1, study.redo)}
        weights = np.array([weight for weight, _ in actions.values()], float)
        chosen = self.rng.choice(len(actions), p=weights / weights.sum())
        with suppress(*REFUSALS):
            list(actions.values())[chosen][1]()


def owners(study: Study, inside: np.ndarray) -> dict[int, bytes]:
    """Which locked voxels each object shows; objects that show none do not count."""
    found = {item.id: study.mask(item.id).array[inside] for item in study.objects}
    return {key: values.tobytes() for key, values in found.items() if values.any()}


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_locks_hold_under_random_operations(overlap: str) -> None:
    study, user = make_study(), User(5)
    study.set_overlap(overlap)
    for _ in range(4):
        study.add(study.add_object(), user.prompt())
    held = study.add_object()
    region = Region((3, 3, 3), (9, 9, 9))
    study.add(held, MaskPrompt.of_part(region, np.ones(region.shape, bool), VOLUME.geometry))
    study.lock(held)
    study.lock_voxels(Region((0, 0, 0), (SIDE, 5, SIDE)))
    inside = study.state.locked_voxels.to_array(VOLUME.shape) > 0
    before, kept = owners(study, inside), study.mask(held).array
    assert len(before) >= 2
    for _ in range(NUM_OPERATIONS // len(OVERLAPS) + 1):
        user.act(study, may_lock=False, may_undo=False)
        assert owners(study, inside) == before
        np.testing.assert_array_equal(study.mask(held).array, kept)


def test_one_object_per_voxel_where_overlaps_are_not_allowed() -> None:
    study, user = make_study(), User(11)
    for _ in range(150):
        user.act(study, may_lock=False)
        study.set_overlap("first_wins")
        masks = [study.mask(item.id).array for item in study.objects]
        assert not masks or np.sum(masks, axis=0).max() <= 1


def test_undo_and_redo_visit_every_state_of_a_random_session() -> None:
    study, user = make_study(), User(7)
    states = [study.state]
    while len(states) < 80:
        user.act(study, may_undo=False)
        if study.state is not states[-1]:
            states.append(study.state)
    for state in reversed(states[:-1]):
        study.undo()
        assert study.state is state
    for state in states[1:]:
        study.redo()
        assert study.state is state


@pytest.mark.parametrize("seed", range(4))
def test_random_studies_save_load_and_replay(tmp_path, seed: int) -> None:
    study, user = make_study(), User(seed)
    for kind in (Point.voxel((8, 8, 8)), Box.voxel((4, 4, 4), (12, 12, 12)), user.prompt()):
        study.add(study.add_object(), kind)
    for _ in range(40):
        user.act(study)
    assert any(len(item.log) for item in study.objects)
    study.save(tmp_path / "a.study")
    fresh = make_study().session
    loaded = Study.load(tmp_path / "a.study", fresh, VOLUME)
    np.testing.assert_array_equal(loaded.label_map().array, study.label_map().array)
    for a, b in zip(study.objects, loaded.objects, strict=True):
        np.testing.assert_array_equal(study.mask(a.id).array, loaded.mask(b.id).array)
        assert a.log == b.log
    assert loaded.replay() == ()
