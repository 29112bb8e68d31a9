"""The page on Python and the notebook show what they give on the year of `benchmarks.fleet`.

pytest tests/project/test_python_page.py --snapshot-update      # writes both anew
"""

from __future__ import annotations

import code
import contextlib
import io
import re
from pathlib import Path

import pytest

import nightgate

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = re.compile(r"(?<=```pycon\n).*?(?=```)", re.DOTALL)


def executed(page: str) -> str:
    """The page with what its examples print now."""
    console = code.InteractiveConsole()

    def answered(example: re.Match[str]) -> str:
        lines = []
        for line in example[0].splitlines():
            if line.startswith(">>> "):
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                    console.push(line.removeprefix(">>> "))
                lines += [line, *printed.getvalue().splitlines()]
        return "".join(f"{line}\n" for line in lines)

    return EXAMPLES.sub(answered, page)


@pytest.mark.usefixtures("year")
def test_the_examples_give_what_the_page_shows_on_both_engines(request: pytest.FixtureRequest) -> None:
    page = DOCS / "python.md"
    shown = page.read_text(encoding="utf-8")
    found = executed(shown)
    if request.config.getoption("--snapshot-update"):
        page.write_text(found, encoding="utf-8")
    else:
        assert found == shown
    assert "Traceback" not in found


def test_every_function_of_the_package_is_on_the_page() -> None:
    shown = (DOCS / "python.md").read_text(encoding="utf-8")
    missing = [name for name in nightgate.__all__ if f"`{name}(" not in shown]
    assert missing == ["__version__"]
