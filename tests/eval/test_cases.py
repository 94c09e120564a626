from pathlib import Path

import numpy as np
import pytest

from fastsam3d.errors import DatasetError
from fastsam3d.eval.cases import (
    EvalCase,
    load_cases,
    parse_label_names,
    write_case_pack,
)
from fastsam3d.volume import Volume
from tests.eval.toy import make_case


def test_a_pack_gives_back_every_voxel_the_geometry_and_the_names(tmp_path: Path) -> None:
    cases = [make_case("clinic__a"), make_case("other__b", seed=1)]
    write_case_pack(cases, tmp_path / "dev.npz")
    for before, after in zip(cases, load_cases(tmp_path / "dev.npz"), strict=True):
        assert (after.name, after.source, after.licence) == (before.name, before.source, "CC0")
        np.testing.assert_array_equal(after.volume.array, before.volume.array)
        assert after.volume.array.dtype == before.volume.array.dtype
        assert after.volume.geometry == before.volume.geometry
        np.testing.assert_array_equal(after.labels, before.labels)
        assert after.label_names == before.label_names


def test_whole_floats_keep_their_type_and_fractions_are_refused(tmp_path: Path) -> None:
    case = make_case()
    whole = Volume(case.volume.array.astype(np.float32), case.volume.geometry)
    write_case_pack([_with_volume(case, whole)], tmp_path / "a.npz")
    assert load_cases(tmp_path / "a.npz")[0].volume.array.dtype == np.float32
    fraction = Volume(whole.array + np.float32(0.5), whole.geometry)
    with pytest.raises(DatasetError, match="fractional"):
        write_case_pack([_with_volume(case, fraction)], tmp_path / "b.npz")


def _with_volume(case: EvalCase, volume: Volume) -> EvalCase:
    return EvalCase(
        name=case.name,
        source=case.source,
        volume=volume,
        labels=case.labels,
        label_names=case.label_names,
    )


def test_missing_or_foreign_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="missing"):
        load_cases(tmp_path / "dev.npz")
    write_case_pack([make_case()], tmp_path / "dev.npz")
    write_case_pack([make_case(seed=5)], tmp_path / "b.npz")
    (tmp_path / "dev.npz").write_bytes((tmp_path / "b.npz").read_bytes())
    with pytest.raises(DatasetError, match="belong"):
        load_cases(tmp_path / "dev.npz")


def test_truth_on_another_grid_is_refused() -> None:
    case = make_case()
    with pytest.raises(DatasetError, match="one grid"):
        EvalCase(
            name="a",
            source="a",
            volume=case.volume,
            labels=case.labels[:-1],
            label_names={},
        )


def test_label_names_ignore_remarks() -> None:
    assert parse_label_names("1=liver; 2=left kidney; values 3,4") == {1: "liver", 2: "left kidney"}
