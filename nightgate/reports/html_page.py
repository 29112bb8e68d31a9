"""A `Document` as one HTML file: nothing is fetched, nothing runs, light or dark as the reader's system is.

The policy in its head forbids scripts and all resources but its own styles, so that even text that slipped through the
escaping could do nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from nightgate.reports.document import (
    Block,
    Callout,
    Code,
    Document,
    Facts,
    Mark,
    Mono,
    Span,
    Strong,
    Table,
    Text,
    Tile,
    Tiles,
)
from nightgate.reports.pictures import FONT, css_variables, legible

_LONG_TABLE = 16
"""Rows from which a table scrolls in a box of its own."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

_LIGHT = (
    "--page:#f3f5f8;--line:#dde2e8;--head:#f6f8fa;--good:#12703a;--good-soft:#e2f4e8;--bad:#b3261e;--bad-soft:#fbe7e5;"
    "--warn:#8a5a00;--warn-soft:#fdf1d8;--calm:#4a5561;--calm-soft:#e9edf1;--shadow:0 1px 2px rgba(20,30,40,.06);"
)
_DARK = (
    "--page:#0d1117;--line:#2b323b;--head:#1c222a;--good:#5fd38d;--good-soft:#12301f;--bad:#ff9b91;--bad-soft:#3d1a18;"
    "--warn:#f0c05c;--warn-soft:#35290f;--calm:#a9b4c0;--calm-soft:#242b34;--shadow:none;"
)

_STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.55 FONT;-webkit-text-size-adjust:100%}
main{max-width:1000px;margin:0 auto;padding:36px 20px 64px}
header{margin-bottom:20px}
h1{font-size:26px;line-height:1.25;margin:0;font-weight:680;letter-spacing:-.01em}
h1{display:flex;flex-wrap:wrap;gap:6px 14px;align-items:center}
h2{font-size:17px;margin:0 0 14px;font-weight:660}
p{margin:0 0 12px;overflow-wrap:anywhere}
p.lead{font-size:17px;margin:12px 0 0;max-width:76ch}
p.small{color:var(--muted);font-size:13.5px}
section,.tile{background:var(--ground);border:1px solid var(--line);border-radius:10px;box-shadow:var(--shadow)}
section{padding:20px 22px 12px;margin-top:18px}
nav{margin-top:16px;font-size:13.5px;display:flex;flex-wrap:wrap;gap:4px 18px}
nav a{color:var(--muted);text-decoration:none;border-bottom:1px solid var(--line)}
a{color:var(--candidate)}
nav a:hover,a:hover{color:var(--ink)}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;font-size:.88em}
code{background:var(--calm-soft);border-radius:4px;padding:.1em .35em;overflow-wrap:anywhere}
dd code,.callout code,p code{display:inline-block;max-width:100%;padding-block:0}
pre{background:var(--head);border:1px solid var(--line);border-radius:8px;padding:12px 14px;margin:0 0 14px}
pre{white-space:pre-wrap;overflow-wrap:anywhere}
a code{color:inherit}
.mark{font-weight:620;white-space:nowrap}
.pill{font-size:14px;border-radius:99px;padding:3px 13px 4px;letter-spacing:.02em}
.good{color:var(--good)}.bad{color:var(--bad)}.warn{color:var(--warn)}.calm{color:var(--calm)}
.pill.good,.callout.good{background:var(--good-soft)}.pill.bad,.callout.bad{background:var(--bad-soft)}
.pill.warn,.callout.warn{background:var(--warn-soft)}.pill.calm,.callout.calm{background:var(--calm-soft)}
.callout{border-radius:8px;padding:11px 15px;margin:0 0 12px;color:var(--ink);border-left:4px solid var(--calm)}
.callout.good{border-color:var(--good)}.callout.bad{border-color:var(--bad)}.callout.warn{border-color:var(--warn)}
.callout code{background:var(--ground)}
header .callout{margin:14px 0 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:20px}
.tile{padding:12px 15px 11px}
.tile b,.tile span{display:block;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.tile b{font-size:23px;font-weight:650;line-height:1.3}
.tile span{color:var(--muted);font-size:13px}
.tile b.calm{color:var(--ink)}
.box{overflow:auto;margin:0 0 14px}
.box.long{max-height:470px;border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:6px 12px 6px 8px;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--muted);font-weight:580;white-space:nowrap}
.long th{position:sticky;top:0;background:var(--head)}
td{min-width:64px;max-width:560px;overflow-wrap:break-word}
tr:last-child td{border-bottom:0}
.numbers td+td,.numbers th+th{text-align:right;white-space:nowrap}
.centred td,.centred th{text-align:center}
tr.counts td{font-weight:680;background:var(--calm-soft)}
dl{display:grid;grid-template-columns:minmax(130px,max-content) 1fr;gap:5px 20px;margin:0 0 14px;font-size:14px}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
figure{margin:0 0 14px;overflow-x:auto}
figure svg{display:block;max-width:100%;height:auto}
@media (max-width:640px){
main{padding:20px 12px 40px}section{padding:16px 14px 8px}figure svg{min-width:560px}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:7px}}
@media print{
body{background:#fff}.tile,figure,tr{break-inside:avoid}.box.long{max-height:none}nav{display:none}}
"""


def as_html(page: Document) -> str:
    """The whole file."""
    named = [(_anchor(section.title), section) for section in page.sections]
    links = "".join(f'<a href="#{anchor}">{_escaped(section.title)}</a>' for anchor, section in named)
    mark = page.status
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{_escaped(page.title)}: {_escaped(mark.text)}</title>",
        f"<style>{_style()}</style>",
        "</head>",
        "<body>",
        "<main>",
        "<header>",
        f'<h1>{_escaped(page.title)} <span class="mark pill {mark.tone}">{mark.sign} {_escaped(mark.text)}</span></h1>',
        *map(_block, page.head),
        f"<nav>{links}</nav>" if links else "",
        "</header>",
        *(
            f'<section id="{anchor}"><h2>{_escaped(section.title)}</h2>{"".join(map(_block, section.blocks))}</section>'
            for anchor, section in named
        ),
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _style() -> str:
    light = f":root{{color-scheme:light dark;{css_variables(dark=False)}{_LIGHT}}}"
    dark = f"@media (prefers-color-scheme:dark){{:root{{{css_variables(dark=True)}{_DARK}}}}}"
    # Paper is white, whatever the screen is.
    paper = f"@media print{{:root{{color-scheme:light;{css_variables(dark=False)}{_LIGHT}}}}}"
    return f"{light}\n{dark}\n{paper}{_STYLE.replace('FONT', FONT)}"


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _block(block: Block) -> str:
    if isinstance(block, Text):
        kind = "" if block.kind == "plain" else f' class="{block.kind}"'
        return f"<p{kind}>{_spans(block.spans)}</p>"
    if isinstance(block, Callout):
        return f'<div class="callout {block.tone}">{_spans(block.spans)}</div>'
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Facts):
        rows = "".join(f"<dt>{_escaped(name)}</dt><dd>{_spans(spans)}</dd>" for name, spans in block.rows)
        return f"<dl>{rows}</dl>"
    if isinstance(block, Tiles):
        return f'<div class="tiles">{"".join(map(_tile, block.tiles))}</div>'
    if isinstance(block, Code):
        return f"<pre>{_escaped(block.text)}</pre>"
    return f"<figure>{block.inline()}</figure>"


def _tile(tile: Tile) -> str:
    detail = f"<span>{_escaped(tile.detail)}</span>" if tile.detail else ""
    return (
        f'<div class="tile"><span>{_escaped(tile.name)}</span>'
        f'<b class="{tile.tone}">{_escaped(tile.value)}</b>{detail}</div>'
    )


def _table(table: Table) -> str:
    kinds = [name for name, has in (("numbers", table.numbers), ("centred", table.centred)) if has]
    opening = f'<table class="{" ".join(kinds)}">' if kinds else "<table>"
    header = "".join(f'<th scope="col">{_escaped(name)}</th>' for name in table.header)
    rows = "".join(
        ('<tr class="counts">' if place == table.highlight else "<tr>")
        + "".join(f"<td>{_span(cell)}</td>" for cell in row)
        + "</tr>"
        for place, row in enumerate(table.rows)
    )
    box = "box long" if len(table.rows) > _LONG_TABLE else "box"
    return f'<div class="{box}">{opening}<thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>'


def _spans(spans: Sequence[Span]) -> str:
    return "".join(_span(span) for span in spans)


def _span(span: Span) -> str:
    if isinstance(span, Mono):
        code = f"<code>{_escaped(span.text)}</code>"
        return f'<a href="{_escaped(span.href)}">{code}</a>' if span.href else code
    if isinstance(span, Strong):
        return f"<strong>{_escaped(span.text)}</strong>"
    if isinstance(span, Mark):
        return f'<span class="mark {span.tone}">{span.sign} {_escaped(span.text)}</span>'
    return _escaped(span)


def _escaped(text: str) -> str:
    return escape(legible(text), quote=True)
