"""Files in and out; everything else in the package sees only volumes and masks."""

from fastsam3d.io.read import read_mask, read_time_points, read_volume
from fastsam3d.io.segmentation import Code, Segment, Terminology, write_segmentation
from fastsam3d.io.write import check_target, write_mask, write_volume

__all__ = [
    "Code",
    "Segment",
    "Terminology",
    "check_target",
    "read_mask",
    "read_time_points",
    "read_volume",
    "write_mask",
    "write_segmentation",
    "write_volume",
]
