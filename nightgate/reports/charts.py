"""The charts of a report: curves of training, scores beside thresholds, differences beside zero, shares of rows.

Numbers in, `Picture` out. Words beside the lines replace legends, and `alt` says what is shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nightgate.plain_text import printable
from nightgate.reports.pictures import (
    CANDIDATE,
    CHAMPION,
    FAINT,
    GROUND,
    INK,
    MUTED,
    THRESHOLD,
    TRAINING,
    Picture,
    draw,
    label_ends,
    note,
)
from nightgate.reports.training_diagnosis import EpochFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.8
"""Inches of every picture but confusion matrices. The column of Prefect's UI has some 7 on a laptop."""
ABOVE, BELOW = 0.42, 0.38
"""Inches for the title above rows, and for the numbers below them."""
ROW = 0.3
NAME_LENGTH = 24
"""Characters of the name of a row."""
LEFT, RIGHT = 0.28, 0.738
"""Where the axes of rows begin and end, as shares of the width: names to the left, numbers to the right."""
BARS = 20
"""Bars of one picture."""
DASHES, DOTS = (0, (5, 2.2)), (0, (1.4, 2.8))


@dataclass(frozen=True)
class Level:
    """An F1 with its interval."""

    name: str
    f1: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Gap:
    """The candidate's F1 minus that of another model on the same rows, with its interval."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    """What the check compared it with: an interval's lower end, or the loss on golden rows or a slice."""
    failed: bool = False


@dataclass(frozen=True)
class Distance:
    """One statistic of drift, against the champion's training rows or those of last week."""

    name: str
    value: float
    threshold: float
    against_champion: bool


def curves(
    epochs: Sequence[EpochFacts],
    *,
    best_epoch: int | None = None,
    min_f1: float | None = None,
    champion_f1: float | None = None,
) -> Picture:
    """Loss and validation F1 over the epochs. Numbers that were not finite are gaps."""
    seen = sorted(epochs, key=lambda epoch: epoch.epoch)
    at = [epoch.epoch for epoch in seen]
    training, validation = [epoch.training_loss for epoch in seen], [epoch.validation_loss for epoch in seen]
    scores = [epoch.f1 for epoch in seen]
    best = next((epoch.f1 for epoch in seen if epoch.epoch == best_epoch and finite([epoch.f1])), None)

    def paint(figure: Figure) -> None:
        losses = _panel(figure, 0.06, "Loss")
        _line(losses, at, training, TRAINING, linestyle=DASHES)
        _line(losses, at, validation, CANDIDATE)
        fit(losses, finite([*training, *validation]))
        ends = [(value, f"training {value:.4f}", TRAINING) for value in finite(training)[-1:]]
        label_ends(losses, ends + [(value, f"validation {value:.4f}", CANDIDATE) for value in finite(validation)[-1:]])

        f1 = _panel(figure, 0.56, "F1 on validation")
        _line(f1, at, scores, CANDIDATE)
        ends = []
        for name, level, colour, dashes in (
            ("min_f1", min_f1, THRESHOLD, DASHES),
            ("champion", champion_f1, CHAMPION, DOTS),
        ):
            for value in finite([level]):
                f1.axhline(value, color=colour, linewidth=1.4, linestyle=dashes, zorder=1)
                ends.append((value, f"{name} {value:.4f}", colour))
        if best is not None and best_epoch is not None:
            f1.plot([best_epoch], [best], "o", ms=9, mfc=GROUND, mec=CANDIDATE, mew=2.2, zorder=4)
            ends.append((best, f"epoch {best_epoch}: {best:.4f}", CANDIDATE))
        fit(f1, [*finite(scores), *(end[0] for end in ends)])
        label_ends(f1, ends)
        for axes in (losses, f1):
            if best_epoch is not None:
                axes.axvline(best_epoch, color=FAINT, linewidth=1.2, zorder=0)
            _whole_numbers(axes, at)

    alt = [f"Loss and validation F1 of {len(seen)} epoch{'' if len(seen) == 1 else 's'}"]
    for name, values in (("training loss", training), ("validation loss", validation), ("F1", scores)):
        if known := finite(values):
            alt.append(f"{name} from {known[0]:.4f} to {known[-1]:.4f}")
    alt += [f"best epoch {best_epoch}"] if best_epoch is not None else []
    alt += [f"min_f1 {min_f1:.4f}"] if min_f1 is not None else []
    alt += [f"champion {champion_f1:.4f}"] if champion_f1 is not None else []
    return draw("curves", ", ".join(alt), WIDTH, 3.0, paint)


def levels(shown: Sequence[Level], min_f1: float | None, *, title: str) -> Picture:
    """The F1 of the candidate (first), the champion and others, beside the threshold."""
    height = _height(len(shown))

    def paint(figure: Figure) -> None:
        axes = _rows(figure, title, [level.name for level in shown], height=height)
        for row, level in enumerate(shown):
            colour = CHAMPION if row else CANDIDATE
            _interval(axes, row, level.f1, level.low, level.high, colour)
            note(axes, f"{level.f1:.4f}{_in_brackets(level.low, level.high)}", (1, row), colour)
        for value in finite([min_f1]):
            axes.axvline(value, color=THRESHOLD, linewidth=1.4, linestyle=DASHES, zorder=1)
            _key(axes, f"- -  min_f1 {value:.4f}")
        fit(axes, finite([min_f1, *(value for one in shown for value in (one.f1, one.low, one.high))]), along="x")

    alt = ", ".join(f"{one.name} {one.f1:.4f}{_in_brackets(one.low, one.high)}" for one in shown)
    alt += "" if min_f1 is None else f"; min_f1 {min_f1:.4f}"
    return draw("levels", f"{title}: {alt}", WIDTH, height, paint)


def differences(whole: Sequence[Gap], slices: Sequence[Gap] = ()) -> Picture:
    """A forest plot: differences on all rows, and below them, on a scale of their own, those of classes and slices."""
    titled = (("Candidate's F1 minus that of", whole), ("Where it lost most", slices))
    panels = [(title, gaps, _height(len(gaps))) for title, gaps in titled if gaps]
    tall = sum(height for _, _, height in panels)

    def paint(figure: Figure) -> None:
        top = 0.0
        for title, gaps, height in panels:
            _forest(_rows(figure, title, [gap.name for gap in gaps], height=height, top=top), gaps)
            top += height

    alt = ". ".join(f"{title}: {', '.join(map(_in_words, gaps))}" for title, gaps, _ in panels)
    return draw("differences", alt, WIDTH, tall, paint)


def score_bars(name: str, bars: Sequence[tuple[str, float | None, int]], overall: float | None) -> Picture:
    """F1 of each (value, F1, support), beside that of all test rows."""
    shown = bars[:BARS]
    height = _height(len(shown))

    def paint(figure: Figure) -> None:
        axes = _rows(figure, f"F1 by {name}", [value for value, _, _ in shown], height=height)
        for row, (_, f1, support) in enumerate(shown):
            axes.barh(row, f1 or 0.0, height=0.62, color=CANDIDATE, linewidth=0)
            note(axes, "n/a" if f1 is None else f"{f1:.4f}", (1, row))
            _right(axes, row, f"{support:,} row{'' if support == 1 else 's'}")
        axes.set_xlim(0, max([1e-3, *finite([overall, *(f1 for _, f1, _ in shown)])]) * 1.03)
        for value in finite([overall]):
            axes.axvline(value, color=THRESHOLD, linewidth=1.3, linestyle=DASHES)
            _key(axes, f"- -  all rows {value:.4f}")

    values = ", ".join(f"{value} {'n/a' if f1 is None else f'{f1:.4f}'}" for value, f1, _ in shown)
    return draw(f"slices-{name}", f"F1 by {name}: {values}", WIDTH, height, paint)


def share_bars(
    name: str, tonight: Mapping[str, int], before: Mapping[str, int] | None, *, order: Sequence[str]
) -> Picture:
    """Share of the rows that each value of `order` has, tonight and in the champion's snapshot."""
    shown = list(order)[:BARS]
    now = _shares(tonight, shown)
    then = None if before is None else _shares(before, shown)
    sides = [(now, CANDIDATE)] + ([] if then is None else [(then, CHAMPION)])
    height = _height(len(shown), ROW if then is None else 0.42)

    def paint(figure: Figure) -> None:
        axes = _rows(figure, f"Share of rows by {name}", shown, height=height)
        thick = 0.68 / len(sides)
        for row, value in enumerate(shown):
            for side, (shares, colour) in enumerate(sides):
                place = row + (side - (len(sides) - 1) / 2) * thick
                axes.barh(place, shares[row], height=thick * 0.92, color=colour, linewidth=0)
                note(axes, f"{shares[row]:.1%}", (shares[row], place), coords="data", xytext=(5, 0), fontsize=8)
            if then is not None:
                note(axes, f"{100 * (now[row] - then[row]):+.1f} points", (1, row))
            _right(axes, row, f"{tonight.get(value, 0):,} row{'' if tonight.get(value) == 1 else 's'}")
        axes.set_xlim(0, max([*now, *(then or [])], default=0) * 1.12 or 1)
        axes.xaxis.set_major_formatter(_percents)
        if then is not None:
            _two_sides(axes)

    alt = "; ".join(
        f"{side}: {', '.join(f'{value} {share:.1%}' for value, share in zip(shown, shares, strict=True))}"
        for side, (shares, _) in zip(("tonight", "champion"), sides, strict=False)
    )
    return draw(f"shares-{name}", f"Share of rows by {name}; {alt}", WIDTH, height, paint)


def length_curves(edges: Sequence[int], tonight: Sequence[int], before: Sequence[int] | None) -> Picture:
    """Share of the rows whose text has from `edges[k]` to below `edges[k + 1]` characters. Edges grow like powers."""
    used = [at for at, (now, then) in enumerate(zip(tonight, before or tonight, strict=True)) if now or then]
    first, last = (used[0], used[-1]) if used else (0, len(tonight) - 1)
    steps = list(edges[first : last + 2])

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0.06, 0.17, 0.91, 0.67))
        _title(axes, "Share of rows by length of the text", 0.06)
        now = [count / max(1, sum(tonight)) for count in tonight[first : last + 1]]
        axes.stairs(now, steps, fill=True, color=CANDIDATE, alpha=0.2, linewidth=0)
        axes.stairs(now, steps, color=CANDIDATE, linewidth=1.8)
        if before is not None:
            then = [count / max(1, sum(before)) for count in before[first : last + 1]]
            axes.stairs(then, steps, color=CHAMPION, linewidth=1.8, linestyle=DASHES)
            _two_sides(axes, at=-120)
        axes.set_xscale("log")
        axes.set_xlabel("characters")
        axes.set_xlim(steps[0], steps[-1])
        axes.set_ylim(bottom=0)
        ticks = [step * 10**power for power in range(7) for step in (1, 2, 5)]
        ticks = [tick for tick in ticks if steps[0] <= tick <= steps[-1]]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter(_percents)
        axes.grid(axis="y")

    beside = " beside the champion's snapshot" if before is not None else ""
    return draw("lengths", f"Distribution of text lengths tonight{beside}", WIDTH, 2.5, paint)


def drift_bars(distances: Sequence[Distance]) -> Picture:
    """Distances of tonight's new rows as multiples of their thresholds, by statistic and reference."""
    names = list(dict.fromkeys(one.name for one in distances))
    height = _height(len(names), 0.42)

    def paint(figure: Figure) -> None:
        axes = _rows(figure, "Distance of the new rows, as a share of its threshold", names, height=height)
        for one in distances:
            colour = CHAMPION if one.against_champion else TRAINING
            place = names.index(one.name) + (-0.17 if one.against_champion else 0.17)
            axes.barh(place, max(0.0, one.value) / one.threshold, height=0.31, color=colour, linewidth=0)
            note(axes, f"{one.value:z.3f} of {one.threshold:.3f}", (1, place), colour)
        axes.axvline(1, color=THRESHOLD, linewidth=1.4, linestyle=DASHES)
        axes.set_xlim(0, max(1.15, *(1.03 * one.value / one.threshold for one in distances)))
        _key(axes, "■ champion", CHAMPION)
        _key(axes, "■ last week", TRAINING, at=70)

    alt = ", ".join(
        f"{one.name} {one.value:z.3f} of {one.threshold:.3f} ({'champion' if one.against_champion else 'last week'})"
        for one in distances
    )
    return draw("drift", f"Distances of the new rows and their thresholds: {alt}", WIDTH, height, paint)


def finite(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def fit(axes: Axes, values: Sequence[float], *, along: str = "y") -> None:
    """Limits a little beyond the values, also where they are all the same."""
    if values:
        low, high = min(values), max(values)
        pad = max(0.1 * (high - low), 0.005 * max(abs(low), abs(high)), 1e-4)
        (axes.set_ylim if along == "y" else axes.set_xlim)(low - pad, high + pad)


# --- parts ---


def _height(rows: int, step: float = ROW) -> float:
    return ABOVE + BELOW + step * rows


def _rows(figure: Figure, title: str, names: Sequence[str], *, height: float, top: float = 0.0) -> Axes:
    """Axes with a row for each name from above, `top` inches below the upper edge."""
    tall = figure.get_size_inches()[1]
    bottom = 1 - (top + height - BELOW) / tall
    axes = figure.add_axes((LEFT, bottom, RIGHT - LEFT, (height - ABOVE - BELOW) / tall))
    _title(axes, title, LEFT)
    # Names begin where titles do.
    axes.set_yticks(range(len(names)), [printable(name, NAME_LENGTH) for name in names], ha="left")
    axes.tick_params(axis="y", labelcolor=INK, labelsize=9, pad=LEFT * WIDTH * 72)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.locator_params(axis="x", nbins=6)
    return axes


def _title(axes: Axes, text: str, left: float) -> None:
    """A title that begins `left` of the axes, as a share of the picture's width."""
    axes.set_title(printable(text), x=-left / axes.get_position().width)


def _right(axes: Axes, row: float, text: str) -> None:
    """The last column of numbers."""
    note(axes, text, (1, row), MUTED, xytext=(140, 0), ha="right")


def _key(axes: Axes, text: str, colour: str = THRESHOLD, *, at: float = 8) -> None:
    """What a line or a colour means, above the axes and `at` points from their right edge."""
    note(axes, text, (1, 1), colour, coords="axes fraction", xytext=(at, 13))


def _two_sides(axes: Axes, at: float = 8) -> None:
    _key(axes, "■ tonight", CANDIDATE, at=at)
    _key(axes, "■ champion", CHAMPION, at=at + 60)


def _interval(axes: Axes, row: float, value: float, low: float | None, high: float | None, colour: str) -> None:
    """A point on its row, on a broad line from `low` to `high`."""
    if len(ends := finite([low, high])) == 2:
        axes.plot(ends, [row, row], color=colour, linewidth=5, alpha=0.28, zorder=2)
    axes.plot([value], [row], "o", ms=8, color=colour, mew=0, zorder=3)


def _forest(axes: Axes, gaps: Sequence[Gap]) -> None:
    axes.axvline(0, color=MUTED, linewidth=1.2, zorder=1)
    for row, gap in enumerate(gaps):
        colour = CHAMPION if gap.failed else CANDIDATE
        _interval(axes, row, gap.value, gap.low, gap.high, colour)
        note(axes, f"{gap.value:+.4f}{_in_brackets(gap.low, gap.high, '+.4f')}", (1, row), colour)
        if gap.bound is not None:
            axes.plot([gap.bound] * 2, [row - 0.42, row + 0.42], color=THRESHOLD, linewidth=1.8, dashes=(2.2, 1.2))
    if any(gap.bound is not None for gap in gaps):
        _key(axes, "- -  bound of the check")
    fit(axes, finite([0, *(value for gap in gaps for value in (gap.value, gap.low, gap.high, gap.bound))]), along="x")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.3g}" if value else "0")


def _in_words(gap: Gap) -> str:
    bound = "" if gap.bound is None else f", bound {gap.bound:+.4f}"
    return f"{gap.name} {gap.value:+.4f}{_in_brackets(gap.low, gap.high, '+.4f')}{bound}"


def _in_brackets(low: float | None, high: float | None, form: str = ".4f") -> str:
    return "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"


def _shares(counts: Mapping[str, int], shown: Sequence[str]) -> list[float]:
    total = max(1, sum(counts.values()))
    return [counts.get(value, 0) / total for value in shown]


def _percents(value: float, _: Any) -> str:
    return f"{round(100 * value, 2):g}%"


def _panel(figure: Figure, left: float, title: str) -> Axes:
    axes = figure.add_axes((left, 0.155, 0.245, 0.70))
    _title(axes, title, 0.06)
    axes.set_xlabel("epoch")
    axes.grid(axis="y")
    return axes


def _line(axes: Axes, at: Sequence[int], values: Sequence[float | None], colour: str, **style: Any) -> None:
    points = [math.nan if value is None or not math.isfinite(value) else value for value in values]
    axes.plot(at, points, color=colour, zorder=3, **style)
    # A point between two gaps has no line to either side. Few epochs are points anyway.
    padded = [math.nan, *points, math.nan]
    lonely = [
        place
        for place, value in enumerate(points)
        if len(points) <= 30 or (math.isnan(padded[place]) and math.isnan(padded[place + 2]) and not math.isnan(value))
    ]
    axes.plot([at[k] for k in lonely], [points[k] for k in lonely], "o", ms=4.5, color=colour, mew=0, zorder=3)


def _whole_numbers(axes: Axes, at: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    if at:
        pad = 0.5 if len(at) == 1 else 0.04 * (at[-1] - at[0])
        axes.set_xlim(at[0] - pad, at[-1] + pad)
