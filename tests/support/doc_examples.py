"""Examples in pages of the docs, as they are typed at Python's prompt."""

from __future__ import annotations

import code
import contextlib
import io
import re

EXAMPLES = re.compile(r"(?<=```pycon\n).*?(?=```)", re.DOTALL)


def executed(page: str) -> str:
    """The page with what its examples print now."""
    console = code.InteractiveConsole()

    def answered(example: re.Match[str]) -> str:
        lines = []
        typed = [line for line in example[0].splitlines() if line.startswith((">>> ", "... "))]
        for line in typed:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                console.push(line[4:])
            lines += [line, *printed.getvalue().splitlines()]
        return "".join(f"{line}\n" for line in lines)

    return EXAMPLES.sub(answered, page)
