"""What a user does in an afternoon, done to one volume: every prompt, undo, file, export."""

from pathlib import Path
from typing import Any

import numpy as np

from fastsam3d.io import read_mask
from fastsam3d.prompts import Box, Lasso, MaskPrompt, Point, Scribble, SliceBox
from fastsam3d.session import FillHoles, RemoveSmall, Session, Study
from fastsam3d.volume import Volume


def play(volume: Volume, session: Session, folder: Path) -> None:
    """Use everything that a study has on a volume; what goes wrong raises.

    Args:
        volume: Any.
        session: Answers.
        folder: For files; empty.
    """
    study = Study(session, volume, autosave=folder / "auto.study", locked_negatives=1)
    thing = study.add_object("thing")
    for prompt in prompts_in_the_middle(volume):
        answer = study.add(thing, prompt)
        assert answer.mask.shape == volume.shape
    shown = study.mask(thing).array
    study.undo_prompt(thing)
    study.redo_prompt(thing)
    np.testing.assert_array_equal(study.mask(thing).array, shown)
    first = study.log(thing).entries[0].id
    study.remove_prompt(thing, first)
    study.undo()
    np.testing.assert_array_equal(study.mask(thing).array, shown)
    study.set_steps(thing, FillHoles(), RemoveSmall(min_ml=1e-4))
    study.lock(thing)
    other = study.add_object("other", prompts=[Point.voxel(np.zeros(3))])
    study.statistics(thing)
    study.set_overlap("first_wins")
    study.export(folder / "labels.nii.gz")
    study.export(folder / "layers.seg.nrrd")
    labels = read_mask(folder / "labels.nii.gz")
    assert labels.geometry.is_close(volume.geometry)
    np.testing.assert_array_equal(labels.array, study.label_map().array)
    again = Study.load(folder / "auto.study", session, volume)
    for object_id in (thing, other):
        np.testing.assert_array_equal(again.mask(object_id).array, study.mask(object_id).array)
    assert again.replay() == ()


def prompts_in_the_middle(volume: Volume) -> list[Any]:
    """Return a prompt of each kind about the middle of a volume, in all three frames."""
    shape = np.array(volume.shape)
    middle = shape // 2
    reach = np.maximum(shape // 8, 1)
    low, high = np.maximum(middle - reach, 0), np.minimum(middle + reach, shape - 1)
    axis = int(np.argmax(volume.geometry.spacing))
    across = int(np.abs(volume.geometry.direction[:, axis]).argmax())
    others = [a for a in range(3) if a != axis]
    square = np.array([middle] * 4)
    for corner, ends in zip(
        square, ((low, low), (high, low), (high, high), (low, high)), strict=True
    ):
        for a, end in zip(others, ends, strict=True):
            corner[a] = end[a]
    world = volume.geometry.voxel_to_world(square)
    is_aligned = np.allclose(np.sort(np.abs(volume.geometry.direction)), [0, 0, 1], atol=1e-3)
    mask = np.zeros(volume.shape, np.uint8)
    mask[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = 1
    found: list[Any] = [
        Point.world(volume.geometry.voxel_to_world(middle)),
        Point.voxel(low, positive=False),
        Box.voxel(low, high + 1),
        Scribble.voxel([square[0], square[2]], radius_mm=1.0, axis=axis),
        Scribble.world([world[1] * (-1, -1, 1)], "LPS", positive=False),
        MaskPrompt(mask, volume.geometry),
        SliceBox.voxel(axis, int(middle[axis]), low[others], high[others] + 1),
    ]
    if min(high[others] - low[others]) > 0:
        # On an oblique scan an outline along the world's axes would run across slices.
        lasso = Lasso.world(world, axis=across) if is_aligned else Lasso.voxel(square, axis=axis)
        found.append(lasso)
    return found
