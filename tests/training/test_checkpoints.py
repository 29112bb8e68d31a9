"""Checkpoints are atomic, verified before use, made of tensors and JSON alone, and written by a background thread."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from nightgate.durable_files import sha256_of
from nightgate.errors import StorageError
from nightgate.training import checkpoints
from nightgate.training.checkpoints import (
    Checkpoint,
    RunState,
    Saver,
    epoch_folder,
    load_tensors,
    newest_checkpoint,
    save_epoch,
    save_finished,
    snapshot,
    weights_path,
    write_folder,
)
from nightgate.training.protocol import EpochReport
from nightgate.training.scoring import write_predictions
from tests.support.night_rows import scores

pytestmark = pytest.mark.process


class Killed(BaseException):
    pass


def weights_of(epoch: int) -> dict[str, Tensor]:
    return {"head": torch.full((5, 40), float(epoch)), "positions": torch.arange(5)}


def moments_of(epoch: int) -> dict[str, Tensor]:
    """More bytes than the weights, as in a training."""
    return {f"head:{kind}": torch.full((5, 40), epoch / 8) for kind in ("exp_avg", "exp_avg_sq")}


def next_state(run_dir: Path, epoch: int, attempt: int, before: RunState | None, *, best: bool) -> RunState:
    """The state after one more epoch, with its predictions on disk, as the trainer makes it."""
    attempt_dir = run_dir / f"attempt-{attempt}"
    rng = np.random.default_rng(epoch)
    predictions = write_predictions(
        attempt_dir / "epochs" / f"epoch-{epoch:04d}.npz",
        rng.normal(size=(10, 5)).astype(np.float32),
        rng.integers(0, 5, 10),
    )
    losses_and_speed = 1.5, 1.2, 1e-4, 9.5, 95.5
    shown = predictions, scores(), "fp32", "cpu", "packed", ""
    report = EpochReport(attempt, epoch, 7 * epoch, *losses_and_speed, *shown, best, False)
    state = before or RunState("recipe", 0, 0, 0, 0.5, "", 0, 1, False, ())
    own = weights_path(attempt_dir, epoch).relative_to(run_dir).as_posix()
    state = replace(state, epoch=epoch, step=7 * epoch, reports=(*state.reports, report), weights=own)
    return replace(state, best_epoch=epoch, best_weights=own) if best else state


def save(
    run_dir: Path, epoch: int, attempt: int = 1, before: RunState | None = None, *, best: bool = True
) -> Checkpoint:
    state = next_state(run_dir, epoch, attempt, before, best=best)
    return save_epoch(run_dir, run_dir / f"attempt-{attempt}", state, weights_of(epoch), moments_of(epoch))


def export(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    save_file(weights_of(1), folder / "model.safetensors")


def finish(run_dir: Path, epoch: int, attempt: int, before: RunState, *, best: bool = False) -> Checkpoint:
    state = next_state(run_dir, epoch, attempt, before, best=best)
    return save_finished(run_dir, run_dir / f"attempt-{attempt}", state, export)


def files(run_dir: Path) -> set[str]:
    """Without the predictions, which always stay."""
    found = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith(".npz")}


def newest(run_dir: Path) -> Checkpoint:
    found = newest_checkpoint(run_dir, "recipe")
    assert found is not None
    return found


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


# --- what is kept ---


def test_weights_moments_and_state_come_back_bit_for_bit(tmp_path: Path) -> None:
    state = next_state(tmp_path, 1, 1, None, best=True)
    state = replace(state, scaler={"scale": 1024.0, "_growth_tracker": 3}, micro_batches=4, base_digest="b")
    weights = {"a": torch.randn(3, 4), "b": torch.randn(7).to(torch.bfloat16), "c": torch.tensor(3.0)}
    saved = save_epoch(tmp_path, tmp_path / "attempt-1", state, weights, moments_of(1))
    found = newest(tmp_path)
    assert found == saved
    assert found.state == state
    assert equal(found.weights(tmp_path), weights)
    assert equal(found.moments(), moments_of(1))


def test_a_run_leaves_exactly_these_files(tmp_path: Path) -> None:
    first = save(tmp_path, 1)
    assert files(tmp_path) == {
        "attempt-1/weights/epoch-0001.safetensors",
        "attempt-1/checkpoint/epoch-0001/moments.safetensors",
        "attempt-1/checkpoint/epoch-0001/state.json",
    }
    second = save(tmp_path, 2, before=first.state, best=False)
    assert files(tmp_path) == {
        "attempt-1/weights/epoch-0001.safetensors",
        "attempt-1/weights/epoch-0002.safetensors",
        "attempt-1/checkpoint/epoch-0002/moments.safetensors",
        "attempt-1/checkpoint/epoch-0002/state.json",
    }
    last = finish(tmp_path, 3, 1, second.state)
    assert files(tmp_path) == {
        "attempt-1/best/epoch-0001/config.json",
        "attempt-1/best/epoch-0001/model.safetensors",
        "attempt-1/checkpoint/epoch-0003/state.json",
    }
    assert (last.state.finished, last.state.weights, last.state.best_weights) == (True, "", "")
    assert newest(tmp_path) == last
    assert tmp_path / last.state.best_folder == tmp_path / "attempt-1" / "best" / "epoch-0001"
    assert len(list(tmp_path.rglob("*.npz"))) == 3


def test_all_files_may_be_read_by_those_who_may_enter_the_folder(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert len({file.stat().st_mode for file in tmp_path.rglob("*") if file.is_file()}) == 1
    finish(tmp_path, 2, 1, newest(tmp_path).state)
    assert len({file.stat().st_mode for file in tmp_path.rglob("*") if file.is_file()}) == 1


def test_the_best_weights_of_an_earlier_attempt_survive_and_are_never_written_again(tmp_path: Path) -> None:
    state = save(tmp_path, 1).state
    best = weights_path(tmp_path / "attempt-1", 1)
    before = best.stat()
    for epoch, attempt in ((2, 1), (3, 2), (4, 3)):
        resumed = newest(tmp_path).state if attempt > 1 else state
        state = save(tmp_path, epoch, attempt, resumed, best=False).state
        assert newest(tmp_path).state == state
        assert (state.best_epoch, state.best_weights) == (1, "attempt-1/weights/epoch-0001.safetensors")
        after = best.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert set(tmp_path.glob("attempt-*/weights/*")) == {best, weights_path(tmp_path / f"attempt-{attempt}", epoch)}
    assert equal(load_tensors(best, state.hashes[state.best_weights]), weights_of(1))


def test_a_night_of_five_epochs_writes_weights_and_moments_four_times_and_the_export_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: Counter[str] = Counter()
    hashed: Counter[str] = Counter()
    real_rename, real_replace, real_hash = os.rename, os.replace, sha256_of

    def count(source: Path, target: Path, rename: Callable[..., None]) -> None:
        for path in [source] if source.is_file() else source.iterdir():
            kind = target.parent.name if source.is_file() or target.parent.name == "best" else path.name
            written[kind] += path.stat().st_size
        rename(source, target)

    def counted_hash(path: Path) -> str:
        hashed[str(path)] += 1
        return real_hash(path)

    monkeypatch.setattr(os, "rename", lambda source, target: count(source, target, real_rename))
    monkeypatch.setattr(os, "replace", lambda source, target: count(source, target, real_replace))
    monkeypatch.setattr(checkpoints, "sha256_of", counted_hash)
    state = None
    for epoch in range(1, 5):
        state = save(tmp_path, epoch, before=state, best=epoch in (1, 3)).state
    assert state is not None
    finish(tmp_path, 5, 1, state)
    save_file(weights_of(1), tmp_path / "weights")
    save_file(moments_of(1), tmp_path / "moments")
    weights, moments = ((tmp_path / name).stat().st_size for name in ("weights", "moments"))
    assert (written["weights"], written["moments.safetensors"]) == (4 * weights, 4 * moments)
    assert written["best"] == weights + len("{}")
    assert set(hashed.values()) == {1}
    assert len(hashed) == 5 + 4 + 4 + 2  # predictions, weights, moments, the two files of the export


def test_the_checkpoint_with_the_most_epochs_counts_over_all_attempts(tmp_path: Path) -> None:
    saved = save(tmp_path, 2, attempt=1)
    shutil.copytree(tmp_path / "attempt-1", tmp_path / "kept")
    save(tmp_path, 1, attempt=2)
    shutil.copytree(tmp_path / "kept", tmp_path / "attempt-1", dirs_exist_ok=True)
    assert newest(tmp_path) == saved
    # The next one replaces them all.
    third = save(tmp_path, 3, attempt=3)
    assert list(tmp_path.glob("attempt-*/checkpoint/*")) == [third.path]
    assert list(tmp_path.glob("attempt-*/weights/*")) == [tmp_path / third.state.weights]


def test_an_attempt_that_was_given_up_and_goes_on_removes_nothing(tmp_path: Path) -> None:
    first = save(tmp_path, 1, attempt=1)
    later = save(tmp_path, 3, attempt=2, before=save(tmp_path, 2, attempt=2, before=first.state).state, best=False)
    save(tmp_path, 2, attempt=1, before=first.state)
    assert newest(tmp_path).path == later.path
    assert equal(load_tensors(tmp_path / later.state.best_weights), weights_of(2))


def test_training_on_loaded_tensors_leaves_their_files_alone(tmp_path: Path) -> None:
    found = save(tmp_path, 1)
    for tensor in (*found.weights(tmp_path).values(), *found.moments().values()):
        tensor.add_(1)
    assert newest(tmp_path) == found
    assert equal(found.weights(tmp_path), weights_of(1))


# --- damage ---


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "a flipped byte in the weights": lambda _, run_dir: flip(weights_path(run_dir / "attempt-2", 3)),
    "a flipped byte in the best weights": lambda _, run_dir: flip(weights_path(run_dir / "attempt-2", 2)),
    "a flipped byte in the moments": lambda path, _: flip(path / "moments.safetensors"),
    "a flipped byte in the state": lambda path, _: flip(path / "state.json"),
    "another best F1 in the state": lambda path, _: (path / "state.json").write_text(
        (path / "state.json").read_text().replace('"best_f1": 0.5', '"best_f1": 0.4')
    ),
    "no state": lambda path, _: (path / "state.json").unlink(),
    "an empty state": lambda path, _: (path / "state.json").write_text(""),
    "a state that is a list": lambda path, _: (path / "state.json").write_text("[]"),
    "missing weights": lambda _, run_dir: weights_path(run_dir / "attempt-2", 3).unlink(),
    "missing best weights": lambda _, run_dir: weights_path(run_dir / "attempt-2", 2).unlink(),
    "missing moments": lambda path, _: (path / "moments.safetensors").unlink(),
    "altered predictions": lambda _, run_dir: flip(run_dir / "attempt-2/epochs/epoch-0003.npz"),
    "missing predictions": lambda _, run_dir: (run_dir / "attempt-2/epochs/epoch-0002.npz").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    earlier = save(tmp_path, 1)
    shutil.copytree(tmp_path / "attempt-1", tmp_path / "kept")
    before = save(tmp_path, 2, attempt=2).state
    later = save(tmp_path, 3, attempt=2, before=before, best=False)
    shutil.copytree(tmp_path / "kept", tmp_path / "attempt-1", dirs_exist_ok=True)
    assert newest(tmp_path).path == later.path
    DAMAGES[damage](later.path, tmp_path)
    assert newest(tmp_path) == earlier
    assert str(later.path) in caplog.text


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_best_model_of_a_finished_run_is_noticed(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    last = finish(tmp_path, 2, 1, save(tmp_path, 1).state)
    flip(tmp_path / last.state.best_folder / name)
    assert newest_checkpoint(tmp_path, "recipe") is None
    assert f"best/epoch-0001/{name}" in caplog.text


def test_weights_that_were_altered_since_they_were_saved_are_not_loaded(tmp_path: Path) -> None:
    state = save(tmp_path, 1).state
    path = tmp_path / state.best_weights
    flip(path)
    with pytest.raises(StorageError, match=r"epoch-0001\.safetensors"):
        load_tensors(path, state.hashes[state.best_weights])


def test_a_checkpoint_of_another_recipe_is_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert newest_checkpoint(tmp_path / "nowhere", "recipe") is None
    checkpoint = save(tmp_path, 1)
    assert newest_checkpoint(tmp_path, "another") is None
    assert str(checkpoint.path) in caplog.text


def test_a_checkpoint_of_another_version_is_skipped_with_a_warning_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # As format 1 had it: weights in the checkpoint, the best model in its folder after every epoch.
    former = tmp_path / "attempt-1" / "checkpoint" / "epoch-0004"
    former.mkdir(parents=True)
    save_file(weights_of(4), former / "model.safetensors")
    epoch_folder(tmp_path / "attempt-1" / "best", 3).mkdir(parents=True)
    body: dict[str, Any] = {"format": 1, "state": {"recipe": "recipe", "best_folder": "x"}, "files": {}}
    (former / "state.json").write_text(json.dumps({"sha256": checkpoints._digest(body), "body": body}))
    assert newest_checkpoint(tmp_path, "recipe") is None
    assert str(former) in caplog.text
    save(tmp_path, 1, attempt=2)
    assert not {name for name in files(tmp_path) if name.startswith("attempt-1")}
    assert list(tmp_path.glob("attempt-1/best/*")) == []


# --- kills ---


@contextmanager
def every_moment(run_dir: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Path]]]:
    """Copy the run's folder before every change of a name and every fsync: each copy is what a kill there leaves."""
    events: list[tuple[str, Path]] = []
    watching = True

    def watch(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(target: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal watching
            if watching:
                watching = False
                shutil.copytree(run_dir, copies / f"{len(events):04d}")
                known = Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else Path(target)
                events.append((name, known))
                watching = True
            return real(target, *args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "chmod", "fsync"):
            patch.setattr(os, name, watch(name))
        yield events


@pytest.mark.parametrize("finished", [False, True], ids=["an epoch", "the end"])
def test_a_kill_at_any_moment_leaves_the_former_checkpoint_or_the_new_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    run_dir, copies = tmp_path / "run", tmp_path / "copies"
    former = save(run_dir, 2, before=save(run_dir, 1).state, best=False)
    # What a killed attempt left is cleared away on the way.
    left = weights_path(run_dir / "attempt-1", 3)
    shutil.copy(run_dir / former.state.weights, left)
    shutil.copy(left, left.with_name(f".{left.name}.tmp"))
    shutil.copy(left, left.with_name(".tmpXeH1ki"))
    shutil.copytree(former.path, former.path.with_name(".epoch-0003.tmp"))
    state = next_state(run_dir, 3, 2, former.state, best=not finished)
    with every_moment(run_dir, copies, monkeypatch) as events:
        if finished:
            new = save_finished(run_dir, run_dir / "attempt-2", state, export)
        else:
            new = save_epoch(run_dir, run_dir / "attempt-2", state, weights_of(3), moments_of(3))
    assert newest(run_dir) == new
    # What a rename makes visible is on the disk before, and the name itself after it.
    for number, (name, source) in enumerate(events):
        if name in ("rename", "replace"):
            inside = {path for event, path in events[:number] if event == "fsync" and path.is_relative_to(source)}
            now = copies / f"{number:04d}" / source.relative_to(run_dir)
            assert {now, *now.rglob("*")} == {copies / f"{number:04d}" / path.relative_to(run_dir) for path in inside}
            assert events[number + 1] == ("fsync", source.parent)
    epochs = []
    for copy in sorted(copies.iterdir()):
        found = newest(copy)
        epochs.append(found.state.epoch)
        if not found.state.finished:
            assert equal(found.weights(copy), weights_of(found.state.epoch))
            assert equal(found.moments(), moments_of(found.state.epoch))
            assert equal(load_tensors(copy / found.state.best_weights), weights_of(found.state.best_epoch))
            # From there the run goes on, and clears away what the kill left.
            again = save(copy, 4, 3, found.state)
            assert newest(copy) == again
            assert len(files(copy)) == 3
    assert epochs == sorted(epochs)
    assert set(epochs) == {2, 3}
    assert len(epochs) > 20
    removals = [number for number, (name, path) in enumerate(events) if name == "unlink" and path.suffix != ".tmp"]
    assert min(removals) > max(number for number, (name, _) in enumerate(events) if name == "replace")


def test_a_folder_that_fails_half_way_is_not_there_and_the_former_stays(tmp_path: Path) -> None:
    def whole(folder: Path) -> None:
        (folder / "whole").write_text("whole")

    def fill(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise Killed

    write_folder(tmp_path / "one", whole)
    for name in ("one", "two"):
        with pytest.raises(Killed):
            write_folder(tmp_path / name, fill)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {"one", "one/whole"}


def test_a_restarted_attempt_does_not_trust_the_hashes_of_files_that_it_writes_again(tmp_path: Path) -> None:
    state = next_state(tmp_path, 1, 1, None, best=True)
    save_epoch(tmp_path, tmp_path / "attempt-1", state, weights_of(1), moments_of(1))
    save_epoch(tmp_path, tmp_path / "attempt-1", state, weights_of(7), moments_of(7))
    assert equal(newest(tmp_path).weights(tmp_path), weights_of(7))


# --- full disks ---


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

    with pytest.raises(StorageError, match="one"):
        write_folder(tmp_path / "one", fill)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_does_not_fit_on_the_disk_leaves_the_earlier_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    from tests.cli.test_bad_input import mounted

    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import sys
            from pathlib import Path
            import torch
            from nightgate.training.checkpoints import save_epoch, save_finished
            from nightgate.errors import StorageError
            from tests.training.test_checkpoints import export, files, moments_of, newest, next_state, save, weights_of

            run_dir = Path(sys.argv[1])
            attempt_dir = run_dir / "attempt-1"
            earlier = save(run_dir, 1)
            there = files(run_dir)
            state = next_state(run_dir, 2, 1, earlier.state, best=False)
            half, whole = {"half": torch.zeros(60_000)}, {"whole": torch.zeros(120_000)}
            for save_too_much, what in (
                (lambda: save_epoch(run_dir, attempt_dir, state, whole, {}), "weights/epoch-0002.safetensors"),
                (lambda: save_epoch(run_dir, attempt_dir, state, half, half), "checkpoint/epoch-0002"),
                (lambda: save_finished(run_dir, attempt_dir, state,
                    lambda folder: (folder / "model").write_bytes(bytes(480_000))), "best/epoch-0001"),
            ):
                try:
                    save_too_much()
                except StorageError as error:
                    assert str(error).startswith(f"cannot write to {attempt_dir / what}: No space left"), error
                    print("full")
                assert newest(run_dir) == earlier
                assert files(run_dir) == there
            assert newest(run_dir) == earlier
            assert save_finished(run_dir, attempt_dir, state, export) == newest(run_dir)
            """)
    )
    disk = tmp_path / "disk"
    done = mounted(disk, "size=400k", f"{sys.executable} {script} {disk}")
    assert (done.returncode, done.stdout) == (0, "full\n" * 3), done.stderr


def test_moments_that_do_not_fit_take_their_weights_with_them(tmp_path: Path) -> None:
    earlier = save(tmp_path, 1)
    there = files(tmp_path)
    state = next_state(tmp_path, 2, 1, earlier.state, best=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / earlier.state.weights).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_epoch(tmp_path, tmp_path / "attempt-1", state, weights_of(2), moments_of(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert newest(tmp_path) == earlier
    assert files(tmp_path) == there


# --- snapshots ---


def test_a_snapshot_holds_tied_tensors_once_and_stays_what_it_was() -> None:
    words = nn.Embedding(5, 4)
    head = nn.Linear(4, 5)
    head.weight = words.weight
    state = {**words.state_dict(prefix="words."), **head.state_dict(prefix="head."), "empty": torch.empty(0)}
    state |= {"other_empty": torch.empty(0), "turned": words.weight.detach().T, "first": words.weight.detach()[:2]}
    found = snapshot(state)
    assert found.keys() == {"words.weight", "head.bias", "empty", "other_empty", "turned", "first"}
    before = {name: tensor.clone() for name, tensor in found.items()}
    with torch.no_grad():
        words.weight.add_(1)
        head.bias.add_(1)
    assert equal(found, before)
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in found.values())
    assert len({tensor.data_ptr() for tensor in found.values() if tensor.numel()}) == 4


def test_a_snapshot_can_be_saved_as_it_is(tmp_path: Path) -> None:
    table = torch.randn(6, 4)
    weights = snapshot({"table": table, "tied": table, "turned": table.T})
    state = next_state(tmp_path, 1, 1, None, best=True)
    found = save_epoch(tmp_path, tmp_path / "attempt-1", state, weights, snapshot({"step": torch.tensor(3.0)}))
    assert equal(found.weights(tmp_path), {"table": table, "turned": table.T})


# --- the saver ---


def test_saves_are_done_in_order_one_at_a_time_while_the_training_goes_on() -> None:
    done: list[str] = []
    may_end = threading.Event()

    def slow() -> None:
        done.append("slow begins")
        assert may_end.wait(20)
        done.append("slow ends")

    with Saver() as saver:
        saver.submit(slow)
        saver.check()
        assert "slow ends" not in done
        threading.Timer(0.1, may_end.set).start()
        saver.submit(lambda: done.append("next"))
        assert done[:2] == ["slow begins", "slow ends"]
        saver.submit(lambda: done.append("last"))
    assert done == ["slow begins", "slow ends", "next", "last"]


def fail() -> None:
    raise StorageError("cannot write to /full", next_step="free some space")


def failed(saver: Saver) -> None:
    """Submit work that fails, and wait until it has."""
    ended = threading.Event()

    def work() -> None:
        try:
            fail()
        finally:
            ended.set()

    saver.submit(work)
    assert ended.wait(20)


def look_until_it_ends(saver: Saver) -> None:
    for _ in range(2000):
        saver.check()
        threading.Event().wait(0.01)


def test_a_failed_save_is_raised_where_the_training_next_looks_and_only_once() -> None:
    done: list[str] = []
    with Saver() as saver:
        failed(saver)
        with pytest.raises(StorageError, match="/full"):
            look_until_it_ends(saver)
        saver.check()
        saver.submit(lambda: done.append("after check"))
        failed(saver)
        with pytest.raises(StorageError, match="/full"):
            saver.submit(lambda: done.append("never"))
        saver.check()
    assert done == ["after check"]


def test_closing_waits_for_the_last_save_and_raises_its_error() -> None:
    done: list[str] = []

    def late() -> None:
        threading.Event().wait(0.1)
        done.append("late")

    saver = Saver()
    saver.submit(late)
    saver.close()
    assert done == ["late"]
    with pytest.raises(StorageError, match="/full"), Saver() as saver:
        saver.submit(fail)
    Saver().close()


def test_a_failed_save_does_not_mask_the_error_that_ended_the_training(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []

    def late_failure() -> None:
        threading.Event().wait(0.1)
        done.append("late")
        fail()

    def train() -> None:
        with Saver() as saver:
            saver.submit(late_failure)
            raise Killed

    with pytest.raises(Killed):
        train()
    assert done == ["late"]
    assert "/full" in caplog.text


def test_epochs_saved_behind_the_training_are_those_of_their_snapshots(tmp_path: Path) -> None:
    attempt_dir, weights = tmp_path / "attempt-1", weights_of(0)
    state: RunState | None = None
    with Saver() as saver:
        for epoch in range(1, 4):
            weights["head"].fill_(epoch)
            state = next_state(tmp_path, epoch, 1, state, best=epoch == 2)
            saver.submit(partial(save_epoch, tmp_path, attempt_dir, state, snapshot(weights), moments_of(epoch)))
            weights["head"].fill_(-1)
    found = newest(tmp_path)
    assert found.state == state
    assert equal(found.weights(tmp_path), weights_of(3))
    assert equal(load_tensors(tmp_path / found.state.best_weights), weights_of(2))
