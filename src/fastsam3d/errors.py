"""All errors that fastsam3d raises on purpose.

Every message is one sentence or two: what was wrong, what we got, what to do. The tree::

    FastSAM3DError
    ├── GeometryError        an affine, shape, region or spacing that cannot describe a voxel grid
    ├── VolumeReadError      a file or array that is not one finite 3-D scalar volume
    ├── VolumeWriteError     a result that could not be written (nothing is left behind)
    ├── PromptError          a point, box or mask prompt that does not fit the volume
    ├── ModelNotFoundError   no model of that name; the message lists near names
    ├── CheckpointError      a weights file that is damaged, unsafe or of another architecture
    ├── SessionStateError    a call out of order; the message names the missing call
    ├── StudyFileError       a saved study that is damaged, of another version or another volume
    ├── ConfigError          a configuration value out of its range
    └── DatasetError         a training or evaluation case that is missing or inconsistent
"""


class FastSAM3DError(Exception):
    """Base of every error that fastsam3d raises on purpose."""


class GeometryError(FastSAM3DError):
    """An affine, shape, region or spacing cannot describe a voxel grid."""


class VolumeReadError(FastSAM3DError):
    """A file or array is not one finite 3-D scalar volume."""


class VolumeWriteError(FastSAM3DError):
    """A result could not be written; nothing is left behind."""


class PromptError(FastSAM3DError):
    """A point, box or mask prompt is malformed or does not fit the volume."""


class ModelNotFoundError(FastSAM3DError):
    """No model of that name is known; the message lists near names."""


class CheckpointError(FastSAM3DError):
    """A weights file is damaged, unsafe or belongs to another architecture."""


class SessionStateError(FastSAM3DError):
    """A session method was called out of order; the message names the missing call."""


class StudyFileError(FastSAM3DError):
    """A saved study is damaged, of another version, or was made on another volume."""


class ConfigError(FastSAM3DError):
    """A configuration value is out of its range."""


class DatasetError(FastSAM3DError):
    """A training or evaluation case is missing or inconsistent."""
