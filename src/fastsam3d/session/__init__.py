"""Interactive segmentation: sessions of one object, studies of many, and what they are made of."""

from fastsam3d.segmenter import Prediction
from fastsam3d.session.postprocess import FillHoles, KeepComponent, RemoveSmall, Smooth
from fastsam3d.session.predictor import Predictor
from fastsam3d.session.propagate import propagate
from fastsam3d.session.scale import ScalePolicy
from fastsam3d.session.series4d import Series
from fastsam3d.session.session import Session
from fastsam3d.session.study import Study
from fastsam3d.session.suggest import Suggestion, SuggestPolicy, suggest_objects

__all__ = [
    "FillHoles",
    "KeepComponent",
    "Prediction",
    "Predictor",
    "RemoveSmall",
    "ScalePolicy",
    "Series",
    "Session",
    "Smooth",
    "Study",
    "SuggestPolicy",
    "Suggestion",
    "propagate",
    "suggest_objects",
]
