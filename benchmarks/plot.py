"""One picture: how many times faster than the reference each variant steps, with its interval. Plain SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.pairing import Median

WIDTH, LEFT, RIGHT, TOP, ROW = 920, 250, 110, 74, 40


@dataclass(frozen=True)
class Bar:
    title: str
    ratio: Median
    is_ours: bool


def svg(title: str, note: str, bars: Sequence[Bar]) -> str:
    """Horizontal bars from 0, one a variant, whiskers for the interval, a line at 1.

    It brings its own light ground, so that it reads the same on light and on dark pages.
    """
    most = max(max(bar.ratio.high for bar in bars), 1.0)
    top_tick = _tick_above(most)
    scale = (WIDTH - LEFT - RIGHT) / top_tick
    height = TOP + ROW * len(bars) + 46
    bottom = TOP + ROW * len(bars)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, -apple-system, \'Segoe UI\', Helvetica, Arial, sans-serif" role="img" '
        'aria-labelledby="title">',
        f'<title id="title">{escape(title)}</title>',
        "<style>.name{font-size:14px;fill:#0f172a;text-anchor:end}.value{font-size:14px;font-weight:600;fill:#0f172a}"
        ".note{font-size:12px;fill:#475569}.head{font-size:16px;font-weight:600;fill:#0f172a}"
        ".grid{stroke:#cbd5e1;stroke-width:1}.one{stroke:#334155;stroke-width:1.5;stroke-dasharray:4 3}"
        ".stock{fill:#94a3b8}.ours{fill:#0284c7}.whisker{stroke:#0f172a;stroke-width:1.5}</style>",
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#f8fafc"/>',
        f'<text class="head" x="24" y="32">{escape(title)}</text>',
        f'<text class="note" x="24" y="52">{escape(note)}</text>',
    ]
    for tick in _ticks(top_tick):
        x = LEFT + tick * scale
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP - 8}V{bottom}"/>')
        parts.append(f'<text class="note" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}x</text>')
    for number, bar in enumerate(bars):
        y, ratio = TOP + ROW * number, bar.ratio
        middle, end = y + ROW / 2 - 4, LEFT + ratio.median * scale
        low, high = (LEFT + value * scale for value in (ratio.low, ratio.high))
        parts.append(f'<text class="name" x="{LEFT - 12}" y="{middle + 5:.1f}">{escape(bar.title)}</text>')
        parts.append(
            f'<rect class="{"ours" if bar.is_ours else "stock"}" x="{LEFT}" y="{middle - 11:.1f}" '
            f'width="{end - LEFT:.1f}" height="22" rx="3"/>'
        )
        if high > low:
            parts.append(
                f'<path class="whisker" d="M{low:.1f} {middle:.1f}H{high:.1f}M{low:.1f} {middle - 6:.1f}v12'
                f'M{high:.1f} {middle - 6:.1f}v12"/>'
            )
        parts.append(
            f'<text class="value" x="{max(end, high) + 10:.1f}" y="{middle + 5:.1f}">{ratio.median:.2f}x</text>'
        )
    parts.append(f'<path class="one" d="M{LEFT + scale:.1f} {TOP - 8}V{bottom}"/>')
    return "\n".join([*parts, "</svg>", ""])


def _tick_above(most: float) -> float:
    step = _step(most)
    return step * (int(most / step) + 1)


def _ticks(top: float) -> list[float]:
    step = _step(top)
    return [step * number for number in range(round(top / step) + 1)]


def _step(most: float) -> float:
    return next(step for step in (0.5, 1.0, 2.0, 5.0, 10.0, 1e9) if most / step <= 10)
