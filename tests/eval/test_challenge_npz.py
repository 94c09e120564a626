import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastsam3d.errors import DatasetError
from fastsam3d.eval.challenge_npz import MAX_MEMBERS, read_npz
from fastsam3d.eval.challenge_records import MAX_DEPTH, MAX_NODES


def write(path: Path, **members: Any) -> Path:
    np.savez_compressed(path, **members)
    return path


def objects(*items: Any) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def read(path: Path, **options: Any) -> dict[str, Any]:
    return read_npz(path, arrays=("imgs",), records=("boxes",), **options)


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i4", "float32", "bool"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_numbers_come_back_in_any_order_of_bytes_and_axes(
    tmp_path: Path, dtype: str, order: str
) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 5, dtype=dtype, order=order)
    found = read(write(tmp_path / "a.npz", imgs=array, other=np.ones(3)))
    assert list(found) == ["imgs"]
    np.testing.assert_array_equal(found["imgs"], array)
    assert found["imgs"].dtype.isnative


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_records_come_back_as_numpy_pickles_them(tmp_path: Path, protocol: int) -> None:
    records = [
        {"z_min": np.int64(27), "z_max": 396, "flag": True, "none": None},
        {"fg": [[np.int32(-1), np.uint8(2), 3.5]], "bg": [], "place": np.array([1, 2, 3])},
    ]
    path = tmp_path / "a.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|O", "fortran_order": False, "shape": (2,)}
    )
    content = header.getvalue() + pickle.dumps(objects(*records), protocol=protocol)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("boxes.npy", content)
    if protocol in {2, 5}:
        # No version of numpy writes these; they use instructions that are not needed.
        with pytest.raises(DatasetError, match=r"a\.npz"):
            read(path)
        return
    assert read(path)["boxes"] == [
        {"z_min": 27, "z_max": 396, "flag": True, "none": None},
        {"fg": [[-1, 2, 3.5]], "bg": [], "place": [1, 2, 3]},
    ]


@pytest.mark.parametrize(
    "value", [[["fg", "bg"], ["bg", "fg"]], [[], []], [[1, 2], [3, 4]], objects(["fg"], [])]
)
def test_lists_come_back_however_numpy_stores_them(tmp_path: Path, value: Any) -> None:
    found = read(write(tmp_path / "a.npz", boxes=value))
    assert found["boxes"] == [list(item) for item in value]


class Trap:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_nothing_of_a_file_is_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    path = write(tmp_path / "a.npz", imgs=objects(Trap(trap)), boxes=objects(Trap(trap)))
    with pytest.raises(DatasetError, match=r"imgs\.npy of type object"):
        read_npz(path, arrays=("imgs",))
    with pytest.raises(DatasetError, match="asks for"):
        read_npz(path, arrays=(), records=("boxes",))
    assert not trap.exists()


def member(descr: str, shape: tuple[int, ...], payload: bytes, *, version: int = 1) -> bytes:
    header = io.BytesIO()
    write_header = getattr(np.lib.format, f"write_array_header_{version}_0")
    write_header(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue() + payload


def write_member(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


def test_the_budget_is_checked_before_anything_is_decompressed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", imgs=np.zeros(10**6, np.uint8))
    assert path.stat().st_size < 2000
    with pytest.raises(DatasetError, match="more than the budget of 1000"):
        read(path, max_bytes=1000)
    # A member that is not wanted costs nothing.
    assert read_npz(path, arrays=("gts",), max_bytes=1000) == {}


def test_a_bomb_that_lies_about_its_size_is_told(tmp_path: Path) -> None:
    path = write_member(tmp_path / "a.npz", "imgs.npy", member("|u1", (10**6,), bytes(10**6)))
    content = path.read_bytes()
    true_size = struct.pack("<I", len(member("|u1", (10**6,), bytes(10**6))))
    path.write_bytes(content.replace(true_size, struct.pack("<I", 200)))
    with pytest.raises(DatasetError, match=r"a\.npz"):
        read(path, max_bytes=10_000)


@pytest.mark.parametrize(
    ("descr", "shape", "payload"),
    [
        ("|u1", (10**15,), b"12"),
        ("|u1", (2**40, 2**40), b""),
        ("|u1", (3,), b"12"),
        ("|u1", (1,), b"12"),
        ("|u1", (1, 1, 1, 1, 1), b"1"),
        ("<U9", (1,), b"\0" * 36),
        ("<M8[s]", (1,), b"\0" * 8),
        ([("a", "<i4")], (1,), b"\0" * 4),
        ("|V8", (1,), b"\0" * 8),
        ("|O", (1,), pickle.dumps(objects(1))),
    ],
)
def test_arrays_that_are_no_numbers_or_not_as_large_as_they_say_are_refused(
    tmp_path: Path, descr: Any, shape: tuple[int, ...], payload: bytes
) -> None:
    path = write_member(tmp_path / "a.npz", "imgs.npy", member(descr, shape, payload))
    with pytest.raises(DatasetError, match=r"a\.npz"):
        read(path)


def test_negative_shapes_and_strange_headers_are_refused(tmp_path: Path) -> None:
    good = member("|u1", (10,), bytes(10))
    for bad in (
        good.replace(b"(10,)", b"(-1,)"),
        good.replace(b"'|u1'", b"open()"),
        good[:9],
        b"\x93NUMPY\x03\x00" + good[8:],
        b"not numpy at all",
        b"",
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + good[10:],
    ):
        with pytest.raises(DatasetError, match=r"a\.npz"):
            read(write_member(tmp_path / "a.npz", "imgs.npy", bad))
    assert read(write_member(tmp_path / "a.npz", "imgs.npy", member("|u1", (2,), b"ab", version=2)))


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def laughing(levels: int) -> list[Any]:
    value: list[Any] = [1] * 10
    for _ in range(levels):
        value = [value] * 10
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        nested(MAX_DEPTH + 2),
        laughing(6),
        endless(),
        [0] * (MAX_NODES + 1),
        {1: 2},
        {"a": b"bytes"},
        {"a": {1, 2}},
        {"a": 1j},
        {"a": np.str_("x")},
        {"a": np.datetime64("2020-01-01")},
        bytearray(b"x"),
        range(3),
        len,
        Trap,
    ],
)
def test_records_of_anything_else_or_without_end_are_refused(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path / "a.npz", boxes=objects(value))
    with pytest.raises(DatasetError, match=r"a\.npz (has|asks)"):
        read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"\x80\x04.",
        b"\x80\x04K\x01",
        b"\x80\x04K\x01K\x02.",
        b"\x80\x04h\x07.",
        b"\x80\x04)R.",
        b"\x80\x04]K\x01s.",
        b"\x80\x04e.",
        b"\x80\x04\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04]r\xff\xff\xff\x7f.",
        b"cposix\nsystem\n(S'true'\ntR.",
        b"cnumpy\ndtype\n.",
        b"cnumpy\ndtype\n)R.",
        b"cnumpy.core.multiarray\nscalar\n)R.",
        b"cnumpy.core.multiarray\n_reconstruct\n)RK\x01b.",
        b"cnumpy.core.multiarray\n_reconstruct\n)R)b.",
        b"Pid.",
        b"\x80\x04\x82\x01.",
    ],
)
def test_damaged_records_are_told(tmp_path: Path, content: bytes) -> None:
    path = write_member(tmp_path / "a.npz", "boxes.npy", member("|O", (1,), content))
    if content == b"\x80\x04]r\xff\xff\xff\x7f.":
        # A far place in the memo is harmless here; an unpickler would reserve gigabytes.
        assert read(path)["boxes"] == []
        return
    with pytest.raises(DatasetError, match=r"a\.npz (has|asks)"):
        read(path)


def test_a_large_record_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", boxes=objects("x" * 5_000_000))
    with pytest.raises(DatasetError, match=r"boxes\.npy of \d+ bytes"):
        read(path)
    path = write_member(tmp_path / "a.npz", "boxes.npy", member("<f8", (10**9, 0), b""))
    with pytest.raises(DatasetError, match="shape"):
        read(path)


def test_archives_that_are_none_or_strange_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(DatasetError, match="does not exist"):
        read(path)
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DatasetError, match="damaged"):
        read(path)
    write(path, **{f"a{n}": 1 for n in range(MAX_MEMBERS + 1)})
    with pytest.raises(DatasetError, match="members"):
        read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("imgs.npy", member("|u1", (1,), b"1"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("imgs.npy", member("|u1", (1,), b"2"))
    with pytest.raises(DatasetError, match="twice"):
        read(path)
    whole = write(path, imgs=np.random.default_rng(0).integers(0, 255, 5000)).read_bytes()
    for place in (200, 1000, len(whole) // 2):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"a\.npz"):
            read(path)
