"""Draw a picture as an SVG with a light background and text that stays text.

It is shown as an image with a `data:` address, in the HTML report and in Prefect's UI, which removes inline SVG. Both
may be dark; the picture brings its own background and font.

matplotlib is imported when the first picture is drawn, without pyplot, which would keep every figure and choose a
window system. Text that is not drawn as paths is small, and scripts that our font lacks appear in the reader's.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nightgate.plain_text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, FAINT, GROUND = "#1c2128", "#59636e", "#d9dee4", "#ffffff"
CANDIDATE, CHAMPION, THRESHOLD, TRAINING = "#0b67b0", "#b5510a", "#6f42a8", "#4f7d75"
"""Blue, orange, violet and green differ for people who cannot tell red from green; dashes and words say the same."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', Arial, sans-serif"
TEXT_SIZE = 8.5
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    # A label may hold dollar signs, which would be read as formulas.
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.unicode_minus": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    # Without a fixed place matplotlib spends an eighth of the time looking for one.
    "axes.titley": 1.0,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    **{f"{axis}tick.color": FAINT for axis in "xy"},
    **{f"{axis}tick.labelcolor": MUTED for axis in "xy"},
    **{f"{axis}tick.labelsize": TEXT_SIZE for axis in "xy"},
    **{f"{axis}tick.major.size": 0 for axis in "xy"},
    **{f"{axis}tick.major.pad": 5 for axis in "xy"},
}
_LONG_NUMBER = re.compile(r"(?<![\w#])(-?\d+\.\d{3,})(?![\w])")


@dataclass(frozen=True)
class Picture:
    name: str
    alt: str
    """What it shows, in words."""
    svg: str
    width: float
    """Points."""

    def data_uri(self) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()


def draw(name: str, alt: str, width: float, height: float, paint: Callable[[Figure], None]) -> Picture:
    """A picture of `width` by `height` inches that `paint` fills. The same input gives the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    name, alt = printable(name), printable(alt)
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A user's own settings for plots must not change a report.
        matplotlib.rcdefaults()
        settings: Any = {**_STYLE, "svg.hashsalt": name}
        matplotlib.rcParams.update(settings)
        # A script that the measuring font lacks is measured as boxes, and drawn in the reader's font.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), dpi=72)
        canvas: Any = FigureCanvasSVG(figure)
        paint(figure)
        buffer = io.StringIO()
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Picture(name, alt, _compact(buffer.getvalue()), width * 72)


def _compact(svg: str) -> str:
    """The SVG without invisible comments, names, blanks and digits, and with a font that the reader has."""
    svg = re.sub(r"<!--.*?-->|<!DOCTYPE[^>]*>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)

    def shorter(found: re.Match[str]) -> str:
        # Group names mean nothing; clip paths and markers, which others refer to, keep theirs.
        tag = re.sub(r'^<g id="[^"]*"', "<g", found.group())
        tag = tag.replace("font-family: 'DejaVu Sans'; ", "").replace(" text-anchor: start;", "")
        tag = re.sub(r' transform="rotate\(-0 [^"]*"', "", tag)
        tag = _LONG_NUMBER.sub(lambda digits: f"{float(digits[1]):.2f}".rstrip("0").rstrip("."), tag)
        return re.sub(r"\s*\n\s*", " ", tag)

    # Only tags: a label may look like a number or a font.
    svg = re.sub(r"<[^>]*>", shorter, svg)
    svg = svg.replace("<svg ", f'<svg font-family="{FONT}" ', 1)
    return re.sub(r"\s*\n\s*", "\n", svg.replace("<g/>", "")).strip()


def note(
    axes: Axes, text: str, at: tuple[float, float], colour: str = INK, *, coords: Any = None, **style: Any
) -> None:
    """Words `at` a place; `coords` as matplotlib has them, the default being share of the width and value of y."""
    style = {"va": "center", "fontsize": TEXT_SIZE, "textcoords": "offset points", "xytext": (8, 0), **style}
    coords = coords or ("axes fraction", "data")
    axes.annotate(printable(text), at, xycoords=coords, color=colour, annotation_clip=False, **style)


def label_ends(axes: Axes, labels: list[tuple[float, str, str]], *, lines: float = 11.0) -> None:
    """Words at the right edge in place of a legend: (value, text, colour), each at its height, `lines` points apart."""
    low, high = axes.get_ylim()
    gap = lines / axes.bbox.height * (high - low)
    for (_, text, colour), at in zip(labels, spread([value for value, _, _ in labels], gap, low, high), strict=True):
        note(axes, text, (1, at), colour)


def spread(places: list[float], gap: float, low: float, high: float) -> list[float]:
    """The places within bounds, moved apart as little as possible so that any two are `gap` apart, in the same order.

    More than fit are spaced evenly.
    """
    order = sorted(range(len(places)), key=lambda at: places[at])
    gap = min(gap, (high - low) / max(1, len(places) - 1))
    placed, floor = [0.0] * len(places), low
    for at in order:
        placed[at] = max(places[at], floor)
        floor = placed[at] + gap
    ceiling = high
    for at in reversed(order):
        placed[at] = min(placed[at], ceiling)
        ceiling = placed[at] - gap
    return placed
