"""`fastsam3d segment` from words to files, with a stand-in for the engine."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its usual name
from PIL import Image

from fastsam3d.cli.main import main
from fastsam3d.errors import PromptError, VolumeWriteError
from fastsam3d.io import read_mask, write_mask
from fastsam3d.prompts import PromptSet
from fastsam3d.session import Session
from fastsam3d.volume import Geometry, Mask, Volume

SHAPE = (20, 24, 28)
AFFINE = np.diag([2.0, 2.0, 2.5, 1.0])


@dataclass(frozen=True)
class FakeResult:
    volume: Volume
    mask: Mask
    predicted_quality: float = 0.875
    spacing_mm: float = 1.5
    encode_ms: float = 900.0
    click_ms: float = 80.0
    warnings: tuple[str, ...] = ()

    @property
    def region_mask(self) -> np.ndarray:
        return self.mask.array


@dataclass
class FakeSession:
    """Answers every request with a cube around the first point."""

    warnings: tuple[str, ...] = ()
    error: Exception | None = None
    asked: list[PromptSet] = field(default_factory=list)
    loaded: list[tuple[str, str, str]] = field(default_factory=list)
    volume: Volume | None = None
    mirrors: int = 1
    disk_cache: Path | None = None

    def from_pretrained(
        self, name: str, *, device: str, engine: str, mirrors: int, disk_cache: Path | None
    ) -> "FakeSession":
        self.loaded.append((name, device, engine))
        self.mirrors, self.disk_cache = mirrors, disk_cache
        return self

    def set_volume(self, volume: Volume) -> None:
        self.volume = volume

    def predict(self, prompts: PromptSet) -> FakeResult:
        assert self.volume is not None
        self.asked.append(prompts)
        if self.error is not None:
            raise self.error
        array = np.zeros(SHAPE, dtype=np.uint8)
        array[8:12, 8:12, 8:13] = 1
        return FakeResult(self.volume, self.volume.new_mask(array), warnings=self.warnings)


@pytest.fixture(autouse=True)
def session(monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    fake = FakeSession()
    monkeypatch.setattr(Session, "from_pretrained", fake.from_pretrained)
    return fake


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii.gz"
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 251
    write_mask(Mask(values.astype(np.uint8), Geometry(SHAPE, AFFINE)), path)
    return path


def run(scan: Path, *words: str) -> int:
    return main(["segment", str(scan), *words])


def test_a_point_gives_a_mask_on_the_grid_of_the_file(
    session: FakeSession, scan: Path, tmp_path: Path
) -> None:
    mask_path = tmp_path / "mask.nii.gz"

    assert run(scan, "--point", "10,10,10", "-o", str(mask_path)) == 0
    mask = read_mask(mask_path)
    assert mask.geometry == Geometry(SHAPE, AFFINE)
    assert mask.array.sum() == 80
    assert session.loaded == [("hr_s", "auto", "auto")]


def test_all_prompts_arrive_in_one_request(
    session: FakeSession, scan: Path, tmp_path: Path
) -> None:
    words = [
        "--point",
        "10,10,10",
        "--point",
        "9,9,9",
        "--negative",
        "1,1,1",
        "--box",
        "5,5,5,15,15,15",
    ]

    assert (
        run(scan, *words, "--model", "hr_b", "--device", "cpu", "-o", str(tmp_path / "m.nrrd")) == 0
    )
    (asked,) = session.asked
    assert [point.positive for point in asked.points] == [True, True, False]
    assert len(asked.boxes) == 1
    assert session.loaded == [("hr_b", "cpu", "auto")]


def test_embeddings_are_kept_only_where_asked_to(
    session: FakeSession, scan: Path, tmp_path: Path
) -> None:
    words = ["--point", "10,10,10", "--force", "-o", str(tmp_path / "m.nii.gz")]
    assert run(scan, *words) == 0
    assert session.disk_cache is None
    assert run(scan, *words, "--cache", str(tmp_path / "kept")) == 0
    assert session.disk_cache == tmp_path / "kept"
    assert session.mirrors == 1
    assert run(scan, *words, "--mirrors", "4") == 0
    assert session.mirrors == 4


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_4d_file_asks_for_a_time_point_and_takes_it(
    suffix: str, session: FakeSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [sitk.GetImageFromArray(np.full(SHAPE[::-1], n, np.int16)) for n in range(3)]
    cine = tmp_path / f"cine{suffix}"
    sitk.WriteImage(sitk.JoinSeries(frames), cine)
    mask_path = tmp_path / f"mask{suffix}"
    words = ["--point", "10,10,10", "-o", str(mask_path)]

    assert run(cine, *words) == 1
    assert "choose a time point" in capsys.readouterr().err
    assert not mask_path.exists()
    assert run(cine, *words, "--time", "2") == 0
    assert session.volume is not None
    assert np.unique(session.volume.array).tolist() == [2]
    assert read_mask(mask_path).array.shape == SHAPE


def test_negative_millimetres_are_no_options(
    session: FakeSession, scan: Path, tmp_path: Path
) -> None:
    words = ["--space", "world", "--frame", "LPS", "--point", "-20,-20,25"]

    assert run(scan, *words, "-o", str(tmp_path / "m.nii.gz")) == 0
    (point,) = session.asked[0].to_voxel(Geometry(SHAPE, AFFINE)).points
    assert np.allclose(point.position, (10, 10, 10))


def test_json_is_one_object_on_stdout(
    session: FakeSession, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session.warnings = ("The mask touches the edge of the scan.",)
    mask_path, preview = tmp_path / "mask.nii.gz", tmp_path / "look.png"
    words = ["--point", "10,10,10", "-o", str(mask_path), "--preview", str(preview), "--json"]

    assert run(scan, *words) == 0
    assert json.loads(capsys.readouterr().out) == {
        "image": str(scan),
        "mask": str(mask_path),
        "preview": str(preview),
        "model": "hr_s",
        "voxels": 80,
        "volume_ml": 0.8,
        "voxel_spacing_mm": [2.0, 2.0, 2.5],
        "roi_spacing_mm": 1.5,
        "predicted_quality": 0.875,
        "encode_ms": 900.0,
        "click_ms": 80.0,
        "warnings": ["The mask touches the edge of the scan."],
    }


def test_people_get_a_few_lines_with_the_warnings(
    session: FakeSession, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session.warnings = ("The mask touches the edge of the scan.",)
    run(scan, "--point", "10,10,10", "-o", str(tmp_path / "mask.nii.gz"))

    shown = capsys.readouterr().out
    assert "0.8 ml, 80 voxels" in shown
    assert "Warning: The mask touches the edge of the scan." in shown


def test_the_preview_is_a_picture(scan: Path, tmp_path: Path) -> None:
    preview = tmp_path / "look.png"
    run(scan, "--point", "10,10,10", "-o", str(tmp_path / "m.nii.gz"), "--preview", str(preview))

    with Image.open(preview) as picture:
        assert picture.format == "PNG"
        assert picture.width > 2 * picture.height


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--point 1,2 -o m.nii.gz", "--point needs 3 numbers"),
        ("-o m.nii.gz", "Nothing to segment"),
        ("--point 1,2,3", "output"),
        ("--point 1,2,3 -o m.nii.gz --space mm", "mm"),
        ("--point 1,2,3 -o m.nii.gz --preview look.jpg", "--preview writes a .png file"),
        ("--point 1,2,3 -o m.nii.gz --nonsense", "nonsense"),
    ],
)
def test_wrong_usage_ends_with_2_and_writes_nothing(
    words: str,
    message: str,
    session: FakeSession,
    scan: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(scan.parent)
    before = files_of(scan.parent)

    assert run(scan, *words.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert session.asked == []
    assert files_of(scan.parent) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--point 1,2,3 -o old.nii.gz", "old.nii.gz exists; choose another name or add --force"),
        ("--point 1,2,3 -o m.nii.gz --preview old.png", "old.png exists"),
        ("--point 1,2,3 -o scan.nii.gz --force", "is the image itself"),
        ("--point 1,2,3 -o nowhere/m.nii.gz", "its folder does not exist"),
        ("--point 1,2,3 -o m.jpg", "Cannot write 'm.jpg'"),
        ("--point 1,2,3 -o m.nii.gz --preview nowhere/p.png", "Folder nowhere does not exist"),
    ],
)
def test_an_output_that_cannot_be_written_ends_with_1(
    words: str,
    message: str,
    scan: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(scan.parent)
    Path("old.nii.gz").write_bytes(b"precious")
    Path("old.png").write_bytes(b"precious")
    before = files_of(scan.parent)

    assert run(scan, *words.split()) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert files_of(scan.parent) == before


def test_force_replaces_files(scan: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.nii.gz"
    old.write_bytes(b"worthless")

    assert run(scan, "--point", "10,10,10", "-o", str(old), "--force") == 0
    assert read_mask(old).array.sum() == 80


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\n not a volume"])
def test_an_unreadable_image_ends_with_1_and_one_sentence(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "scan.nii.gz"
    if content is not None:
        image.write_bytes(content)
    before = files_of(tmp_path)

    assert run(image, "--point", "1,1,1", "-o", str(tmp_path / "m.nii.gz"), "--json") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Error: ")
    assert len(captured.err.splitlines()) == 1
    assert files_of(tmp_path) == before


def test_an_engine_error_ends_with_1_and_writes_nothing(
    session: FakeSession, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session.error = PromptError("Point (99, 1, 1) is outside of the volume of shape (20, 24, 28).")
    before = files_of(tmp_path)
    words = [
        "--point",
        "99,1,1",
        "-o",
        str(tmp_path / "m.nii.gz"),
        "--preview",
        str(tmp_path / "p.png"),
    ]

    assert run(scan, *words) == 1
    assert capsys.readouterr().err == f"Error: {session.error}\n"
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("broken", ["cli.preview.render_preview", "io.write_mask"])
def test_a_step_that_fails_leaves_neither_mask_nor_preview(
    broken: str, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise VolumeWriteError("No room today.")

    monkeypatch.setattr(f"fastsam3d.{broken}", refuse)
    before = files_of(tmp_path)
    outputs = ["-o", str(tmp_path / "m.nii.gz"), "--preview", str(tmp_path / "p.png")]

    assert run(scan, "--point", "1,1,1", *outputs) == 1
    assert files_of(tmp_path) == before
