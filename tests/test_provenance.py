"""Provenance of a version: revision of the base model and environment."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from nightgate import provenance

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached() -> Path:
    """A hub model in the cache of its client: `main` is at COMMIT."""
    folder = Path(constants.HF_HUB_CACHE) / "models--someone--tiny"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    (snapshot / "config.json").write_text("{}")
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("revision", ["", "main", COMMIT])
def test_a_hub_model_is_identified_by_its_commit(revision: str) -> None:
    assert provenance.base_model_revision("someone/tiny", revision) == COMMIT


@pytest.mark.usefixtures("cached")
def test_a_revision_that_is_not_cached_has_no_commit() -> None:
    assert provenance.base_model_revision("someone/tiny", "v2") is None
    assert provenance.base_model_revision("someone/other") is None
    assert provenance.base_model_revision("no such/na me") is None


def test_a_folder_of_the_cache_is_the_same_commit(cached: Path) -> None:
    assert provenance.base_model_revision(str(cached)) == COMMIT


def test_a_folder_inside_a_package_is_identified_by_package_and_version() -> None:
    assert provenance.base_model_revision("package:torch/nn") == f"torch=={provenance.library_versions()['torch']}"
    # A module's name may differ from its distribution's.
    assert str(provenance.base_model_revision("package:sklearn/datasets")).startswith("scikit-learn==")
    assert provenance.base_model_revision("package:no_such_package/model") is None


def test_a_folder_is_identified_by_a_hash_of_its_weights_alone(tmp_path: Path) -> None:
    assert provenance.base_model_revision(str(tmp_path)) is None
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    known = provenance.base_model_revision(str(tmp_path))
    assert known == f"sha256:{hashlib.sha256(b'weights').hexdigest()[:12]}"
    (tmp_path / "config.json").write_text("{}")
    assert provenance.base_model_revision(str(tmp_path)) == known
    (tmp_path / "model-2.safetensors").write_bytes(b"more")
    assert provenance.base_model_revision(str(tmp_path)) not in (known, None)


def test_the_environment_is_json_with_device_libraries_and_platform() -> None:
    found = json.loads(json.dumps(provenance.environment("NVIDIA H100", "bf16")))
    assert (found["device"], found["precision"]) == ("NVIDIA H100", "bf16")
    assert found["python"].startswith("3.")
    assert set(found["libraries"]) == set(provenance.LIBRARIES)
    assert all(found[name] for name in ("platform", "processor", "processors"))
