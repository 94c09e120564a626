"""Segmentations on disk: what 3D Slicer's own reader looks for, and label maps with a legend."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from fastsam3d.errors import ConfigError, VolumeWriteError
from fastsam3d.io import read_mask
from fastsam3d.io.segmentation import Code, Segment, Terminology, write_segmentation
from fastsam3d.volume import Geometry, Mask

AFFINE = np.array([[0, -0.4, 0, 30], [0.4, 0, 0, -20], [0, 0, 5.0, 100], [0, 0, 0, 1]])
GEOMETRY = Geometry((6, 5, 4), AFFINE)
LABELS = np.zeros(GEOMETRY.shape, np.uint8)
LABELS[1:4, 2:5, 1:3] = 1
LABELS[4:6, 0:2, 3:4] = 7
LIVER = Terminology(
    Code("SCT", "123037004", "Anatomical Structure"),
    Code("SCT", "10200004", "Liver"),
    Code("SCT", "24028007", "Right"),
)
SEGMENTS = [
    Segment(label=1, name="Liver, left lobe", colour=(255, 51, 0), terminology=LIVER),
    Segment(label=7, name="Zyste µ", colour=(0, 0, 128)),
]


def read_slicer(path: Path) -> tuple[object, dict[str, str]]:
    image = SimpleITK.ReadImage(str(path))
    return image, {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}


def test_slicer_finds_names_colours_codes_and_geometry(tmp_path: Path) -> None:
    path = tmp_path / "a.seg.nrrd"
    write_segmentation([Mask(LABELS, GEOMETRY)], SEGMENTS, path)
    _, header = read_slicer(path)
    assert read_mask(path).geometry.is_close(GEOMETRY)
    np.testing.assert_array_equal(read_mask(path).array, LABELS)
    assert header["Segmentation_MasterRepresentation"] == "Binary labelmap"
    assert header["Segment0_Name"] == "Liver, left lobe"
    assert header["Segment0_Color"] == "1 0.2 0"
    assert header["Segment0_LabelValue"] == "1"
    assert header["Segment0_Layer"] == "0"
    assert header["Segment0_Extent"] == "1 3 2 4 1 2"
    assert (
        "~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~SCT^24028007^Right~"
        in header["Segment0_Tags"]
    )
    assert header["Segment1_Name"] == "Zyste µ"
    assert header["Segment1_LabelValue"] == "7"
    assert "Terminology" not in header["Segment1_Tags"]


def test_overlapping_objects_lie_in_layers(tmp_path: Path) -> None:
    path = tmp_path / "a.seg.nrrd"
    other = np.zeros_like(LABELS, np.uint16)
    other[2:6, 2:4, 1:4] = 300
    segments = [*SEGMENTS, Segment(label=300, name="over", colour=(1, 2, 3), layer=1)]
    write_segmentation([Mask(LABELS, GEOMETRY), Mask(other, GEOMETRY)], segments, path)
    assert b"\nkinds: list domain domain domain\n" in path.read_bytes()
    image, header = read_slicer(path)
    array = SimpleITK.GetArrayFromImage(image)
    np.testing.assert_array_equal(array[..., 0].T, LABELS)
    np.testing.assert_array_equal(array[..., 1].T, other)
    assert header["Segment2_Layer"] == "1"
    assert header["Segment2_Extent"] == "2 5 2 3 1 3"


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd"])
def test_label_maps_come_with_a_legend(tmp_path: Path, name: str) -> None:
    write_segmentation([Mask(LABELS, GEOMETRY)], SEGMENTS, tmp_path / name)
    np.testing.assert_array_equal(read_mask(tmp_path / name).array, LABELS)
    legend = json.loads((tmp_path / "a.labels.json").read_text(encoding="utf-8"))["labels"]
    assert [(item["label"], item["name"]) for item in legend] == [
        (1, "Liver, left lobe"),
        (7, "Zyste µ"),
    ]
    assert legend[0]["terminology"]["type"] == {
        "scheme": "SCT",
        "value": "10200004",
        "meaning": "Liver",
    }
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, "a.labels.json"])


def test_an_object_without_a_voxel_has_an_empty_extent(tmp_path: Path) -> None:
    empty = Segment(label=3, name="gone", colour=(0, 0, 0))
    write_segmentation([Mask(LABELS, GEOMETRY)], [empty], tmp_path / "a.seg.nrrd")
    assert read_slicer(tmp_path / "a.seg.nrrd")[1]["Segment0_Extent"] == "0 -1 0 -1 0 -1"


def test_what_a_format_cannot_hold_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    mask = Mask(LABELS, GEOMETRY)
    with pytest.raises(VolumeWriteError, match=r"overlap .* write \.seg\.nrrd"):
        write_segmentation([mask, mask], SEGMENTS, tmp_path / "a.nii.gz")
    with pytest.raises(VolumeWriteError, match="on one grid"):
        write_segmentation([], SEGMENTS, tmp_path / "a.seg.nrrd")
    with pytest.raises(VolumeWriteError, match="must end with"):
        write_segmentation([mask], SEGMENTS, tmp_path / "a.png")
    with pytest.raises(VolumeWriteError, match="folder does not exist"):
        write_segmentation([mask], SEGMENTS, tmp_path / "no" / "a.seg.nrrd")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "a^b", "a~b", "a|b", "a\nb", "x" * 201, 7])
def test_codes_that_headers_cannot_carry_are_refused(text: object) -> None:
    with pytest.raises(ConfigError, match="printable characters"):
        Code("SCT", "1", text)
