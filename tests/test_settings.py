"""The environment variables of Nightgate: what they may hold, and that code, docs and example name the same ones."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nightgate.errors import ConfigurationError
from nightgate.operations.doctor import examine
from nightgate.settings import OF_TESTS, Settings, read_settings, shown_settings, unknown_settings, variable
from tests.support.night import nightgate

ROOT = Path(__file__).parents[1]
KNOWN = {variable(field) for field in Settings.model_fields}
SECRET = "postgresql://me:hush-hush@db/metrics"


def names_in_code() -> Iterator[str]:
    """Strings of the code that are the name of a variable and nothing else."""
    for layer in ("nightgate", "tasks", "flows", "deployments", "alembic"):
        for path in (ROOT / layer).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield from re.findall(r"^NIGHTGATE_[A-Z_]*[A-Z]$", node.value)


# --- what they hold ---


def test_nothing_is_set_unless_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KNOWN:
        monkeypatch.setenv(name, "")
    settings = read_settings()
    assert settings.home is None
    assert (settings.pipelines, settings.model_roots, settings.slot_limits, settings.processes) == ((), (), {}, 1)
    assert not settings.database_url
    assert not settings.webhook_url


def test_values_are_read_from_the_environment_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("NIGHTGATE_PIPELINES", "/etc/pipelines::~/mine.toml")
    monkeypatch.setenv("NIGHTGATE_SLOT_LIMITS", "gpu = 2, other=1,")
    monkeypatch.setenv("NIGHTGATE_PROCESSES", " 2 ")
    monkeypatch.setenv("NIGHTGATE_DATABASE_URL", f" {SECRET} ")
    settings = read_settings()
    assert settings.pipelines == (Path("/etc/pipelines"), Path("/home/me/mine.toml"))
    assert (settings.slot_limits, settings.processes) == ({"gpu": 2, "other": 1}, 2)
    assert settings.database_url.get_secret_value() == SECRET
    monkeypatch.setenv("NIGHTGATE_PROCESSES", "gpus")
    assert read_settings().processes == "gpus"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("NIGHTGATE_SLOT_LIMITS", text) for text in ("gpu", "gpu=0", "gpu=two", "GPU=1", "a=1;b=2", "=1")),
        *(("NIGHTGATE_PROCESSES", text) for text in ("0", "two", "-1", "1025")),
    ],
)
def test_a_value_out_of_bounds_is_named_with_an_example(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as refused:
        read_settings()
    [problem] = refused.value.problems
    assert problem.startswith(f"{name} is {value!r}: ")
    assert repr((Settings.model_fields[name.removeprefix("NIGHTGATE_").lower()].examples or [""])[0]) in problem


def test_all_problems_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTGATE_SLOT_LIMITS", "gpu")
    monkeypatch.setenv("NIGHTGATE_PROCESSES", "two")
    with pytest.raises(ConfigurationError) as refused:
        read_settings()
    assert len(refused.value.problems) == 2


# --- what is shown ---


def test_secrets_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTGATE_DATABASE_URL", SECRET)
    monkeypatch.setenv("NIGHTGATE_WEBHOOK_URL", "https://chat.example/hush-hush")
    monkeypatch.setenv("NIGHTGATE_SLOT_LIMITS", "pool=2,gpu1=1")
    settings = read_settings()
    shown = shown_settings(settings)
    assert shown["NIGHTGATE_SLOT_LIMITS"] == "pool=2,gpu1=1"
    assert shown["NIGHTGATE_MODEL_ROOTS"] == ""
    assert shown["NIGHTGATE_DATABASE_URL"]
    assert "hush-hush" not in f"{shown} {settings!r} {settings}"


def test_the_doctor_shows_every_setting_and_names_a_misspelt_one(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTGATE_HOEM", "/elsewhere")
    findings = examine()
    shown = {one.check: one.found for one in findings if one.check in KNOWN}
    assert set(shown) == KNOWN
    assert shown["NIGHTGATE_HOME"] == str(environment)
    [unknown] = [one for one in findings if one.check == "settings"]
    assert unknown.status == "warning"
    assert unknown.found.endswith("did you mean NIGHTGATE_HOME?")


def test_settings_that_cannot_be_used_are_the_doctors_only_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTGATE_SLOT_LIMITS", "gpu1=many")
    [finding] = examine()
    assert (finding.status, finding.check) == ("problem", "settings")
    assert "NIGHTGATE_SLOT_LIMITS is 'gpu1=many'" in finding.found


def test_a_command_warns_of_a_misspelt_setting(tmp_path: Path) -> None:
    done = nightgate("status", cwd=tmp_path, env={"NIGHTGATE_HOEM": "x", "NIGHTGATE_HOME": str(tmp_path / "home")})
    assert "warning: NIGHTGATE_HOEM " in done.stderr
    assert "NIGHTGATE_HOEM" not in done.stdout


def test_variables_of_the_tests_and_of_others_are_no_misspelt_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{OF_TESTS}BROWSER", "/usr/bin/chromium")
    monkeypatch.setenv("NIGHTGATES", "1")
    assert unknown_settings() == []
    monkeypatch.setenv("NIGHTGATE_KXQZ", "1")
    assert unknown_settings() == ["NIGHTGATE_KXQZ is not a setting"]


# --- one list of them ---


def test_the_code_names_no_other_variable() -> None:
    assert set(names_in_code()) <= KNOWN


def test_the_example_has_every_setting_and_its_values_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    example = dict(
        re.findall(r"^#?(NIGHTGATE_[A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert set(example) == KNOWN
    for name, value in example.items():
        monkeypatch.setenv(name, value)
    assert all(shown_settings(read_settings()).values())


def test_the_docs_explain_every_setting_in_a_table_and_name_no_other() -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")))
    assert set(re.findall(r"^\| `(NIGHTGATE_[A-Z_]+)` \|", pages, re.MULTILINE)) == KNOWN
    named = {name for name in re.findall(r"NIGHTGATE_[A-Z_]*[A-Z]", pages) if not name.startswith(OF_TESTS)}
    assert named == KNOWN


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in Settings.model_fields.values())
