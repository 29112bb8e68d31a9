"""The confusion matrix of a report: shares of the true label as colour, with numbers up to 15 labels."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nightgate.plain_text import printable
from nightgate.reports.pictures import FAINT, GROUND, INK, MUTED, TEXT_SIZE, Picture, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERS_UP_TO = 15
"""Labels up to which there are numbers in the cells."""
NAMES_UP_TO = 60
"""Labels up to which every name is shown."""
HEAT = ("#eef5fc", "#d9e8f7", "#bfd9f1", "#9fc6ea", "#79aee0", "#5294d2", "#2d72b5", "#1b60a4", "#0c4783")
HEAT_FROM = (0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
"""Shares of a row at which the next colour begins: fine where confusions lie, coarse where hits do."""
PALE_FROM = 6
"""The colour of `HEAT` from which on text is light."""


def confusion_matrix(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Picture:
    """True labels down, predicted ones across."""
    size = len(labels)
    totals = [max(1, sum(row)) for row in counts]
    numbered = size <= NUMBERS_UP_TO
    # Inches. A letter of a name takes `letter`; long names of columns are turned.
    cell = min(1.0, max(0.44, 4.6 / size)) if numbered else max(0.1, 6.2 / size)
    names = [printable(label, 22 if size <= 8 else 18) for label in labels]
    letter = 0.085 if numbered else 0.072
    longest = letter * max(len(name) for name in names)
    turned = longest > cell * 0.95
    left = 0.2 + max(longest, 0.85)
    top = 0.2 + ((0.9 if numbered else 1.0) * longest if turned else 0.3)
    right = 0.15 + (0.5 * longest if turned and numbered else 0)
    below = 0.12 if numbered else 0.62
    width, height = left + size * cell + right, top + size * cell + below

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((left / width, below / height, size * cell / width, size * cell / height))
        axes.set_xlim(0, size)
        axes.set_ylim(size, 0)
        _cells(axes, counts, totals)
        if numbered:
            _numbers(axes, counts, totals, min(12.0, max(7.5, cell * 13)))
        else:
            _key(figure, left / width, 0.2 / height, width, height)
        shown = range(0, size, 1 if size <= NAMES_UP_TO else math.ceil(size / NAMES_UP_TO))
        places, words = [at + 0.5 for at in shown], [names[at] for at in shown]
        small = 9.5 if numbered else max(5.0, min(TEXT_SIZE, cell * 62))
        axes.xaxis.set_ticks_position("top")
        axes.set_xticks(places, words, fontsize=small)
        axes.set_yticks(places, words, fontsize=small)
        axes.tick_params(axis="both", labelcolor=INK, pad=4)
        if turned:
            slant: Any = {"rotation": 60, "ha": "left", "rotation_mode": "anchor"} if numbered else {"rotation": 90}
            for text in axes.get_xticklabels():
                text.set(**slant)
        axes.spines["bottom"].set_visible(False)
        corner: Any = {"xy": (0, 1), "xycoords": "axes fraction", "textcoords": "offset points", "ha": "right"}
        axes.annotate("predicted →", xytext=(-8, 15), color=MUTED, fontsize=TEXT_SIZE, **corner)
        axes.annotate("true ↓", xytext=(-8, 4), color=MUTED, fontsize=TEXT_SIZE, **corner)

    hits = sum(counts[at][at] for at in range(size))
    alt = f"Confusion matrix of {size} labels on {sum(map(sum, counts)):,} test rows: {hits:,} of them right"
    return draw("confusion", alt, width, height, paint)


def heat_level(share: float) -> int | None:
    """Index into `HEAT` of a share of a row; None for no rows, which stay blank."""
    return None if share <= 0 else bisect_right(HEAT_FROM, share)


def _cells(axes: Axes, counts: Sequence[Sequence[int]], totals: Sequence[int]) -> None:
    """One shape per colour, with neighbours as one rectangle, which keeps large matrices small."""
    from matplotlib.patches import PathPatch, Rectangle
    from matplotlib.path import Path

    size = len(counts)
    boxes: dict[int, list[Path]] = {}
    for row in range(size):
        levels = [heat_level(count / totals[row]) for count in counts[row]]
        start = 0
        for column in range(1, size + 1):
            if column < size and levels[column] == levels[start] and size > NUMBERS_UP_TO:
                continue
            level = levels[start]
            # In a large matrix stray rows would be most of the file, and hide frequent confusions.
            if level is not None and (level or size <= NAMES_UP_TO):
                corners = [(start, row), (column, row), (column, row + 1), (start, row + 1), (start, row)]
                boxes.setdefault(level, []).append(Path(corners, closed=True))
            start = column
    axes.add_patch(Rectangle((0, 0), size, size, facecolor=GROUND, edgecolor=FAINT, linewidth=1, zorder=0))
    edge: dict[str, Any] = {"edgecolor": GROUND, "linewidth": 1.5} if size <= NUMBERS_UP_TO else {"linewidth": 0}
    for level in sorted(boxes):
        axes.add_patch(PathPatch(Path.make_compound_path(*boxes[level]), facecolor=HEAT[level], zorder=1, **edge))


def _numbers(axes: Axes, counts: Sequence[Sequence[int]], totals: Sequence[int], large: float) -> None:
    for row, values in enumerate(counts):
        for column, count in enumerate(values):
            share = count / totals[row]
            level = heat_level(share)
            style: Any = {"ha": "center", "color": INK if (level or 0) < PALE_FROM else GROUND}
            if level is None:
                axes.text(column + 0.5, row + 0.5, "0", va="center", fontsize=large, **{**style, "color": MUTED})
                continue
            weight = "bold" if row == column else "normal"
            axes.text(column + 0.5, row + 0.47, f"{count:,}", va="bottom", fontsize=large, fontweight=weight, **style)
            words = "<1%" if share < 0.005 else f"{share:.0%}"
            axes.text(column + 0.5, row + 0.56, words, va="top", fontsize=large * 0.78, **style)


def _key(figure: Figure, left: float, bottom: float, width: float, height: float) -> None:
    from matplotlib.patches import Rectangle

    side, step = 0.16, 0.56
    figure.text(left, bottom + 0.27 / height, "share of the true label's rows", color=MUTED, fontsize=TEXT_SIZE)
    for level, colour in enumerate(HEAT):
        at = left + level * step / width
        figure.add_artist(Rectangle((at, bottom), side / width, side / height, facecolor=colour, linewidth=0))
        words = f"{HEAT_FROM[level - 1]:.0%}" if level else "> 0"
        figure.text(at + (side + 0.05) / width, bottom + side / 2 / height, words, color=MUTED, fontsize=8, va="center")
