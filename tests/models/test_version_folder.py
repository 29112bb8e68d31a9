"""Version folders: written completely or not at all, verified by hash, and usable without Nightgate."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from nightgate.errors import ModelError, StorageError
from nightgate.models.version_folder import Staging, read_manifest, verify_version
from tests.support.trained import write_trained_model

pytestmark = pytest.mark.process

LABELS = ("bad", "fine", "good")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trained_model(tmp_path_factory.mktemp("trained"), LABELS)


def place(models: Path, trained: Path, version: int = 1) -> Path:
    return Staging(models, trained, LABELS).place(version, "---\ntags: []\n---\n# A card\n", {"pipeline": "reviews"})


def replace(file: Path, content: bytes) -> None:
    """Replace the file: it is read-only, and a hard link to the trained folder's."""
    file.unlink()
    file.write_bytes(content)


def flip_a_byte(file: Path, at: int = -20) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0x01
    replace(file, bytes(content))


def test_a_version_has_exactly_the_stock_model_a_card_and_the_manifest(trained: Path, tmp_path: Path) -> None:
    version = place(tmp_path / "models" / "reviews", trained)
    assert version.name == "v0001"
    assert {file.name for file in version.iterdir()} == {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "nightgate.json",
    }
    manifest = verify_version(version)
    assert manifest["version"] == 1
    assert manifest["pipeline"] == "reviews"
    assert set(manifest["files"]) == {file.name for file in version.iterdir()} - {"nightgate.json"}
    assert [path.name for path in version.parent.iterdir()] == ["v0001"]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md"]
)
def test_a_flipped_byte_is_found_and_named(trained: Path, tmp_path: Path, name: str) -> None:
    version = place(tmp_path, trained)
    expected = read_manifest(version)["files"][name]["sha256"]
    flip_a_byte(version / name)
    with pytest.raises(ModelError, match=expected) as caught:
        verify_version(version)
    assert str(version / name) in caught.value.reason
    assert "rollback" in caught.value.next_step


def test_a_flipped_byte_anywhere_in_the_manifest_and_other_content_are_found(trained: Path, tmp_path: Path) -> None:
    version = place(tmp_path, trained)
    manifest = version / "nightgate.json"
    whole = manifest.read_bytes()
    for at in range(0, len(whole) - 1, 7):
        if whole[at : at + 1].isspace():
            continue
        flip_a_byte(manifest, at)
        with pytest.raises(ModelError, match=r"nightgate\.json"):
            verify_version(version)
    for content in (b"", b"{", b"[]", b"null", b'{"files": {}}', b"\xff\xfe"):
        replace(manifest, content)
        with pytest.raises(ModelError, match=r"nightgate\.json"):
            verify_version(version)
    replace(manifest, whole)
    verify_version(version)


def test_the_error_names_a_missing_file_manifest_or_folder(trained: Path, tmp_path: Path) -> None:
    version = place(tmp_path, trained)
    for name in ("model.safetensors", "nightgate.json"):
        (version / name).unlink()
        with pytest.raises(ModelError, match=name):
            verify_version(version)
    with pytest.raises(ModelError, match="v0099"):
        verify_version(tmp_path / "v0099")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.safetensors", "extra/config.json"])
def test_an_extra_file_is_an_error_unless_it_is_hidden(trained: Path, tmp_path: Path, name: str) -> None:
    version = place(tmp_path, trained)
    (version / ".DS_Store").write_bytes(b"x")
    verify_version(version)
    (version / name).parent.mkdir(exist_ok=True)
    (version / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=name):
        verify_version(version)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_an_incomplete_model_does_not_become_a_version(trained: Path, tmp_path: Path, name: str) -> None:
    broken = shutil.copytree(trained, tmp_path / "best")
    (broken / name).unlink()
    with pytest.raises(ModelError, match=str(broken)):
        Staging(tmp_path / "models", broken, LABELS)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "state.pkl"])
def test_a_pickle_does_not_become_part_of_a_version(trained: Path, tmp_path: Path, name: str) -> None:
    broken = shutil.copytree(trained, tmp_path / "best")
    (broken / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match=name):
        Staging(tmp_path / "models", broken, LABELS)


def test_a_model_with_the_labels_of_another_pipeline_does_not_become_a_version(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'bad', 'fine', 'good'"):
        Staging(tmp_path, trained, ("1", "2", "3"))


def test_a_folder_left_by_a_crash_is_moved_to_orphans(trained: Path, tmp_path: Path) -> None:
    orphan = tmp_path / "v0001"
    orphan.mkdir()
    (orphan / "half.txt").write_text("half")
    version = place(tmp_path, trained)
    verify_version(version)
    [kept] = (tmp_path / "orphans").iterdir()
    assert kept.name.startswith("v0001-")
    assert (kept / "half.txt").read_text() == "half"


def test_a_folder_left_by_a_crash_whose_weights_are_still_in_their_checkpoint_is_replaced(
    trained: Path, tmp_path: Path
) -> None:
    left = place(tmp_path, trained)
    (left / "half.txt").touch()
    assert place(tmp_path, trained) == left
    verify_version(left)
    assert [path.name for path in tmp_path.iterdir()] == ["v0001"]


def test_a_staging_folder_left_by_a_killed_process_is_removed(trained: Path, tmp_path: Path) -> None:
    (tmp_path / ".staging-dead").mkdir()
    place(tmp_path, trained)
    assert [path.name for path in tmp_path.iterdir()] == ["v0001"]


def test_placing_again_under_the_same_number_changes_nothing(trained: Path, tmp_path: Path) -> None:
    staging = Staging(tmp_path, trained, LABELS)
    size = sum(file.stat().st_size for file in trained.iterdir())
    assert staging.size_bytes == size
    first = staging.place(1, "card", {})
    assert staging.size_bytes == size
    content = (first / "nightgate.json").read_bytes()
    assert staging.place(1, "another card", {}) == first
    assert (first / "nightgate.json").read_bytes() == content


def test_placing_again_under_another_number_moves_the_folder_and_rewrites_number_and_card(
    trained: Path, tmp_path: Path
) -> None:
    staging = Staging(tmp_path, trained, LABELS)
    staging.place(1, "card of 1", {})
    second = staging.place(2, "card of 2", {})
    assert [path.name for path in tmp_path.iterdir()] == ["v0002"]
    assert verify_version(second)["version"] == 2
    assert (second / "README.md").read_text() == "card of 2"


def test_discard_removes_a_staging_folder_but_not_a_placed_version(trained: Path, tmp_path: Path) -> None:
    staging = Staging(tmp_path, trained, LABELS)
    staging.discard()
    assert list(tmp_path.iterdir()) == []
    staging = Staging(tmp_path, trained, LABELS)
    staging.place(1, "card", {})
    staging.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["v0001"]


def test_a_full_disk_leaves_no_version(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    staging = Staging(tmp_path / "placed", trained, LABELS)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError) as caught:
        Staging(tmp_path / "models", trained, LABELS)
    assert "free some space" in caught.value.next_step
    assert list((tmp_path / "models").iterdir()) == []
    with pytest.raises(StorageError):
        staging.place(1, "card", {})
    staging.discard()
    assert list((tmp_path / "placed").iterdir()) == []


def test_a_version_shares_the_files_of_the_trained_folder_and_survives_it(trained: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(trained, tmp_path / "best")
    version = place(tmp_path / "models", mine)
    assert (version / "model.safetensors").samefile(mine / "model.safetensors")
    flip_a_byte(mine / "model.safetensors")
    verify_version(version)
    shutil.rmtree(mine)
    verify_version(version)


def test_files_of_a_version_are_read_only_with_the_same_readers(trained: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(trained, tmp_path / "best")
    for file in mine.iterdir():
        file.chmod(0o640)
    version = place(tmp_path / "models", mine)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in version.iterdir()}
    assert modes.pop("README.md") & 0o222 == modes.pop("nightgate.json") & 0o222 == 0
    assert set(modes.values()) == {0o440}
    # Retention need not be root: the owner of the folder may remove its files.
    assert stat.S_IMODE(version.stat().st_mode) & stat.S_IWUSR


def test_on_another_file_system_and_behind_symbolic_links_files_are_copied(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "links"
    mine.mkdir()
    for file in trained.iterdir():
        (mine / file.name).symlink_to(file)
    linked = place(tmp_path / "models", mine)

    def refuse(*_: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    copied = place(tmp_path / "models", trained, version=2)
    for version in (linked, copied):
        verify_version(version)
        weights = version / "model.safetensors"
        assert not weights.is_symlink()
        assert not weights.samefile(trained / "model.safetensors")
        assert weights.read_bytes() == (trained / "model.safetensors").read_bytes()
