import numpy as np

from fastsam3d.data.supervoxels import SupervoxelConfig, foreground_mask, supervoxels

ONE_MM = (1.0, 1.0, 1.0)


def _ball(shape: tuple[int, int, int], centre: tuple[int, int, int], radius: float) -> np.ndarray:
    grid = np.indices(shape)
    squared = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True))
    return squared <= radius**2


def test_a_bright_organ_in_a_noisy_body_is_found_whole() -> None:
    rng = np.random.default_rng(0)
    organ = _ball((28, 28, 28), (12, 14, 14), 6)
    image = (100 + 60 * organ + rng.normal(0, 4, organ.shape)).astype(np.float32)
    everywhere = np.ones(organ.shape, dtype=bool)
    config = SupervoxelConfig(sigma=1.2, min_share=0.01, max_share=0.3)
    ids, contrast = supervoxels(image, everywhere, ONE_MM, config)
    assert len(contrast) == ids.max() >= 1
    best = max(
        2 * (organ & (ids == i)).sum() / (organ.sum() + (ids == i).sum())
        for i in range(1, ids.max() + 1)
    )
    assert best > 0.85


def test_regions_stay_inside_the_foreground_and_the_size_limits() -> None:
    rng = np.random.default_rng(1)
    image = rng.normal(0, 1, (20, 20, 20)).astype(np.float32)
    body = np.zeros(image.shape, dtype=bool)
    body[4:16, 4:16, 4:16] = True
    config = SupervoxelConfig(sigma=1.0, min_share=0.0, max_share=0.2, min_voxels=20)
    ids, contrast = supervoxels(image, body, ONE_MM, config)
    assert not ids[~body].any()
    sizes = np.bincount(ids.ravel())[1:]
    assert (sizes >= 20).all()
    assert (sizes <= 0.2 * body.sum()).all()
    assert (contrast > 1.0).all()


def test_a_flat_image_has_no_regions() -> None:
    image = np.full((8, 8, 8), 5.0, dtype=np.float32)
    config = SupervoxelConfig(sigma=1.0, min_share=0.0, max_share=0.5)
    ids, contrast = supervoxels(image, np.ones(image.shape, dtype=bool), ONE_MM, config)
    assert not ids.any()
    assert len(contrast) == 0


def test_foreground_holds_the_body_with_its_lungs_and_not_the_air() -> None:
    image = np.full((24, 24, 24), -1000.0, dtype=np.float32)
    image[4:20, 4:20, 4:20] = 40.0
    image[8:12, 8:12, 8:12] = -800.0
    mask = foreground_mask(image, threshold=-500.0)
    assert mask[10, 10, 10]
    assert mask[5, 5, 5]
    assert not mask[1, 1, 1]
