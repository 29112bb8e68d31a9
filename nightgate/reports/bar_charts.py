"""The pictures of a night's rows: F1 by slice, shares by label and slice, lengths of texts.

Pure, as `nightgate.reports.charts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nightgate.reports.chart_parts import WIDTH, above, beside, finite, left_of, named_rows
from nightgate.reports.pictures import (
    CANDIDATE,
    CHAMPION,
    HEAT,
    INK,
    MUTED,
    THRESHOLD,
    Picture,
    draw,
    printable,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BARS = 20
"""Bars of one picture; the table holds more."""


def score_bars(name: str, bars: Sequence[tuple[str, float | None, int]], overall: float | None) -> Picture:
    """F1 of each (value, F1, support), with a line where all test rows together stand."""
    shown = bars[:BARS]
    height = 0.75 + 0.27 * len(shown)

    def paint(figure: Figure) -> None:
        left = left_of([value for value, _, _ in shown])
        axes = figure.add_axes((left, 0.38 / height, 0.765 - left, (height - 0.75) / height))
        axes.set_title(f"F1 by {printable(name)}")
        for place, (_, f1, support) in enumerate(shown):
            axes.barh(place, f1 or 0.0, height=0.62, color=CANDIDATE, linewidth=0)
            beside(axes, place, "n/a" if f1 is None else f"{f1:.4f}", INK)
            beside(axes, place, f"{support:,} row{'' if support == 1 else 's'}", MUTED, at=122, ha="right")
        named_rows(axes, [value for value, _, _ in shown])
        axes.set_xlim(0, max([1e-3, *(finite([f1 for _, f1, _ in shown])), overall or 0.0]) * 1.03)
        if overall is not None and math.isfinite(overall):
            axes.axvline(overall, color=THRESHOLD, linewidth=1.3, dashes=(4, 3))
            above(axes, f"- -  all rows {overall:.4f}", THRESHOLD)
        axes.grid(axis="x")

    values = ", ".join(f"{value} {'n/a' if f1 is None else f'{f1:.4f}'}" for value, f1, _ in shown)
    return draw(f"slices-{name}", f"F1 by {name}: {values}", WIDTH, height, paint)


def share_bars(
    name: str, tonight: Mapping[str, int], before: Mapping[str, int] | None, *, order: Sequence[str]
) -> Picture:
    """Share of the rows that each value of `order` has, tonight and in the champion's snapshot."""
    shown = list(order)[:BARS]
    sides = [("tonight", tonight, CANDIDATE)] + ([("champion", before, CHAMPION)] if before is not None else [])
    step = 0.27 if len(sides) == 1 else 0.42
    height = 0.75 + step * len(shown)
    shares = [
        (word, [counts.get(value, 0) / max(1, sum(counts.values())) for value in shown], colour)
        for word, counts, colour in sides
        if counts is not None
    ]

    def paint(figure: Figure) -> None:
        left = left_of(shown)
        axes = figure.add_axes((left, 0.38 / height, 0.94 - left, (height - 0.75) / height))
        axes.set_title(f"Share of rows by {printable(name)}")
        thick = 0.68 / len(shares)
        for side, (_, values, colour) in enumerate(shares):
            offset = (side - (len(shares) - 1) / 2) * thick
            places = [place + offset for place in range(len(shown))]
            axes.barh(places, values, height=thick * 0.92, color=colour, linewidth=0)
            for place, value in zip(places, values, strict=True):
                axes.annotate(
                    f"{value:.1%}",
                    (value, place),
                    xytext=(5, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8 if len(shares) == 2 else 8.5,
                )
        named_rows(axes, shown)
        axes.set_xlim(0, max(max(values, default=0) for _, values, _ in shares) * 1.12 or 1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 2):g}%")
        axes.grid(axis="x")
        if len(shares) == 2:
            _key(axes)

    told = "; ".join(
        f"{word}: {', '.join(f'{value} {share:.1%}' for value, share in zip(shown, values, strict=True))}"
        for word, values, _ in shares
    )
    return draw(f"shares-{name}", f"Share of rows by {name}; {told}", WIDTH, height, paint)


def length_curves(edges: Sequence[int], tonight: Sequence[int], before: Sequence[int] | None) -> Picture:
    """Share of the rows whose text has from `edges[k]` to below `edges[k + 1]` characters. Edges grow like powers."""

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0.06, 0.17, 0.91, 0.67))
        axes.set_title("Share of rows by length of the text")
        used = [k for k in range(len(tonight)) if tonight[k] or (before is not None and before[k])]
        first, last = (used[0], used[-1]) if used else (0, len(tonight) - 1)
        steps = list(edges[first : last + 2])
        for counts, colour, filled in ((tonight, CANDIDATE, True), (before, CHAMPION, False)):
            if counts is None:
                continue
            shares = [count / max(1, sum(counts)) for count in counts[first : last + 1]]
            if filled:
                axes.stairs(shares, steps, fill=True, color=HEAT[2], linewidth=0)
            axes.stairs(shares, steps, color=colour, linewidth=1.8, linestyle="-" if filled else (0, (4, 2)))
        axes.set_xscale("log")
        axes.set_xlabel("characters")
        axes.set_xlim(steps[0], steps[-1])
        axes.set_ylim(bottom=0)
        _round_lengths(axes, steps[0], steps[-1])
        axes.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 2):g}%")
        axes.grid(axis="y")
        if before is not None:
            _key(axes)

    beside = " beside the champion's snapshot" if before is not None else ""
    return draw("lengths", f"Distribution of text lengths tonight{beside}", WIDTH, 2.5, paint)


def _key(axes: Axes) -> None:
    above(axes, "■ tonight", CANDIDATE, at=-126)
    above(axes, "■ champion's snapshot", CHAMPION)


def _round_lengths(axes: Axes, low: int, high: int) -> None:
    ticks = [step * 10**power for power in range(7) for step in (1, 2, 5) if low <= step * 10**power <= high]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
