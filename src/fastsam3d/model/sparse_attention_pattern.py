"""Which tokens of a 3-D grid attend to each other: patterns as frozen configs, no torch.

A pattern is a list of branches. A branch cuts the grid into boxes (segments) and, within a box,
into classes of tokens whose coordinates agree modulo the dilation on every axis; the tokens of one
class form a *group* and attend to each other. Every token belongs to exactly one group of every
branch, so nothing is left out and no head needs an offset of its own. Branches are mixed as one
softmax, see `fastsam3d.model.sparse_attention`.

Source: LongNet (arXiv 2307.02486) mixes (segment, dilation) pairs along a sequence; here segments
have three axes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from fastsam3d.errors import ConfigError

Grid = tuple[int, int, int]
_T = TypeVar("_T")

DEFAULT_PAIRS = ((4, 1), (8, 2), (16, 4))
_GRAMMAR = (
    "write dense, axial, window:SIDE, dilated, or dilated:SIDE/DILATION,... as in "
    "dilated:4/1,8/2,16/4 (SIDE 0 is the whole grid)"
)


@dataclass(frozen=True, kw_only=True)
class AxisTiling:
    """How one axis of `size` tokens is cut: token ``segment * n + dilation * u + r - shift``.

    Attributes:
        size: Tokens along the axis.
        segment: Side of a segment, a multiple of `dilation`.
        dilation: Distance of neighbouring tokens of a group.
        shift: Tokens by which the first segment starts before the grid.
    """

    size: int
    segment: int
    dilation: int
    shift: int

    @property
    def num_segments(self) -> int:
        """Segments along the axis, the last one possibly ragged."""
        return -(-(self.size + self.shift) // self.segment)

    @property
    def extent(self) -> int:
        """Positions of a group along the axis, those beyond the grid included."""
        return self.segment // self.dilation

    @property
    def padding(self) -> tuple[int, int]:
        """Positions before and after the grid that complete the segments."""
        return self.shift, self.num_segments * self.segment - self.shift - self.size

    @property
    def reach(self) -> int:
        """Largest distance, in tokens, of two tokens of one group."""
        return min((self.extent - 1) * self.dilation, self.size - 1)


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """A branch on one grid: the cut of its three axes."""

    axes: tuple[AxisTiling, AxisTiling, AxisTiling]

    @property
    def grid(self) -> Grid:
        """Tokens per axis."""
        return triple(axis.size for axis in self.axes)

    @property
    def num_groups(self) -> int:
        """Groups on the grid, empty ones of ragged edges included."""
        d, h, w = (axis.num_segments * axis.dilation for axis in self.axes)
        return d * h * w

    @property
    def group_size(self) -> int:
        """Positions of a group, those beyond the grid included."""
        d, h, w = (axis.extent for axis in self.axes)
        return d * h * w

    @property
    def is_padded(self) -> bool:
        """Whether some group has positions beyond the grid."""
        return any(axis.padding != (0, 0) for axis in self.axes)


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One partition of the grid into groups that attend within themselves.

    Attributes:
        segment: Side of a segment per axis, in tokens; 0 stands for the whole axis.
        dilation: Distance of a group's neighbouring tokens per axis; divides `segment`.
        shift: Tokens by which segments start before the grid, per axis; below `segment`.
    """

    segment: Grid
    dilation: Grid = (1, 1, 1)
    shift: Grid = (0, 0, 0)

    def __post_init__(self) -> None:
        for side, step, shift in zip(self.segment, self.dilation, self.shift, strict=True):
            if side < 0 or step < 1 or side % step or not 0 <= shift < max(side, 1):
                msg = (
                    "A branch needs sides >= 0 that are multiples of dilations >= 1, and shifts "
                    f"from 0 to below the side, got {self!r}; correct the axis that breaks this."
                )
                raise ConfigError(msg)

    def fit(self, grid: Grid) -> Tiling:
        """Cut a grid: segments larger than the grid shrink to the least that covers it."""
        return Tiling(axes=triple(self._fit_axis(axis, size) for axis, size in enumerate(grid)))

    def _fit_axis(self, axis: int, size: int) -> AxisTiling:
        side, step, shift = self.segment[axis], self.dilation[axis], self.shift[axis]
        if side == 0 or side >= size + shift:
            # One segment holds the axis: where it starts only renames the residue classes, and
            # more classes than tokens would be empty.
            step, shift = min(step, size), 0
            side = -(-size // step) * step
        return AxisTiling(size=size, segment=side, dilation=step, shift=shift)


@dataclass(frozen=True, kw_only=True)
class SparsePattern:
    """Branches whose groups attend; keys that several branches share count once per branch.

    Attributes:
        branches: At least one partition of the grid.
    """

    branches: tuple[Branch, ...]

    def __post_init__(self) -> None:
        if not self.branches:
            msg = "A pattern needs at least one branch, got none; use SparsePattern.dense()."
            raise ConfigError(msg)

    @classmethod
    def dense(cls) -> SparsePattern:
        """Every token attends to every token."""
        return cls(branches=(Branch(segment=(0, 0, 0)),))

    @classmethod
    def dilated(cls, pairs: tuple[tuple[int, int], ...] = DEFAULT_PAIRS) -> SparsePattern:
        """Mix cubic segments of growing side and dilation, (side, dilation) each."""
        return cls(
            branches=tuple(
                Branch(segment=_cube(side), dilation=_cube(step)) for side, step in pairs
            )
        )

    @classmethod
    def window(cls, side: int, *, shift: int = 0) -> SparsePattern:
        """Cubic windows that do not overlap."""
        return cls(branches=(Branch(segment=_cube(side), shift=_cube(shift)),))

    @classmethod
    def axial(cls) -> SparsePattern:
        """Each token attends along the three lines through it; itself counts three times."""
        lines: tuple[Grid, ...] = ((0, 1, 1), (1, 0, 1), (1, 1, 0))
        return cls(branches=tuple(Branch(segment=line) for line in lines))

    @classmethod
    def parse(cls, text: str) -> SparsePattern:
        """Read a pattern as configs and command lines write it.

        Args:
            text: ``dense``, ``axial``, ``window:SIDE``, ``dilated`` or
                ``dilated:SIDE/DILATION,...``; side 0 is the whole grid.

        Raises:
            ConfigError: The text is none of these, or its numbers are impossible.
        """
        kind, _, rest = text.partition(":")
        try:
            if kind == "dilated" and rest:
                sides = (pair.split("/") for pair in rest.split(","))
                return cls.dilated(tuple((int(side), int(step)) for side, step in sides))
            if kind == "window":
                return cls.window(int(rest))
            simple = {"dense": cls.dense, "axial": cls.axial, "dilated": cls.dilated}
            return simple[text]()
        except (ValueError, KeyError):
            msg = f"Attention pattern {text!r} cannot be read; {_GRAMMAR}."
            raise ConfigError(msg) from None

    def shifted(self) -> SparsePattern:
        """Return the pattern with every segment moved by half its side.

        Nested segments share their borders, and no information crosses a border that all branches
        share. Layers that alternate between a pattern and its shifted form have no such wall.
        """
        moved = tuple(
            replace(branch, shift=triple(side // 2 for side in branch.segment))
            for branch in self.branches
        )
        return SparsePattern(branches=moved)

    def fit(self, grid: Grid) -> tuple[Tiling, ...]:
        """Cut a grid once per branch."""
        return tuple(branch.fit(grid) for branch in self.branches)


def _cube(side: int) -> Grid:
    return side, side, side


def triple(items: Iterable[_T]) -> tuple[_T, _T, _T]:
    """Return exactly three items as a tuple, one per axis."""
    first, second, third = items
    return first, second, third
