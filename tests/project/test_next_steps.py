"""Every command and package that a message names exists, with the arguments and options that stand there."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer.main
from packaging.requirements import Requirement

from nightgate.cli.app import app

ROOT = Path(__file__).parents[2]
PROSE = {"was", "again", "sample"}
"""Words after the name Nightgate in sentences that name no command."""


def _texts(path: Path) -> Iterator[str]:
    """The string literals of a module that are no docstrings; each value in an f-string is X."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    parts |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


TEXTS = [
    (path.relative_to(ROOT).as_posix(), text)
    for room in ("nightgate", "flows", "tasks", "deployments")
    for path in sorted((ROOT / room).rglob("*.py"))
    for text in _texts(path)
]


def _commands() -> Iterator[tuple[str, str]]:
    """Commands in backticks, and others up to the end of their clause."""
    for place, text in TEXTS:
        yield from ((place, found) for found in re.findall(r"`nightgate ([a-z][^`]*)`", text))
        bare = re.sub(r"`[^`]*`", "", text)
        for found in re.findall(r"(?<![\w/.'])nightgate ([a-z][^;,()\n]*)", bare):
            if found.split()[0] not in PROSE:
                yield place, found


COMMANDS = sorted(set(_commands()))


@pytest.mark.parametrize("line", sorted({line for _, line in COMMANDS}))
def test_a_command_that_a_message_names_can_be_run_as_it_stands(line: str) -> None:
    command: Any = typer.main.get_command(app)
    words = shlex.split(line)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    # Bad usage raises.
    assert command.make_context(command.name, words).command is command


def test_all_kinds_of_messages_are_read() -> None:
    rooms = {place.split("/")[0] for place, _ in COMMANDS}
    assert rooms >= {"nightgate", "flows", "deployments"}
    assert len(COMMANDS) > 50


def test_packages_to_install_are_those_of_the_project() -> None:
    own = metadata.metadata("nightgate")
    known = {Requirement(text).name for text in metadata.requires("nightgate") or ()} | {"nightgate"}
    named = 0
    for place, text in TEXTS:
        for options in re.findall(r"pip install ([^;,(\n]*)", text):
            for word in shlex.split(options):
                if word.startswith("-") or "X" in word or word == "there":
                    continue
                wanted = Requirement(word)
                assert wanted.name in known, (place, text)
                assert wanted.extras <= set(own.get_all("Provides-Extra") or ()), (place, text)
                named += 1
    assert named >= 4


def test_other_programs_that_messages_name_come_with_the_requirements() -> None:
    scripts = {script.name for script in metadata.entry_points(group="console_scripts")}
    named = {found for _, text in TEXTS for found in re.findall(r"`(hf|dask|prefect|python -m [\w.]+) ?", text)}
    for program in named:
        if program.startswith("python"):
            assert importlib.util.find_spec(program.split()[-1]) is not None, program
        else:
            assert program in scripts
    assert len(named) >= 3


def test_no_message_names_a_file_of_the_checkout() -> None:
    """An installed package has no constraints.txt, and its pipelines are not in the working folder."""
    assert not [(place, text) for place, text in TEXTS if "constraints.txt" in text]
    template = [text for _, text in TEXTS if "deployments/pipelines/template.toml" in text]
    assert not template
