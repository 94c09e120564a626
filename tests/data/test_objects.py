import numpy as np

from fastsam3d.data.objects import component_ids, deep_seeds, object_table

SPACING = (1.0, 1.0, 3.0)


def _two_kidneys_and_a_liver() -> np.ndarray:
    labels = np.zeros((24, 20, 12), dtype=np.uint8)
    labels[2:8, 2:8, 2:8] = 7
    labels[14:20, 2:8, 2:8] = 7
    labels[4:20, 12:18, 2:10] = 3
    labels[22, 18, 10] = 7
    return labels


def test_each_component_gets_an_id_and_specks_join_the_largest() -> None:
    labels = _two_kidneys_and_a_liver()
    ids, values = component_ids(labels)
    assert ids.dtype == np.uint8
    assert sorted(values) == [3, 7, 7]
    np.testing.assert_array_equal(np.array([0, *values])[ids], labels)
    assert len(np.unique(ids[labels == 7])) == 2


def test_a_label_of_specks_only_is_kept() -> None:
    labels = np.zeros((10, 10, 10), dtype=np.uint8)
    labels[1, 1, 1] = labels[8, 8, 8] = 4
    ids, values = component_ids(labels)
    assert values == [4]
    assert ids[1, 1, 1] == ids[8, 8, 8] == 1


def test_corner_contact_joins_components() -> None:
    labels = np.zeros((12, 12, 12), dtype=np.uint8)
    labels[1:6, 1:6, 1:6] = 1
    labels[6:11, 6:11, 6:11] = 1
    assert component_ids(labels)[1] == [1]


def test_more_than_255_labels_need_wider_ids() -> None:
    labels = np.arange(300, dtype=np.uint16).reshape(10, 10, 3)
    ids, values = component_ids(labels)
    assert ids.dtype == np.uint16
    assert values == list(range(1, 300))


def test_table_measures_boxes_in_mm_and_draws_inside() -> None:
    ids, values = component_ids(_two_kidneys_and_a_liver())
    table = object_table(ids, SPACING, num_seeds=16, seed=1)
    liver = values.index(3)
    assert table.voxels[liver] == 16 * 6 * 8
    np.testing.assert_allclose(table.extent_mm[liver], [16, 6, 24])
    for row, value in enumerate(table.ids):
        assert (ids[tuple(table.seeds[row].T)] == value).all()
    again = object_table(ids, SPACING, num_seeds=16, seed=1)
    np.testing.assert_array_equal(again.seeds, table.seeds)


def test_an_empty_map_has_an_empty_table() -> None:
    table = object_table(np.zeros((4, 4, 4), dtype=np.uint8), SPACING, num_seeds=3)
    assert len(table) == 0
    assert table.seeds.shape == (0, 3, 3)


def test_deep_seeds_start_at_the_centre_and_spread() -> None:
    ids = np.zeros((30, 9, 9), dtype=np.uint8)
    ids[1:28, 1:8, 1:8] = 1
    table = object_table(ids, (1.0, 1.0, 1.0), num_seeds=1)
    seeds = deep_seeds(ids, table, (1.0, 1.0, 1.0), 4)[0]
    assert tuple(seeds[0][1:]) == (4, 4)
    assert (ids[tuple(seeds.T)] == 1).all()
    assert np.ptp(seeds[:, 0]) >= 6
