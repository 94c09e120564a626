"""The page's arithmetic, in the browser that runs it: masks off the wire, voxels of two grids."""

import itertools

import numpy as np
import pytest

from fastsam3d.io.write import write_volume
from fastsam3d.volume import Geometry, Volume
from fastsam3d.wire.masks import encode_runs
from tests.server.conftest import toy_app
from tests.viewer.browser import chromium, opened, serving

DECODE = """async ([runs, size]) => {
    const { decodeRuns } = await import("/viewer/js/masks.js");
    return Array.from(decodeRuns(new Uint8Array(runs), size));
}"""
SHAPE = (7, 10, 13)


@pytest.fixture(scope="module")
def page():
    with (
        chromium() as browser,
        serving(toy_app(port=0)) as address,
        opened(browser, address) as page,
    ):
        yield page


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_runs_of_the_server_become_the_same_voxels(page, density):
    mask = np.random.default_rng(0).random(SHAPE) < density
    decoded = page.evaluate(DECODE, [list(encode_runs(mask)), mask.size])
    np.testing.assert_array_equal(np.reshape(decoded, SHAPE), mask)


def test_runs_longer_than_one_varint_byte_are_read(page):
    mask = np.zeros((40, 40, 40), np.bool_)
    mask[20:] = True
    decoded = page.evaluate(DECODE, [list(encode_runs(mask)), mask.size])
    assert np.array_equal(np.reshape(decoded, mask.shape), mask)


@pytest.mark.parametrize(
    ("runs", "reason"),
    [([9], "too many"), ([3, 2], "too few"), ([128], "broken"), ([255] * 6, "broken")],
)
def test_damaged_runs_are_refused(page, runs, reason):
    with pytest.raises(Exception, match=reason):
        page.evaluate(DECODE, [runs, 8])


def test_a_mask_beyond_the_scan_is_refused(page):
    script = """async (shape) => {
        const { readMask } = await import("/viewer/js/masks.js");
        const header = new TextEncoder().encode(JSON.stringify({ box: [[0, 2], [0, 2], [0, 9]] }));
        const frame = new Uint8Array(4 + header.length);
        new DataView(frame.buffer).setUint32(0, header.length, true);
        frame.set(header, 4);
        return readMask(frame.buffer, shape);
    }"""
    with pytest.raises(Exception, match="does not fit"):
        page.evaluate(script, [4, 4, 4])


def test_all_48_orders_of_axes_go_there_and_back_and_paste_where_they_belong(page):
    signed = [
        [axis * sign for axis, sign in zip(order, signs, strict=True)]
        for order in itertools.permutations((1, 2, 3))
        for signs in itertools.product((1, -1), repeat=3)
    ]
    script = """async ([orders, shape]) => {
        const m = await import("/viewer/js/mapping.js");
        const failures = [];
        for (const order of orders) {
            const grid = m.gridMapping(order, shape);
            const labels = new Uint8Array(shape[0] * shape[1] * shape[2]);
            const box = [[1, 5], [2, 3], [4, 11]];
            const voxels = new Uint8Array(4 * 1 * 7).fill(1);
            const whole = shape.map((n) => [0, n]);
            m.pasteMask(labels, grid, { box, voxels }, 3, whole);
            const [nx, ny] = grid.rasShape;
            for (let i = 0; i < shape[0]; i++) for (let j = 0; j < shape[1]; j++)
                for (let k = 0; k < shape[2]; k++) {
                    const ras = m.fileToRas(grid, [i, j, k]);
                    const back = m.rasToFile(grid, ras);
                    const isIn = [i, j, k].every((v, n) => v >= box[n][0] && v < box[n][1]);
                    const label = labels[ras[0] + nx * (ras[1] + ny * ras[2])];
                    const isFound = String(back) === String([i, j, k]) && label === (isIn ? 3 : 0);
                    if (!isFound) failures.push([order, i, j, k]);
                }
            m.clearRasBox(labels, grid, m.rasBox(grid, box));
            if (labels.some((v) => v)) failures.push([order, "not cleared"]);
        }
        return failures;
    }"""
    assert page.evaluate(script, [signed, list(SHAPE)]) == []


def rotation():
    angle = np.deg2rad(20)
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


ORIENTATIONS = {
    "RAS": np.eye(3),
    "LPS": np.diag([-1.0, -1.0, 1.0]),
    "axes swapped": np.array([[0, 0, -1.5], [0.8, 0, 0], [0, -1.0, 0]]),
    "oblique": rotation() @ np.diag([-1.0, 1.0, 2.0]),
}


SHOW = """async ([bytes, name, voxels]) => {
    const { view } = globalThis.fastsam3dViewer;
    await view.show(new File([new Uint8Array(bytes)], name));
    return {
        values: voxels.map((voxel) => view.valueAt(view.fracOf(voxel))),
        back: voxels.map((voxel) => view.voxelOf(view.fracOf(voxel)).map(Math.round)),
        affine: view.affine,
        shape: view.grid.fileShape,
    };
}"""


FILES = [
    *((name, ".nii.gz") for name in ORIENTATIONS),
    ("axes swapped", ".nrrd"),
    ("axes swapped", ".mha"),
]


@pytest.mark.parametrize(("name", "suffix"), FILES)
def test_niivue_shows_the_intensity_of_the_voxel_that_the_page_means(page, tmp_path, name, suffix):
    affine = np.eye(4)
    affine[:3, :3] = ORIENTATIONS[name]
    affine[:3, 3] = (-20, 30, 11)
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    path = tmp_path / f"scan{suffix}"
    write_volume(Volume(array, Geometry(SHAPE, affine)), path)
    voxels = np.random.default_rng(1).integers(0, SHAPE, (20, 3)).tolist()
    result = page.evaluate(SHOW, [list(path.read_bytes()), path.name, voxels])
    assert result["shape"] == list(SHAPE)
    assert result["values"] == [array[tuple(voxel)] for voxel in voxels]
    assert result["back"] == voxels
    np.testing.assert_allclose(result["affine"], affine, atol=1e-3)
