"""Sparse attention: equal to its reference on any grid, local, linear in memory, selectable."""

from __future__ import annotations

import itertools
import random
from math import prod

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastsam3d.errors import ConfigError
from fastsam3d.model.sparse_attention import RelativeBias, sparse_attention
from fastsam3d.model.sparse_attention_groups import from_groups, to_groups
from fastsam3d.model.sparse_attention_pattern import Branch, Grid, SparsePattern, triple

CHUNK = 20


def random_grid(rng: random.Random) -> Grid:
    return triple(rng.randint(1, 7) for _ in range(3))


def random_pattern(rng: random.Random) -> SparsePattern:
    kinds = (
        SparsePattern.dense,
        SparsePattern.axial,
        SparsePattern.dilated,
        lambda: SparsePattern.dilated().shifted(),
        lambda: SparsePattern.window(rng.randint(1, 5)),
        lambda: SparsePattern.dilated(((2, 1), (6, rng.choice((1, 2, 3))), (0, rng.randint(1, 4)))),
        lambda: SparsePattern(branches=tuple(random_branch(rng) for _ in range(rng.randint(1, 3)))),
    )
    return rng.choice(kinds)()


def random_branch(rng: random.Random) -> Branch:
    step = triple(rng.randint(1, 3) for _ in range(3))
    side = triple(s * rng.randint(0, 3) for s in step)
    return Branch(segment=side, dilation=step, shift=triple(rng.randrange(max(s, 1)) for s in side))


def random_inputs(shape: tuple[int, ...], count: int = 3) -> list[Tensor]:
    return [torch.randn(shape, requires_grad=True) for _ in range(count)]


def random_bias(heads: int, grid: Grid) -> RelativeBias:
    tables = (torch.randn(heads, 2 * size + 1, requires_grad=True) for size in grid)
    return RelativeBias(*tables)


def same_group(branch: Branch, grid: Grid, a: Grid, b: Grid) -> bool:
    """Say from coordinates alone whether two tokens share a group of a branch."""
    for axis, size in enumerate(grid):
        side = branch.segment[axis] or size
        first, second = a[axis] + branch.shift[axis], b[axis] + branch.shift[axis]
        if first // side != second // side or (first - second) % branch.dilation[axis]:
            return False
    return True


@pytest.mark.parametrize("chunk", range(200 // CHUNK))
def test_fast_path_and_its_gradients_equal_the_reference(chunk: int) -> None:
    rng = random.Random(chunk)  # noqa: S311 - tests, not secrets
    torch.manual_seed(chunk)
    for _ in range(CHUNK):
        grid, pattern, heads = random_grid(rng), random_pattern(rng), rng.randint(1, 2)
        shape = (rng.randint(1, 2), heads, prod(grid), rng.choice((1, 3, 8, 16)))
        bias = random_bias(heads, grid) if rng.random() < 0.5 else None
        q, k, v = random_inputs(shape)
        leaves, weight = [q, k, v, *(bias or ())], torch.randn(shape)
        expected = sparse_attention(
            q, k, v, grid=grid, pattern=pattern, bias=bias, path="reference"
        )
        actual = sparse_attention(q, k, v, grid=grid, pattern=pattern, bias=bias, path="sdpa")
        case = f"{grid} {pattern}"
        assert actual.isfinite().all(), case
        assert (actual - expected).abs().max() < 1e-5, case
        wanted = torch.autograd.grad(expected, leaves, weight)
        for found, gradient in zip(
            torch.autograd.grad(actual, leaves, weight), wanted, strict=True
        ):
            assert (found - gradient).abs().max() < 1e-4, case


@pytest.mark.parametrize(
    "pattern", [SparsePattern.dilated(((2, 1), (4, 2))), SparsePattern.axial()]
)
def test_mixing_branches_by_their_normalisers_is_one_softmax(pattern: SparsePattern) -> None:
    grid: Grid = (3, 4, 5)
    q, k, v = (x.detach() for x in random_inputs((1, 2, 60, 8)))
    outs, normalisers = [], []
    for branch in pattern.branches:
        tokens = list(itertools.product(*map(range, grid)))
        allowed = torch.tensor([[same_group(branch, grid, a, b) for b in tokens] for a in tokens])
        scores = (q @ k.transpose(-1, -2) * 8**-0.5).exp() * allowed
        outs.append(scores @ v / scores.sum(-1, keepdim=True))
        normalisers.append(scores.sum(-1, keepdim=True))
    expected = sum(o * n for o, n in zip(outs, normalisers, strict=True)) / sum(normalisers)
    for path in ("reference", "sdpa"):
        actual = sparse_attention(q, k, v, grid=grid, pattern=pattern, path=path)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", ["reference", "sdpa", "auto"])
def test_dense_pattern_is_ordinary_attention(path: str) -> None:
    q, k, v = random_inputs((2, 2, 24, 8))
    actual = sparse_attention(q, k, v, grid=(2, 3, 4), pattern=SparsePattern.dense(), path=path)
    expected = functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "pattern",
    [
        SparsePattern.dilated(((2, 1), (4, 2))),
        SparsePattern.dilated(((2, 1), (4, 2))).shifted(),
        SparsePattern.axial(),
        SparsePattern.window(3),
    ],
)
def test_a_token_is_moved_by_the_tokens_of_its_groups_and_by_no_other(
    pattern: SparsePattern,
) -> None:
    grid: Grid = (5, 4, 6)
    tokens = list(itertools.product(*map(range, grid)))
    q, k, v = random_inputs((1, 1, len(tokens), 4))
    out = sparse_attention(q, k, v, grid=grid, pattern=pattern, path="sdpa")
    for number in (0, 37, 63, 119):
        reached = {
            b for b, there in enumerate(tokens)
            if any(same_group(x, grid, tokens[number], there) for x in pattern.branches)
        }  # fmt: skip
        gradients = torch.autograd.grad(out[0, 0, number].sum(), (k, v), retain_graph=True)
        touched = sum(gradient[0, 0].abs().sum(-1) for gradient in gradients).nonzero().flatten()
        assert set(touched.tolist()) == reached
        assert number in reached


def test_tokens_keep_their_places() -> None:
    grid: Grid = (5, 6, 7)
    codes = 40 * torch.eye(210)[None, None]
    places = torch.cartesian_prod(*map(torch.arange, grid)).float()[None, None]
    values = functional.pad(places, (0, 207))
    out = sparse_attention(codes, codes, values, grid=grid, pattern=SparsePattern.dilated())
    torch.testing.assert_close(out, values)


@pytest.mark.parametrize("grid", [(1, 1, 1), (4, 4, 4), (3, 5, 9)])
@pytest.mark.parametrize("shift", [0, 2])
def test_regrouping_brings_every_token_back(grid: Grid, shift: int) -> None:
    branch = Branch(segment=(4, 4, 8), dilation=(1, 2, 4), shift=(shift,) * 3)
    x = torch.randn(2, 3, prod(grid), 5)
    tiling = branch.fit(grid)
    grouped = to_groups(x, tiling)
    assert grouped.shape == (2 * tiling.num_groups, 3, tiling.group_size, 5)
    assert torch.equal(from_groups(grouped, tiling, 2), x)


def test_saved_memory_is_linear_in_tokens() -> None:
    def saved_bytes(side: int) -> int:
        sizes: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        q, k, v = random_inputs((1, 1, side**3, 4))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            sparse_attention(q, k, v, grid=(side,) * 3, pattern=SparsePattern.dilated())
        return sum(sizes.values())

    assert saved_bytes(16) == 8 * saved_bytes(8)


@pytest.mark.parametrize("with_bias", [False, True])
def test_half_precision_errs_no_more_than_dense_attention_does(with_bias: bool) -> None:
    torch.manual_seed(0)
    grid: Grid = (6, 7, 8)
    rounded = [torch.randn(1, 2, 336, 16).bfloat16() for _ in range(3)]
    exact = [x.float() for x in rounded]
    bias = random_bias(2, grid) if with_bias else None

    def error(pattern: SparsePattern, bias: RelativeBias | None) -> float:
        low = sparse_attention(*rounded, grid=grid, pattern=pattern, bias=bias).float()
        high = sparse_attention(*exact, grid=grid, pattern=pattern, bias=bias)
        assert low.isfinite().all()
        return float((low - high).detach().norm() / high.detach().norm())

    assert error(SparsePattern.dilated(), bias) < 1.5 * error(SparsePattern.dense(), None)


def test_large_scores_stay_finite() -> None:
    q, k, v = random_inputs((1, 1, 60, 4))
    out = sparse_attention(300 * q, 300 * k, v, grid=(3, 4, 5), pattern=SparsePattern.dilated())
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    assert all(x.isfinite().all() for x in (out, *gradients))


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("dense", SparsePattern.dense()),
        ("axial", SparsePattern.axial()),
        ("window:8", SparsePattern.window(8)),
        ("dilated", SparsePattern.dilated(((4, 1), (8, 2), (16, 4)))),
        ("dilated:8/1,0/4", SparsePattern.dilated(((8, 1), (0, 4)))),
    ],
)
def test_patterns_are_written_as_text(text: str, pattern: SparsePattern) -> None:
    assert SparsePattern.parse(text) == pattern


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparse", "cannot be read; write dense, axial"),
        ("window", "cannot be read"),
        ("dilated:4", "cannot be read"),
        ("dilated:4/3", "multiples of dilations"),
        ("window:-1", "sides >= 0"),
    ],
)
def test_impossible_patterns_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SparsePattern.parse(text)


def test_calls_that_do_not_fit_are_refused() -> None:
    q, k, v = random_inputs((1, 2, 24, 4))
    pattern = SparsePattern.dense()
    with pytest.raises(ConfigError, match="flatten the grid"):
        sparse_attention(q, k, v, grid=(3, 3, 3), pattern=pattern)
    with pytest.raises(ConfigError, match="path must be one of"):
        sparse_attention(q, k, v, grid=(2, 3, 4), pattern=pattern, path="quick")
    short = RelativeBias(*(torch.zeros(2, 5) for _ in range(3)))
    with pytest.raises(ConfigError, match="odd number of offsets reaching 3 both ways, got 5"):
        sparse_attention(q, k, v, grid=(2, 3, 4), pattern=pattern, bias=short)
