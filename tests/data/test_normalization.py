"""Normalisation, the fingerprint and the hashed split."""

from __future__ import annotations

import numpy as np
import pytest

from nightgate.data.rules import SPLITS, sides_of
from nightgate.text_rules import fingerprint, join_texts, normalise_text


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("  plain   text\n", "plain text"),
        ("R&amp;D &#39;wins&#x27; &lt;3", "R&D 'wins' <3"),
        ("AT&TEDDY &copy that", "AT&TEDDY &copy that"),
        ("one<br />two<BR>three</p>", "one two three"),
        ("I <3 this <b>bold</b>", "I <3 this <b>bold</b>"),
        ("cafe\u0301", "caf\u00e9"),
        ("soft\u00adhyphen zero\u200bwidth \ufeffmark", "softhyphen zerowidth mark"),
        ("bell\x07 nul\x00 tab\tbreak", "bell nul tab break"),
        ("no\u00a0break\u3000wide\u2028line", "no break wide line"),
        ("family \U0001f468\u200d\U0001f469\u200d\U0001f467", "family \U0001f468\u200d\U0001f469\u200d\U0001f467"),
        ("half \ud83d pair", "half \ufffd pair"),
        ("split pair \ud83d\ude00", "split pair \U0001f600"),
        (" &nbsp; <br> ", ""),
        ("Keep CASE!", "Keep CASE!"),
    ],
)
def test_text_is_normalised(raw: str, normal: str) -> None:
    assert normalise_text(raw) == normal


def test_parts_are_joined_by_a_line_break_and_empty_ones_skipped() -> None:
    assert join_texts(["A  title", " ", "the\nbody"]) == "A title\nthe body"


def test_a_fingerprint_ignores_case_and_is_the_same_on_every_machine() -> None:
    assert fingerprint("GREAT Straße") == fingerprint("great strasse") == "d0bdc5c5373dcc84e04380db1a8bf525"


def test_the_hash_divides_in_the_shares_that_were_asked_for() -> None:
    sides = sides_of(map(str, range(20_000)), seed=42, validation=0.1, test=0.2)
    shares = np.bincount(sides) / len(sides)
    assert dict(zip(SPLITS, shares, strict=True)) == pytest.approx(
        {"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.01
    )


def test_another_validation_share_moves_no_row_in_or_out_of_test() -> None:
    small, large = (sides_of(map(str, range(2_000)), seed=1, validation=share, test=0.2) for share in (0.1, 0.4))
    assert ((small == 2) == (large == 2)).all()


def test_another_seed_is_another_split() -> None:
    one, other = (sides_of(map(str, range(100)), seed=seed, validation=0.3, test=0.3) for seed in (1, 2))
    assert (one != other).any()
