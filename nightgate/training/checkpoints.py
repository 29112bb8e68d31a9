"""Checkpoints of a run: there completely or not at all, without pickle, and written behind the training's back.

    run_dir/attempt-1/weights/epoch-0002.safetensors    what an epoch trained; the vocabulary as it was cut
                      checkpoint/epoch-0002/            moments.safetensors, state.json: replaces the epoch before
                      best/epoch-0001/                  a stock Hugging Face folder, once the run is finished
                      epochs/epoch-0001.npz             validation logits of each epoch

`state.json` names by hash the weights of its epoch and of the best one, which may be an earlier attempt's, and the
predictions of all epochs. A finished run's checkpoint holds `state.json` alone and names the best folder instead.

Order of a crash-proof epoch: predictions, then the weights, then the checkpoint that names both, then the removal of
what it replaces. A kill between any two leaves the former checkpoint with everything it names in place.

PyTorch is imported where tensors are handled: the process of the night removes checkpoints without it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from safetensors import SafetensorError

from nightgate.durable_files import replacing, sha256_of
from nightgate.errors import StorageError, storage_errors
from nightgate.training.protocol import EpochReport

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

FORMAT = 4


@dataclass(frozen=True)
class RunState:
    """What a resumed attempt must know besides the tensors. Paths are relative to the run's folder."""

    recipe: str
    """Of what shaped the numbers so far; a checkpoint of another recipe is not resumed."""
    epoch: int
    step: int
    best_epoch: int
    best_f1: float
    best_weights: str
    """Weights file of the best epoch, from this attempt or an earlier one; empty once the run is finished."""
    epochs_without_better: int
    threads: int
    finished: bool
    reports: tuple[EpochReport, ...]
    """Of all epochs done so far, over all attempts; their `predictions` are absolute again after loading."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """State of the fp16 loss scaler; empty without one."""
    weights: str = ""
    """Weights file of this epoch; empty once the run is finished."""
    best_folder: str = ""
    """The best model as a stock folder; empty until the run is finished."""
    engine: str = ""
    """'packed' or 'padded'."""
    engine_reason: str = ""
    micro_batches: int = 1
    base_digest: str = ""
    """Of the word table that the training began with: what was cut away is taken from there again."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the named files, by path. Saving fills it in; the states that follow by `replace` share it, so that
    no file is hashed twice."""


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    state: RunState

    def weights(self, run_dir: Path) -> dict[str, Tensor]:
        """Of this epoch, as they were saved."""
        return load_tensors(run_dir / self.state.weights)

    def moments(self) -> dict[str, Tensor]:
        return load_tensors(self.path / "moments.safetensors")

    def best_model(self, run_dir: Path) -> Path:
        """The stock folder of a finished run."""
        assert self.state.finished
        return run_dir / self.state.best_folder


class Saver:
    """Writes behind the training's back: one piece of work at a time, in order, in one thread.

        with Saver() as saver:
            saver.submit(lambda: save_epoch(run_dir, attempt_dir, state, weights, moments))    # snapshots
            saver.check()                                                                      # in every step

    Leaving the block waits for the last work. An error of the work is raised once, where the training next looks.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._last: Future[object] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except Exception:
            if kind is None:
                raise
            log.exception("the last save failed too")

    def submit(self, work: Callable[[], object]) -> None:
        """Begin `work` once the work before has ended, and raise what that raised instead."""
        self.wait()
        self._last = self._thread.submit(work)

    def check(self) -> None:
        """Raise what a finished work raised, without waiting."""
        if self._last is not None and self._last.done():
            self.wait()

    def close(self) -> None:
        """Wait for the last work and raise what it raised."""
        self._thread.shutdown()
        self.wait()

    def wait(self) -> None:
        """Wait until the last work has ended and raise what it raised."""
        if self._last is not None:
            # Apart from `result`: an interruption while waiting is not the work's end.
            wait([self._last])
            last, self._last = self._last, None
            last.result()


def snapshot(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, contiguous, tied tensors once under their first name: the training may go on."""
    import torch

    once: dict[str, Tensor] = {}
    seen: set[tuple[object, ...]] = set()
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if place not in seen or tensor.numel() == 0:
            once[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        seen.add(place)
    return once


def load_tensors(path: Path, sha256: str = "") -> dict[str, Tensor]:
    """Tensors of a file that a save wrote; with `sha256`, for use without a checkpoint that was just verified.

    Raises:
        StorageError: the file does not have that hash.
    """
    from safetensors.torch import load_file

    if sha256 and sha256_of(path) != sha256:
        raise StorageError(
            f"{path} is not as it was written: its hash differs from the one that was noted then",
            next_step="check the disk, then run the same command again: it skips damaged checkpoints",
        )
    return load_file(path)


def weights_path(attempt_dir: Path, epoch: int) -> Path:
    return attempt_dir / "weights" / f"epoch-{epoch:04d}.safetensors"


def epoch_folder(parent: Path, epoch: int) -> Path:
    return parent / f"epoch-{epoch:04d}"


def write_folder(final: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder, make it durable, then give it its name.

    Raises:
        StorageError: the disk is full or read-only; nothing is left behind.
    """
    with _disk_errors(final), replacing(final) as draft:
        draft.mkdir()
        fill(draft)
        for path in draft.rglob("*"):
            if path.is_file():
                _open_to_all(path)


def save_epoch(
    run_dir: Path, attempt_dir: Path, state: RunState, weights: dict[str, Tensor], moments: dict[str, Tensor]
) -> Checkpoint:
    """Write the weights of `state.epoch` and the checkpoint that names them, then remove what it replaces.

    Args:
        state: `weights` is `weights_path(attempt_dir, state.epoch)`, `best_weights` that of the best epoch, which is
            on disk already when it is another one.
        weights, moments: as `snapshot` gives them.

    Raises:
        StorageError: the disk is full or read-only; the earlier checkpoint is untouched, nothing new is left behind.
    """
    final = weights_path(attempt_dir, state.epoch)
    assert run_dir / state.weights == final
    _write_weights(final, weights)
    return _save(run_dir, attempt_dir, state, final, moments)


def save_finished(run_dir: Path, attempt_dir: Path, state: RunState, export: Callable[[Path], None]) -> Checkpoint:
    """Export the best model and write the state of a run with nothing left to train, then remove what they replace.

    Args:
        export: fills the folder that it is given with the model of `state.best_epoch`.

    Raises:
        StorageError: the disk is full or read-only; the earlier checkpoint is untouched, nothing new is left behind.
    """
    best = epoch_folder(attempt_dir / "best", state.best_epoch)
    write_folder(best, export)
    finished = replace(state, finished=True, weights="", best_weights="", best_folder=_relative(best, run_dir))
    return _save(run_dir, attempt_dir, finished, best)


def remove_checkpoints(run_dir: Path) -> None:
    """Remove what only a resume needs. Predictions and logs stay, and a version has its own weights under models/."""
    for attempt in run_dir.glob("attempt-*"):
        for folder in ("checkpoint", "weights", "best"):
            shutil.rmtree(attempt / folder, ignore_errors=True)


def newest_checkpoint(run_dir: Path, recipe: str) -> Checkpoint | None:
    """The whole checkpoint with the most epochs over all attempts; others are skipped with a warning."""
    found = sorted(
        run_dir.glob("attempt-*/checkpoint/epoch-*"),
        key=lambda path: (path.name, _attempt_number(path.parent.parent)),
        reverse=True,
    )
    for path in found:
        try:
            return Checkpoint(path, _read_state(run_dir, path, recipe))
        except _NotOursError as reason:
            log.warning("skipping the checkpoint %s: %s", path, reason)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("skipping the damaged checkpoint %s: %s", path, error)
    return None


def _save(
    run_dir: Path, attempt_dir: Path, state: RunState, written: Path, moments: dict[str, Tensor] | None = None
) -> Checkpoint:
    """The checkpoint behind the weights or the best folder that was `written` for it."""
    path = epoch_folder(attempt_dir / "checkpoint", state.epoch)
    # A known hash of what was just written would be that of a killed attempt of the same number.
    known = {name: digest for name, digest in state.hashes.items() if not (run_dir / name).is_relative_to(written)}
    named = {name: known.get(name) or sha256_of(run_dir / name) for name in sorted(_named(run_dir, state))}

    def fill(folder: Path) -> None:
        if moments is not None:
            from safetensors.torch import save_file

            save_file(moments, folder / "moments.safetensors")
        body = {
            "format": FORMAT,
            "state": _state_record(state, run_dir),
            "files": {file.name: sha256_of(file) for file in sorted(folder.iterdir())},
            "named_files": named,
        }
        # Written last: a folder without it is no checkpoint.
        (folder / "state.json").write_text(json.dumps({"sha256": _digest(body), "body": body}, indent=1))

    try:
        write_folder(path, fill)
    except BaseException:
        _remove(written)
        raise
    state.hashes.clear()
    state.hashes.update(named)
    # Earlier epochs over all attempts, and drafts of killed ones: safetensors has its own beside ours.
    kept = {path, *(run_dir / name for name in (state.weights, state.best_weights, state.best_folder))}
    for kind in ("checkpoint", "weights", "best"):
        for old in set(run_dir.glob(f"attempt-*/{kind}/*")) - kept:
            _remove(old)
    return Checkpoint(path, state)


def _named(run_dir: Path, state: RunState) -> set[str]:
    """The files outside the checkpoint's own folder without which it is worth nothing."""
    exported = (run_dir / state.best_folder).rglob("*") if state.best_folder else ()
    return {
        *(name for name in (state.weights, state.best_weights) if name),
        *(_relative(file, run_dir) for file in exported if file.is_file()),
        *(_relative(report.predictions, run_dir) for report in state.reports),
    }


def _write_weights(final: Path, weights: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    with _disk_errors(final), replacing(final) as draft:
        save_file(weights, draft)
        _open_to_all(draft)


def _open_to_all(path: Path) -> None:
    """safetensors writes for the owner alone; the home is shared by all workers."""
    path.chmod(path.parent.stat().st_mode & 0o666)


def _state_record(state: RunState, run_dir: Path) -> dict[str, Any]:
    record = {**vars(state), "reports": [report.to_json() for report in state.reports]}
    # They stand beside the state, for all files alike.
    del record["hashes"]
    for report in record["reports"]:
        report["predictions"] = _relative(Path(report["predictions"]), run_dir)
    return record


class _NotOursError(Exception):
    """A whole checkpoint that this training cannot use, and why."""


def _read_state(run_dir: Path, path: Path, recipe: str) -> RunState:
    """Raises ValueError (or OSError, KeyError, TypeError) on anything missing or altered."""
    stored = json.loads((path / "state.json").read_text(encoding="utf-8"))
    body = stored["body"]
    if stored["sha256"] != _digest(body):
        raise ValueError("state.json is not as it was written")
    if body["format"] != FORMAT:
        raise _NotOursError(f"another version wrote it (its format is {body['format']}, this one reads {FORMAT})")
    if body["state"]["recipe"] != recipe:
        raise _NotOursError("it belongs to another configuration or snapshot")
    for folder, files in ((path, body["files"]), (run_dir, body["named_files"])):
        for name, expected in files.items():
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name} is missing")
            if sha256_of(folder / name) != expected:
                raise ValueError(f"{folder / name} is not as it was written")
    record = body["state"]
    reports = [
        EpochReport.from_json({**report, "predictions": str(run_dir / report["predictions"])})
        for report in record["reports"]
    ]
    return RunState(**{**record, "reports": tuple(reports), "hashes": body["named_files"]})


def _remove(path: Path) -> None:
    """A file or a folder; what resists is left to the next save."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _relative(path: Path, run_dir: Path) -> str:
    return path.relative_to(run_dir).as_posix()


def _attempt_number(attempt_dir: Path) -> int:
    digits = attempt_dir.name.removeprefix("attempt-")
    return int(digits) if digits.isdigit() else 0


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """As `storage_errors`; safetensors reports a full disk as an exception of its own."""
    with storage_errors(path):
        try:
            yield
        except SafetensorError as error:
            if match := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(match[1]), os.strerror(int(match[1]))) from error
            if "No space left" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
