"""The report: what it shows, how overlays are chosen, that it asks nobody for anything."""

import re
from pathlib import Path

import numpy as np
import pytest

from fastsam3d.errors import DatasetError
from fastsam3d.eval.groups import SeenGroups
from fastsam3d.eval.protocol import InteractionProtocol
from fastsam3d.eval.report import last_rows, rank_targets, write_report
from fastsam3d.eval.report_plots import stacked_offsets
from tests.eval.outputs import save_toy_snapshot, write_output
from tests.eval.rows import curve

ROWS = [
    *curve("a__1", "liver & bile", 0.8, 0.95),
    *curve("a__2", "spleen", 0.6, 0.7),
    *curve("b__1", "tumour", 0.5, 0.4),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation with one snapshot, and its report."""
    path = write_output(
        tmp_path_factory.mktemp("report") / "run",
        ROWS,
        groups=SeenGroups(rules={("a", "*"): ("seen", "seen")}),
    )
    save_toy_snapshot(path, ROWS[-1])
    (path / "cases.jsonl").write_text('{"case": "c__9", "skipped": "no truth"}\n')
    write_report(path)
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text()


def test_the_page_and_its_pictures_appear_whole(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}

    assert {"report.html", "curves.png", "distribution.png", "montage.png"} <= names
    assert not [name for name in names if name.endswith(".part")]
    assert (folder / "montage.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_makes_no_request(page: str) -> None:
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)

    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)
    assert "<script" not in page


def test_the_page_has_two_themes_and_its_drawings_follow_them(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == 2
    drawn = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert all("var(--accent)" in svg and "var(--ink)" in svg for svg in drawn)
    assert "#040404" not in page


def test_ids_of_the_page_are_used_once_and_references_meet_them(page: str) -> None:
    ids = re.findall(r'\bid="([^"]*)"', page)
    references = re.findall(r'(?:href="|url\()#([^")]*)', page)

    assert len(ids) == len(set(ids))
    assert references
    assert set(references) <= set(ids)


def test_figures_facts_and_failures_are_on_the_page(page: str) -> None:
    text = re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)

    # Mean over sources of .825 and .4.
    assert '<b>0.61</b><span class="faint small">Dice@2</span>' in text
    assert "source not listed" in text
    assert "All 1 targets with Dice below .5" in text
    assert "c0ffee" in text
    assert "c__9" in text
    assert "surface-distance" in text


def test_words_from_outside_are_escaped(page: str) -> None:
    assert "liver &amp; bile" in page
    assert "a &lt;CPU&gt;" in page
    assert "<CPU>" not in page


def test_an_overlay_without_a_snapshot_says_so(page: str) -> None:
    assert page.count("data:image/png;base64,") == 1
    assert page.count("no snapshot was kept") == 2


def test_upper_bounds_are_marked_wherever_they_are_printed(folder: Path, page: str) -> None:
    paper = InteractionProtocol(name="paper", num_clicks=2)
    other = write_output(folder.parent / "paper", ROWS, protocol=paper)
    marked = write_report(other).read_text()

    assert marked.count("oracle upper bound</span>") == 6
    assert "no user gets these figures" in marked
    assert "upper bound" not in page
    # The pictures carry the mark too, so that they differ from those of the same rows without it.
    for name in ("curves.png", "distribution.png"):
        assert (other / name).read_bytes() != (folder / name).read_bytes()


def test_overlays_are_chosen_by_rank_alone() -> None:
    rows = [row for n in range(20) for row in curve(f"a__{n:02}", "x", 0.0, ((n * 7) % 20) / 20)]
    ranked = rank_targets(last_rows(rows))

    assert [row.dice for row in ranked["worst"]] == [0.0, 0.05, 0.1]
    assert [row.dice for row in ranked["best"]] == [0.95, 0.9, 0.85]
    assert [row.dice for row in ranked["median"]] == [0.4, 0.45, 0.5]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_few_targets_are_shown_once(count: int) -> None:
    rows = [row for n in range(count) for row in curve(f"a__{n}", "x", n / 10)]
    shown = [row.target for chosen in rank_targets(rows).values() for row in chosen]

    assert sorted(shown) == [row.target for row in rows]


def test_equal_values_do_not_hide_each_other() -> None:
    offsets = stacked_offsets([0.5] * 30 + [0.9])

    assert len(np.unique(offsets[:30])) == 30
    assert np.abs(offsets).max() <= 0.41
    assert offsets[30] == 0


def test_an_unfinished_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"run\.json"):
        write_report(tmp_path)
