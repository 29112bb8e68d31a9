"""The queries of docs/sql.md."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/sql.md"


def questions() -> dict[str, str]:
    """The SQL below each heading of the page that has some."""
    page = PAGE.read_text(encoding="utf-8")
    return dict(re.findall(r"^### ([^\n]+)\n(?:(?!#)[^\n]*\n)*?```sql\n(.*?)```", page, flags=re.M | re.S))
