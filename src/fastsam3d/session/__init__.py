"""Interactive segmentation of one object: the session and what it is made of."""

from fastsam3d.segmenter import Prediction
from fastsam3d.session.predictor import Predictor
from fastsam3d.session.scale import ScalePolicy
from fastsam3d.session.session import Session

__all__ = ["Prediction", "Predictor", "ScalePolicy", "Session"]
