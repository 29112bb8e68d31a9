"""The pictures of a verdict: the F1 of every side beside the threshold, and every difference beside what bounds it.

Pure, as `nightgate.reports.charts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nightgate.reports.chart_parts import WIDTH, beside, finite, fit, in_brackets, interval, left_of, named_rows
from nightgate.reports.pictures import CANDIDATE, CHAMPION, MUTED, THRESHOLD, Picture, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEP = 0.3
"""Inches from row to row."""
ABOVE, BELOW = 0.42, 0.38
"""Inches for a panel's title, and for the numbers under it."""
NUMBERS = 0.262
"""Share of the width that the numbers beside the rows take."""


@dataclass(frozen=True)
class Level:
    """An F1 with its interval."""

    name: str
    f1: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Gap:
    """The candidate's F1 minus that of another, on the same rows, with its interval."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    """What the check held it against: the interval's lower end, a golden set's or slice's loss; None: nothing."""
    failed: bool = False


def levels(shown: Sequence[Level], min_f1: float, *, decided_on: str) -> Picture:
    """The F1 of candidate (first), champion and others, with the threshold; `decided_on` is the title."""
    height = ABOVE + BELOW + STEP * len(shown)

    def paint(figure: Figure) -> None:
        names = [level.name for level in shown]
        axes = _panel(figure, names, top=0.0, height=height, left=left_of(names))
        axes.set_title(decided_on)
        for row, level in enumerate(shown):
            colour = CHAMPION if row else CANDIDATE
            interval(axes, row, level.f1, level.low, level.high, colour)
            beside(axes, row, f"{level.f1:.4f}{in_brackets(level.low, level.high)}", colour)
        axes.axvline(min_f1, color=THRESHOLD, linewidth=1.4, dashes=(4, 3), zorder=1)
        _key(axes, f"- -  min_f1 {min_f1:.4f}")
        fit(axes, finite([min_f1, *(value for one in shown for value in (one.f1, one.low, one.high))]), along="x")

    told = ", ".join(f"{one.name} {one.f1:.4f}{in_brackets(one.low, one.high)}" for one in shown)
    return draw("levels", f"{decided_on}: {told}; min_f1 {min_f1:.4f}", WIDTH, height, paint)


def differences(whole: Sequence[Gap], slices: Sequence[Gap] = ()) -> Picture:
    """A forest plot: differences on all rows, and below them, on a scale of their own, those of classes and slices."""
    panels = [(title, gaps) for title, gaps in ((_WHOLE, whole), (_SLICES, slices)) if gaps]
    heights = [ABOVE + BELOW + STEP * len(gaps) for _, gaps in panels]
    tall = sum(heights)

    def paint(figure: Figure) -> None:
        top, left = 0.0, left_of([gap.name for gap in (*whole, *slices)])
        for (title, gaps), height in zip(panels, heights, strict=True):
            axes = _panel(figure, [gap.name for gap in gaps], top=top, height=height, left=left)
            axes.set_title(title)
            _forest(axes, gaps)
            top += height

    told = ". ".join(f"{title}: {', '.join(map(_in_words, gaps))}" for title, gaps in panels)
    return draw("differences", told, WIDTH, tall, paint)


_WHOLE = "Candidate's F1 minus that of"
_SLICES = "Where it lost most"


def _forest(axes: Axes, gaps: Sequence[Gap]) -> None:
    axes.axvline(0, color=MUTED, linewidth=1.2, zorder=1)
    for row, gap in enumerate(gaps):
        colour = CHAMPION if gap.failed else CANDIDATE
        interval(axes, row, gap.value, gap.low, gap.high, colour)
        beside(axes, row, f"{gap.value:+.4f}{in_brackets(gap.low, gap.high, signed=True)}", colour)
        if gap.bound is not None:
            axes.plot([gap.bound] * 2, [row - 0.42, row + 0.42], color=THRESHOLD, linewidth=1.8, dashes=(2.2, 1.2))
    if any(gap.bound is not None for gap in gaps):
        _key(axes, "- -  bound of the check")
    fit(axes, finite([0, *(value for gap in gaps for value in (gap.value, gap.low, gap.high, gap.bound))]), along="x")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.3g}" if value else "0")


def _panel(figure: Figure, names: Sequence[str], *, top: float, height: float, left: float) -> Axes:
    """Axes with a named row for each, `top` inches below the upper edge; numbers find room at the right."""
    tall = figure.get_size_inches()[1]
    bottom = 1 - (top + height - BELOW) / tall
    axes = figure.add_axes((left, bottom, 1 - NUMBERS - left, (height - ABOVE - BELOW) / tall))
    named_rows(axes, names)
    axes.grid(axis="x")
    axes.locator_params(axis="x", nbins=6)
    return axes


def _key(axes: Axes, text: str) -> None:
    """What the dashes mean, over the numbers: the title takes what is over the axes."""
    beside(axes, -0.6, text, THRESHOLD, up=13)


def _in_words(gap: Gap) -> str:
    bound = "" if gap.bound is None else f", bound {gap.bound:+.4f}"
    return f"{gap.name} {gap.value:+.4f}{in_brackets(gap.low, gap.high, signed=True)}{bound}"
