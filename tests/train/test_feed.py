"""Batches drawn ahead: in order, by whoever draws them, and with their errors."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from itertools import islice

import numpy as np
import pytest
import torch

from fastsam3d.errors import DatasetError
from fastsam3d.train.bank import TrainingBank
from fastsam3d.train.config import recipe
from fastsam3d.train.drawing import BatchDrawer, DrawnBatch
from fastsam3d.train.feed import drawn_ahead
from fastsam3d.train.shapes import FAR, PRIMITIVE_ID0, ShapesConfig, draw_shapes, is_drawn
from tests.train.toy import toy_case

CONFIG = replace(recipe("debug").generator, num_shapes=1, num_painted=1, num_real=3)


@pytest.fixture(scope="module")
def bank() -> TrainingBank:
    return TrainingBank([toy_case(0), toy_case(1)], device="cpu")


def drawn_alike(one: DrawnBatch, other: DrawnBatch) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_order_of_the_steps_whoever_draws(
    bank: TrainingBank, workers: int
) -> None:
    def draw(step: int) -> DrawnBatch:
        return BatchDrawer(bank, CONFIG, seed=step).draw()

    batches = drawn_ahead(draw, 5, workers=workers, pin=False)
    for step, batch in enumerate(islice(batches, 6), start=5):
        assert drawn_alike(batch, draw(step))


def test_workers_are_processes_of_their_own(bank: TrainingBank) -> None:
    def draw(step: int) -> DrawnBatch:
        drawn = BatchDrawer(bank, CONFIG, seed=step).draw()
        return replace(drawn, zoom=torch.tensor(os.getpid()))

    drawers = {int(b.zoom) for b in islice(drawn_ahead(draw, 0, workers=2, pin=False), 4)}
    assert len(drawers) == 2
    assert os.getpid() not in drawers


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_drawing_reaches_the_training_loop(workers: int) -> None:
    def draw(step: int) -> DrawnBatch:
        raise DatasetError(f"Nothing to draw at step {step}; pack labelled cases.")

    with pytest.raises(DatasetError, match="Nothing to draw at step 3"):
        next(drawn_ahead(draw, 3, workers=workers, pin=False))


def test_only_synthetic_worlds_and_lesions_have_shapes(bank: TrainingBank) -> None:
    config = replace(CONFIG, share_lesion=0.5)
    lesions = 0
    for seed in range(8):
        drawn = BatchDrawer(bank, config, seed=seed).draw()
        used = is_drawn(drawn.primitives).any(1)
        assert used[:2].all()
        assert torch.equal(used[2:], drawn.is_lesion)
        values = drawn.value_of_id[2:, PRIMITIVE_ID0:][~drawn.is_lesion]
        assert (values == torch.arange(PRIMITIVE_ID0, PRIMITIVE_ID0 + values.shape[1])).all()
        lesions += int(drawn.is_lesion.sum())
    assert lesions


def test_empty_volumes_follow_and_cost_no_random_numbers() -> None:
    config = ShapesConfig()
    some = draw_shapes(np.random.default_rng(3), 2, config)
    more = draw_shapes(np.random.default_rng(3), 2, config, num_empty=1)
    assert np.array_equal(more.primitives[:2], some.primitives)
    assert (more.primitives[2, :, 9:12] == FAR).all()
    assert (more.parents[2] == -1).all()
