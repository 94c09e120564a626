"""The picture of what volumes cost: one panel a question, also of records of before sessions."""

import json
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from benchmarks.volume_cost import plot

TIMES = {"cpu_ms": 3.0, "first_cpu_ms": 9.0, "later_cpu_ms": 3.0}
OLD = {
    "threads": 1,
    "device": "a processor",
    "config": {"model": "hr_s"},
    "sizes": [{"shape": [64, 64, 64], **TIMES}, {"shape": [512, 512, 600], **TIMES}],
    "clicks": [{"clicks": 1, **TIMES}],
    "objects": [{"objects": 1, **TIMES}],
}
SHARED = {"answers": 10, "mismatches": 1, **TIMES}
NEW = {**OLD, "sessions": [{"sessions": 1, **SHARED}, {"sessions": 16, **SHARED}]}


@pytest.mark.parametrize(
    ("record", "titles"),
    [
        (OLD, ["Size of the volume", "Clicks", "Objects"]),
        (NEW, ["Size of the volume", "Clicks", "Objects", "Sessions"]),
    ],
)
def test_records_with_and_without_sessions_are_drawn(
    record: dict[str, object], titles: list[str], tmp_path: Path
) -> None:
    path, picture = tmp_path / "record.json", tmp_path / "picture.png"
    path.write_text(json.dumps(record))
    plot(path, picture)
    axes = plt.gcf().axes
    plt.close()
    assert [ax.get_title() for ax in axes] == titles
    notes = [text.get_text() for text in axes[-1].texts]
    assert notes == (["2 of 20 answers differ\nfrom the same session alone"] * (record is NEW))
    assert picture.stat().st_size > 1000


def test_a_record_of_something_else_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"sizes": []}))
    with pytest.raises(SystemExit, match="has no clicks, objects; give a file that"):
        plot(path, tmp_path / "picture.png")
