"""All errors that fastsam3d raises on purpose.

Every message is one sentence or two: what was wrong, what we got, what to do. The tree::

    FastSAM3DError
    ├── GeometryError        an affine, shape, region or spacing that cannot describe a voxel grid
    ├── VolumeReadError      a file or array that is not one finite 3-D scalar volume
    │   └── VolumeTooLargeError   it may be one, but exceeds a limit
    ├── VolumeWriteError     a result that could not be written (nothing is left behind)
    ├── PromptError          a point, box or mask prompt that does not fit the volume
    ├── ModelNotFoundError   no model of that name; the message lists near names
    ├── CheckpointError      a weights file that is damaged, unsafe or of another architecture
    ├── EngineCrashedError   the process that runs the model ended; it starts again, ask again
    ├── SessionStateError    a call out of order; the message names the missing call
    ├── StudyFileError       a saved study that is damaged, of another version or another volume
    ├── ConfigError          a configuration value out of its range
    ├── DatasetError         a training or evaluation case that is missing or inconsistent
    └── WireError            what a server and a client could not tell each other
        ├── LeaseExpiredError     the server has forgotten the session; begin a new one
        ├── ServerBusyError       the server is full or its queue is; try again later
        └── ServerUnreachableError   no server answers at that address
"""


class FastSAM3DError(Exception):
    """Base of every error that fastsam3d raises on purpose."""


class GeometryError(FastSAM3DError):
    """An affine, shape, region or spacing cannot describe a voxel grid."""


class VolumeReadError(FastSAM3DError):
    """A file or array is not one finite 3-D scalar volume."""


class VolumeTooLargeError(VolumeReadError):
    """A volume exceeds a limit on its size."""


class VolumeWriteError(FastSAM3DError):
    """A result could not be written; nothing is left behind."""


class PromptError(FastSAM3DError):
    """A point, box or mask prompt is malformed or does not fit the volume."""


class ModelNotFoundError(FastSAM3DError):
    """No model of that name is known; the message lists near names."""


class CheckpointError(FastSAM3DError):
    """A weights file is damaged, unsafe or belongs to another architecture."""


class EngineCrashedError(FastSAM3DError):
    """The process that runs the model ended within a request; it starts again, ask again."""


class SessionStateError(FastSAM3DError):
    """A session method was called out of order; the message names the missing call."""


class StudyFileError(FastSAM3DError):
    """A saved study is damaged, of another version, or was made on another volume."""


class ConfigError(FastSAM3DError):
    """A configuration value is out of its range."""


class DatasetError(FastSAM3DError):
    """A training or evaluation case is missing or inconsistent."""


class WireError(FastSAM3DError):
    """A server and a client could not understand or reach each other."""


class LeaseExpiredError(WireError):
    """The server has forgotten the session; begin a new one and set the volume again."""


class ServerBusyError(WireError):
    """The server has no session or no place in its queue left; try again later."""


class ServerUnreachableError(WireError):
    """No server answers at that address."""
