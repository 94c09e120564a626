"""The web page as people use it: open a scan, click, correct, name, lock, save."""

import io

import httpx2 as httpx
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from fastsam3d.errors import EngineCrashedError
from fastsam3d.io import read_volume
from fastsam3d.io.write import write_volume
from fastsam3d.volume import Geometry, Volume
from tests.server.conftest import toy_app
from tests.viewer.browser import (
    APP,
    IDLE,
    READY,
    chromium,
    click_voxel,
    open_scan,
    opened,
    serving,
    stage_position,
    until,
)

SHAPE = (36, 88, 34)
FIRST, SECOND = (16, 18, 16), (18, 70, 17)
AIR, TISSUE, BRIGHT = -1000, 40, 300


def phantom():
    """Two bright balls in tissue and air between them, in Hounsfield units; axes run L, P, S."""
    geometry = Geometry(SHAPE, np.diag([-1.0, -1.0, 1.0, 1.0]))
    grid = np.stack(np.indices(SHAPE), -1)
    array = np.full(SHAPE, TISSUE, np.int16)
    # Out of reach of the toy model's region around either ball.
    array[:, 40:48] = AIR
    for centre in (FIRST, SECOND):
        array[np.linalg.norm(grid - centre, axis=-1) < 6] = BRIGHT
    return Volume(array, geometry)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "phantom ct.nii.gz"
    write_volume(phantom(), path)
    return path


@pytest.fixture(scope="module")
def app():
    return toy_app(port=0, max_sessions=8)


@pytest.fixture(scope="module")
def address(app):
    with serving(app) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def shared_page(browser, address):
    with opened(browser, address) as page:
        yield page


@pytest.fixture
def page(shared_page, scan):
    """The page with the phantom, nothing clicked yet."""
    shared_page.evaluate("document.querySelectorAll('dialog[open]').forEach((d) => d.close())")
    shared_page.evaluate(f"{APP}.store.set({{ tool: 'point', isPositive: true }})")
    open_scan(shared_page, scan)
    return shared_page


def api(page, path, **options):
    """What the API itself says about the page's session."""
    lease = page.evaluate(f"{APP}.api.lease")
    url = page.url + "api/v1/session/" + path
    reply = httpx.get(url, headers={"X-Lease-Token": lease}, **options)
    reply.raise_for_status()
    return reply


def api_mask(page, tmp_path, object_id=1):
    path = tmp_path / "api.nii.gz"
    path.write_bytes(api(page, f"objects/{object_id}/mask.nii.gz").content)
    return np.asarray(read_volume(path).array) > 0


def shown_labels(page):
    """The slots that the graphics card shows, in the file's own order."""
    script = f"""() => {{
        const {{ view }} = {APP};
        const [ni, nj, nk] = view.grid.fileShape;
        const labels = [];
        for (let i = 0; i < ni; i++) for (let j = 0; j < nj; j++) for (let k = 0; k < nk; k++)
            labels.push(view.slotAt([i, j, k]));
        return labels;
    }}"""
    return np.reshape(page.evaluate(script), SHAPE)


def pixel(page, x, y):
    clip = {"x": round(x) - 1, "y": round(y) - 1, "width": 3, "height": 3}
    image = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    return np.asarray(image, np.int16).reshape(-1, 3).mean(0)


def state(page, expression):
    return page.evaluate(f"{APP}.state.{expression}")


def prompts(page):
    return [item["prompts"] for item in api(page, "study").json()["objects"]]


def idle(page):
    until(page, IDLE)


def test_a_click_shows_the_mask_of_the_api_where_it_was_clicked(page, tmp_path):
    # Beside the marker of the click, which would hide the colour.
    x, y = stage_position(page, "axial", FIRST)
    beside = x + 11
    before = pixel(page, beside, y)
    page.mouse.click(x, y)
    until(page, f"{APP}.state.latency !== null && {IDLE}")
    after = pixel(page, beside, y)
    assert abs(before[0] - before[2]) < 8
    assert after[0] - after[2] > 40
    mask = api_mask(page, tmp_path)
    assert mask[FIRST]
    assert not mask[SECOND]
    np.testing.assert_array_equal(shown_labels(page) > 0, mask)


@pytest.mark.parametrize("plane", ["coronal", "sagittal"])
def test_a_click_on_another_plane_is_the_voxel_under_it(page, plane):
    click_voxel(page, plane, SECOND)
    assert prompts(page)[0][0]["at"] == list(SECOND)


def test_undo_takes_the_mask_away_and_redo_brings_it_back(page):
    click_voxel(page, "axial", FIRST)
    shown = shown_labels(page)
    page.click("#undo")
    until(page, f"{APP}.state.study.objects[0].num_prompts === 0")
    assert not shown_labels(page).any()
    page.keyboard.press("Control+Shift+Z")
    until(page, f"{APP}.state.study.objects[0].prompts.length === 1")
    np.testing.assert_array_equal(shown_labels(page), shown)


def test_the_right_button_removes_and_a_prompt_can_be_taken_from_the_list(page):
    click_voxel(page, "axial", FIRST)
    shown = shown_labels(page)
    click_voxel(page, "axial", (FIRST[0] + 3, *FIRST[1:]), button="right")
    assert [p["positive"] for p in prompts(page)[0]] == [True, False]
    assert shown_labels(page).sum() < shown.sum()
    page.locator(".prompt.negative .remove").click()
    until(page, f"{APP}.state.study.objects[0].prompts.length === 1")
    np.testing.assert_array_equal(shown_labels(page), shown)


def test_a_second_object_has_its_own_colour_and_can_be_hidden(page, tmp_path):
    click_voxel(page, "axial", FIRST)
    page.click("#add-object")
    until(page, f"{APP}.state.study.objects.length === 2")
    click_voxel(page, "axial", SECOND)
    labels = shown_labels(page)
    assert labels[FIRST] != labels[SECOND]
    np.testing.assert_array_equal(labels == labels[SECOND], api_mask(page, tmp_path, 2))
    page.get_by_role("button", name="Hide Object 2").click()
    assert shown_labels(page)[SECOND] == 0
    assert shown_labels(page)[FIRST] == labels[FIRST]


def test_a_locked_object_takes_no_click_and_says_so(page):
    click_voxel(page, "axial", FIRST)
    page.get_by_role("button", name="Lock Object 1").click()
    until(page, f"{APP}.state.study.objects[0].locked")
    x, y = stage_position(page, "axial", SECOND)
    page.mouse.click(x, y)
    page.get_by_text("This object is locked").wait_for()
    assert len(prompts(page)[0]) == 1
    assert page.get_by_role("button", name="Delete Object 1").is_disabled()


def test_names_and_colours_reach_the_server(page):
    click_voxel(page, "axial", FIRST)
    page.locator(".object .name input").fill("liver <b>")
    page.keyboard.press("Enter")
    until(page, f"{APP}.state.study.objects[0].name === 'liver <b>'")
    page.locator(".object input[type=color]").fill("#0a141e")
    until(page, f"{APP}.state.study.objects[0].colour[0] === 10")
    assert api(page, "study").json()["objects"][0]["name"] == "liver <b>"


def test_downloads_are_the_masks_of_the_api(page, tmp_path):
    click_voxel(page, "axial", FIRST)
    with page.expect_download() as download:
        page.click("[data-export='nii.gz']")
    path = tmp_path / "labels.nii.gz"
    download.value.save_as(path)
    assert download.value.suggested_filename == "phantom ct.labels.nii.gz"
    saved = read_volume(path)
    np.testing.assert_array_equal(np.asarray(saved.array) > 0, api_mask(page, tmp_path))
    np.testing.assert_allclose(saved.geometry.affine, phantom().geometry.affine)
    with page.expect_download() as download:
        page.click("[data-export='seg.nrrd']")
    path = tmp_path / "labels.seg.nrrd"
    download.value.save_as(path)
    assert b"Segment0_Name:=Object 1" in path.read_bytes()


def drag(page, points):
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()
    until(page, f"{APP}.state.latency !== null && {IDLE}")


def corners(page, plane, first, last):
    """Stage positions of two voxels on the slice of the first."""
    a = stage_position(page, plane, first)
    b = page.evaluate(
        f"([p, v]) => {APP}.view.project(p, {APP}.view.fracOf(v))", [plane, list(last)]
    )
    rect = page.locator("#stage").bounding_box()
    return a, [rect["x"] + b[0], rect["y"] + b[1]]


def test_a_box_covers_the_voxels_it_was_drawn_over(page):
    page.keyboard.press("b")
    drag(page, corners(page, "axial", (8, 10, 16), (24, 26, 16)))
    (box,) = prompts(page)[0]
    assert (box["type"], box["axis"]) == ("slice_box", 2)
    assert (box["start"], box["stop"]) == ([8, 10, 16], [25, 27, 17])


def test_a_scribble_runs_along_the_line_with_the_brush(page):
    page.keyboard.press("s")
    a, b = corners(page, "coronal", (11, 18, 16), (21, 18, 16))
    drag(page, [a, b])
    (scribble,) = prompts(page)[0]
    assert (scribble["type"], scribble["axis"], scribble["radius_mm"]) == ("scribble", 1, 3)
    path = np.array(scribble["path"])
    np.testing.assert_allclose(path[[0, -1]], [(11, 18, 16), (21, 18, 16)], atol=0.3)


def test_a_lasso_encloses_what_was_drawn_around(page):
    page.keyboard.press("l")
    a, b = corners(page, "axial", (8, 10, 16), (24, 26, 16))
    drag(page, [a, (b[0], a[1]), b, (a[0], b[1])])
    (lasso,) = prompts(page)[0]
    outline = np.array(lasso["outline"])
    assert (lasso["type"], lasso["axis"]) == ("lasso", 2)
    np.testing.assert_allclose(outline.min(0), (8, 10, 16), atol=0.3)
    np.testing.assert_allclose(outline.max(0), (24, 26, 16), atol=0.3)


def test_everything_works_from_the_keyboard(page):
    page.evaluate(f"{APP}.view.crosshair = {APP}.view.fracOf({list(FIRST)})")
    page.locator(".tile[data-plane=axial]").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("PageUp")
    page.keyboard.press("Enter")
    until(page, f"{APP}.state.latency !== null && {IDLE}")
    # Left on the screen is the patient's right; up is anterior: both against the file's axes.
    assert prompts(page)[0][0]["at"] == [FIRST[0] - 1, FIRST[1] - 1, FIRST[2] + 1]
    page.keyboard.press("?")
    assert page.get_by_role("dialog").get_by_text("Help and shortcuts").is_visible()
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()


def test_presets_set_the_window_and_dragging_changes_it(page):
    assert page.locator("#preset").input_value() == "soft"
    page.select_option("#preset", "lung")
    assert page.evaluate(f"{APP}.view.window") == [-1350, 150]
    page.keyboard.press("w")
    x, y = stage_position(page, "axial", FIRST)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y)
    page.mouse.up()
    low, high = page.evaluate(f"{APP}.view.window")
    assert high - low > 1500
    assert page.locator("#preset").input_value() == "custom"


def test_the_wheel_turns_slices_and_the_readout_tells_the_voxel(page):
    x, y = stage_position(page, "axial", FIRST)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -120)
    until(page, f"{APP}.view.sliceIndex('axial') !== {FIRST[2]}")
    page.mouse.move(x + 1, y)
    text = page.locator("#readout").text_content()
    assert text.startswith(f"Voxel {FIRST[0]}, {FIRST[1]}, ")
    assert text.endswith("300 HU")


def test_work_comes_back_after_the_session_has_expired(page):
    click_voxel(page, "axial", FIRST)
    shown = shown_labels(page)
    lease = page.evaluate(f"{APP}.api.lease")
    httpx.delete(page.url + "api/v1/session", headers={"X-Lease-Token": lease})
    click_script = f"{APP}.addPoint({APP}.view.crosshair, true)"
    page.evaluate(f"void {click_script}")
    page.get_by_role("heading", name="Your session has ended").wait_for()
    page.get_by_role("button", name="Bring my work back").click()
    page.get_by_text("Your work is back").wait_for()
    assert page.evaluate(f"{APP}.api.lease") != lease
    np.testing.assert_array_equal(shown_labels(page), shown)


def test_a_reload_of_the_page_keeps_the_work(page):
    click_voxel(page, "axial", FIRST)
    shown = shown_labels(page)
    page.reload()
    until(page, f"{READY} && {APP}.state.study.objects.length === 1")
    np.testing.assert_array_equal(shown_labels(page), shown)
    assert state(page, "study.objects[0].prompts.length") == 1


def test_a_file_that_is_no_scan_is_explained_and_another_can_be_opened(page, tmp_path, scan):
    path = tmp_path / "report.nii.gz"
    path.write_bytes(b"this is no scan")
    page.set_input_files("#file-input", path)
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("heading", name="This file could not be read").wait_for()
    assert dialog.get_by_role("button", name="Choose another file").is_visible()
    dialog.get_by_role("button", name="Not now").click()
    open_scan(page, scan)


def test_a_finger_adds_and_a_long_press_removes(browser, address, scan):
    options = {"has_touch": True, "is_mobile": True}
    with opened(browser, address, **options) as page:
        open_scan(page, scan)
        x, y = stage_position(page, "axial", FIRST)
        page.touchscreen.tap(x, y)
        until(page, f"{APP}.state.latency !== null && {IDLE}")
        finger = page.context.new_cdp_session(page)
        touch = {"type": "touchStart", "touchPoints": [{"x": x + 20, "y": y}]}
        finger.send("Input.dispatchTouchEvent", touch)
        until(page, f"{APP}.state.study.objects[0].num_prompts === 2")
        finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        assert [p["positive"] for p in prompts(page)[0]] == [True, False]
        sizes = page.evaluate(
            """[...document.querySelectorAll("button")].filter((b) => b.offsetParent)
            .map((b) => [b.id || b.className, b.offsetWidth, b.offsetHeight])"""
        )
        small = [s for s in sizes if min(s[1:]) < 44 and "link" not in s[0] and s[0]]
        assert small == []


def test_every_control_has_a_name(page):
    click_voxel(page, "axial", FIRST)
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, input, select")].filter((control) =>
            control.offsetParent && !control.getAttribute("aria-label") && !control.title &&
            !control.textContent.trim() && !control.labels?.length).map((c) => c.outerHTML)"""
    )
    assert unnamed == []


def test_nothing_is_fetched_from_elsewhere(page):
    hosts = page.evaluate(
        "performance.getEntriesByType('resource').map((entry) => new URL(entry.name).host)"
    )
    assert set(hosts) <= {page.evaluate("location.host")}


def write_dicom(folder, description, uid, count=12):
    """One axial series as a scanner stores it; the browser cannot show it by itself."""
    folder.mkdir(exist_ok=True)
    image = SimpleITK.GetImageFromArray(np.asarray(phantom().array)[..., :count].T)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    tags = {"0020|000e": uid, "0008|103e": description, "0008|0060": "CT", "0020|0037": AXES}
    for k in range(count):
        piece = image[:, :, k]
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        piece.SetMetaData("0020|0032", f"0\\0\\{k}")
        piece.SetMetaData("0020|0013", str(k + 1))
        piece.SetMetaData("0008|0018", f"{uid}.{k + 1}")
        writer.SetFileName(str(folder / f"{description}{k}.dcm"))
        writer.Execute(piece)


AXES = "1\\0\\0\\0\\1\\0"


def test_a_dicom_folder_opens_and_asks_which_of_its_series(page, tmp_path):
    folder = tmp_path / "study"
    write_dicom(folder, "THIN", "1.2.826.0.1.3680043.2.1125.1")
    write_dicom(folder, "THICK", "1.2.826.0.1.3680043.2.1125.2", count=8)
    page.set_input_files("#folder-input", folder)
    page.get_by_role("button", name="CT, THICK, 8 images").click()
    until(page, READY)
    assert state(page, "scan.shape") == [*SHAPE[:2], 8]
    assert page.locator("#scan-name").text_content() == "study"
    values = page.evaluate(f"{APP}.view.valueAt({APP}.view.fracOf([0, 44, 3]))")
    assert values == AIR


def test_a_scan_over_time_shows_its_first_volume_and_lets_choose(page, tmp_path):
    path = tmp_path / "cine.nii.gz"
    series = np.stack([np.full((9, 8, 7), 10 * time, np.int16) for time in range(3)], -1)
    series[0] = 1
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(series.T, isVector=False), path)
    open_scan(page, path)
    assert page.evaluate(f"{APP}.view.valueAt([0.5, 0.5, 0.5])") == 0
    page.evaluate(f"globalThis.former = {APP}.state.scan")
    page.select_option("#time", "2")
    until(page, f"{APP}.state.scan !== globalThis.former && {READY}")
    assert page.evaluate(f"{APP}.view.valueAt([0.5, 0.5, 0.5])") == 20
    assert state(page, "scan.time") == 2


def test_a_model_with_one_reading_says_that_there_are_no_alternatives(page):
    click_voxel(page, "axial", FIRST)
    page.get_by_role("button", name="Alternatives").click()
    page.get_by_text("No alternatives").wait_for()
    assert not page.locator("#candidates").is_visible()


def test_in_software_a_click_is_drawn_once_with_its_mask(page):
    assert page.evaluate(f"{APP}.view.isSoftware")
    x, y = stage_position(page, "axial", FIRST)
    page.evaluate(f"""() => {{
        globalThis.draws = [];
        {APP}.view.addEventListener("drawn", () => {{
            globalThis.draws.push({APP}.masks.size);
        }});
    }}""")
    page.mouse.click(x, y)
    until(page, f"{APP}.state.latency !== null && {IDLE}")
    assert page.evaluate("globalThis.draws") == [1]
    expected = page.evaluate(f"{APP}.view.voxelOf({APP}.view.crosshair).map(Math.round)")
    assert expected == list(FIRST)


def test_an_answer_that_does_not_come_leaves_the_slices_where_one_clicked(page):
    x, y = stage_position(page, "axial", FIRST)
    page.evaluate(f"""() => {{
        globalThis.lateDraws = 0;
        {APP}.api.request = () => new Promise((_, fail) => {{ globalThis.giveUp = fail; }});
        {APP}.view.addEventListener("drawn", () => {{ globalThis.lateDraws += 1; }});
    }}""")
    page.mouse.click(x + 2, y)
    until(page, "globalThis.lateDraws === 1", timeout_s=5)
    page.evaluate(f"delete {APP}.api.request")
    page.evaluate("globalThis.giveUp(new Error('no answer'))")
    until(page, IDLE)


def test_a_crash_of_the_engine_is_told_and_the_next_click_works(page, app):
    model = app.state.host.predictor.model
    decode = model._model.decode_masks

    def crash(*_args, **_options):
        model._model.decode_masks = decode
        raise EngineCrashedError("The engine's process ended (SIGSEGV) within this request.")

    model._model.decode_masks = crash
    x, y = stage_position(page, "axial", FIRST)
    page.mouse.click(x, y)
    page.get_by_text("The computation broke off").wait_for()
    until(page, IDLE)
    click_voxel(page, "axial", SECOND)  # The message lies over the first.
    assert page.evaluate(f"{APP}.masks.size") == 1
