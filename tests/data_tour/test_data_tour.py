"""Every image that is at hand is opened and worked on without an exception.

Set ``FASTSAM3D_DATA`` to a folder; every ``image.*`` below it is taken. ``FASTSAM3D_TOUR_MODEL``
names weights to answer with; by default a toy model does, which is fast and sees what is bright.
"""

import os
from pathlib import Path

import pytest
import SimpleITK as sitk  # noqa: N813 - the name of its documentation

from fastsam3d.io import read_time_points, read_volume
from fastsam3d.session import Predictor, Series, Session
from tests.data_tour.tour import play, prompts_in_the_middle
from tests.session.phantoms import BrightModel, ball_volume

FOLDER = os.environ.get("FASTSAM3D_DATA", "")
MODEL = os.environ.get("FASTSAM3D_TOUR_MODEL", "")
IMAGES = sorted(Path(FOLDER).rglob("image.*")) if FOLDER else []


@pytest.fixture(scope="module")
def session() -> Session:
    return Session.from_pretrained(MODEL) if MODEL else Session(Predictor(BrightModel()))


@pytest.mark.skipif(not IMAGES, reason="FASTSAM3D_DATA names no folder with images")
@pytest.mark.parametrize("image", IMAGES or [Path()], ids=lambda path: path.parent.name)
def test_an_image_can_be_worked_on(image: Path, session: Session, tmp_path: Path) -> None:
    play(read_volume(image), session, tmp_path)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((24, 20, 22), (1, 1, 1)), ((40, 36, 3), (0.5, 0.5, 10)), ((30, 1, 28), (2, 2, 2))],
    ids=["cube", "thick slices", "one slice"],
)
def test_the_tour_itself(tmp_path: Path, shape: tuple, spacing: tuple) -> None:
    volume = ball_volume(shape=shape, spacing=spacing, centre_mm=(10, 10, 10), radius_mm=7)
    play(volume, Session(Predictor(BrightModel())), tmp_path)


@pytest.mark.skipif(len(IMAGES) < 2, reason="FASTSAM3D_DATA names no folder with images")
def test_two_images_of_one_grid_are_a_series(session: Session, tmp_path: Path) -> None:
    """A 4-D file made of the first two images on one grid."""
    grids: dict[tuple, Path] = {}
    for path in IMAGES:
        image = sitk.ReadImage(str(path))
        grid = (image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
        if grid in grids and len(grids[grid].parent.name) == len(path.parent.name):
            first = sitk.ReadImage(str(grids[grid]), sitk.sitkFloat32)
            second = sitk.Cast(image, sitk.sitkFloat32)
            sitk.WriteImage(sitk.JoinSeries([first, second]), str(tmp_path / "cine.nii.gz"))
            break
        grids[grid] = path
    else:
        pytest.skip("no two images share a grid")
    volumes = read_time_points(tmp_path / "cine.nii.gz")
    assert len(volumes) == 2
    folder = tmp_path / "work"
    folder.mkdir()
    play(read_volume(tmp_path / "cine.nii.gz", time=1), session, folder)
    series = Series(session.predictor, volumes)
    thing = series[0].add_object(prompts=prompts_in_the_middle(volumes[0])[-2:])
    assert series.propagate(thing, start=0) == (1,)
