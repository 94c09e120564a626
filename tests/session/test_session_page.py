"""The pages about sessions do what they say: their blocks run in their order."""

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name of its documentation

from fastsam3d import Session, read_mask
from fastsam3d.io import write_volume
from fastsam3d.session import Predictor, ScalePolicy
from fastsam3d.volume import Geometry, Volume
from tests.session.phantoms import BrightModel

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGES = [
    "session.md",
    "how-to/points-and-boxes.md",
    "how-to/scribbles-and-lassos.md",
    "how-to/objects-and-locks.md",
    "how-to/time-series.md",
    "how-to/large-objects.md",
    "how-to/suggest-everything.md",
    "how-to/files.md",
]
# The structures that the pages point at: centre and radius, voxels of 1 mm.
BALLS = [((24, 24, 30), 8.0), ((44, 44, 30), 4.0), ((44, 20, 30), 4.0)]


def phantom(balls: list, shape: tuple[int, int, int] = (60, 60, 60)) -> Volume:
    geometry = Geometry(shape, np.eye(4))
    index = np.moveaxis(np.indices(geometry.shape), 0, -1)
    distance = np.min([np.linalg.norm(index - at, axis=-1) - r for at, r in balls], axis=0)
    return Volume((1000 / (1 + np.exp(distance / 0.5))).astype(np.int16), geometry)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a page, with the files that it opens and a model that is fast."""
    monkeypatch.chdir(tmp_path)
    policy = ScalePolicy(spacings_mm=(1.5,), max_refinements=0)
    monkeypatch.setattr(
        Session,
        "from_pretrained",
        lambda *_, **__: Session(Predictor(BrightModel()), policy=policy),
    )
    write_volume(phantom(BALLS), "ct.nii.gz")
    moving = [phantom([((x, 24, 24), 8.0)], (48, 48, 48)) for x in (20, 22, 24)]
    frames = [sitk.GetImageFromArray(volume.array.T.copy()) for volume in moving]
    for frame in frames:  # 4-D files keep LPS; the pages say RAS.
        frame.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(sitk.JoinSeries(frames), "cine.nii.gz")
    write_volume(moving[2], "late.nii.gz")
    return tmp_path


def run_page(page: str) -> dict:
    """Run the blocks of a page in their order and return its names."""
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == text.count("```python") >= 1
    names: dict = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page}, block {number}", "exec"), names)  # noqa: S102 - ours
    return names


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs(page: str, folder: Path) -> None:
    assert run_page(page)
    assert (folder / "ct.nii.gz").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_exists(page: str) -> None:
    path = DOCS / page
    for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).is_file(), target


def test_objects_end_as_the_page_says(folder: Path) -> None:
    names = run_page("how-to/objects-and-locks.md")
    study, liver, spots = names["study"], names["liver"], names["spots"]
    assert study.mask(liver).array[24, 24, 30] == 1
    assert study.mask(spots).array[44, 44, 30] == 1
    assert study.mask(spots).array[44, 20, 30] == 0
    assert [item.name for item in study.objects] == ["spots", "liver", "second spot"]
    assert {file.name for file in folder.glob("*.study")} == set()


def test_an_object_goes_through_time_as_the_page_says(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run_page("how-to/time-series.md")
    assert names["changed"] == (1, 2)
    assert "2 2" in capsys.readouterr().out
    assert len(list(folder.glob("time*.study"))) == 3
    assert names["study"].mask(names["found"]).array[24, 24, 24] == 1


def test_suggestions_hold_the_structures(folder: Path) -> None:
    names = run_page("how-to/suggest-everything.md")
    assert folder.is_dir()
    for centre, _ in BALLS:
        assert any(one.mask.holds(centre) for one in names["suggestions"])


def test_files_are_written_as_the_page_says(folder: Path) -> None:
    names = run_page("how-to/files.md")
    labels = read_mask("labels.nii.gz").array
    np.testing.assert_array_equal(labels, names["study"].label_map().array)
    assert {file.name for file in folder.iterdir()} == {
        "ct.nii.gz", "cine.nii.gz", "late.nii.gz", "ct.study", "backup.study", "ct.seg.nrrd",
        "labels.nii.gz", "labels.labels.json", "liver.nii.gz",
    }  # fmt: skip
