"""One look for all pictures of a report: an SVG that is drawn once and shown in two places.

As an image (`data_uri`) it brings its own light ground and font, so that it is legible in the light and the dark UI of
Prefect, which strips inline SVG. In our own page (`inline`) its colours become CSS variables and follow the page into
the dark.

matplotlib is imported when the first picture is drawn, and only through its objects: pyplot would keep every figure
and pick a window system. Text stays text: small, and a script that our font lacks is drawn in the reader's.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, FAINT, GROUND = "#1c2128", "#59636e", "#d9dee4", "#ffffff"
CANDIDATE, CHAMPION, THRESHOLD = "#0b67b0", "#b5510a", "#6f42a8"
"""Blue, orange and violet: told apart by people who do not tell red from green; dashes and words say the same."""
TRAINING = "#4f7d75"
HEAT = ("#eef5fc", "#d9e8f7", "#bfd9f1", "#9fc6ea", "#79aee0", "#5294d2", "#2d72b5", "#1b60a4", "#0c4783")
"""From a few of a row to all of it; the text on it is `ON_PALE` below `HEAT_TURNS`, then `ON_DEEP`."""
HEAT_TURNS = 6
ON_PALE, ON_DEEP = "#1d2229", "#fefefe"

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', Arial, sans-serif"
_CSS_NAMES = {
    INK: "ink",
    MUTED: "muted",
    FAINT: "faint",
    GROUND: "ground",
    CANDIDATE: "candidate",
    CHAMPION: "champion",
    THRESHOLD: "threshold",
    TRAINING: "training",
    ON_PALE: "on-pale",
    ON_DEEP: "on-deep",
} | {colour: f"heat-{level}" for level, colour in enumerate(HEAT)}
_DARK = {
    INK: "#e6eaef",
    MUTED: "#9aa5b1",
    FAINT: "#343b45",
    GROUND: "#161b22",
    CANDIDATE: "#5cb0f2",
    CHAMPION: "#f0a05c",
    THRESHOLD: "#bf9af0",
    TRAINING: "#83bdb2",
    ON_PALE: "#e5e9ee",
    ON_DEEP: "#0a1119",
} | dict(
    zip(
        HEAT,
        ("#182534", "#1a2e46", "#1c385a", "#1e4470", "#225285", "#27609a", "#5f9cd6", "#8cbbe8", "#bddaf6"),
        strict=True,
    )
)
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    # A label may hold dollar signs, which would be taken for formulas.
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
    # Looking for a free place costs an eighth of the time.
    "axes.titley": 1.0,
    "axes.axisbelow": True,
    "axes.facecolor": GROUND,
    "figure.facecolor": GROUND,
    "figure.edgecolor": GROUND,
    "savefig.facecolor": GROUND,
    "savefig.edgecolor": GROUND,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 5,
    "ytick.major.pad": 5,
}
_ENLARGED = 1.18
"""Of pictures in our own page, which has more room than the column of an artifact."""
_HEX = re.compile("|".join(_CSS_NAMES))
_LONG_NUMBER = re.compile(r"(?<![\w#])(-?\d+\.\d{3,})(?![\w])")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What XML may not hold, and the controls that it may: one of them would make the whole picture unreadable."""


@dataclass(frozen=True)
class Picture:
    """An SVG with its width in points, and what it shows in words, for those who do not see it."""

    name: str
    alt: str
    svg: str
    width: float

    def data_uri(self) -> str:
        """For an `<img>`: light, whatever surrounds it."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()

    def inline(self) -> str:
        """The `<svg>` element for a page that has the variables of `css_variables`."""
        element = self.svg[self.svg.index("<svg") :]
        opening, inside = element.split(">", 1)
        view = re.search(r'viewBox="[^"]*"', opening)
        assert view, opening
        inside = _in_tags(inside, lambda tag: _HEX.sub(lambda found: f"var(--{_CSS_NAMES[found.group()]})", tag))
        label = escape(self.alt, quote=True)
        attributes = f'{view.group()} font-family="{FONT}" role="img" aria-label="{label}"'
        return f'<svg {attributes} style="width:{_ENLARGED * self.width:.0f}pt">{inside}'.strip()


def css_variables(*, dark: bool) -> str:
    """`--name:#colour;` of every colour that a picture or the page uses."""
    return "".join(f"--{name}:{_DARK[colour] if dark else colour};" for colour, name in _CSS_NAMES.items())


def draw(name: str, alt: str, width: float, height: float, paint: Callable[[Figure], None]) -> Picture:
    """A picture of `width` by `height` inches that `paint` fills. The same input gives the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    name, alt = printable(name), printable(alt)
    with matplotlib.rc_context(), warnings.catch_warnings():
        # From the defaults on: what a user has set for plots of his own shall not change a report.
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
    """Without comments, names, blanks and digits that nobody sees, and with a font that the reader has."""
    svg = re.sub(r"<!--.*?-->|<!DOCTYPE[^>]*>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)

    def shorter(tag: str) -> str:
        # Groups are named alike in every picture; what is referred to, clip paths and markers, has names of its own.
        tag = re.sub(r'^<g id="[^"]*"', "<g", tag)
        tag = tag.replace("font-family: 'DejaVu Sans'; ", "").replace(" text-anchor: start;", "")
        tag = re.sub(r' transform="rotate\(-0 [^"]*"', "", tag)
        tag = _LONG_NUMBER.sub(lambda found: f"{float(found[1]):.2f}".rstrip("0").rstrip("."), tag)
        return re.sub(r"\s*\n\s*", " ", tag)

    svg = _in_tags(svg, shorter)
    svg = svg.replace("<svg ", f'<svg font-family="{FONT}" ', 1)
    return re.sub(r"\s*\n\s*", "\n", svg.replace("<g/>", "")).strip()


def _in_tags(svg: str, change: Callable[[str], str]) -> str:
    """Change the tags alone: a label may look like a colour, a number or a font."""
    return re.sub(r"<[^>]*>", lambda found: change(found.group()), svg)


def legible(text: str) -> str:
    """`text` with nothing in it that neither XML nor a file in UTF-8 can hold."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def printable(text: str) -> str:
    """The same on one line."""
    return " ".join(legible(text).split())


def shortened(text: str, length: int) -> str:
    """At most `length` characters, cut in the middle: what tells names apart stands at either end."""
    text = printable(text)
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def spread(places: list[float], gap: float, low: float, high: float) -> list[float]:
    """The places, moved apart as little as it takes to leave `gap` between any two, in the same order, within bounds.

    More than fit are spaced evenly.
    """
    if not places:
        return []
    order = sorted(range(len(places)), key=lambda at: places[at])
    gap = min(gap, (high - low) / max(1, len(places) - 1))
    moved = [min(max(places[at], low), high) for at in order]
    for at in range(1, len(moved)):
        moved[at] = max(moved[at], moved[at - 1] + gap)
    overshoot = moved[-1] - high
    if overshoot > 0:
        moved[-1] = high
        for at in range(len(moved) - 2, -1, -1):
            moved[at] = min(moved[at], moved[at + 1] - gap)
    placed = [0.0] * len(places)
    for at, value in zip(order, moved, strict=True):
        placed[at] = value
    return placed


def label_ends(axes: Axes, labels: list[tuple[float, str, str]], *, lines: float = 11.0) -> None:
    """Words at the right edge, each at its height (value, text, colour), none upon another; instead of a legend."""
    low, high = axes.get_ylim()
    gap = lines / axes.bbox.height * (high - low)
    for (_, text, colour), at in zip(labels, spread([value for value, _, _ in labels], gap, low, high), strict=True):
        axes.annotate(
            printable(text),
            (1.0, at),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=8.5,
            annotation_clip=False,
        )
