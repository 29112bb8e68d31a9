"""Atomic checkpoints without pickle, written by a background thread.

    run_dir/attempt-1/weights/epoch-0002.safetensors    weights of an epoch, with the trimmed vocabulary
                      checkpoint/epoch-0002/            moments.safetensors, state.json: replaces the epoch before
                      best/epoch-0001/                  a stock Hugging Face folder, once the run is finished
                      epochs/epoch-0001.npz             validation logits of each epoch

`state.json` holds the SHA-256 of the weights of its epoch and of the best one, which may be an earlier attempt's, and
of all predictions. A finished run's checkpoint holds `state.json` alone and names the best folder.

Crash order of an epoch: predictions, weights, the checkpoint that names both, then the removal of what it replaces. A
kill between any two leaves the former checkpoint and all its files in place.

PyTorch is imported where tensors are used: the process of the night removes checkpoints without it.
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
METRICS = "evaluate"
"""Folder of an attempt with what `evaluate` writes while it trains."""


@dataclass(frozen=True)
class RunState:
    """State of a training after an epoch, besides its tensors. Paths are relative to the run's folder."""

    recipe: str
    """Hash of configuration and snapshot; a checkpoint of another recipe is not resumed."""
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
    """All epochs so far, over all attempts; their `predictions` are absolute after loading."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """State of the fp16 loss scaler; empty without one."""
    weights: str = ""
    """Weights file of this epoch; empty once the run is finished."""
    best_folder: str = ""
    """The best model as a stock folder; empty until the run is finished."""
    engine: str = ""
    """'packed' or 'padded'."""
    engine_reason: str = ""
    precision_reason: str = ""
    micro_batches: int = 1
    base_digest: str = ""
    """Hash of the original word table, from which an export restores the rows that were trimmed."""
    rows_trained: int | None = None
    """Training rows of each epoch."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the named files, by path. Saving fills it in, and states made by `replace` share it: no file is
    hashed twice."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    state: RunState

    def weights(self, run_dir: Path) -> dict[str, Tensor]:
        """Weights of this epoch, as they were saved."""
        return load_tensors(run_dir / self.state.weights)

    def moments(self) -> dict[str, Tensor]:
        """Optimiser moments of this epoch."""
        return load_tensors(self.path / "moments.safetensors")


class Saver:
    """Background thread that saves one epoch at a time, in order.

        with Saver() as saver:
            saver.submit(lambda: save_epoch(run_dir, attempt_dir, state, weights, moments))    # snapshots
            saver.check()                                                                      # in every step

    Leaving the block waits for the last save. An error of a save is raised once, by the next call.
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
        """Start `work` once the previous save has ended; raises the error of that save instead, if it failed."""
        self.wait()
        self._last = self._thread.submit(work)

    def check(self) -> None:
        """Raise the error of a save that has ended, without waiting."""
        if self._last is not None and self._last.done():
            self.wait()

    def close(self) -> None:
        """Wait for the last save, raise its error, and end the thread."""
        self._thread.shutdown()
        self.wait()

    def wait(self) -> None:
        """Wait for the last save and raise its error."""
        if self._last is not None:
            # Not `result`: an interruption while waiting is not the end of the save.
            wait([self._last])
            last, self._last = self._last, None
            last.result()


def snapshot(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU, which training cannot change; tied tensors once, under their first name."""
    import torch

    once: dict[str, Tensor] = {}
    seen: set[tuple[object, ...]] = set()
    for name, tensor in tensors.items():
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if memory not in seen or tensor.numel() == 0:
            once[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        seen.add(memory)
    return once


def load_tensors(path: Path, sha256: str = "") -> dict[str, Tensor]:
    """Tensors of a safetensors file, after a check of its hash if one is given.

    Raises:
        StorageError: the file does not have that hash.
    """
    from safetensors.torch import load_file

    if sha256 and sha256_of(path) != sha256:
        raise StorageError(
            f"{path} is not as it was written: its SHA-256 differs from the recorded one",
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
        state: its `weights` is `weights_path(attempt_dir, state.epoch)`; the `best_weights` of another epoch are on
            disk already.
        weights, moments: from `snapshot`.

    Raises:
        StorageError: the disk is full or read-only; the earlier checkpoint is untouched, nothing new is left behind.
    """
    final = weights_path(attempt_dir, state.epoch)
    assert run_dir / state.weights == final
    _write_weights(final, weights)
    return _save(run_dir, attempt_dir, state, final, moments)


def save_finished(run_dir: Path, attempt_dir: Path, state: RunState, export: Callable[[Path], None]) -> Checkpoint:
    """Export the best model, write the state of the finished run, then remove what they replace.

    Args:
        export: writes the model of `state.best_epoch` into the folder that it is given.

    Raises:
        StorageError: the disk is full or read-only; the earlier checkpoint is untouched, nothing new is left behind.
    """
    best = epoch_folder(attempt_dir / "best", state.best_epoch)
    write_folder(best, export)
    finished = replace(state, finished=True, weights="", best_weights="", best_folder=_relative(best, run_dir))
    return _save(run_dir, attempt_dir, finished, best)


def remove_checkpoints(run_dir: Path) -> None:
    """Remove the files that only a resume needs. Predictions and logs stay; a version has its own weights."""
    for attempt in run_dir.glob("attempt-*"):
        for folder in ("checkpoint", "weights", "best", METRICS):
            shutil.rmtree(attempt / folder, ignore_errors=True)


def has_checkpoint(run_dir: Path) -> bool:
    """Whether an attempt at the run has finished an epoch, from which the next one can go on."""
    return any(run_dir.glob("attempt-*/checkpoint/epoch-*/state.json"))


def newest_checkpoint(run_dir: Path, recipe: str) -> Checkpoint | None:
    """The intact checkpoint with the most epochs over all attempts; others are skipped with a warning."""
    found = sorted(
        run_dir.glob("attempt-*/checkpoint/epoch-*"),
        key=lambda path: (path.name, _attempt_number(path.parent.parent)),
        reverse=True,
    )
    for path in found:
        try:
            return Checkpoint(path, _read_state(run_dir, path, recipe))
        except _OtherRunError as reason:
            log.warning("skipping the checkpoint %s: %s", path, reason)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("skipping the damaged checkpoint %s: %s", path, error)
    return None


def _save(
    run_dir: Path, attempt_dir: Path, state: RunState, written: Path, moments: dict[str, Tensor] | None = None
) -> Checkpoint:
    """Write the checkpoint that names `written`: the weights of its epoch, or the best model's folder."""
    path = epoch_folder(attempt_dir / "checkpoint", state.epoch)
    # A known hash of `written` would be that of a killed attempt of the same number.
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
    if _attempt_number(attempt_dir) < max(map(_attempt_number, run_dir.glob("attempt-*"))):
        return Checkpoint(path, state)  # given up, and not stopped yet: the later attempt may need any of the files
    # Earlier epochs of all attempts, and temporary files of killed ones: safetensors makes its own beside ours.
    kept = {path, *(run_dir / name for name in (state.weights, state.best_weights, state.best_folder))}
    for kind in ("checkpoint", "weights", "best"):
        for old in set(run_dir.glob(f"attempt-*/{kind}/*")) - kept:
            _remove(old)
    return Checkpoint(path, state)


def _named(run_dir: Path, state: RunState) -> set[str]:
    """Files outside the checkpoint's folder that it depends on."""
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
    """Make a file readable as its folder is: safetensors writes for the owner alone, and workers share the home."""
    path.chmod(path.parent.stat().st_mode & 0o666)


def _state_record(state: RunState, run_dir: Path) -> dict[str, Any]:
    record = {**vars(state), "reports": [report.to_json() for report in state.reports]}
    del record["hashes"]  # stored beside the state, as `named_files`
    for report in record["reports"]:
        report["predictions"] = _relative(Path(report["predictions"]), run_dir)
    return record


class _OtherRunError(Exception):
    """An intact checkpoint of another recipe or version."""


def _read_state(run_dir: Path, path: Path, recipe: str) -> RunState:
    """Raises ValueError (or OSError, KeyError, TypeError) on anything missing or altered."""
    stored = json.loads((path / "state.json").read_text(encoding="utf-8"))
    body = stored["body"]
    if stored["sha256"] != _digest(body):
        raise ValueError("state.json is not as it was written")
    if body["format"] != FORMAT:
        raise _OtherRunError(f"another version wrote it (its format is {body['format']}, this one reads {FORMAT})")
    if body["state"]["recipe"] != recipe:
        raise _OtherRunError("it belongs to another configuration or snapshot")
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
    """Remove a file or a folder; errors are ignored, because the next save tries again."""
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
    """`storage_errors`, for the exceptions of safetensors too."""
    with storage_errors(path):
        try:
            yield
        except SafetensorError as error:
            if match := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(match[1]), os.strerror(int(match[1]))) from error
            if "No space left" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
