"""Click on a structure in a medical volume and get its mask in 3D.

The public names are resolved on first use, so ``import fastsam3d`` loads neither torch nor
SimpleITK. Nothing inside the package may import this module: the layers import each other directly.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastsam3d.errors import (
        CheckpointError,
        ConfigError,
        DatasetError,
        FastSAM3DError,
        GeometryError,
        ModelNotFoundError,
        PromptError,
        SessionStateError,
        StudyFileError,
        VolumeReadError,
        VolumeWriteError,
    )
    from fastsam3d.io import read_mask, read_volume, write_mask
    from fastsam3d.model.registry import create_model, list_models, load_model
    from fastsam3d.prompts import (
        Box,
        Lasso,
        MaskPrompt,
        Painted,
        Point,
        PromptLog,
        PromptSet,
        Scribble,
        SliceBox,
    )
    from fastsam3d.segmenter import Prediction, Segmenter
    from fastsam3d.session import Session, Study
    from fastsam3d.volume import Geometry, Mask, Region, Volume

__version__ = "0.1.0"

__all__ = [
    "Box",
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "FastSAM3DError",
    "Geometry",
    "GeometryError",
    "Lasso",
    "Mask",
    "MaskPrompt",
    "ModelNotFoundError",
    "Painted",
    "Point",
    "Prediction",
    "PromptError",
    "PromptLog",
    "PromptSet",
    "Region",
    "Scribble",
    "Segmenter",
    "Session",
    "SessionStateError",
    "SliceBox",
    "Study",
    "StudyFileError",
    "Volume",
    "VolumeReadError",
    "VolumeWriteError",
    "__version__",
    "create_model",
    "list_models",
    "load_model",
    "read_mask",
    "read_volume",
    "write_mask",
]

_MODULES = {
    "errors": [name for name in __all__ if name.endswith("Error")],
    "io": ["read_mask", "read_volume", "write_mask"],
    "model.registry": ["create_model", "list_models", "load_model"],
    "prompts": [
        "Box",
        "Lasso",
        "MaskPrompt",
        "Painted",
        "Point",
        "PromptLog",
        "PromptSet",
        "Scribble",
        "SliceBox",
    ],
    "segmenter": ["Prediction", "Segmenter"],
    "session": ["Session", "Study"],
    "volume": ["Geometry", "Mask", "Region", "Volume"],
}
_HOME = {name: f"fastsam3d.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import the module that defines a public name and return that name."""
    if name not in _HOME:
        raise AttributeError(f"module 'fastsam3d' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
