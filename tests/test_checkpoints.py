"""Checkpoints: whole or not there, verified before use, nothing but tensors and JSON."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from nightgate import checkpoints
from nightgate.checkpoints import RunState, newest_checkpoint, restore, save_checkpoint, write_folder
from nightgate.config import Training
from nightgate.errors import StorageError
from nightgate.jobs import EpochReport
from nightgate.scoring import write_predictions
from nightgate.training import make_optimizer


class Tied(nn.Module):
    """Two names for one tensor, and a buffer: what a state dict holds more than once, and what no optimizer sees."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.words.weight
        self.register_buffer("positions", torch.arange(5))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.words(ids))
        return output


def step(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for number in range(count):
        loss = nn.functional.cross_entropy(model(torch.tensor([number % 5, 1])), torch.tensor([0, 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def save(run_dir: Path, epoch: int, attempt: int = 1, *, finished: bool = False, best: int = 1) -> Path:
    """A checkpoint as the loop makes it: predictions and the best model first."""
    attempt_dir = run_dir / f"attempt-{attempt}"
    rng = np.random.default_rng(epoch)
    labels = rng.integers(0, 5, 10)
    predictions = write_predictions(
        attempt_dir / "epochs" / f"epoch-{epoch:04d}.npz", rng.normal(size=(10, 5)).astype(np.float32), labels
    )
    best_folder = checkpoints.epoch_folder(run_dir / "attempt-1" / "best", best)
    if not best_folder.exists():
        write_folder(best_folder, lambda folder: (folder / "config.json").write_text("{}") and None)
    report = EpochReport(attempt, epoch, 7 * epoch, 1.5, 1.25, 1e-4, 99.5, predictions, "fp32", "cpu", True, False)
    state = RunState(
        "recipe", epoch, 7 * epoch, best, 0.5, f"attempt-1/best/{best_folder.name}", 0, 1, finished, (report,)
    )
    model = Tied()
    optimizer = make_optimizer(model, Training(learning_rate=0.1))
    step(model, optimizer, epoch)
    tensors = (None, None) if finished else (model, optimizer)
    return save_checkpoint(run_dir, attempt_dir, state, *tensors).path


def test_weights_moments_and_state_come_back_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Tied()
    optimizer = make_optimizer(model, Training(learning_rate=0.1))
    step(model, optimizer, 3)
    path = save(tmp_path, 1)
    found = newest_checkpoint(tmp_path, "recipe")
    assert found is not None
    state = replace(found.state, scaler={"scale": 1024.0, "_growth_tracker": 3}, epoch=2)
    save_checkpoint(tmp_path, tmp_path / "attempt-1", state, model, optimizer)
    assert not path.exists()
    found = newest_checkpoint(tmp_path, "recipe")
    assert found is not None
    assert found.state == state
    other = Tied()
    other_optimizer = make_optimizer(other, Training(learning_rate=0.1))
    restore(found, other, other_optimizer)
    assert other.head.weight is other.words.weight
    step(model, optimizer, 4)
    step(other, other_optimizer, 4)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_checkpoint_holds_safetensors_and_json_alone(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert {file.name for file in path.iterdir()} == {"model.safetensors", "optimizer.safetensors", "state.json"}
    assert {file.name for file in save(tmp_path, 2, finished=True).iterdir()} == {"state.json"}
    assert len({file.stat().st_mode for file in tmp_path.rglob("*") if file.is_file()}) == 1


def test_the_checkpoint_with_the_most_epochs_counts_over_all_attempts(tmp_path: Path) -> None:
    save(tmp_path, 2, attempt=1)
    saved = tmp_path / "attempt-1" / "checkpoint" / "epoch-0002"
    kept = tmp_path / "kept"
    saved.rename(kept)
    save(tmp_path, 1, attempt=2)
    kept.rename(saved)
    found = newest_checkpoint(tmp_path, "recipe")
    assert found is not None
    assert found.path == saved
    # The next one replaces them all.
    newest = save(tmp_path, 3, attempt=3)
    assert list(tmp_path.glob("attempt-*/checkpoint/*")) == [newest]


def test_no_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere", "recipe") is None


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "a flipped byte in the weights": lambda path, _: flip(path / "model.safetensors"),
    "a flipped byte in the moments": lambda path, _: flip(path / "optimizer.safetensors"),
    "a flipped byte in the state": lambda path, _: flip(path / "state.json"),
    "another best F1 in the state": lambda path, _: (path / "state.json").write_text(
        (path / "state.json").read_text().replace('"best_f1": 0.5', '"best_f1": 0.4')
    ),
    "no state": lambda path, _: (path / "state.json").unlink(),
    "an empty state": lambda path, _: (path / "state.json").write_text(""),
    "a state that is a list": lambda path, _: (path / "state.json").write_text("[]"),
    "missing weights": lambda path, _: (path / "model.safetensors").unlink(),
    "an altered best model": lambda _, run_dir: (run_dir / "attempt-1/best/epoch-0001/config.json").write_text("{ }"),
    "missing predictions": lambda _, run_dir: (run_dir / "attempt-2/epochs/epoch-0002.npz").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    earlier = save(tmp_path, 1)
    kept = earlier.rename(tmp_path / "kept")
    later = save(tmp_path, 2, attempt=2)
    kept.rename(earlier)
    assert newest_checkpoint(tmp_path, "recipe").path == later  # type: ignore[union-attr]
    DAMAGES[damage](later, tmp_path)
    found = newest_checkpoint(tmp_path, "recipe")
    assert f"skipping the damaged checkpoint {later}" in caplog.text
    if "best" in damage and "altered" in damage:
        assert found is None  # Both name the same best model.
    else:
        assert found is not None
        assert (found.path, found.state.epoch) == (earlier, 1)


def test_a_checkpoint_of_another_recipe_is_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    assert newest_checkpoint(tmp_path, "another") is None
    assert "it belongs to another configuration or snapshot" in caplog.text


def test_a_folder_that_fails_half_way_is_not_there_and_the_former_stays(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def fill(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise Killed

    write_folder(tmp_path / "one", lambda folder: (folder / "whole").write_text("whole") and None)
    for name in ("one", "two"):
        with pytest.raises(Killed):
            write_folder(tmp_path / name, fill)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {"one", "one/whole"}


def test_what_a_killed_attempt_left_unfinished_is_removed_with_the_next_checkpoint(tmp_path: Path) -> None:
    left = tmp_path / "attempt-1" / "checkpoint" / ".epoch-0001.tmp"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("half")
    newer_best = tmp_path / "attempt-1" / "best" / "epoch-0009"
    newer_best.mkdir(parents=True)
    save(tmp_path, 1, attempt=2)
    assert not left.exists()
    assert not newer_best.exists()
    assert (tmp_path / "attempt-1" / "best" / "epoch-0001").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.EROFS, "Read-only file system"),
    ],
)
def test_a_full_or_read_only_disk_is_a_storage_error(tmp_path: Path, error: Exception) -> None:
    def fill(_: Path) -> None:
        raise error

    with pytest.raises(StorageError, match="cannot write to"):
        write_folder(tmp_path / "one", fill)
    assert list(tmp_path.iterdir()) == []
