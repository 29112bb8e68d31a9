"""The champion's true F1 over the simulated year, by policy, one panel a world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.gate_worlds import NIGHTS, WORLDS, World
from benchmarks.gate_years import Summary, average_candidate
from nightgate.reports.pictures import CANDIDATE, CHAMPION, INK, MUTED, THRESHOLD, TRAINING, Picture, draw, label_ends

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, PANEL, HEAD = 9.6, 2.45, 0.75
"""Inches: of the picture, of a row of panels, of the title."""
STYLES = {
    "threshold": ("fixed threshold", CHAMPION, "-", 1.4),
    "stored": ("stored score", THRESHOLD, "-", 1.4),
    "tolerance": ("2 points' tolerance", TRAINING, "-", 1.4),
    "all_rows": ("superior on all rows", INK, "--", 1.4),
    "ours": ("ours", CANDIDATE, "-", 2.6),
}
"""Words, colour, line and its width."""
ALT = "True F1 of the champion over a simulated year under five policies, one panel for each of six worlds."


def picture(summaries: Sequence[Summary]) -> Picture:
    """Of the policies in every world that `summaries` has; one number of rows."""
    worlds = [world for world in WORLDS if any(found.world == world.name for found in summaries)]
    lines = -(-len(worlds) // 2)
    height = HEAD + PANEL * lines

    def paint(figure: Figure) -> None:
        figure.text(0.055, 1 - 0.22 / height, "True F1 of the champion, in points", weight="bold", fontsize=12)
        figure.text(
            0.055,
            1 - 0.45 / height,
            f"mean of the runs, {summaries[0].rows:,} test rows in the window; dotted: tonight's average candidate",
            color=MUTED,
        )
        for place, world in enumerate(worlds):
            row, column = divmod(place, 2)
            bottom = (PANEL * (lines - 1 - row) + 0.42) / height
            axes = figure.add_axes((0.055 + 0.5 * column, bottom, 0.265, (PANEL - 0.95) / height))
            _panel(axes, world, [found for found in summaries if found.world == world.name])

    return draw("gate-simulation", ALT, WIDTH, height, paint)


def _panel(axes: Axes, world: World, summaries: Sequence[Summary]) -> None:
    # Every fourth night, the first and the last among them: the eye sees no more, and the file is a quarter.
    nights = np.arange(1, NIGHTS + 1)[::4]
    axes.set_title(world.title)
    axes.plot(nights, 100 * average_candidate(world)[::4], color=MUTED, linestyle=(0, (1, 2)), linewidth=1.4, zorder=1)
    ends = []
    for found in summaries:
        words, colour, line, width = STYLES[found.policy]
        axes.plot(nights, 100 * np.array(found.curve)[::4], color=colour, linestyle=line, linewidth=width, zorder=width)
        ends.append((100 * found.final, f"{words} {100 * found.final:.1f}", colour))
    axes.set_xlim(1, NIGHTS)
    axes.set_xticks([1, 90, 180, 270, 365])
    axes.set_xlabel("night")
    axes.grid(axis="y")
    label_ends(axes, ends)
