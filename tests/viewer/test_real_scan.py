"""The page on a real CT with the shipped weights: FASTSAM3D_DATA names the folder that holds it."""

import os
from pathlib import Path

import numpy as np
import pytest

from fastsam3d import Point, Session
from fastsam3d.io import read_volume
from fastsam3d.server.app import create_app
from fastsam3d.server.settings import ServerSettings
from tests.viewer.browser import (
    APP,
    IDLE,
    chromium,
    click_voxel,
    open_scan,
    opened,
    serving,
    stage_position,
    until,
)
from tests.viewer.test_viewer import api, api_mask, pixel, prompts

BLADDER, MUSCLE = (59, 53, 18), (75, 30, 45)
SCAN = Path(os.environ.get("FASTSAM3D_DATA", "."), "dev", "totalsegmentator__ct", "image.nii.gz")

pytestmark = pytest.mark.skipif(not SCAN.is_file(), reason="needs FASTSAM3D_DATA")


@pytest.fixture(scope="module")
def alone():
    """The mask of a local session for the first click."""
    session = Session.from_pretrained("hr_s", device="cpu")
    session.set_volume(read_volume(SCAN))
    return np.asarray(session.add_point(Point.voxel(BLADDER)).mask.array) > 0


def labels_on_screen(page, voxels):
    script = f"(all) => all.map((voxel) => {APP}.view.slotAt(voxel))"
    return np.array(page.evaluate(script, voxels.tolist()))


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_the_whole_story_on_a_real_ct(scheme, alone, tmp_path):
    app = create_app(ServerSettings(port=0, model="hr_s", device="cpu"))
    size = {"width": 1280, "height": 800}
    with (
        serving(app) as address,
        chromium() as browser,
        opened(browser, address, color_scheme=scheme) as page,
    ):
        page.set_viewport_size(size)
        open_scan(page, SCAN)
        x, y = stage_position(page, "axial", BLADDER)
        before = pixel(page, x + 20, y + 14)
        page.mouse.click(x, y)
        until(page, f"{APP}.state.latency !== null && {IDLE}", timeout_s=60)
        after = pixel(page, x + 20, y + 14)
        assert np.ptp(before) < 8  # a grey scan
        assert np.ptp(after) > 40  # a coloured mask
        np.testing.assert_array_equal(api_mask(page, tmp_path), alone)
        inside, outside = np.argwhere(alone)[::500], np.argwhere(~alone)[::20000]
        assert labels_on_screen(page, inside).all()
        assert not labels_on_screen(page, outside).any()

        page.click("#undo")
        until(page, f"{APP}.state.study.objects[0].num_prompts === 0")
        assert not labels_on_screen(page, inside).any()
        page.click("#redo")
        until(page, f"{APP}.state.study.objects[0].prompts.length === 1")

        page.get_by_role("button", name="Lock Object 1").click()
        until(page, f"{APP}.state.study.objects[0].locked")
        page.click("#add-object")
        until(page, f"{APP}.state.study.objects.length === 2")
        click_voxel(page, "axial", MUSCLE)
        assert [len(each) for each in prompts(page)] == [1, 1]
        second = api_mask(page, tmp_path, 2)
        assert second[MUSCLE]
        assert not (second & alone).any()

        with page.expect_download() as download:
            page.click("[data-export='nii.gz']")
        path = tmp_path / "labels.nii.gz"
        download.value.save_as(path)
        saved = np.asarray(read_volume(path).array)
        np.testing.assert_array_equal(saved == 1, alone)
        np.testing.assert_array_equal(saved == 2, second)
        assert len(api(page, "study").json()["objects"]) == 2
        page.screenshot(path=tmp_path / f"{scheme}.png")
