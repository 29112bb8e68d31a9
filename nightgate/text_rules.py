"""The normalisation of texts and labels. Pure Python.

A text must pass through `normalise_text` before prediction as it did before training.
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Iterable

NORMALISATION_VERSION = 1
"""Part of every snapshot id and test version: raise it with every change of the rules below."""

# Only with the semicolon: `html.unescape` would also change 'AT&TEDDY' and 'cats&notes'.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
# Only tags that break lines: '<3' and '<b>' may be part of the text.
_LINE_TAG = re.compile(r"</?(?:br|p|div|li|ul|ol|hr)\b[^<>]{0,100}>", re.IGNORECASE)
# Control characters other than white space, zero-width space, soft hyphen, byte-order mark and direction marks.
# The joiners U+200C and U+200D stay: Persian, Hindi and emoji need them.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def normalise_text(text: str) -> str:
    """`text` in Unicode NFC with HTML entities decoded, line tags and invisible characters removed, white space joined.

    Case, punctuation and other tags stay. A lone surrogate, which JSON can hold, becomes U+FFFD.
    """
    if "&" in text:
        text = _ENTITY.sub(lambda match: html.unescape(match.group()), text)
    if "<" in text:
        text = _LINE_TAG.sub(" ", text)
    if not text.isascii():
        if _SURROGATE.search(text):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        text = _INVISIBLE.sub("", text)
        text = unicodedata.normalize("NFC", text)
    elif not text.isprintable():
        text = _INVISIBLE.sub("", text)
    # Of printable characters only the space is white space. Most texts end here, 1.5 us earlier, as they were.
    if text.isprintable() and "  " not in text and text[:1] != " " and text[-1:] != " ":
        return text
    return " ".join(text.split())


def fingerprint(text: str) -> str:
    """32 hex digits of the SHA-256 of a normalised, case-folded text: 'GREAT' and 'great' are equal."""
    return hashlib.sha256(text.casefold().encode()).hexdigest()[:32]


def canonical_text(text: str) -> str:
    """The letters, digits and vowel signs of `text`, case folded."""
    text = text.casefold()
    return text.encode().translate(None, _ASCII_OTHERS).decode() if text.isascii() else text.translate(_KEPT)


def join_texts(parts: Iterable[str]) -> str:
    """The normalised parts that are not empty, joined by a line break."""
    return "\n".join(part for part in map(normalise_text, parts) if part)


_ASCII_OTHERS = bytes(code for code in range(128) if not chr(code).isalnum())


class _Kept(dict[int, int | None]):
    """For `str.translate`: letters, digits and the marks that write vowels stay."""

    def __missing__(self, code: int) -> int | None:
        self[code] = code if unicodedata.category(chr(code))[0] in "LNM" else None
        return self[code]


_KEPT = _Kept()
