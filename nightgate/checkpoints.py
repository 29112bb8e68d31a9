"""Checkpoints of a run: a folder per epoch, there completely or not at all, without pickle.

    run_dir/attempt-1/checkpoint/epoch-0002/   model.safetensors, optimizer.safetensors, state.json
                      best/epoch-0001/         the best model so far, a stock Hugging Face folder
                      epochs/epoch-0001.npz    validation logits of each epoch

Order of a crash-proof epoch: predictions, then the best model, then the checkpoint that names both by hash, then the
removal of what it replaces. A kill between any two leaves the former checkpoint with everything it names in place.
A finished run's checkpoint holds `state.json` alone: nothing is left to train, and the best model has its own folder.
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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from nightgate.errors import storage_errors
from nightgate.files import sha256_of, sync_folder
from nightgate.jobs import EpochReport

log = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True)
class RunState:
    """What a resumed attempt must know besides the tensors. Paths are relative to the run's folder."""

    recipe: str
    """Of what shaped the numbers so far; a checkpoint of another recipe is not resumed."""
    epoch: int
    step: int
    best_epoch: int
    best_f1: float
    best_folder: str
    epochs_without_better: int
    threads: int
    finished: bool
    reports: tuple[EpochReport, ...]
    """Of all epochs done so far, over all attempts; their `predictions` are absolute again after loading."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """State of the fp16 loss scaler; empty without one."""


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    state: RunState

    def best_model(self, run_dir: Path) -> Path:
        return run_dir / self.state.best_folder


def epoch_folder(parent: Path, epoch: int) -> Path:
    return parent / f"epoch-{epoch:04d}"


def write_folder(final: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder beside `final`, make it durable, then give it its name.

    Raises:
        StorageError: the disk is full or read-only; nothing is left behind.
    """
    draft = final.with_name(f".{final.name}.tmp")
    with _disk_errors(final):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            fill(draft)
            for path in sorted(draft.rglob("*")):
                if path.is_file():
                    # safetensors writes for the owner alone; the home is shared by all workers.
                    path.chmod(draft.stat().st_mode & 0o666)
                    descriptor = os.open(path, os.O_RDONLY)
                    try:
                        os.fsync(descriptor)
                    finally:
                        os.close(descriptor)
            sync_folder(draft)
            if final.exists():
                # Only what a killed attempt of the same number left: never the newest checkpoint of the run.
                shutil.rmtree(final)
            draft.rename(final)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync_folder(final.parent)


def save_checkpoint(
    run_dir: Path, attempt_dir: Path, state: RunState, model: nn.Module | None, optimizer: Optimizer | None
) -> Checkpoint:
    """Write the checkpoint of `state.epoch`; a finished state takes no tensors. Then remove what it replaces.

    Raises:
        StorageError: the disk is full or read-only; the earlier checkpoint is untouched.
    """
    path = epoch_folder(attempt_dir / "checkpoint", state.epoch)

    def fill(folder: Path) -> None:
        if model is not None and optimizer is not None:
            save_file(_weights(model), folder / "model.safetensors")
            save_file(_moments(model, optimizer), folder / "optimizer.safetensors")
        named = {_relative(file, run_dir): file for file in sorted((run_dir / state.best_folder).iterdir())}
        named |= {_relative(report.predictions, run_dir): report.predictions for report in state.reports}
        body = {
            "format": FORMAT,
            "state": _state_record(state, run_dir),
            "files": {file.name: sha256_of(file) for file in sorted(folder.iterdir())},
            "named_files": {name: sha256_of(file) for name, file in named.items()},
        }
        # Written last: a folder without it is no checkpoint.
        (folder / "state.json").write_text(json.dumps({"sha256": _digest(body), "body": body}, indent=1))

    write_folder(path, fill)
    _remove_replaced(run_dir, path, run_dir / state.best_folder)
    return Checkpoint(path, state)


def newest_checkpoint(run_dir: Path, recipe: str) -> Checkpoint | None:
    """The whole checkpoint with the most epochs over all attempts; others are skipped with a warning."""
    found = sorted(
        run_dir.glob("attempt-*/checkpoint/epoch-*"),
        key=lambda path: (path.name, _attempt_number(path.parent.parent)),
        reverse=True,
    )
    for path in found:
        try:
            state = _read_state(run_dir, path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("skipping the damaged checkpoint %s: %s", path, error)
            continue
        if state.recipe != recipe:
            log.warning("skipping the checkpoint %s: it belongs to another configuration or snapshot", path)
            continue
        return Checkpoint(path, state)
    return None


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer) -> None:
    """Put the checkpoint's weights and moments into a model and an optimizer of the same shape."""
    weights = load_file(checkpoint.path / "model.safetensors")
    own = model.state_dict()
    assert weights.keys() <= own.keys()
    missing, _ = model.load_state_dict(weights, strict=False)
    pointers = {own[name].data_ptr() for name in weights}
    # Tied weights are stored once.
    assert all(own[name].data_ptr() in pointers for name in missing)
    moments = load_file(checkpoint.path / "optimizer.safetensors")
    record = optimizer.state_dict()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    record["state"] = {
        index: {kind: moments[f"{name}:{kind}"] for kind in ("step", "exp_avg", "exp_avg_sq")}
        for index, name in enumerate(order)
        if f"{name}:step" in moments
    }
    optimizer.load_state_dict(record)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and persistent buffers, tied ones once."""
    once: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            once[name] = tensor.detach().cpu().contiguous()
        seen.add(tensor.data_ptr())
    return once


def _moments(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}:{kind}": tensor.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for kind, tensor in optimizer.state.get(parameter, {}).items()
    }


def _state_record(state: RunState, run_dir: Path) -> dict[str, Any]:
    record = {**vars(state), "reports": [report.to_json() for report in state.reports]}
    for report in record["reports"]:
        report["predictions"] = _relative(Path(report["predictions"]), run_dir)
    return record


def _read_state(run_dir: Path, path: Path) -> RunState:
    """Raises ValueError (or OSError, KeyError, TypeError) on anything missing or altered."""
    stored = json.loads((path / "state.json").read_text(encoding="utf-8"))
    body = stored["body"]
    if stored["sha256"] != _digest(body):
        raise ValueError("state.json is not as it was written")
    if body["format"] != FORMAT:
        raise ValueError(f"its format is {body['format']}, this version reads {FORMAT}")
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
    return RunState(**{**record, "reports": tuple(reports)})


def _remove_replaced(run_dir: Path, checkpoint: Path, best: Path) -> None:
    """Remove earlier checkpoints and best models of all attempts, and what killed attempts left unfinished."""
    for kind, kept in (("checkpoint", checkpoint), ("best", best)):
        for path in [*run_dir.glob(f"attempt-*/{kind}/epoch-*"), *run_dir.glob(f"attempt-*/{kind}/.epoch-*.tmp")]:
            if path != kept:
                shutil.rmtree(path, ignore_errors=True)


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
