"""Every look at an object shows a CT through the window of the tissue that was clicked first."""

import pytest

from fastsam3d.prompts import Point
from fastsam3d.session import Predictor, Session
from fastsam3d.session.scale import ScalePolicy
from tests.session.test_mosaic import LONG, HonestModel, middle_of, tube


class Watched(Predictor):
    """Remembers the ROIs that were looked at."""

    def __init__(self):
        super().__init__(HonestModel())
        self.rois = []

    def embed(self, volume, rois):
        self.rois += rois
        return super().embed(volume, rois)


@pytest.mark.parametrize(
    "policy",
    [LONG, ScalePolicy(spacings_mm=(0.5,)), ScalePolicy(spacings_mm=(1.0,), look_factors=(1.3,))],
    ids=["tiles", "growth", "several spacings"],
)
def test_further_looks_keep_the_focus(policy):
    volume, truth = tube()
    predictor = Watched()
    session = Session(predictor, policy=policy)
    session.set_volume(volume)
    middle = middle_of(truth)
    session.add_point(Point.voxel(middle))
    i, j, _ = middle
    session.add_point(Point.voxel((i, j, 12)))
    assert len(set(predictor.rois)) > 1
    focus = volume.geometry.canonical_reorder().apply_points(middle).tolist()
    assert {roi.focus_voxel for roi in predictor.rois} == {tuple(focus)}
