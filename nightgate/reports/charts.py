"""The pictures of a night's model: curves and confusion matrix.

Pure: numbers in, `Picture` out. Each says in words (`alt`) what it shows, and has words beside its lines, no legend.
`nightgate.reports.bar_charts` has those of its rows, `nightgate.reports.verdict_charts` those of its verdict,
`nightgate.reports.pictures` the look of all.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nightgate.diagnosis import EpochFacts
from nightgate.reports.chart_parts import WIDTH, finite, fit
from nightgate.reports.pictures import (
    CANDIDATE,
    CHAMPION,
    FAINT,
    GROUND,
    HEAT,
    HEAT_TURNS,
    INK,
    MUTED,
    ON_DEEP,
    ON_PALE,
    THRESHOLD,
    TRAINING,
    Picture,
    draw,
    label_ends,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERS_UP_TO = 15
"""Labels up to which a confusion matrix has numbers in its cells."""
NAMES_UP_TO = 60
HEAT_FROM = (0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
"""Shares of a row at which the next colour begins: fine where confusions lie, coarse where hits do."""


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

    def paint(figure: Figure) -> None:
        for place, panel in enumerate((losses, scores)):
            axes = figure.add_axes((0.06 + 0.5 * place, 0.155, 0.245, 0.70))
            panel(axes)
            axes.set_xlabel("epoch")
            axes.grid(axis="y")
            _whole_numbers(axes, at)

    def losses(axes: Axes) -> None:
        axes.set_title("Loss")
        ends = []
        for name, colour, values in (
            ("training", TRAINING, [epoch.training_loss for epoch in seen]),
            ("validation", CANDIDATE, [epoch.validation_loss for epoch in seen]),
        ):
            _line(axes, at, values, colour, dashed=name == "training")
            ends += [(value, f"{name} {value:.4f}", colour) for value in finite(values)[-1:]]
        if best_epoch is not None:
            axes.axvline(best_epoch, color=FAINT, linewidth=1.2, zorder=0)
        fit(axes, [*finite([e.training_loss for e in seen]), *finite([e.validation_loss for e in seen])])
        label_ends(axes, ends)

    def scores(axes: Axes) -> None:
        axes.set_title("F1 on validation")
        values = [epoch.f1 for epoch in seen]
        _line(axes, at, values, CANDIDATE)
        ends = []
        for name, level, colour, dashes in (
            ("min_f1", min_f1, THRESHOLD, (4, 3)),
            ("champion", champion_f1, CHAMPION, (1, 2)),
        ):
            if level is not None and math.isfinite(level):
                axes.axhline(level, color=colour, linewidth=1.4, dashes=dashes, zorder=1)
                ends.append((level, f"{name} {level:.4f}", colour))
        best = next((epoch.f1 for epoch in seen if epoch.epoch == best_epoch), None)
        if best_epoch is not None and best is not None and math.isfinite(best):
            axes.axvline(best_epoch, color=FAINT, linewidth=1.2, zorder=0)
            axes.plot([best_epoch], [best], "o", ms=9, mfc=GROUND, mec=CANDIDATE, mew=2.2, zorder=4)
            ends.append((best, f"epoch {best_epoch}: {best:.4f}", CANDIDATE))
        fit(axes, [*finite(values), *(end[0] for end in ends)])
        label_ends(axes, ends)

    return draw("curves", _told_curves(seen, best_epoch, min_f1, champion_f1), WIDTH, 3.0, paint)


def confusion_matrix(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Picture:
    """True labels down, predicted ones across: shares of a row as colour, with numbers where there is room for them."""
    size = len(labels)
    totals = [sum(row) for row in counts]
    numbered = size <= NUMBERS_UP_TO
    cell = min(1.0, max(0.44, 4.6 / size)) if numbered else max(0.1, 6.2 / size)
    names = [shortened(label, 22 if size <= 8 else 18) for label in labels]
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
        _heat(axes, counts, totals)
        if numbered:
            _numbers(axes, counts, totals, cell)
        else:
            _heat_key(figure, left / width, 0.2 / height, width, height)
        shown = range(0, size, 1 if size <= NAMES_UP_TO else math.ceil(size / NAMES_UP_TO))
        axes.xaxis.set_ticks_position("top")
        small = 9.5 if numbered else max(5.0, min(8.5, cell * 62))
        axes.set_xticks([at + 0.5 for at in shown], [names[at] for at in shown], fontsize=small)
        axes.set_yticks([at + 0.5 for at in shown], [names[at] for at in shown], fontsize=small)
        axes.tick_params(axis="both", labelcolor=INK, pad=4)
        if turned:
            slant: Any = {"rotation": 60, "ha": "left", "rotation_mode": "anchor"} if numbered else {"rotation": 90}
            for text in axes.get_xticklabels():
                text.set(**slant)
        for side in ("bottom", "top"):
            axes.spines[side].set_visible(False)
        corner: Any = {"xy": (0, 1), "xycoords": "axes fraction", "textcoords": "offset points", "ha": "right"}
        axes.annotate("predicted →", xytext=(-8, 15), color=MUTED, fontsize=8.5, **corner)
        axes.annotate("true ↓", xytext=(-8, 4), color=MUTED, fontsize=8.5, **corner)

    hits = sum(counts[at][at] for at in range(size))
    told = f"Confusion matrix of {size} labels on {sum(totals):,} test rows: {hits:,} of them right"
    return draw("confusion", told, width, height, paint)


def heat_level(share: float) -> int | None:
    """Index into `HEAT` of a share of a row; None for nothing, which stays blank."""
    return None if share <= 0 else bisect_right(HEAT_FROM, share)


# --- parts of pictures ---


def _line(axes: Axes, at: Sequence[int], values: Sequence[float | None], colour: str, *, dashed: bool = False) -> None:
    points = [math.nan if value is None or not math.isfinite(value) else value for value in values]
    axes.plot(at, points, color=colour, linestyle=(0, (5, 2.2)) if dashed else "-", zorder=3)
    # A point between two gaps has no line to either side; and a few epochs are points, not a course.
    lonely = [
        k
        for k, value in enumerate(points)
        if not math.isnan(value)
        and (len(points) <= 30 or all(math.isnan(points[j]) for j in (k - 1, k + 1) if 0 <= j < len(points)))
    ]
    axes.plot([at[k] for k in lonely], [points[k] for k in lonely], "o", ms=4.5, color=colour, mew=0, zorder=3)


def _heat(axes: Axes, counts: Sequence[Sequence[int]], totals: Sequence[int]) -> None:
    """The cells; all of one colour are one shape and neighbours one rectangle, so that large matrices stay small."""
    from matplotlib.patches import PathPatch, Rectangle
    from matplotlib.path import Path

    size = len(counts)
    boxes: dict[int, list[Path]] = {}
    for row in range(size):
        levels = [heat_level(count / max(1, totals[row])) for count in counts[row]]
        start = 0
        for column in range(1, size + 1):
            if column < size and levels[column] == levels[start] and size > NUMBERS_UP_TO:
                continue
            level = levels[start]
            # In a large matrix stray rows would be most of the file, and hide what is confused often.
            if level is not None and (level or size <= NAMES_UP_TO):
                corners = [(start, row), (column, row), (column, row + 1), (start, row + 1), (start, row)]
                boxes.setdefault(level, []).append(Path(corners, closed=True))
            start = column
    axes.add_patch(Rectangle((0, 0), size, size, facecolor=GROUND, edgecolor=FAINT, linewidth=1, zorder=0))
    edge: dict[str, Any] = {"edgecolor": GROUND, "linewidth": 1.5} if size <= NUMBERS_UP_TO else {"linewidth": 0}
    for level in sorted(boxes):
        axes.add_patch(PathPatch(Path.make_compound_path(*boxes[level]), facecolor=HEAT[level], zorder=1, **edge))


def _numbers(axes: Axes, counts: Sequence[Sequence[int]], totals: Sequence[int], cell: float) -> None:
    large = min(12.0, max(7.5, cell * 13))
    for row, values in enumerate(counts):
        for column, count in enumerate(values):
            share = count / max(1, totals[row])
            level = heat_level(share)
            if level is None:
                axes.text(column + 0.5, row + 0.5, "0", ha="center", va="center", color=MUTED, fontsize=large)
                continue
            colour = ON_PALE if level < HEAT_TURNS else ON_DEEP
            weight = "bold" if row == column else "normal"
            axes.text(
                column + 0.5,
                row + 0.47,
                f"{count:,}",
                ha="center",
                va="bottom",
                color=colour,
                fontsize=large,
                fontweight=weight,
            )
            axes.text(
                column + 0.5, row + 0.56, _percent(share), ha="center", va="top", color=colour, fontsize=large * 0.78
            )


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _heat_key(figure: Figure, left: float, bottom: float, width: float, height: float) -> None:
    from matplotlib.patches import Rectangle

    side, step = 0.16, 0.56
    figure.text(left, bottom + 0.27 / height, "share of the true label's rows", color=MUTED, fontsize=8.5)
    for level, colour in enumerate(HEAT):
        at = left + level * step / width
        figure.add_artist(Rectangle((at, bottom), side / width, side / height, facecolor=colour, linewidth=0))
        told = f"{HEAT_FROM[level - 1]:.0%}" if level else "> 0"
        figure.text(at + (side + 0.05) / width, bottom + side / 2 / height, told, color=MUTED, fontsize=8, va="center")


def _whole_numbers(axes: Axes, at: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    if at:
        pad = 0.5 if len(at) == 1 else 0.04 * (at[-1] - at[0])
        axes.set_xlim(at[0] - pad, at[-1] + pad)


def _told_curves(
    epochs: Sequence[EpochFacts], best_epoch: int | None, min_f1: float | None, champion_f1: float | None
) -> str:
    told = [f"Loss and validation F1 of {len(epochs)} epoch{'' if len(epochs) == 1 else 's'}"]
    for name, values in (
        ("training loss", finite([epoch.training_loss for epoch in epochs])),
        ("validation loss", finite([epoch.validation_loss for epoch in epochs])),
        ("F1", finite([epoch.f1 for epoch in epochs])),
    ):
        if values:
            told.append(f"{name} from {values[0]:.4f} to {values[-1]:.4f}")
    told += [f"best epoch {best_epoch}"] if best_epoch is not None else []
    told += [f"min_f1 {min_f1:.4f}"] if min_f1 is not None else []
    told += [f"champion {champion_f1:.4f}"] if champion_f1 is not None else []
    return ", ".join(told)
