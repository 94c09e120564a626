"""Run by a test in a process of its own: what 3D Slicer's core libraries make of our files.

Takes a ``.seg.nrrd``, a volume, RAS positions as JSON, and where Slicer shall write the volume;
prints what Slicer reads as JSON.
"""

import json
import sys

import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy


def matrix_rows(matrix):
    return [[matrix.GetElement(i, j) for j in range(4)] for i in range(4)]


def read_segments(scene, path):
    node = slicer.vtkMRMLSegmentationNode()
    scene.AddNode(node)
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(path)
    scene.AddNode(storage)
    assert storage.ReadData(node) == 1
    segmentation = node.GetSegmentation()
    ids = [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]
    return [describe(segmentation.GetSegment(one)) for one in ids]


def describe(segment):
    labelmap = segment.GetRepresentation("Binary labelmap")
    to_world = vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(to_world)
    terminology = vtk.reference("")
    segment.GetTag("TerminologyEntry", terminology)
    values = vtk_to_numpy(labelmap.GetPointData().GetScalars())
    return {
        "name": segment.GetName(),
        "colour": [round(255 * part) for part in segment.GetColor()],
        "extent": labelmap.GetExtent(),
        "to_world": matrix_rows(to_world),
        "inside": [int(value == segment.GetLabelValue()) for value in values],
        "terminology": str(terminology),
    }


def place_markups(scene, path, positions, saved):
    """Place a control point at each RAS position, and write the volume as a plug-in uploads it.

    Returns:
        For each, the voxel that Slicer says it is, and the volume's value there.
    """
    volume = slicer.vtkMRMLScalarVolumeNode()
    scene.AddNode(volume)
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(path)
    scene.AddNode(storage)
    assert storage.ReadData(volume) == 1
    to_ijk = vtk.vtkMatrix4x4()
    volume.GetRASToIJKMatrix(to_ijk)
    markups = slicer.vtkMRMLMarkupsFiducialNode()
    scene.AddNode(markups)
    found = []
    for given in positions:
        index = markups.AddControlPoint(vtk.vtkVector3d(*given))
        position = markups.GetNthControlPointPositionVector(index)
        ras = [position[axis] for axis in range(3)]
        ijk = [round(value) for value in to_ijk.MultiplyPoint([*ras, 1])[:3]]
        value = volume.GetImageData().GetScalarComponentAsDouble(*ijk, 0)
        found.append({"ras": ras, "ijk": ijk, "value": value})
    storage.SetFileName(saved)
    assert storage.WriteData(volume) == 1
    return found


def main(segmentation, volume, positions, saved):
    scene = slicer.vtkMRMLScene()
    slicer.mrmlScene = scene
    read = {
        "segments": read_segments(scene, segmentation),
        "markups": place_markups(scene, volume, json.loads(positions), saved),
    }
    sys.stdout.write("\n" + json.dumps(read))


if __name__ == "__main__":
    main(*sys.argv[1:])
