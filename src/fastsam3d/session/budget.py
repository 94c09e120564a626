"""A budget in milliseconds that leaves answers a function of volume, prompts and policy.

A clock that stops work would give another mask on a busy machine, and undo would not bring back
what was there. So the clock is read once, when the budget is set: it says what an encode and a
decode cost on this machine. From then on a prompt's work is counted at these prices, and work that
does not fit is not begun.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastsam3d.errors import ConfigError
from fastsam3d.preprocess.roi import Roi, paste_logits
from fastsam3d.session.extent import clicked_parts, measure_mask
from fastsam3d.session.predictor import RoiPrompts
from fastsam3d.volume import Geometry, Volume

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastsam3d.session.predictor import Predictor
    from fastsam3d.session.scale import ScalePolicy


def policy_within(
    policy: ScalePolicy,
    predictor: Predictor,
    budget_ms: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> ScalePolicy:
    """Return a policy that spends at most so much on a prompt, at the prices of this machine.

    The first look of a prompt is always taken, and one that does not fit is not begun, so that an
    answer takes about the budget or one look, whichever is more.

    Args:
        policy: What else holds.
        predictor: Runs the model; asked for two encodes and decodes of which the second counts.
        budget_ms: Milliseconds per prompt; 0 takes the bound away.
        clock: Seconds.

    Raises:
        ConfigError: The budget is negative or not a number.
    """
    if not budget_ms >= 0:
        message = f"A budget must be at least 0 milliseconds, got {budget_ms}; 0 means no bound."
        raise ConfigError(message)
    encode_ms, click_ms = 0.0, 0.0
    if budget_ms:
        for _ in range(2):
            encode_ms, click_ms = _measured(policy, predictor, clock)
    return replace(policy, budget_ms=budget_ms, encode_ms=encode_ms, click_ms=click_ms)


def _measured(
    policy: ScalePolicy, predictor: Predictor, clock: Callable[[], float]
) -> tuple[float, float]:
    size = predictor.image_size
    geometry = Geometry((size, size, size), np.eye(4))
    ramp = np.indices(geometry.shape).sum(axis=0).astype(np.float32)
    middle = float(size // 2)
    roi = Roi((middle, middle, middle), 1.0, size)
    started = clock()
    encoded = predictor.embed(Volume(ramp, geometry), [roi])[0]
    encoded_at = clock()
    prompts = RoiPrompts(np.full((1, 3), middle), np.ones(1, np.bool_))
    mask = torch.zeros((predictor.logits_size,) * 3, device=predictor.device)
    predictor.decode(encoded, prompts, mask_logits_SSS=mask)
    # What is done with an answer; that to the ramp may be empty, so a ball stands for it.
    axis = torch.arange(size, device=predictor.device) - middle
    squares = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2
    ball = (size / 4) ** 2 - squares
    clicked = clicked_parts(ball, prompts.points)
    measure_mask(policy, geometry, roi, clicked, prompts.points)
    paste_logits(clicked, geometry, roi)
    return (encoded_at - started) * 1e3, (clock() - encoded_at) * 1e3
