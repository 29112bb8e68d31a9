"""What several pictures are put together from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nightgate.reports.pictures import INK, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME_LENGTH = 24
"""Characters of the name of a row."""
WIDTH = 7.8
"""Inches; all pictures but confusion matrices are as wide. The column of Prefect's UI has some 7 on a laptop."""


def beside(axes: Axes, row: float, text: str, colour: str, *, at: float = 10, up: float = 0, ha: str = "left") -> None:
    """A number in a column at the right of the bars, where no line crosses it."""
    axes.annotate(
        text,
        (1, row),
        xycoords=("axes fraction", "data"),
        xytext=(at, up),
        textcoords="offset points",
        color=colour,
        va="center",
        ha=ha,
        fontsize=8.5,
    )


def above(axes: Axes, text: str, colour: str, *, at: float = 0) -> None:
    """What a line or a colour means, above the right end of the axes, `at` points from there."""
    axes.annotate(
        text,
        (1, 1),
        xycoords="axes fraction",
        xytext=(at, 11),
        textcoords="offset points",
        color=colour,
        ha="right",
        fontsize=8.5,
    )


def finite(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def left_of(names: Sequence[str]) -> float:
    """Share of the width that the names of the rows take."""
    return (0.35 + 0.08 * max((len(shortened(name, NAME_LENGTH)) for name in names), default=0)) / WIDTH


def named_rows(axes: Axes, names: Sequence[str]) -> None:
    """A row for each name, from above."""
    axes.set_yticks(range(len(names)), [shortened(name, NAME_LENGTH) for name in names])
    axes.tick_params(axis="y", labelcolor=INK, labelsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)


def interval(axes: Axes, at: float, value: float, low: float | None, high: float | None, colour: str) -> None:
    """A point on its row, on a broad line from `low` to `high` where there are two."""
    if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
        axes.plot([low, high], [at, at], color=colour, linewidth=5, alpha=0.28, zorder=2)
    axes.plot([value], [at], "o", ms=8, color=colour, mew=0, zorder=3)


def fit(axes: Axes, values: Sequence[float], *, along: str = "y") -> None:
    """Limits a little beyond the values, also where they are all the same."""
    if not values:
        return
    low, high = min(values), max(values)
    pad = max(0.1 * (high - low), 0.005 * max(abs(low), abs(high)), 1e-4)
    (axes.set_ylim if along == "y" else axes.set_xlim)(low - pad, high + pad)


def in_brackets(low: float | None, high: float | None, *, signed: bool = False, words: str = "") -> str:
    """An interval behind its value; '' where there is none."""
    if low is None or high is None:
        return ""
    form = "+.4f" if signed else ".4f"
    return f" ({words}{low:{form}} to {high:{form}})"
