"""The charts of `nightgate gate`: the gain that test rows can show, and champions of past nights under another policy.

Numbers in, `Picture` out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from nightgate.plain_text import printable
from nightgate.reports.charts import DASHES, WIDTH, finite
from nightgate.reports.pictures import (
    CANDIDATE,
    CHAMPION,
    GROUND,
    INK,
    THRESHOLD,
    Picture,
    draw,
    label_ends,
    note,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nightgate.analysis.power import Power


def power_curve(power: Power) -> Picture:
    """The gain that shows with 80 % power, in points of F1, against the number of test rows."""
    sizes = power.sizes()
    low, high = math.log(sizes[0]), math.log(sizes[-1])
    at = [math.exp(low + (high - low) * step / 100) for step in range(101)]
    tonight = 100 * power.detectable_with(power.rows)

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0.08, 0.16, 0.70, 0.68))
        axes.set_title("Gain over the champion that shows with 80 % power, in points of F1")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("test rows that decide")
        axes.plot(at, [100 * power.detectable_with(rows) for rows in at], color=CANDIDATE, zorder=3)
        axes.plot([power.rows], [tonight], "o", ms=9, mfc=GROUND, mec=CANDIDATE, mew=2.2, zorder=4)
        axes.set_xlim(sizes[0], sizes[-1])
        _plain_numbers(axes)
        axes.grid(axis="both", which="major")
        ends = [(100 * power.detectable_with(sizes[-1]), "detectable gain", CANDIDATE)]
        for name, value, colour in (("margin", power.margin, THRESHOLD), ("tonight's gain", abs(power.gain), CHAMPION)):
            if value:
                axes.axhline(100 * value, color=colour, linewidth=1.4, linestyle=DASHES, zorder=1)
                ends.append((100 * value, f"{name} {100 * value:.2g}", colour))
        values = [end[0] for end in ends] + [100 * power.detectable_with(sizes[0])]
        axes.set_ylim(min(values) / 1.3, max(values) * 1.3)
        words = f"tonight: {power.rows:,} rows show {tonight:.1f}"
        note(axes, words, (power.rows, tonight), coords="data", xytext=(10, 11))
        _label_ends_of_log(axes, ends)

    alt = (
        f"With {power.rows:,} test rows a gain of {tonight:.1f} points of F1 shows with 80 % power; with "
        f"{sizes[-1]:,} rows one of {100 * power.detectable_with(sizes[-1]):.1f} points"
    )
    return draw("power", alt, WIDTH, 3.2, paint)


@dataclass(frozen=True)
class ChampionAt:
    """The champion that a night met, really and in the replay, by its F1 on the night's window."""

    night: date
    f1: float | None
    promoted: bool
    """The night made another version champion."""
    chain_f1: float | None
    chain_promoted: bool
    after_break: bool = False
    """Its scores do not compare with those of the night before."""


def champions(nights: Sequence[ChampionAt], policy: str) -> Picture:
    """Both champions over the nights; nights on which one is not known are gaps, and no line crosses a break."""
    at_break = ", ┆: scores do not compare across it" if any(one.after_break for one in nights) else ""
    starts = [0, *(place for place, one in enumerate(nights) if place and one.after_break)]
    parts = [slice(start, end) for start, end in zip(starts, [*starts[1:], len(nights)], strict=True)]
    real, chain = [one.f1 for one in nights], [one.chain_f1 for one in nights]

    def paint(figure: Figure) -> None:
        import matplotlib.dates

        dates: Any = matplotlib.dates
        axes = figure.add_axes((0.07, 0.19, 0.74, 0.67))
        axes.set_title("F1 of the champion that each night met, on its test rows")
        axes.set_xlabel(printable(f"replayed: {policy}, ▲: a night that promoted{at_break}", 110), loc="left")
        at: Any = [one.night for one in nights]
        for start in starts[1:]:
            axes.axvline(at[start], color=INK, linewidth=0.8, linestyle=":", zorder=1)
        ends = []
        for name, values, promoted, colour, style, height in (
            ("as it was", real, [one.promoted for one in nights], CHAMPION, DASHES, 0.06),
            ("replayed", chain, [one.chain_promoted for one in nights], CANDIDATE, "-", 0.02),
        ):
            points = [math.nan if value is None else value for value in values]
            for part in parts:
                axes.plot(at[part], points[part], color=colour, linestyle=style, marker="o", ms=3, mew=0, zorder=3)
            for night, moved in zip(at, promoted, strict=True):
                if moved:
                    axes.plot([night], [height], "^", ms=6, color=colour, mew=0, transform=axes.get_xaxis_transform())
            ends += [(value, f"{name} {value:.4f}", colour) for value in finite(values)[-1:]]
        if known := finite([*real, *chain]):
            pad = max(0.15 * (max(known) - min(known)), 0.005)
            axes.set_ylim(min(known) - 2 * pad, max(known) + pad)
        axes.grid(axis="y")
        locator = dates.AutoDateLocator(minticks=2, maxticks=8)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
        label_ends(axes, ends)

    alt = f"F1 of the champion that each of {len(nights)} nights met, as it was and under {policy}: "
    alt += f"{sum(one.promoted for one in nights)} nights promoted, under {policy} "
    alt += f"{sum(one.chain_promoted for one in nights)}"
    return draw("replay", alt, WIDTH, 3.2, paint)


def _plain_numbers(axes: Axes) -> None:
    """1,000 instead of a power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, form in ((axes.xaxis, ",.0f"), (axes.yaxis, ".3g")):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _, form=form: format(value, form)))
        axis.set_minor_formatter(NullFormatter())


def _label_ends_of_log(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """`label_ends` for a logarithmic axis, on which places are as far apart as their logarithms."""
    low, high = (math.log(value) for value in axes.get_ylim())
    twin = axes.twinx()
    twin.set_ylim(low, high)
    twin.set_yticks([])
    for side in twin.spines.values():
        side.set_visible(False)
    label_ends(twin, [(math.log(value), text, colour) for value, text, colour in ends])
