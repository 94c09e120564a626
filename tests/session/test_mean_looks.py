"""Looks averaged over several spacings: whose say counts where, and what they cost."""

import numpy as np
import pytest
import torch

from fastsam3d.errors import ConfigError
from fastsam3d.preprocess.roi import Roi, resample_logits
from fastsam3d.session import Session
from fastsam3d.session.looks import mean_of_looks
from fastsam3d.session.predictor import DecodedMask, Predictor
from fastsam3d.session.scale import ScalePolicy
from fastsam3d.volume import Geometry
from tests.session.phantoms import SIZE, BrightModel, ball_truth, ball_volume, dice

GEOMETRY = Geometry((60, 60, 60), np.eye(4))


def roi(spacing):
    return Roi.around((30, 30, 30), GEOMETRY, spacing, SIZE)


def seen(value, quality, side=SIZE):
    logits = torch.full((side,) * 3, float(value))
    return DecodedMask(torch.full((SIZE,) * 3, float(value)), logits, quality)


@pytest.mark.parametrize("side", [SIZE, SIZE // 4])
def test_a_finer_look_has_a_say_only_where_it_reaches(side):
    found = mean_of_looks(roi(1.0), seen(2, 0.9, side), [(roi(0.5), seen(-4, 0.5, side))], GEOMETRY)
    assert found.quality == pytest.approx(0.7)
    assert found.prompt_logits.shape == (side,) * 3
    assert found.logits.shape == (SIZE,) * 3
    values = found.prompt_logits.unique().tolist()
    assert values == [-1, 2]
    middle, corner = (SIZE // 2,) * 3, (0, 0, 0)
    assert found.logits[middle] == -1
    assert found.logits[corner] == 2
    share = (found.prompt_logits == -1).float().mean().item()
    assert share == pytest.approx(1 / 8, abs=0.05)


def test_a_coarser_look_is_brought_onto_the_lattice_of_the_first():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn((SIZE,) * 3, generator=generator)
    own, other = seen(1, 0.8), DecodedMask(coarse, coarse, 0.8)
    found = mean_of_looks(roi(1.0), own, [(roi(1.5), other)], GEOMETRY)
    wanted = (1 + resample_logits(coarse, GEOMETRY, roi(1.5), roi(1.0))) / 2
    torch.testing.assert_close(found.logits, wanted)


def test_a_session_looks_at_every_spacing_and_finds_the_object():
    volume, model = ball_volume(), BrightModel()
    policy = ScalePolicy(spacings_mm=(1.0,), look_factors=(1.3, 0.75))
    session = Session(Predictor(model), policy=policy)
    session.set_volume(volume)
    mask = session.add_point((30, 30, 30)).mask.array
    assert dice(mask, ball_truth(volume.geometry)) > 0.96
    assert sum(model.encoded) == 3
    session.add_point((30, 30, 36))
    assert sum(model.encoded) == 3  # all are at hand
    assert len(model.decoded) == 6


@pytest.mark.parametrize("factors", [(0.0,), (1.3, -1.0), (1.0,)])
def test_factors_that_mean_nothing_are_refused(factors):
    with pytest.raises(ConfigError, match="must be positive and not 1"):
        ScalePolicy(look_factors=factors)
