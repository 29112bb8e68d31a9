"""What README and docs name exists: commands, options, fields, queries, views, settings, links and modules."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.main import get_command

from nightgate.cli.app import app
from nightgate.config.checks import ColumnRules, DataChecks
from nightgate.config.data import Data, Split
from nightgate.config.gate import Gate
from nightgate.config.pipeline import Resources, Retention
from nightgate.config.predict import Predict, SqlTable
from nightgate.config.schedule import Schedule
from nightgate.config.sources import FilesSource, HubSource, SampleSource, SqlSource
from nightgate.config.training import Training
from nightgate.database.transactions import Database
from nightgate.pipeline_files import check_pipeline, pipeline_files

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
EVERY_PAGE = pytest.mark.parametrize("page", PAGES)
SECTIONS: dict[str, type[BaseModel]] = {
    "`[data]`": Data,
    "`[data.checks]`": DataChecks,
    "`[data.checks.columns.NAME]`": ColumnRules,
    '`source = { kind = "files" }`': FilesSource,
    '`source = { kind = "hub" }`': HubSource,
    '`source = { kind = "sql" }`': SqlSource,
    '`source = { kind = "sample" }`': SampleSource,
    "`[split]`": Split,
    "`[training]`": Training,
    "`[gate]`": Gate,
    "`[schedule]`": Schedule,
    "`[resources]`": Resources,
    "`[retention]`": Retention,
    "`[predict]`": Predict,
    '`output = { kind = "sql" }`': SqlTable,
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], flags=re.DOTALL)


def table_rows(text: str) -> list[list[str]]:
    """The cells of every row of the markdown tables in a text, without heads and rules."""
    rows = re.findall(r"^\| (`.*) \|$", text, flags=re.MULTILINE)
    return [re.split(r" (?<!\\)\| ", row) for row in rows]


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([a-z_0-9]+)`", cell))


def commands() -> dict[str, set[str]]:
    """Every command of the CLI with its options; subcommands as `db upgrade`."""
    found = {}
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        for sub, one in getattr(command, "commands", {"": command}).items():
            found[f"{name} {sub}".strip()] = {option for parameter in one.params for option in parameter.opts}
    return found


def test_every_command_and_option_is_in_the_table_of_commands() -> None:
    rows = PAGES["commands.md"].splitlines()
    for name, options in commands().items():
        row = next((row for row in rows if row.startswith("|") and f"`nightgate {name}" in row), "")
        assert row, name
        # `--format` is described once for all; -n is the short form of the one before it.
        long = {option for option in options if option.startswith("--")} - {"--help", "--format", "--num-seeds"}
        assert all(f"[{option}" in row or f" {option} " in row for option in long), name


def test_every_command_has_help_and_so_has_every_option() -> None:
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        for one in getattr(command, "commands", {"": command}).values():
            assert one.help, name
            assert all(getattr(parameter, "help", None) for parameter in one.params if parameter.name != "help"), name


@EVERY_PAGE
def test_every_command_and_option_that_is_named_exists(page: str) -> None:
    known = commands()
    used = re.findall(
        r"(?:^|[`(/ ])nightgate ((?:(?:db|gate) )?[a-z]+(?:-[a-z]+)?)([^`\n#]*)", PAGES[page], flags=re.MULTILINE
    )
    for name, rest in used:
        if name not in known:
            # Prose, such as "user nightgate runs": commands stand in code.
            assert f"`nightgate {name}" not in PAGES[page], name
            continue
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in known[name] | {"--help"}, f"{name} {option}"


def test_the_views_and_their_columns_are_all_documented(database: Database) -> None:
    page = PAGES["sql.md"].split("## Views\n")[1]
    documented = {cells[0].strip("`"): cells[2] for cells in table_rows(page) if len(cells) == 3}
    shared = page.split("Columns of `nightly_runs` and `nights`")[1]
    listed = {name: names(cell) for name, cell in documented.items()}
    listed["nightly_runs"] = listed["nights"] = set().union(
        *(names(line) for line in shared.splitlines() if line.startswith("|"))
    )
    listed["epoch_results"] = listed["metric_history"]
    listed["slice_results"] |= listed["slice_metrics"]
    views = "SELECT name FROM sqlite_master WHERE type = 'view'"
    if database.dialect == "postgresql":
        views = "SELECT table_name AS name FROM information_schema.views WHERE table_schema = current_schema()"
    assert set(database.frame(views)["name"]) == set(listed)
    for view, columns in listed.items():
        assert set(database.frame(f"SELECT * FROM {view} LIMIT 0").columns) == columns, view


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_field_of_a_section_is_documented_with_its_default(heading: str) -> None:
    [section] = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", PAGES["pipeline-file.md"], re.M | re.S)
    documented = {cells[0].strip("`"): cells[1] for cells in table_rows(section)}
    fields = SECTIONS[heading].model_fields
    assert list(documented) == list(fields)
    for name, field in fields.items():
        default = ... if field.is_required() else field.default
        default = default.model_dump(exclude_defaults=True) if isinstance(default, BaseModel) else default
        assert _default(documented[name]) == default, name


def _default(cell: str) -> Any:
    """The default in a cell of the table: `...` for a required field, as in pydantic."""
    if cell in {"required", "none"}:
        return ... if cell == "required" else None
    value = tomllib.loads(f"x = {cell.strip('`')}")["x"]
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("page", ["README.md", "own-data.md"])
def test_the_smallest_pipeline_loads(page: str) -> None:
    text = blocks(page, "toml")[0]
    assert check_pipeline(tomllib.loads(text), page).name == "mine"


@EVERY_PAGE
def test_every_pipeline_that_is_named_is_shipped(page: str) -> None:
    named = set(re.findall(r"([a-z-]+)\.toml", PAGES[page])) - {"base", "mine", "other", "pyproject", "reviews"}
    assert named <= set(pipeline_files())


@EVERY_PAGE
def test_every_make_target_that_is_named_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", PAGES[page], flags=re.MULTILINE)) <= targets


def test_the_table_of_settings_is_that_of_the_example() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    settings = PAGES["operations.md"].split("## Settings")[1].split("\n## ")[0]
    assert {cells[0].strip("`") for cells in table_rows(settings)} == set(
        re.findall(r"^#?(NIGHTGATE_[A-Z_]+)=", example, flags=re.MULTILINE)
    )


@EVERY_PAGE
def test_every_link_and_picture_resolves(page: str) -> None:
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", PAGES[page]):
        assert not target or (folder / target).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", PAGES[Path(target).name if target else page], flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9 _-]", "", one.lower()).replace(" ", "-") for one in headings}, anchor


def test_every_page_is_linked_from_the_readme_and_every_picture_is_shown() -> None:
    linked = set(re.findall(r"docs/([a-z-]+\.md)", PAGES["README.md"]))
    assert linked == set(PAGES) - {"README.md"}
    shown = {Path(target).name for page in PAGES.values() for target in re.findall(r"\]\(([^)]+\.(?:png|svg))\)", page)}
    assert shown == {path.name for path in (ROOT / "docs").iterdir() if path.suffix in {".png", ".svg"}}


def test_every_path_in_the_architecture_exists() -> None:
    paths = re.findall(r"`((?:[a-z_]+/)+[a-z_]*(?:\.py)?|[a-z_]+\.py)`", PAGES["architecture.md"])
    assert len(paths) > 60
    for path in paths:
        names = [path, f"{path}.py", f"nightgate/{path}", f"nightgate/{path}.py"]
        assert any((ROOT / name).exists() for name in names), path
