"""3D Slicer's own core libraries (PyPI ``slicer-core``) beside us: same segments, same voxels.

They run in a process of their own. 140 MB to download, hence not among the development packages.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastsam3d.io import Code, Terminology, read_volume, write_volume
from fastsam3d.prompts import MaskPrompt, Point
from fastsam3d.session import Session, Study
from fastsam3d.volume import Geometry, Volume
from tests.session.phantoms import fake_predictor

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("slicer_core") is None,
    reason="needs 3D Slicer's libraries: pip install slicer-core",
)
SHAPE = (24, 20, 16)
VOXELS = [[0, 0, 0], [23, 19, 15], [5, 7, 3], [12, 1, 14]]
LIVER = Terminology(
    Code("SCT", "123037004", "Anatomical Structure"), Code("SCT", "10200004", "Liver")
)


def oblique() -> Geometry:
    """A grid turned about two axes and mirrored: left-handed, so that Slicer turns its slices."""
    a, b = np.deg2rad([20, -35])
    turn_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn_z @ turn_x @ np.diag([-0.8, 1.1, 2.5])
    affine[:3, 3] = (-20.5, 33.25, 700)
    return Geometry(SHAPE, affine)


def upright() -> Geometry:
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    affine[:3, 3] = (100, 90, -300)
    return Geometry(SHAPE, affine)


def box(geometry, start, stop):
    array = np.zeros(geometry.shape, np.uint8)
    array[tuple(slice(*ends) for ends in zip(start, stop, strict=True))] = 1
    return MaskPrompt(array, geometry)


@pytest.fixture(scope="module", params=[upright, oblique], ids=["upright", "oblique"])
def case(request, tmp_path_factory):
    """A study of three objects, two of which overlap, and what Slicer reads of its files."""
    folder: Path = tmp_path_factory.mktemp("slicer")
    geometry: Geometry = request.param()
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    volume = Volume(array, geometry)
    study = Study(Session(fake_predictor()), volume, overlap="allow")
    given = {"Leber": ((2, 3, 1), (9, 8, 6)), "spot": ((12, 3, 1), (14, 8, 4)),
             "over it": ((5, 5, 2), (11, 10, 7))}  # fmt: skip
    for name, ends in given.items():
        study.add(study.add_object(name), box(geometry, *ends))
    study.describe(study.objects[0].id, colour=(200, 80, 60), terminology=LIVER)
    study.export(folder / "all.seg.nrrd")
    write_volume(volume, folder / "ct.nii.gz")
    script = Path(__file__).with_name("slicer_core_reads.py")
    positions = json.dumps(geometry.voxel_to_world(VOXELS).tolist())
    names = [str(folder / name) for name in ("all.seg.nrrd", "ct.nii.gz", "from_slicer.nii.gz")]
    done = subprocess.run(
        [sys.executable, str(script), *names[:2], positions, names[2]],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return study, json.loads(done.stdout.splitlines()[-1]), folder / "from_slicer.nii.gz"


def test_slicer_reads_names_colours_and_codes(case):
    study, read, _ = case
    assert [segment["name"] for segment in read["segments"]] == [o.name for o in study.objects]
    assert [tuple(s["colour"]) for s in read["segments"]] == [o.colour for o in study.objects]
    assert "SCT^10200004^Liver" in read["segments"][0]["terminology"]


def test_slicer_reads_the_same_voxels_where_objects_overlap_too(case):
    study, read, _ = case
    for item, segment in zip(study.objects, read["segments"], strict=True):
        lows, highs = segment["extent"][::2], segment["extent"][1::2]
        shape = [high - low + 1 for low, high in zip(lows, highs, strict=True)]
        whole = np.zeros(SHAPE, np.uint8)
        part = np.reshape(segment["inside"], shape, order="F")
        whole[tuple(slice(a, b + 1) for a, b in zip(lows, highs, strict=True))] = part
        np.testing.assert_array_equal(whole, study.mask(item.id).array)
        # What Slicer keeps is cropped; its voxel 0, 0, 0 is that of the volume all the same.
        affine = study.volume.geometry.affine
        np.testing.assert_allclose(segment["to_world"], affine, atol=1e-4)


def test_a_markup_of_slicer_is_the_voxel_that_it_was_placed_on(case):
    study, read, _ = case
    for voxel, placed in zip(VOXELS, read["markups"], strict=True):
        point = Point.world(placed["ras"], frame="RAS").to_voxel(study.volume.geometry)
        np.testing.assert_allclose(point.position, voxel, atol=1e-3)
        # Slicer's own indices may run the other way; the value shows that it is the same voxel.
        assert placed["value"] == study.volume.array[tuple(voxel)]


def test_an_upload_from_slicer_is_marked_where_its_markups_are(case, client):
    _, read, saved = case
    files = [("files", ("ct.nii.gz", saved.read_bytes()))]
    session_id = client.put("/session/", files=files).json()["session_id"]
    uploaded = read_volume(saved)
    for placed in read["markups"]:
        # As MONAI Label's plug-in does: whole voxels of Slicer's own.
        assert uploaded.array[tuple(placed["ijk"])] == placed["value"]
        point = Point.world(placed["ras"], frame="RAS").to_voxel(uploaded.geometry)
        np.testing.assert_allclose(point.position, placed["ijk"], atol=1e-3)
        params = json.dumps({"foreground": [placed["ijk"]], "result_compress": False})
        query = {"session_id": session_id, "output": "image"}
        reply = client.post("/infer/fastsam3d", params=query, data={"params": params})
        mask = np.frombuffer(reply.content[-uploaded.array.size :], np.uint8)
        assert mask.reshape(uploaded.shape, order="F")[tuple(placed["ijk"])] == 1
