"""What several pictures are put together from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
