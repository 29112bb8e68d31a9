"""Environment variables of Nightgate: their bounds, and that code, docs and example list the same ones."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nightgate.errors import ConfigurationError
from nightgate.operations.doctor import examine
from nightgate.settings import OF_TESTS, Settings, read_settings, settings_in_force, unknown_settings, variable
from tests.support.night import nightgate

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
KNOWN = {variable(field) for field in Settings.model_fields}
SECRET = "postgresql://me:hush-hush@db/metrics"


def names_in_code() -> Iterator[str]:
    """Names of variables that are string literals in the code."""
    for layer in ("nightgate", "tasks", "flows", "deployments", "alembic"):
        for path in (ROOT / layer).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield from re.findall(r"^NIGHTGATE_[A-Z_]*[A-Z]$", node.value)


# --- values ---


def test_empty_variables_count_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KNOWN:
        monkeypatch.setenv(name, "")
    settings = read_settings()
    assert settings.home is None
    assert (settings.pipelines, settings.model_roots, settings.slot_limits, settings.processes) == ((), (), {}, 1)
    assert not settings.database_url
    assert not settings.webhook_url


def test_values_are_read_anew_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_an_invalid_value_is_reported_with_an_example(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as refused:
        read_settings()
    [problem] = refused.value.problems
    assert name in problem
    assert repr(value) in problem
    assert repr((Settings.model_fields[name.removeprefix("NIGHTGATE_").lower()].examples or [""])[0]) in problem


def test_all_problems_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTGATE_SLOT_LIMITS", "gpu")
    monkeypatch.setenv("NIGHTGATE_PROCESSES", "two")
    with pytest.raises(ConfigurationError) as refused:
        read_settings()
    assert len(refused.value.problems) == 2


# --- display ---


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTGATE_DATABASE_URL", SECRET)
    monkeypatch.setenv("NIGHTGATE_WEBHOOK_URL", "https://chat.example/hush-hush")
    monkeypatch.setenv("NIGHTGATE_SLOT_LIMITS", "pool=2,gpu1=1")
    settings = read_settings()
    shown = settings_in_force(settings)
    assert shown["NIGHTGATE_SLOT_LIMITS"] == "pool=2,gpu1=1 (environment)"
    assert shown["NIGHTGATE_DATABASE_URL"].endswith("(environment)")
    assert "hush-hush" not in f"{shown} {settings!r} {settings}"


def test_settings_in_force_name_their_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIGHTGATE_HOME")
    monkeypatch.setenv("NIGHTGATE_CUDA_GRAPHS", "0")
    monkeypatch.setenv("NIGHTGATE_PROCESSES", "")
    shown = settings_in_force(read_settings())
    assert shown["NIGHTGATE_CUDA_GRAPHS"] == "False (environment)"
    assert shown["NIGHTGATE_PROCESSES"] == "1 (default)"
    assert shown["NIGHTGATE_HOME"] == ".nightgate in the working folder (default)"
    assert shown["NIGHTGATE_PIPELINES"] == "none (default)"


def test_doctor_lists_every_setting_and_a_misspelt_one(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTGATE_HOEM", "/elsewhere")
    findings = examine()
    shown = {one.check: one.found for one in findings if one.check in KNOWN}
    assert set(shown) == KNOWN
    assert shown["NIGHTGATE_HOME"] == f"{environment} (environment)"
    [unknown] = [one for one in findings if one.check == "settings"]
    assert unknown.status == "warning"
    assert "NIGHTGATE_HOEM" in unknown.found
    assert "NIGHTGATE_HOME" in unknown.found


def test_invalid_settings_are_the_only_finding_of_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTGATE_SLOT_LIMITS", "gpu1=many")
    [finding] = examine()
    assert (finding.status, finding.check) == ("problem", "settings")
    assert "NIGHTGATE_SLOT_LIMITS" in finding.found


def test_commands_warn_about_a_misspelt_setting(tmp_path: Path) -> None:
    done = nightgate("status", cwd=tmp_path, env={"NIGHTGATE_HOEM": "x", "NIGHTGATE_HOME": str(tmp_path / "home")})
    assert "NIGHTGATE_HOEM" in done.stderr
    assert "NIGHTGATE_HOEM" not in done.stdout


def test_variables_of_tests_and_other_programs_are_not_misspelt_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{OF_TESTS}BROWSER", "/usr/bin/chromium")
    monkeypatch.setenv("NIGHTGATES", "1")
    assert unknown_settings() == []
    monkeypatch.setenv("NIGHTGATE_KXQZ", "1")
    [problem] = unknown_settings()
    assert "NIGHTGATE_KXQZ" in problem
    assert "did you mean" not in problem


# --- one list ---


def test_the_code_uses_no_other_variable() -> None:
    assert set(names_in_code()) <= KNOWN


def test_the_example_lists_every_setting_with_a_valid_value(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (ROOT / ".env.example").read_text(encoding="utf-8")
    example = dict(re.findall(r"^#?(NIGHTGATE_[A-Z_]+)=(.*)$", lines, re.MULTILINE))
    assert set(example) == KNOWN
    for name, value in example.items():
        monkeypatch.setenv(name, value)
    assert all(text.endswith("(environment)") for text in settings_in_force(read_settings()).values())


def test_the_docs_explain_every_setting_and_mention_no_other() -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")))
    assert set(re.findall(r"^\| `(NIGHTGATE_[A-Z_]+)` \|", pages, re.MULTILINE)) == KNOWN
    named = {name for name in re.findall(r"NIGHTGATE_[A-Z_]*[A-Z]", pages) if not name.startswith(OF_TESTS)}
    assert named == KNOWN


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in Settings.model_fields.values())
