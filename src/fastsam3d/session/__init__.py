"""Interactive segmentation: sessions of one object, studies of many, and what they are made of.

What a session of one object does without is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from fastsam3d.preprocess.regrid import resample_volume
from fastsam3d.segmenter import Prediction
from fastsam3d.session.candidates import Candidate
from fastsam3d.session.channels import MultiVolume, stack_channels
from fastsam3d.session.postprocess import FillHoles, KeepComponent, RemoveSmall, Smooth
from fastsam3d.session.predictor import Predictor
from fastsam3d.session.propagate import propagate
from fastsam3d.session.scale import ScalePolicy
from fastsam3d.session.session import Session
from fastsam3d.session.uncertainty import UncertaintyMap

if TYPE_CHECKING:
    from fastsam3d.session.series4d import Series
    from fastsam3d.session.study import Study
    from fastsam3d.session.suggest import Suggestion, SuggestPolicy, suggest_objects

__all__ = [
    "Candidate",
    "FillHoles",
    "KeepComponent",
    "MultiVolume",
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
    "UncertaintyMap",
    "propagate",
    "resample_volume",
    "stack_channels",
    "suggest_objects",
]

_HOME = {
    "Series": "series4d",
    "Study": "study",
    "SuggestPolicy": "suggest",
    "Suggestion": "suggest",
    "suggest_objects": "suggest",
}


def __getattr__(name: str) -> object:
    """Import the module that defines a public name and return that name."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
