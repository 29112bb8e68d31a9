"""Push a version to the Hugging Face Hub: `nightgate push reviews champion someone/reviews`.

`lay_out` makes the folder that `push` sends: the stock model files, the model card and `lineage.json`. The manifest is
not sent: it holds the whole configuration, with paths and names of this machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nightgate.database.transactions import Database
from nightgate.database.views import selecting
from nightgate.errors import ModelError, NightgateError, RegistryError, first_line, without_credentials
from nightgate.models.version_folder import CARD, LEARNT_FILE, MANIFEST, TOKENIZER_FILES, verify_version
from nightgate.registry.versions import VersionRow

LINEAGE = "lineage.json"
_KEPT = (
    "pipeline",
    "version",
    "run_id",
    "night",
    "created_at",
    "label_names",
    "snapshot",
    "metrics",
    "verdict",
    "config_hash",
    "code_version",
    "device",
    "precision",
    "libraries",
)
"""Entries of the manifest that name nothing of this machine."""
_REPLACED = [
    *("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "adapter_config.json"),
    *(*TOKENIZER_FILES, "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "merges.txt"),
]
"""Weights and tokenizers of an earlier model in the same repository, which a loader might prefer, or add to ours:
transformers takes tokens of an added_tokens.json even where tokenizer.json does not have them."""
_NOT_SENT = {CARD, LEARNT_FILE}
"""The card is written anew, and what was learnt is of use only where the rows are."""
_TOKEN = "set HF_TOKEN in the environment to a token that may write there, or log in with `hf auth login`"


def lay_out(
    folder: Path, target: Path, repo: str, *, home: Path, revision: str | None = None, verdict: str = ""
) -> list[Path]:
    """Verify the version in `folder` and make in `target` the folder to send; returns its files, sorted.

    Args:
        repo: OWNER/NAME, for the example in the card.
        home: a path that no file to send may contain.
        revision: of the base model, from `nightgate.provenance.base_model_revision`.
        verdict: the gate's, as text.

    Raises:
        ModelError: the version is incomplete or altered, or one of its files contains a path of this machine.
    """
    manifest = verify_version(folder)
    base_model = str(manifest["base_model"]["name"])
    public = _public_name(base_model, revision)
    target.mkdir(parents=True, exist_ok=True)
    for name in manifest["files"]:
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if name not in _NOT_SENT:
            # Not a copy: weights are large, and nothing here writes to them.
            copy.symlink_to((folder / name).resolve())
    card = _card((folder / CARD).read_text(encoding="utf-8"), manifest, repo, public, verdict)
    (target / CARD).write_text(card, encoding="utf-8")
    lineage = _lineage(manifest, public, revision)
    (target / LINEAGE).write_text(json.dumps(lineage, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    files = sorted(path for path in target.rglob("*") if path.is_file())
    # The last name of a local base model is public; its path is not.
    paths = [str(home), *([base_model] if public != base_model else [])]
    for file in files:
        content = b"" if file.suffix == ".safetensors" else file.read_bytes()
        if found := next((path for path in paths if path.encode() in content), None):
            raise ModelError(
                f"{file.name} names {found}, a path of this machine: nothing was sent",
                next_step="remove it from that file in the base model, train a new version and push that one",
            )
    return files


def check_name(repo: str) -> None:
    """Check that the hub allows a repository of this name.

    Raises:
        RegistryError: it does not.
    """
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    with _hub_errors(repo):
        validate_repo_id(repo)


def check(repo: str, *, private: bool = False, token: str | None = None) -> None:
    """Check what `push` needs of the hub, and change nothing there: name, connection, a token that may write.

    Raises:
        RegistryError: a push would fail.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    check_name(repo)
    api = HfApi(token=token)
    with _hub_errors(repo):
        user = api.whoami()
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise RegistryError(f"the token of {user['name']} may not write to the hub", next_step=_TOKEN)
        with suppress(RepositoryNotFoundError):
            if private and not api.model_info(repo).private:
                raise _public(repo)


def push(
    folder: Path, repo: str, *, message: str, private: bool = False, branch: str | None = None, token: str | None = None
) -> str:
    """Send the folder of `lay_out` in one commit and return its URL; a missing repository or branch is created.

    Args:
        private: create the repository as private; nothing is sent to a public one.
        token: None uses HF_TOKEN or the login stored on this machine.

    Raises:
        RegistryError: the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with _hub_errors(repo):
        made = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(made.repo_id).private:
            raise _public(made.repo_id)
        if branch:
            api.create_branch(made.repo_id, branch=branch, exist_ok=True)
        commit = api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            revision=branch,
            commit_message=message,
            delete_patterns=_REPLACED,
        )
    return str(commit.commit_url)


def _public(repo: str) -> RegistryError:
    return RegistryError(
        f"{repo} exists already and is public: nothing was sent",
        next_step="make it private on the hub, name another one, or leave out --private",
    )


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn any error of the hub's client into a RegistryError with a next step."""
    from huggingface_hub import constants

    try:
        yield
    except (NightgateError, MemoryError):
        raise
    except Exception as error:
        # By name: the HTTP library of the client, whose exceptions it raises, changes between versions.
        kinds = {kind.__name__ for kind in type(error).__mro__}
        status = getattr(getattr(error, "response", None), "status_code", None)
        if "HFValidationError" in kinds:
            problem, next_step = "is not a name for a repository", "write the repository as OWNER/NAME"
        elif "LocalTokenNotFoundError" in kinds or status in (401, 403):
            problem, next_step = f"is refused by the hub ({constants.ENDPOINT})", _TOKEN
        elif "OfflineModeIsEnabled" in kinds:
            problem, next_step = "cannot be reached", "unset HF_HUB_OFFLINE"
        elif status is None and kinds & {"TransportError", "ConnectionError", "TimeoutError", "OSError"}:
            problem = f"cannot be reached: the hub ({constants.ENDPOINT}) does not answer"
            next_step = "check the network and HF_ENDPOINT, then run the same command again"
        else:
            problem = f"is refused by the hub ({constants.ENDPOINT})"
            next_step = "fix the cause, then run the same command again: a push is one commit"
        words = without_credentials(f"{repo!r} {problem}: {first_line(error)}")
        raise RegistryError(words, next_step=next_step) from error


def recorded_facts(db: Database, version: VersionRow) -> tuple[str | None, str]:
    """The `revision` and `verdict` for `lay_out`: the base model's revision, and the gate's verdict as text.

    Raises:
        RegistryError: the version is quarantined.
    """
    if version.quarantined_at is not None:
        raise RegistryError(
            f"version {version.version} of {version.pipeline} is quarantined ({version.quarantine_reason}): "
            "nothing was sent",
            next_step=f"choose another of `nightgate versions {version.pipeline}`; only `nightgate promote "
            f"{version.pipeline} {version.version} --despite-quarantine --reason TEXT` releases it",
        )

    query = selecting("SELECT verdict, reason FROM nightly_runs WHERE run_id = :run", {"run": version.run_id})
    run = db.read(lambda session: session.execute(query).one())
    return version.base_model_revision, f"Verdict: {run.verdict}. {run.reason}" if run.verdict else ""


# --- what is sent ---


def _lineage(manifest: Mapping[str, Any], base_model: str, revision: str | None) -> dict[str, Any]:
    configuration = manifest["configuration"]
    training = {**configuration["training"], "base_model": base_model}
    started_from = manifest["base_model"]["started_from_version"]
    return {
        **{name: manifest.get(name) for name in _KEPT},
        "base_model": {"name": base_model, "revision": revision, "started_from_version": started_from},
        "training": training,
        "gate": configuration["gate"],
        "split": {name: value for name, value in configuration["split"].items() if name != "column"},
        "files": {name: facts["sha256"] for name, facts in manifest["files"].items() if name not in _NOT_SENT},
    }


def _card(text: str, manifest: Mapping[str, Any], repo: str, base_model: str, verdict: str) -> str:
    """The version's card for the hub: without paths of this machine and references to its database."""
    own = str(manifest["base_model"]["name"])
    if own != base_model:
        text = re.sub(r"^base_model: .*\n", "", text, count=1, flags=re.MULTILINE).replace(own, base_model)
    place = f'"models/{manifest["pipeline"]}/v{manifest["version"]:04d}"  # where this file lies'
    text = text.replace(place, json.dumps(repo))
    text = text.replace("This folder is a stock Hugging Face model", "This is a stock Hugging Face model")
    text = text.replace(f"the resolved configuration stands in `{MANIFEST}`", f"more of it stands in `{LINEAGE}`")
    return re.sub(
        r"^The gate (?:spoke|decided) after this version was registered; .*$",
        lambda _: verdict or "The gate has not decided.",
        text,
        flags=re.MULTILINE,
    )


def _public_name(base_model: str, revision: str | None) -> str:
    """The name of the base model; of a local folder only the last part."""
    is_local = (
        base_model.startswith((".", "/", "~")) or base_model.count("/") > 1 or (revision or "").startswith("sha256:")
    )
    return Path(base_model).name if is_local and not base_model.startswith("package:") else base_model
