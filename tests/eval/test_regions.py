"""Regions: how they are told, what is scored, and that no run mistakes them for labels."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastsam3d.errors import ConfigError, DatasetError
from fastsam3d.eval.boxed import BoxedMask, components, union
from fastsam3d.eval.cases import EvalCase, load_cases, write_case_pack
from fastsam3d.eval.comparison import compare_runs
from fastsam3d.eval.evaluation import EvaluationOptions, Outcome, evaluate
from fastsam3d.eval.folders import find_cases, fingerprint
from fastsam3d.eval.groups import SeenGroups, read_groups
from fastsam3d.eval.outputs import export_run
from fastsam3d.eval.protocol import InteractionProtocol
from fastsam3d.eval.regions import (
    FIRST_UNION,
    LabelRegion,
    RegionTable,
    label_regions,
    read_regions,
)
from fastsam3d.eval.report import write_report
from fastsam3d.eval.results import read_rows
from fastsam3d.eval.results_table import render_results
from fastsam3d.prompts import Point
from fastsam3d.segmenter import Prediction
from fastsam3d.volume import Geometry, Region, Volume
from tests.eval.test_folders import write_case, write_challenge, write_nnunet
from tests.eval.toy import NothingSegmenter, ThresholdSegmenter, make_case

DOCS = Path(__file__).parent.parent.parent / "docs" / "evaluation"
ORGANS = RegionTable(rules={"a": {"organs": ("liver", "spleen"), "the liver": ("liver",)}})


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """One case of source a and one of b, with liver (1), spleen (4) and a nameless voxel (7)."""
    write_case_pack([make_case("a__1"), make_case("b__1", seed=1)], tmp_path / "cases.npz")
    return tmp_path / "cases.npz"


def run(
    pack: Path,
    output: str = "run",
    *,
    regions: RegionTable | None = ORGANS,
    segmenter: Callable[[], Any] = ThresholdSegmenter,
    groups: SeenGroups | None = None,
    **protocol: Any,
) -> Outcome:
    options = EvaluationOptions(
        cases=pack,
        model="toy",
        protocol=InteractionProtocol(**{"num_clicks": 2, **protocol}),
        regions=regions,
    )
    return evaluate(options, pack.with_name(output), segmenter=segmenter, groups=groups)


def with_regions(labels: np.ndarray, **values: list[int]) -> EvalCase:
    return EvalCase(
        name="c",
        source="s",
        volume=Volume(labels * 9, Geometry(labels.shape, np.eye(4))),
        labels=labels,
        regions=label_regions(values, of="c"),
    )


@pytest.mark.parametrize("seed", range(10))
def test_the_target_of_a_region_is_the_union_of_its_labels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(6, size=(9, 8, 7), p=[0.9, *5 * [0.02]]).astype(np.uint8)
    values = {
        str(number): rng.choice(np.arange(1, 8), rng.integers(1, 5), replace=False).tolist()
        for number in range(4)
    }
    values = {str(sorted(of)): of for of in values.values()}
    case = with_regions(labels, **values)
    smallest = int(rng.integers(1, 25))
    found = InteractionProtocol(min_voxels=smallest).targets(case)
    wanted = {name: np.isin(labels, of) for name, of in values.items()}
    assert {case.structure(target.label) for target in found} == {
        name for name, mask in wanted.items() if mask.sum() >= smallest
    }
    assert [target.label for target in found] == sorted({target.label for target in found})
    for target in found:
        np.testing.assert_array_equal(target.truth.whole(), wanted[case.structure(target.label)])


@pytest.mark.parametrize("seed", range(5))
def test_a_union_of_masks_has_the_tightest_box(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, whole = (9, 8, 7), Region((0, 0, 0), (9, 8, 7))
    arrays = [rng.random(shape) < share for share in (0.01, 0.003, 0.0)]
    found = union((BoxedMask.of(shape, whole, array) for array in arrays), shape)
    wanted = BoxedMask.of(shape, whole, np.any(arrays, axis=0))
    assert found.region == wanted.region
    np.testing.assert_array_equal(found.whole(), wanted.whole())
    assert union([], shape).region.is_empty


def test_the_parts_of_a_region_are_those_of_the_union() -> None:
    labels = np.zeros((12, 6, 6), np.uint8)
    labels[1:3, 1:5, 1:5], labels[3:5, 1:5, 1:5], labels[8:11, 1:4, 1:4] = 1, 2, 2
    case = with_regions(labels, both=[1, 2])
    found = InteractionProtocol(use_components=True, min_voxels=1).targets(case)
    assert [(t.label, t.component) for t in found] == [(FIRST_UNION, 1), (FIRST_UNION, 2)]
    whole = BoxedMask.of(labels.shape, Region((0, 0, 0), labels.shape), labels)
    for target, part in zip(found, components(whole, min_voxels=1), strict=True):
        np.testing.assert_array_equal(target.truth.whole(), part.whole())


def test_targets_are_limited_over_regions_as_over_labels() -> None:
    labels = np.repeat(np.arange(5, dtype=np.uint8), 64).reshape(20, 4, 4)
    case = with_regions(labels, a=[1, 2], b=[3], c=[1, 2, 3, 4], d=[2, 4])
    found = InteractionProtocol(max_targets=2).targets(case)
    assert [case.structure(target.label) for target in found] == ["b", "d"]


@pytest.mark.parametrize(
    ("labels", "regions"),
    [
        (
            {"background": 0, "whole": [1, 4], "spleen": 4, "ignore": 7},
            [("spleen", (4,), 4), ("whole", (1, 4), FIRST_UNION)],
        ),
        (
            {"background": [0], "core": [4, 1], "whole": [1, 4, 5], "liver": [1]},
            [("liver", (1,), 1), ("core", (1, 4), FIRST_UNION), ("whole", (1, 4, 5), 65537)],
        ),
        ({"background": 0, "liver": 1, "spleen": 4}, []),
    ],
)
def test_lists_of_an_nnunet_folder_are_regions(
    tmp_path: Path, labels: dict[str, Any], regions: list[tuple[str, tuple[int, ...], int]]
) -> None:
    write_nnunet(tmp_path, "Ts", "x")
    content = {"labels": labels, "regions_class_order": [1, 2]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    case = find_cases(tmp_path)[0].read()
    assert [(one.name, one.values, one.label) for one in case.regions] == regions
    found = {case.structure(t.label): t.truth for t in InteractionProtocol().targets(case)}
    if regions:
        assert found.keys() == {name for name, _, _ in regions}
        for name, values, _ in regions:
            np.testing.assert_array_equal(found[name].whole(), np.isin(case.labels, values))


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({"a": []}, "'a' .* has no label"),
        ({"a": [1, "2"]}, "list of whole numbers"),
        ({"a": [1, 4], "b": 2.5}, "list of whole numbers"),
        ({"a": [1, 4], "ignore": [7]}, "'ignore' is one number"),
        ({"a": [0, 4]}, "background"),
        ({"a": [1, 7], "ignore": 7}, "ignored"),
        ({"a": [1, 4], "b": [4, 1]}, "'a' and 'b' .* are both the values"),
    ],
)
def test_lists_that_are_no_regions_are_told(
    tmp_path: Path, labels: dict[str, Any], told: str
) -> None:
    write_nnunet(tmp_path, "Ts", "x")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0} | labels}))
    with pytest.raises(DatasetError, match=rf"dataset\.json.*{told}|{told}.*"):
        find_cases(tmp_path)


def write_table(path: Path, *rows: str, head: str = "source,region,labels,note") -> Path:
    path.write_text("\ufeff" + "\n".join([head, *rows]) + "\n", encoding="utf-8")
    return path


def test_a_table_names_labels_or_values(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "r.csv", "a, organs ,liver; spleen,x", "a,the liver,1 ;liver,", "*,rest,4;1,"
    )
    table = read_regions(path)
    assert table.rules["*"] == {"rest": ("4", "1")}
    write_case_pack([make_case("a__1"), make_case("b__1"), make_case("c__1")], tmp_path / "x.npz")
    first, second, _ = find_cases(tmp_path / "x.npz", regions=table)
    assert first.regions == (
        LabelRegion(name="the liver", values=(1,), label=1),
        LabelRegion(name="organs", values=(1, 4), label=FIRST_UNION),
    )
    assert [one.name for one in second.regions] == ["rest"]
    assert first.read().regions == first.regions
    assert pickle.loads(pickle.dumps(first)) == first  # noqa: S301 - our own


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "has no region"),
        (["a,organs,"], "line 2 must have .* labels"),
        (["a,organs, ; "], "line 2 must have .* labels"),
        (["a,,1"], "line 2 must have"),
        (["a,x,1", "a,x,4"], "line 3 has region 'x' of a again"),
    ],
)
def test_a_table_that_is_none_is_told_by_line(tmp_path: Path, rows: list[str], told: str) -> None:
    with pytest.raises(DatasetError, match=told):
        read_regions(write_table(tmp_path / "r.csv", *rows))
    with pytest.raises(DatasetError, match="Could not read"):
        read_regions(tmp_path / "absent.csv")
    with pytest.raises(DatasetError, match="must have source"):
        read_regions(write_table(tmp_path / "r.csv", "a,b,1", head="source,name,labels"))


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"a": {"x": ("liver", "kidney")}}, "'x' has label 'kidney', but a__1 has only 1=liver, 4"),
        ({"a": {"x": ("1", "5")}}, "'5', but a__1 has only"),
        ({"a": {"x": ("0", "1")}}, "background"),
        ({"a": {"x": ("1", "4"), "y": ("spleen", "liver")}}, "'x' and 'y' of a__1 are both"),
        ({"z": {"x": ("1",)}}, r"source z, the cases of a and b; name one of those, or \*"),
    ],
)
def test_a_table_that_does_not_fit_the_cases_is_told(
    pack: Path, rules: dict[str, dict[str, tuple[str, ...]]], told: str
) -> None:
    with pytest.raises(DatasetError, match=told):
        find_cases(pack, regions=RegionTable(rules=rules))


def test_cases_without_names_take_values_only(tmp_path: Path) -> None:
    write_case(tmp_path / "mine", "x")
    table = RegionTable(rules={"mine": {"all": ("1", "4", "9")}})
    (found,) = find_cases(tmp_path / "mine", regions=table)
    assert found.read().regions[0].values == (1, 4, 9)
    with pytest.raises(DatasetError, match="no names of labels"):
        find_cases(tmp_path / "mine", regions=RegionTable(rules={"*": {"x": ("liver",)}}))


def test_a_table_takes_the_place_of_the_lists_of_an_nnunet_folder(tmp_path: Path) -> None:
    write_nnunet(tmp_path, "Ts", "x")
    content = {"name": "Abdomen", "labels": {"background": 0, "both": [1, 4], "spleen": 4}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    table = RegionTable(rules={"Abdomen": {"liver": ("1",)}})
    assert [one.name for one in find_cases(tmp_path, regions=table)[0].regions] == ["liver"]


def test_challenge_files_and_packs_carry_regions(tmp_path: Path) -> None:
    write_challenge(tmp_path / "CT_Liver_01.npz")
    table = RegionTable(rules={"CT_Liver": {"both": ("1", "4")}})
    (case,) = (found.read() for found in find_cases(tmp_path, regions=table))
    assert case.regions[0].values == (1, 4)
    whole = replace(make_case("x__1"), regions=case.regions)
    write_case_pack([whole, make_case("x__2")], tmp_path / "pack" / "dev.npz")
    first, second = load_cases(tmp_path / "pack" / "dev.npz")
    assert (first.regions, second.regions) == (case.regions, ())
    found = find_cases(tmp_path / "pack" / "dev.npz")
    assert [one.read().regions for one in found] == [case.regions, ()]


def test_regions_take_the_place_of_labels_where_a_case_has_them(pack: Path) -> None:
    rows = run(pack, groups=SeenGroups(rules={("a", "organs"): ("seen", "unseen")})).rows
    last = [row for row in rows if row.round == 2]
    assert [(row.case, row.label, row.structure) for row in last] == [
        ("a__1", 1, "the liver"),
        ("a__1", FIRST_UNION, "organs"),
        ("b__1", 1, "liver"),
        ("b__1", 4, "spleen"),
    ]
    liver, organs, *others = last
    assert organs.truth_ml == pytest.approx(sum(row.truth_ml for row in others))
    assert (liver.dice, organs.dice < 1) == (1.0, True)
    assert read_rows(pack.with_name("run") / "results.jsonl") == rows


class Watched(ThresholdSegmenter):
    """Remembers everything that any of its kind was given."""

    seen: list[object] = []  # noqa: RUF012 - shared on purpose

    def set_volume(self, volume: Volume) -> None:
        self.seen.append(volume)
        super().set_volume(volume)

    def add_point(self, point: Point) -> Prediction:
        self.seen.append(point)
        return super().add_point(point)


def test_a_segmenter_is_told_of_no_region(pack: Path) -> None:
    Watched.seen.clear()
    run(pack, segmenter=Watched)
    assert {type(given) for given in Watched.seen} == {Volume, Point}


@pytest.mark.parametrize(
    "regions",
    [
        None,
        RegionTable(rules={"a": {"organs": ("liver", "spleen")}}),
        RegionTable(rules={"a": {"organs": ("spleen",), "the liver": ("liver",)}}),
        RegionTable(rules={**ORGANS.rules, "b": {"x": ("liver",)}}),
    ],
)
def test_a_resume_with_other_regions_is_refused(pack: Path, regions: RegionTable | None) -> None:
    before = run(pack)
    output = pack.with_name("run")
    content = json.loads((output / "run.json").read_text())
    assert content["options"]["regions"]["rules"]["a"]["organs"] == ["liver", "spleen"]
    assert run(pack).rows == before.rows
    with pytest.raises(ConfigError, match=r"option regions\.rules\."):
        run(pack, regions=regions)
    run(pack, "other", regions=regions)
    with pytest.raises(ConfigError, match=r"option regions\.rules\."):
        run(pack, "other")


def test_a_broken_run_on_regions_goes_on(pack: Path) -> None:
    whole = run(pack)
    output = pack.with_name("run")
    lines = (output / "results.jsonl").read_bytes().splitlines(keepends=True)
    (output / "results.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:20])
    (output / "cases.jsonl").unlink()
    again = run(pack)
    assert [(row.target, row.round, row.dice) for row in again.rows] == [
        (row.target, row.round, row.dice) for row in whole.rows
    ]


def test_a_run_made_before_there_were_regions_goes_on(pack: Path) -> None:
    before = run(pack, regions=None)
    path = pack.with_name("run") / "run.json"
    content = json.loads(path.read_text())
    del content["options"]["regions"]
    path.write_text(json.dumps(content))
    assert run(pack, regions=None).rows == before.rows


def test_the_hash_of_cases_follows_their_regions_and_is_as_before_without(pack: Path) -> None:
    plain, found = find_cases(pack), find_cases(pack, regions=ORGANS)
    assert fingerprint(plain) == fingerprint([replace(case, label_names={}) for case in plain])
    assert fingerprint(found) != fingerprint(plain)
    other = [replace(case, regions=case.regions[:1]) for case in found]
    assert len({fingerprint(cases) for cases in (plain, found, other)}) == 3


def test_the_challenge_protocol_refuses_regions_and_the_paper_plays_them(pack: Path) -> None:
    with pytest.raises(ConfigError, match="every voxel to one class, but a__1 has regions"):
        run(pack, name="cvpr25")
    assert not pack.with_name("run").exists()
    rows = run(pack, name="paper", num_clicks=1, segmenter=NothingSegmenter).rows
    assert [row.structure for row in rows] == ["the liver", "organs", "liver", "spleen"]


def test_runs_are_compared_by_regions_of_one_name_and_size(pack: Path) -> None:
    run(pack, "with")
    run(pack, "plain", regions=None)
    run(pack, "renamed", regions=RegionTable(rules={"a": {"both": ("liver", "spleen")}}))
    folder = pack.parent
    with pytest.raises(DatasetError, match="different cases; add --shared"):
        compare_runs(folder / "with", folder / "plain")
    # The liver by whatever name, and the case without regions.
    found = compare_runs(folder / "with", folder / "plain", shared=True)
    assert (found.num_targets, found.left_out) == (3, (1, 1))
    found = compare_runs(folder / "with", folder / "renamed", shared=True)
    assert (found.num_targets, found.left_out) == (2, (2, 1))
    assert compare_runs(folder / "with", folder / "with").num_targets == 4


def test_reports_and_tables_show_regions_by_name(pack: Path) -> None:
    rules = {("a", "organs"): ("unseen", "unseen"), ("a", "*"): ("seen", "seen")}
    summary = run(pack, groups=SeenGroups(rules=rules)).summary
    assert summary.by_structure["a"].keys() == {"the liver", "organs"}
    assert summary.groups["structure unseen"].num_targets == 1
    output = pack.with_name("run")
    assert "organs" in write_report(output).read_text()
    export_run(output, pack.with_name("run.json"))
    config = {
        "before": [],
        "columns": [["2", "dice@2"]],
        "runs": [{"file": "run.json", "name": "toy", "structures": True}],
        "after": [],
    }
    pack.with_name("results.json").write_text(json.dumps(config))
    assert "| a | organs | 1 |" in render_results(pack.with_name("results.json"))


def test_our_regions_are_those_of_brats_and_known_as_seen_or_not() -> None:
    parts = ("necrosis", "edema", "non-enhancing tumor", "enhancing tumor")
    case = replace(
        make_case("brats2015__x"), label_names=dict(enumerate(parts, start=1)), regions=()
    )
    table, groups = read_regions(DOCS / "dev-regions.csv"), read_groups(DOCS / "dev-groups.csv")
    found = table.of(case)  # type: ignore[arg-type] - asks for source and names only
    assert {one.name: one.values for one in found} == {
        "whole tumor": (1, 2, 3, 4),
        "tumor core": (1, 3, 4),
        "enhancing tumor": (4,),
    }
    for source, regions in table.rules.items():
        for region in regions:
            assert groups.of(source, region) == ("source unseen", "structure unseen")
