"""Render HTML and Markdown from the Jinja2 templates in `nightgate/templates`.

    render("report.html", page=page)

Every value is escaped for the language of its template. What a macro or a filter returns as `Markup` is inserted as it
is.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nightgate.plain_text import LONGEST_ON_PAGE, legible, printable

# An underscore within a word, as in min_f1, has no meaning in Markdown.
_SPECIAL = re.compile(r"[\\`*\[\]<>|~&$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_LINE_START = re.compile(r"^(\d*)(?=[-+=#.)])")


def render(template: str, **values: Any) -> str:
    """Render `nightgate/templates/TEMPLATE.j2`; the extension of TEMPLATE is its language."""
    return _environment(template.rpartition(".")[2]).get_template(f"{template}.j2").render(**values)


def markdown(text: str) -> Markup:
    """Escape `text` as one line of Markdown.

    With backslashes: one of Prefect's two UIs does not decode HTML entities in tables. A blank at either end stays,
    since the text may be part of a sentence.
    """
    before, after = " " * text.startswith(" "), " " * (text.endswith(" ") and bool(text.strip()))
    return Markup(before + _SPECIAL.sub(lambda found: "\\" + found.group(), printable(text, LONGEST_ON_PAGE)) + after)


def markdown_code(text: str) -> Markup:
    """Inline code that is safe in a table and with back-ticks in `text`."""
    text = printable(text, LONGEST_ON_PAGE).replace("|", r"\|")
    fence = _fence(text, at_least=1)
    pad = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return Markup(f"{fence}{pad}{text}{pad}{fence}")


def markdown_block(text: str, language: str) -> Markup:
    """A fenced code block."""
    fence = _fence(text, at_least=3)
    return Markup(f"{fence}{language}\n{text}\n{fence}")


def markdown_line(text: Markup) -> Markup:
    """Keep escaped Markdown at the start of a line from becoming a list, a heading or a rule."""
    return Markup(_LINE_START.sub(r"\1\\", text, count=1))


def _fence(text: str, *, at_least: int) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(at_least, longest + 1)


@cache
def _environment(language: str) -> Environment:
    escape = markdown if language == "md" else _html
    environment = Environment(
        loader=PackageLoader("nightgate"),
        autoescape=True,
        finalize=_finalizer(escape),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "kind": lambda value: type(value).__name__,
        # JSON is YAML too, so that no value can break front matter.
        "json": lambda value: Markup(json.dumps(value)),
        "verbatim": Markup,
        "code": markdown_code,
        "code_block": markdown_block,
        "line": markdown_line,
    }
    return environment


def _finalizer(escape: Callable[[str], Markup]) -> Callable[[Any], Markup]:
    # Jinja calls it for every value before its own escaping, which leaves `Markup` as it is.
    return lambda value: value if isinstance(value, Markup) else escape(str(value))


def _html(text: str) -> Markup:
    return Markup(html.escape(legible(text, LONGEST_ON_PAGE)))
