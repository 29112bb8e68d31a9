"""What is printed cannot move a cursor, turn the direction of writing or fill the screen; JSON keeps every value."""

from __future__ import annotations

import io
import json
import logging
import unicodedata

import pandas as pd
import pytest

from nightgate import logs
from nightgate.cli.options import say, show
from nightgate.cli.tables_as_text import Format
from nightgate.plain_text import LONGEST, as_json, legible, printable
from nightgate.rendering import markdown, markdown_code

HOSTILE = "\x1b[2J\x1b]0;title\x07 \x9b31m red \x7f\u202eevil\u2066 \r over \U000e0041\u2028"


def is_clean(text: str) -> bool:
    return not any(unicodedata.category(one) in {"Cc", "Cf", "Cs"} and one not in "\n\t" for one in text)


def test_control_and_direction_characters_are_replaced_and_others_stay() -> None:
    assert is_clean(legible(HOSTILE))
    assert "red" in legible(HOSTILE)
    kept = "Größe 很好 👍🏽\tعربي\nline two"
    assert legible(kept) == kept
    assert "\n" not in printable("a\nb")


def test_every_control_character_but_tab_and_line_feed_is_replaced() -> None:
    controls = {chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in {"Cc", "Cs"}}
    assert {one for one in controls if legible(one) == one} == {"\t", "\n"}


def test_a_long_line_keeps_its_beginning_and_end() -> None:
    found = legible(f"begin {'x' * 10_000} end\nnext: a command")
    first, second = found.split("\n")
    assert len(first) <= LONGEST
    assert first.startswith("begin ")
    assert first.endswith(" end")
    assert second == "next: a command"


def test_json_escapes_control_characters_and_keeps_the_value() -> None:
    found = as_json({HOSTILE: HOSTILE * 1000})
    assert is_clean(found)
    assert json.loads(found) == {HOSTILE: HOSTILE * 1000}
    assert as_json("Größe 很好") == '"Größe 很好"'


@pytest.mark.parametrize("output", [one for one in Format if one is not Format.parquet])
@pytest.mark.parametrize("vertical", [True, False])
def test_a_table_is_clean_and_machine_formats_keep_values(
    capsys: pytest.CaptureFixture[str], output: Format, vertical: bool
) -> None:
    frame = pd.DataFrame({"label": [HOSTILE, "x" * 5000], "above": [HOSTILE, None]})
    show(frame, output, vertical=vertical, columns=("label",), before="above")
    printed = capsys.readouterr().out
    if output is Format.table:
        assert is_clean(printed)
        assert "x" * LONGEST not in printed
    elif output is Format.markdown:
        assert is_clean(printed)
    elif output is Format.json:
        assert is_clean(printed)
        assert [row["label"] for row in json.loads(printed)] == list(frame["label"])
    else:
        assert HOSTILE in printed


def test_messages_for_people_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    say(HOSTILE, err=True)
    printed = capsys.readouterr()
    assert is_clean(printed.out)
    assert is_clean(printed.err)


def test_log_lines_and_tracebacks_are_clean() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logs.protect(handler)
    logger = logging.Logger("nightgate.test")
    logger.addHandler(handler)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("label %s", HOSTILE + "x" * 5000)
    assert is_clean(stream.getvalue())
    assert "ValueError" in stream.getvalue()
    assert "x" * LONGEST not in stream.getvalue()


def test_markdown_is_clean() -> None:
    assert is_clean(markdown(HOSTILE))
    assert is_clean(markdown_code(HOSTILE))
