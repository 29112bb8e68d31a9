"""A pushed version opens with plain transformers, has valid metadata, and contains no path of this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants
from typer.testing import CliRunner

from nightgate.cli.app import app
from nightgate.database.transactions import Database
from nightgate.errors import ModelError, RegistryError
from nightgate.models.version_folder import LEARNT_FILE
from nightgate.registry import hub_push
from nightgate.registry.versions import versions
from tests.support import night_rows
from tests.support.first_night import copy_first_night
from tests.support.handed_over import LABELS, write_version
from tests.support.hub_server import TOKEN, Hub, hub_server
from tests.support.trained import write_trained_model

pytestmark = pytest.mark.process

SENT = ["README.md", "config.json", "lineage.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_trained_model(tmp_path_factory.mktemp("trained"), LABELS, sharpness=20)
    (folder / LEARNT_FILE).write_bytes(b"hashes of rows")
    return folder


def laid_out(tmp_path: Path, trained: Path, base_model: str = "someone/base", **options: str) -> Path:
    home, sent = tmp_path / "home", tmp_path / "sent"
    version = write_version(home, trained, base_model)
    files = hub_push.lay_out(version, sent, "someone/reviews", home=home, **options)
    assert [file.name for file in files] == SENT
    return sent


def test_the_folder_that_is_sent_opens_with_plain_transformers(tmp_path: Path, trained: Path) -> None:
    from transformers import pipeline

    sent = laid_out(tmp_path, trained)
    classify = pipeline("text-classification", model=str(sent), tokenizer=str(sent), device="cpu")
    assert {found["label"] for found in classify(["great shoes", "it broke"])} <= set(LABELS)


def test_the_card_has_metadata_for_the_hub_and_an_example_for_its_repository(tmp_path: Path, trained: Path) -> None:
    sent = laid_out(tmp_path, trained, verdict="Verdict: promote. F1 0.6000 reaches min_f1 0.5400.")
    card = ModelCard((sent / "README.md").read_text(encoding="utf-8"))
    assert card.data.base_model == "someone/base"
    assert card.data.pipeline_tag == "text-classification"
    results = card.data.eval_results
    assert results is not None
    assert {(one.metric_type, one.metric_value) for one in results} >= {("f1", 0.6), ("accuracy", 0.61)}
    assert 'folder = "someone/reviews"' in card.text
    assert "Verdict: promote. F1 0.6000 reaches min_f1 0.5400." in card.text
    for ours in ("nightgate.json", "nightly_runs", "models/reviews/v0003"):
        assert ours not in card.text


def test_the_lineage_has_snapshot_base_model_and_hashes_but_no_data_section(tmp_path: Path, trained: Path) -> None:
    sent = laid_out(tmp_path, trained, revision="0123456789abcdef0123456789abcdef01234567")
    lineage = json.loads((sent / "lineage.json").read_text())
    assert lineage["snapshot"]["id"] == "s-0011223344556677"
    assert lineage["base_model"]["revision"].startswith("0123")
    assert lineage["training"]["max_length"] == 32
    assert [*lineage["files"]] == [name for name in SENT if name not in {"README.md", "lineage.json"}]
    assert "data" not in lineage
    assert "configuration" not in lineage


@pytest.mark.parametrize("base_model", ["/srv/models/our-base", "models/our-base", "~/our-base"])
def test_a_base_model_of_this_machine_is_named_without_its_path(tmp_path: Path, trained: Path, base_model: str) -> None:
    sent = laid_out(tmp_path, trained, base_model, revision="sha256:0123456789ab")
    for name in ("README.md", "lineage.json"):
        text = (sent / name).read_text(encoding="utf-8")
        assert base_model not in text
        assert "secret-rows" not in text
        assert "our-base" in text
    # On the hub another model might have that name.
    assert ModelCard((sent / "README.md").read_text(encoding="utf-8")).data.base_model is None


def test_a_file_that_names_a_path_of_this_machine_is_not_sent(tmp_path: Path, trained: Path) -> None:
    leaky = shutil.copytree(trained, tmp_path / "leaky", copy_function=shutil.copyfile)
    config = json.loads((leaky / "config.json").read_text()) | {"made_in": str(tmp_path / "home" / "runs")}
    (leaky / "config.json").write_text(json.dumps(config))
    version = write_version(tmp_path / "home", leaky)
    with pytest.raises(ModelError, match=r"config\.json .*home"):
        hub_push.lay_out(version, tmp_path / "sent", "someone/reviews", home=tmp_path / "home")


def test_an_altered_version_is_not_sent(tmp_path: Path, trained: Path) -> None:
    version = write_version(tmp_path / "home", trained)
    (version / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json"):
        hub_push.lay_out(version, tmp_path / "sent", "someone/reviews", home=tmp_path / "home")


# --- sending, to a hub on the loopback ---


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server that the client uses as the hub; it reads HF_ENDPOINT and HF_HUB_OFFLINE once, at import."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub_server(tmp_path / "hub") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server


def test_a_push_replaces_earlier_weights_and_tokenizers(tmp_path: Path, trained: Path, hub: Hub) -> None:
    sent = laid_out(tmp_path, trained)
    branch = hub.folder / "someone" / "reviews" / "nightly"
    branch.mkdir(parents=True)
    for name in ("model-00001-of-00002.safetensors", "added_tokens.json", "vocab.txt", "LICENSE"):
        (branch / name).write_text("of before")
    url = hub_push.push(sent, "someone/reviews", message="reviews version 3", private=True, branch="nightly")
    assert url.startswith(f"{hub.url}/someone/reviews/commit/")
    assert sorted(file.name for file in branch.iterdir()) == ["LICENSE", *SENT]
    for name in SENT:
        assert (branch / name).read_bytes() == (sent / name).read_bytes()
    assert hub.visibility == "private"
    assert hub.messages == ["reviews version 3"]


def test_a_private_push_sends_nothing_to_a_public_repository(tmp_path: Path, trained: Path, hub: Hub) -> None:
    hub.visibility = "public"
    with pytest.raises(RegistryError, match="public"):
        hub_push.push(laid_out(tmp_path, trained), "someone/reviews", message="version 3", private=True)
    assert not hub.folder.exists()


REFUSED = {
    "a token that is not valid": ("someone/reviews", {"HF_TOKEN": "hf_wrong"}, "set HF_TOKEN"),
    "no token": ("someone/reviews", {"HF_TOKEN": ""}, "set HF_TOKEN"),
    "a bad name": ("some one/reviews", {}, "OWNER/NAME"),
    "a name of three parts": ("someone/reviews/small", {}, "OWNER/NAME"),
    "offline": ("someone/reviews", {"HF_HUB_OFFLINE": True}, "unset HF_HUB_OFFLINE"),
    # The port of a server that is gone.
    "no network": ("someone/reviews", {"ENDPOINT": "http://127.0.0.1:9"}, "check the network"),
    "no name server": ("someone/reviews", {"ENDPOINT": "http://hub.invalid"}, "check the network"),
}


@pytest.mark.parametrize("send", [True, False], ids=["push", "dry run"])
@pytest.mark.parametrize(("repo", "settings", "next_step"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_is_in_words_with_the_next_step_and_not_the_token(
    tmp_path: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    repo: str,
    settings: dict[str, Any],
    next_step: str,
    send: bool,
) -> None:
    for name, value in settings.items():
        if name == "HF_TOKEN":
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.setattr(constants, name, value)
    with pytest.raises(RegistryError, match=repo) as caught:
        hub_push.push(tmp_path, repo, message="reviews version 3") if send else hub_push.check(repo)
    assert next_step in caught.value.next_step
    assert "hf_wrong" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert not hub.folder.exists()


def test_a_dry_run_refuses_a_token_that_may_only_read_and_a_public_repository(hub: Hub) -> None:
    hub_push.check("someone/reviews", private=True)
    hub.visibility = "public"
    with pytest.raises(RegistryError, match="public"):
        hub_push.check("someone/reviews", private=True)
    hub.role = "read"
    with pytest.raises(RegistryError) as caught:
        hub_push.check("someone/reviews")
    assert "HF_TOKEN" in caught.value.next_step


def test_a_quarantined_version_is_not_pushed(database: Database) -> None:
    night_rows.held_version(database)
    [row] = versions(database, "reviews")
    assert hub_push.recorded_facts(database, row)[1].startswith("Verdict: promote. F1 0.6000")
    bad = replace(row, quarantined_at=row.created_at, quarantine_reason="rude")
    with pytest.raises(RegistryError, match="rude"):
        hub_push.recorded_facts(database, bad)


# --- the commands, on a version that a real night made ---


def test_a_dry_run_lists_the_files_of_the_push_and_sends_nothing(environment: Path, hub: Hub) -> None:
    copy_first_night(environment)
    done = CliRunner().invoke(app, ["push", "small", "v1", "someone/small", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()] == SENT
    assert "dry run" in done.stderr
    assert not hub.folder.exists()
    done = CliRunner().invoke(app, ["push", "small", "1", "someone/small", "--private"])
    assert done.exit_code == 0, done.output
    sent = hub.folder / "someone" / "small" / "main"
    assert sorted(file.name for file in sent.iterdir()) == SENT
    assert f"version 1 of small is at {hub.url}/someone/small/commit/" in done.stdout
    card = (sent / "README.md").read_text(encoding="utf-8")
    assert "\nVerdict: " in card
    assert str(environment.parent) not in card + (sent / "lineage.json").read_text(encoding="utf-8")
