"""The OHIF page of MONAI Label, a PACS and our server: a click on a DICOM series gives a mask.

Needs Debian's chromium, orthanc and orthanc-dicomweb, and from PyPI playwright and (with --no-deps)
monailabel; elsewhere it is skipped.
"""

import io
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from fastsam3d.io import read_volume
from fastsam3d.prompts import Point, PromptSet
from fastsam3d.session import Session
from fastsam3d.volume import Geometry, Volume
from tests.io.dicom_files import STUDY, write_series
from tests.server import ohif_page, orthanc
from tests.server.conftest import run_live, toy_app
from tests.session.phantoms import fake_predictor

pytest.importorskip("playwright", reason=ohif_page.REASON)
pytestmark = [
    pytest.mark.skipif(not ohif_page.IS_HERE, reason=ohif_page.REASON),
    pytest.mark.skipif(not orthanc.IS_HERE, reason=orthanc.REASON),
]
SHAPE = (64, 64, 41)


def phantom() -> Volume:
    """A bright ball of radius 12 mm in the middle, LPS axes as scanners write them.

    Bars show which slice one sees: two on the right at rows 5 and 58 of all slices, one on the left
    at row 10 + k of slice k.
    """
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = (32, 30, -400)
    middle = (np.array(SHAPE) - 1) / 2
    distance = np.linalg.norm(np.moveaxis(np.indices(SHAPE), 0, -1) - middle, axis=-1)
    array = np.clip(1000 - 100 * (distance - 7), 0, 1000).astype(np.int16)
    array[48:, (5, 58)] = 1000
    for k in range(SHAPE[2]):
        array[:16, 10 + k, k] = 1000
    return Volume(array, Geometry(SHAPE, affine))


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    write_series(folder, phantom())
    return folder


@pytest.fixture(scope="module")
def served(series, tmp_path_factory):
    """A server with the page, and a PACS that has the series."""
    with orthanc.orthanc(tmp_path_factory.mktemp("pacs")) as pacs:
        orthanc.store(pacs, series)
        app = toy_app(port=0, dicomweb_url=f"{pacs}/dicom-web", ohif_dir=ohif_page.PAGE)
        yield from run_live(app)


def slice_shown(screenshot: bytes) -> int:
    """Return which slice of the phantom a picture of the axial view shows."""
    grey = np.asarray(Image.open(io.BytesIO(screenshot)).convert("L")).astype(int)
    rows, columns = grey.shape
    middle = slice(rows // 4, 3 * rows // 4)  # Without the texts above and below.
    right = np.flatnonzero(grey[middle, round(0.85 * columns)] > 100)
    left = np.flatnonzero(grey[middle, round(0.15 * columns)] > 100)
    upper, lower = right[: len(right) // 2].mean(), right[len(right) // 2 :].mean()
    row = 5 + (left.mean() - upper) * (58 - 5) / (lower - upper)
    return round(row - 10)


def colour_at_click(screenshot: bytes) -> float:
    """Return how colourful the middle of a picture is: 0 where it is grey, more under a mask."""
    saturation = np.asarray(Image.open(io.BytesIO(screenshot)).convert("HSV"))[..., 1]
    rows, columns = saturation.shape
    middle = saturation[rows // 2 - 8 : rows // 2 + 8, columns // 2 - 8 : columns // 2 + 8]
    return float(np.median(middle))


def test_a_click_in_ohif_segments_a_series_of_the_pacs(served, series, tmp_path):
    volume = read_volume(series)
    with ohif_page.browser_page() as page:
        ohif_page.open_study(page, served.url, STUDY)
        ohif_page.choose_label(page, "liver")
        pane = page.locator("[data-cy=viewport-pane]").first
        box = pane.bounding_box()
        # Away from the middle slice, so that slices counted from the other end would be noticed.
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        for _ in range(4):
            page.mouse.wheel(0, 120)
            page.wait_for_timeout(300)
        before = pane.screenshot()
        reply = ohif_page.click_axial(page, 0.5, 0.5)
        page.wait_for_timeout(3000)  # It draws in software.
        screenshot = pane.screenshot()
        page.screenshot(path=tmp_path / "page.png")

    assert reply.status == 200
    (point,) = reply.params["foreground"]
    # The slice that the reader saw is the slice that the server was asked about.
    shown = slice_shown(before)
    assert point[2] == shown
    assert abs(shown - SHAPE[2] // 2) >= 3
    session = Session(fake_predictor())
    session.set_volume(volume)
    expected = session.predict(PromptSet((Point.voxel(point),))).mask.array
    (tmp_path / "reply.nrrd").write_bytes(reply.body)
    np.testing.assert_array_equal(read_volume(tmp_path / "reply.nrrd").array, expected)
    assert colour_at_click(before) < 5
    assert colour_at_click(screenshot) > 20


def test_the_page_reads_images_and_nothing_else(served):
    def status(path, method="GET"):
        request = urllib.request.Request(f"{served.url}{path}", method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:  # noqa: S310 - loopback
                return reply.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    assert status("/proxy/dicom/qido/studies?limit=5") == 200
    assert status(f"/proxy/dicom/wado/studies/{STUDY}/metadata") == 200
    assert status("/proxy/dicom/wado/../system") in {403, 404}
    assert status("/proxy/dicom/wado/studies", method="POST") == 405
