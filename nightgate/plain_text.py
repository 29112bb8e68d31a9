"""Text of rows, names and other programs, as it may be printed: without control characters, and not endless.

A value may hold an escape sequence that moves a terminal's cursor, or a mark that turns the direction of writing. What
is printed, logged or rendered goes through `legible`; JSON, CSV and the database keep values as they are.
"""

from __future__ import annotations

import json
import re
from typing import Any

LONGEST = 1000
"""Characters of a line or a value on a terminal and in a log."""
LONGEST_ON_PAGE = 10_000
"""The same on a page, which has the reasons of checks whole."""

_HIDDEN = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line feed, DEL, C1
    "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"  # direction of writing, other line breaks
    "\ud800-\udfff\ufffe\uffff\U000e0000-\U000e007f"  # what XML or UTF-8 cannot represent, invisible tags
    "]"
)


def legible(text: str, longest: int = LONGEST) -> str:
    """`text` with a replacement character for each control character, and with long lines cut in their middle."""
    plain = _HIDDEN.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))
    return "\n".join(_shortened(line, longest) for line in plain.split("\n"))


def with_form_fields(text: str) -> str:
    """`text` in which a `--set` also names the field of the form in Prefect's UI, where its reader is."""
    return re.sub(r"--set (training|gate)\.(\w+)=[^\s;,]*[^\s;,.]", r"\g<0> (in the form: \1 > \2)", text)


def printable(text: str, longest: int = LONGEST) -> str:
    """`legible` text on one line, of at most `longest` characters."""
    return _shortened(" ".join(legible(text, longest).split()), longest)


def _shortened(text: str, longest: int) -> str:
    """Cut in the middle: names often differ at either end."""
    if len(text) <= longest:
        return text
    tail = (longest - 1) // 3
    return f"{text[: longest - 1 - tail]}…{text[len(text) - tail :]}"


def as_json(value: Any) -> str:
    """Indented JSON with all values as they are; control characters are written as escapes."""
    return _HIDDEN.sub(_escaped, json.dumps(value, indent=2, ensure_ascii=False))


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found.group())[1:-1]
