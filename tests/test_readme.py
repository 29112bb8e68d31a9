"""The README is held to what it says: its commands exist, its SQL runs on both engines, its files load."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from nightgate.cli import app
from nightgate.database import Database
from nightgate.pipelines import check_pipeline, pipeline_files

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> dict[str, set[str]]:
    """Every command of the CLI, `db upgrade` among them, and its options."""
    found = {}
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        for sub, one in getattr(command, "commands", {"": command}).items():
            found[f"{name} {sub}".strip()] = {option for parameter in one.params for option in parameter.opts}
    return found


def test_every_command_stands_in_the_readme() -> None:
    missing = [name for name in commands() if f"nightgate {name}" not in README]
    assert not missing


def test_every_command_has_help_and_so_has_every_option() -> None:
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        for one in getattr(command, "commands", {"": command}).values():
            assert one.help, name
            assert all(getattr(parameter, "help", None) for parameter in one.params if parameter.name != "help"), name


def test_every_command_and_option_of_the_readme_exists() -> None:
    known = commands()
    used = re.findall(r"(?:^|[`(/ ])nightgate ((?:(?:db|gate) )?[a-z]+)([^`\n#]*)", README, flags=re.MULTILINE)
    assert used
    for name, rest in used:
        if name not in known:
            # Prose, such as "Nightgate takes": commands stand in code.
            assert f"`nightgate {name}" not in README, name
            continue
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in known[name] | {"--help"}, f"{name} {option}"


@pytest.mark.parametrize("sql", blocks("sql"))
def test_every_query_of_the_readme_runs(sql: str, database: Database) -> None:
    for statement in sql.split(";"):
        if statement.strip():
            assert len(database.frame(statement).columns) > 1


def test_the_smallest_pipeline_of_the_readme_loads() -> None:
    [text] = blocks("toml")
    assert check_pipeline(tomllib.loads(text), "README").name == "mine"


def test_every_pipeline_that_the_readme_names_is_shipped() -> None:
    named = set(re.findall(r"([a-z-]+)\.toml", README)) - {"mine", "other", "pyproject"}
    assert named <= set(pipeline_files())


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", README, flags=re.MULTILINE)) <= targets


def test_every_link_and_picture_of_the_readme_is_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
