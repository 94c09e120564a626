"""Volumes, masks and the geometry of their voxel grids; no files, no torch."""

from fastsam3d.volume.geometry import AxisReorder, Geometry
from fastsam3d.volume.region import Region
from fastsam3d.volume.volume import Mask, Modality, SourceHeader, Volume

__all__ = ["AxisReorder", "Geometry", "Mask", "Modality", "Region", "SourceHeader", "Volume"]
