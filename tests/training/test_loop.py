"""The training loop in this process: recipe, reproducibility, precision, early stopping, base models, batches."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from syrupy.assertion import SnapshotAssertion
from torch import nn

from nightgate import cpu_threads
from nightgate.config.training import Training
from nightgate.data.snapshots import open_snapshot
from nightgate.engine import base_model_folder, base_models, devices
from nightgate.engine.encoding import CHUNK, encode
from nightgate.engine.optimizer import learning_rates, make_optimizer
from nightgate.errors import ModelError, NonFiniteLossError, SnapshotError
from nightgate.training.checkpoints import newest_checkpoint
from nightgate.training.continued import labelled_keys, lost, read_learnt
from nightgate.training.inputs import balanced, seed_epoch
from nightgate.training.loop import _recipe, train
from nightgate.training.losses import Losses
from nightgate.training.protocol import EpochReport, Progress, TrainJob, TrainResult
from nightgate.training.scoring import columns, logits_of, mean_cross_entropy
from tests.support.tiny import tiny_job, write_tiny_model

# transformers 5 leaves the tokenizer's files to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
    pytest.mark.process,
]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Killed(BaseException):
    pass


@dataclass
class Recorder:
    """A listener that keeps reports and progress, and raises in a given epoch."""

    die_in_epoch: int = 0
    reports: list[EpochReport] = field(default_factory=list)
    seen: list[Progress] = field(default_factory=list)

    def progress(self, progress: Progress) -> None:
        self.seen.append(progress)
        if progress.phase == "train" and progress.epoch == self.die_in_epoch:
            raise Killed

    def epoch_done(self, report: EpochReport) -> None:
        self.reports.append(report)


def run(job: TrainJob) -> tuple[Recorder, TrainResult]:
    recorder = Recorder()
    return recorder, train(job, recorder)


def run_and_die(job: TrainJob, epoch: int) -> Recorder:
    recorder = Recorder(epoch)
    with pytest.raises(Killed):
        train(job, recorder)
    return recorder


def numbers(recorder: Recorder) -> list[tuple[float, ...]]:
    return [(r.epoch, r.step, r.training_loss, r.validation_loss, r.is_best) for r in recorder.reports]


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(tmp_path: Path) -> None:
    (first, result), (second, _) = (run(tiny_job(tmp_path, run=name)) for name in ("a", "b"))
    assert numbers(first) == numbers(second)
    assert result.precision == first.reports[0].precision == "fp32", "by its width, whatever the CPU computes"
    assert numbers(run(tiny_job(tmp_path, run="c", seed=7))[0]) != numbers(first)


def test_the_last_smaller_batch_is_kept(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, epochs=2, batch_size=16)
    recorder, _ = run(job)
    rows = json.loads((job.snapshot / "manifest.json").read_text())["rows"]["train"]
    assert rows % 16
    assert [report.step for report in recorder.reports] == [math.ceil(rows / 16), 2 * math.ceil(rows / 16)]


def test_the_time_of_a_batch_of_validation_rows_is_reported_before_the_first(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, epochs=1, batch_size=2, eval_batch_size=1024)
    recorder, _ = run(job)
    rows = json.loads((job.snapshot / "manifest.json").read_text())["rows"]["validation"]
    step = [progress.step_seconds for progress in recorder.seen if progress.phase == "train"][-1]
    first = next(progress for progress in recorder.seen if progress.phase == "evaluate")
    assert step is not None
    assert (first.done, first.step_seconds) == (0, pytest.approx(step * rows / 2))


def test_training_learns(tmp_path: Path) -> None:
    recorder, _ = run(tiny_job(tmp_path, rows=300, batch_size=4))
    assert recorder.reports[-1].training_loss < 0.8 * recorder.reports[0].training_loss
    assert recorder.reports[-1].validation_loss < 0.9


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_lower_precision_trains_and_a_resumed_run_gives_the_same_numbers(tmp_path: Path, precision: str) -> None:
    whole, result = run(tiny_job(tmp_path, run="whole", precision=precision))
    assert result.precision == precision
    assert "training.precision" in result.precision_reason
    assert whole.reports[-1].training_loss < whole.reports[0].training_loss
    job = tiny_job(tmp_path, run="killed", precision=precision)
    run_and_die(job, 3)
    found = newest_checkpoint(job.run_dir, _recipe(job, _pipeline(job)))
    assert found is not None
    assert bool(found.state.scaler) == (precision == "fp16")
    assert numbers(run(replace(job, attempt=2))[0]) == numbers(whole)


def test_a_step_whose_fp16_gradients_overflow_is_skipped_and_no_error(tmp_path: Path) -> None:
    # The scaler begins at 65,536: with a steep loss the first scaled gradients overflow.
    base = write_tiny_model(tmp_path / "base")
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] *= 0.001
    weights["pooler.dense.weight"] *= 300
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    recipe: dict[str, Any] = {"precision": "fp16", "epochs": 2, "learning_rate": 1e-5}
    whole, _ = run(tiny_job(tmp_path, run="whole", **recipe))
    job = tiny_job(tmp_path, **recipe)
    run_and_die(job, 2)
    found = newest_checkpoint(job.run_dir, _recipe(job, _pipeline(job)))
    assert found is not None
    assert found.state.scaler["scale"] < 65536
    # A resumed run that forgot its scale would skip its first steps again.
    assert numbers(run(replace(job, attempt=2))[0]) == numbers(whole)


def test_an_epoch_in_which_every_fp16_step_overflows_is_an_error(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base")
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    # The layer's output stays as it was; its gradients do not fit into fp16.
    weights["encoder.layer.1.intermediate.dense.weight"] *= 1e-4
    weights["encoder.layer.1.output.dense.weight"] *= 1e4
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteLossError, match="fp16") as caught:
        run(tiny_job(tmp_path, precision="fp16", epochs=1, rows=60))
    assert "bf16" in caught.value.next_step


def test_early_stopping_ends_the_run_when_patience_runs_out(tmp_path: Path) -> None:
    recorder, result = run(tiny_job(tmp_path, epochs=9, learning_rate=1e-12, early_stopping_patience=2))
    assert [report.is_best for report in recorder.reports] == [True, False, False]
    assert [report.stopped_early for report in recorder.reports] == [False, False, True]
    assert (result.best_epoch, result.epochs_run, result.stopped_early) == (1, 3, True)


def test_patience_survives_a_kill(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, epochs=9, learning_rate=1e-12, early_stopping_patience=2)
    run_and_die(job, 3)
    recorder, result = run(replace(job, attempt=2))
    assert [(r.attempt, r.epoch) for r in recorder.reports] == [(1, 1), (1, 2), (2, 3)]
    assert (result.resumed_from, result.epochs_run, result.stopped_early) == (2, 3, True)
    assert result.best_model == job.run_dir / "attempt-2" / "best" / "epoch-0001"
    assert (result.best_model / "model.safetensors").is_file()


def test_a_run_stopped_early_stays_stopped_when_run_again(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, epochs=9, learning_rate=1e-12, early_stopping_patience=1)
    first, _ = run(job)
    again, result = run(replace(job, attempt=2))
    assert again.reports == first.reports
    assert result.stopped_early


def test_a_run_of_another_recipe_is_not_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_and_die(tiny_job(tmp_path), 2)
    recorder, result = run(tiny_job(tmp_path, attempt=2, weight_decay=0.1))
    assert result.resumed_from == 0
    assert [report.attempt for report in recorder.reports] == [2, 2, 2]
    assert "attempt-1/checkpoint" in caplog.text


def test_label_smoothing_and_class_weights_are_in_the_training_loss_alone(tmp_path: Path) -> None:
    # One batch, at a rate of nearly 0: the saved model gives the logits of its loss.
    one_step = {"epochs": 1, "batch_size": 300, "learning_rate": 1e-12, "dropout": 0.0}
    job = tiny_job(tmp_path, label_smoothing=0.3, class_weight="balanced", **one_step)
    recorder, result = run(job)
    stored = np.load(recorder.reports[0].predictions)
    plain = nn.functional.cross_entropy(torch.tensor(stored["logits"]), torch.tensor(stored["labels"])).item()
    assert recorder.reports[0].validation_loss == pytest.approx(plain, rel=1e-6)

    texts, labels = columns(open_snapshot(job.snapshot).rows("train"))
    loaded = base_models.load_trained(result.best_model, named="it")
    logits = logits_of(loaded.model, encode(loaded.tokenizer, texts, 32), batch_size=16)
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels).astype(np.float32)
    expected = nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), torch.tensor(weights), label_smoothing=0.3
    )
    assert recorder.reports[0].training_loss == pytest.approx(expected.item(), rel=1e-5)
    assert np.ptp(weights) > 0.1


def test_a_class_without_training_rows_has_weight_0() -> None:
    assert balanced(np.array([0, 0, 0, 2]), 3).tolist() == pytest.approx([4 / 6, 0, 4 / 2])


def test_dropout_of_the_recipe_reaches_the_model_and_its_configuration(tmp_path: Path) -> None:
    _, result = run(tiny_job(tmp_path, dropout=0.25, epochs=1))
    settings = json.loads((result.best_model / "config.json").read_text())
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    assert {settings[name] for name in names} == {0.25}


def test_a_champion_with_other_labels_is_no_start(tmp_path: Path) -> None:
    _, result = run(tiny_job(tmp_path, epochs=1))
    settings = json.loads((result.best_model / "config.json").read_text())
    settings["id2label"]["2"] = "ugly"
    (result.best_model / "config.json").write_text(json.dumps(settings))
    job = replace(tiny_job(tmp_path, run="next"), start_from=result.best_model)
    with pytest.raises(ModelError, match=r"\['bad', 'middling', 'ugly'\]"):
        run(job)


def test_a_training_that_goes_on_learns_the_same_rows_again_after_a_kill(tmp_path: Path) -> None:
    begun, first = run(tiny_job(tmp_path, epochs=2))
    before = read_learnt(first.best_model)
    more = tiny_job(tmp_path, run="next", rows=240, replay=0.5, continued_rate=0.2, early_stopping_patience=1)
    job = replace(more, start_from=first.best_model)
    whole, ended = run(job)
    available = labelled_keys(open_snapshot(job.snapshot))
    new = int((~available.within(before)).sum())
    assert 0 < new < 40
    assert ended.rows_trained == new + round(new / 2)
    assert lost(available, read_learnt(ended.best_model)) == lost(before, read_learnt(ended.best_model)) == 0
    assert [(report.epoch, report.is_best, report.stopped_early) for report in whole.reports] == [(1, True, False)]
    assert whole.seen[-1].epochs == 1
    assert whole.reports[0].learning_rate <= 0.2 * 3e-3
    assert whole.reports[0].training_loss < begun.reports[0].training_loss

    killed = replace(job, run_dir=job.run_dir.with_name("killed"))
    run_and_die(killed, 1)
    again, resumed = run(replace(killed, attempt=2))
    assert numbers(again) == numbers(whole)
    assert resumed.rows_trained == ended.rows_trained
    other, _ = run(replace(job, run_dir=job.run_dir.with_name("later"), data_until="2026-02-05T00:00:00+00:00"))
    assert numbers(other) != numbers(whole), "another night replays other rows"


def test_the_weights_of_the_best_epoch_are_kept_and_not_those_of_the_last(tmp_path: Path) -> None:
    # At a rate of nearly 0 no epoch is better than the first.
    recorder, result = run(tiny_job(tmp_path, epochs=3, learning_rate=1e-12))
    assert result.best_epoch == 1
    assert [path.name for path in (result.best_model.parent).iterdir()] == ["epoch-0001"]
    assert len(recorder.reports) == 3


# --- the recipe ---


def _pipeline(job: TrainJob) -> Any:
    from nightgate.config.pipeline import Pipeline

    return Pipeline.model_validate(job.pipeline)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.relative_attention_bias = nn.Embedding(4, 2)


def test_weight_decay_spares_biases_and_norms() -> None:
    model = Small()
    decayed, plain = make_optimizer(model, Training(weight_decay=0.1, adam_beta1=0.8, adam_epsilon=1e-6)).param_groups
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(3, 3)]
    assert len(plain["params"]) == 4
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert (decayed["betas"], decayed["eps"], decayed["lr"]) == ((0.8, 0.999), 1e-6, 5e-5)


def test_the_schedule_falls_linearly_to_zero_by_default() -> None:
    rate = learning_rates(Training(), 10)
    assert [rate(step) for step in range(1, 12)] == pytest.approx([5e-5 * (10 - k) / 10 for k in range(11)])


def test_order_and_masks_depend_on_seed_and_epoch_alone() -> None:
    first = (seed_epoch(42, 3).permutation(50), torch.rand(5))
    seed_epoch(42, 2)
    torch.rand(17)
    second = (seed_epoch(42, 3).permutation(50), torch.rand(5))
    assert (first[0] == second[0]).all()
    assert torch.equal(first[1], second[1])
    assert (seed_epoch(42, 4).permutation(50) != first[0]).any()
    assert (seed_epoch(43, 3).permutation(50) != first[0]).any()
    assert (seed_epoch(42, 3, rank=1).permutation(50) == first[0]).all()
    assert not torch.equal(torch.rand(5), first[1])


def test_losses_read_in_groups_still_name_the_step_that_was_not_finite() -> None:
    losses = Losses(epoch=2, precision="bf16", group=10)
    for step in range(11, 18):
        losses.add(step, 1e-3, 16, torch.tensor(1.0))
    losses.add(18, 5e-4, 16, torch.tensor(math.inf))
    with pytest.raises(NonFiniteLossError, match=r"inf in epoch 2, step 18 \(learning rate 0.0005, bf16"):
        losses.read()


def test_the_training_loss_is_the_mean_over_examples_and_not_over_steps() -> None:
    losses = Losses(epoch=1, precision="fp32", group=1)
    losses.add(1, 1e-3, 16, torch.tensor(1.0))
    losses.add(2, 1e-3, 4, torch.tensor(2.0))
    assert losses.mean == pytest.approx((16 * 1 + 4 * 2) / 20)


def test_cross_entropy_is_torchs_and_shows_what_is_not_finite() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 5)).astype(np.float32) * 30, rng.integers(0, 5, 50)
    theirs = nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item()
    assert mean_cross_entropy(logits, labels) == pytest.approx(theirs, rel=1e-5)
    logits[7, 2] = np.nan
    assert math.isnan(mean_cross_entropy(logits, labels))


# --- devices ---


@pytest.mark.parametrize(
    ("asked", "capabilities", "gain", "precision", "is_slow"),
    [
        ("auto", {"avx512_bf16": True}, 2.0, "bf16", False),
        ("auto", {"avx512_bf16": True, "amx_bf16": True}, devices.LEAST_GAIN, "bf16", False),
        ("auto", {"avx512_bf16": True}, 1.29, "fp32", False),
        ("auto", {"avx512_bf16": True}, math.nan, "fp32", False),
        ("auto", {"avx512_bf16": False, "avx512_f": True}, 9.9, "fp32", False),
        ("auto", {}, 9.9, "fp32", False),
        ("bf16", {}, 0.2, "bf16", True),
        ("bf16", {"amx_bf16": True}, 0.2, "bf16", False),
        ("fp32", {"amx_bf16": True}, 2.0, "fp32", False),
    ],
)
def test_a_cpu_computes_in_bf16_where_that_is_native_and_faster_or_asked_for(
    asked: str, capabilities: dict[str, Any], gain: float, precision: str, is_slow: bool
) -> None:
    picked = devices.pick_on_cpu(asked, capabilities, lambda: gain)
    assert (picked.device.type, picked.precision) == ("cpu", precision)
    assert picked.is_tentative == (asked == "auto" and precision == "bf16")
    assert picked.reason.startswith(f"{precision} on the CPU: ")
    assert ("slow" in picked.reason) == is_slow


def test_auto_measures_this_cpu_and_a_narrow_model_is_in_fp32_on_every_cpu(loaded: base_models.LoadedModel) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    picked = devices.pick("auto")
    native = any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16"))
    assert picked.precision == ("bf16" if native and devices.gain_of_bf16() >= devices.LEAST_GAIN else "fp32")
    assert devices.for_model(picked, loaded.model).precision == "fp32"
    # A person's own choice stays.
    assert devices.for_model(devices.pick("bf16"), loaded.model).precision == "bf16"


def test_threads_are_the_cores_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("OMP_NUM_THREADS")
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    try:
        assert cpu_threads.pick_threads()[0] == 1
    finally:
        os.sched_setaffinity(0, usable)


# --- batches ---


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> base_models.LoadedModel:
    folder = write_tiny_model(tmp_path_factory.mktemp("base"))
    torch.manual_seed(0)
    return base_models.load_classifier(folder, ["a", "b"], named="the base", max_length=16)


def test_batches_hold_the_tokens_that_the_tokenizer_gives(loaded: base_models.LoadedModel) -> None:
    texts = ["great dress", "bad " * 40, "", "it fits, not cheap!", "x"]
    expected = loaded.tokenizer(texts, truncation=True, max_length=16, padding=True, return_tensors="pt")
    found = encode(loaded.tokenizer, texts, 16).batch(np.arange(5))
    assert found.keys() == set(loaded.tokenizer.model_input_names)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_batches_are_padded_on_the_side_that_the_tokenizer_says(loaded: base_models.LoadedModel) -> None:
    encoded = replace(encode(loaded.tokenizer, ["great", "it is good"], 16), pad_left=True)
    batch = encoded.batch(np.arange(2))
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert batch["input_ids"][0].tolist()[:2] == [0, 0]


def test_tokenising_reports_progress(loaded: base_models.LoadedModel) -> None:
    reported: list[tuple[int, int]] = []
    encode(loaded.tokenizer, ["good"] * (CHUNK + 5), 16, lambda done, total: reported.append((done, total)))
    assert reported == [(CHUNK, CHUNK + 5), (CHUNK + 5, CHUNK + 5)]


def test_logits_are_in_the_order_of_rows_for_every_batch_size(loaded: base_models.LoadedModel) -> None:
    texts = ["good", "bad " * 12, "it is fine", "no", "the dress fits so well"]
    encoded = encode(loaded.tokenizer, texts, 16)
    found = [logits_of(loaded.model, encoded, batch_size=size) for size in (1, 2, 5)]
    assert np.abs(found[0] - found[1]).max() < 1e-5
    assert np.abs(found[0] - found[2]).max() < 1e-5
    assert logits_of(loaded.model, encode(loaded.tokenizer, [], 16), batch_size=2).shape == (0, 2)


# --- base models ---


def test_a_package_holds_a_base_model() -> None:
    folder = base_model_folder.resolve("package:numpy/typing")
    assert folder.name == "typing"
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("base_model", "next_step"),
    [
        ("package:no_such_package/model", "no_such_package"),
        ("package:numpy/no/such/folder", "config.json"),
        ("package:numpy/../..", "config.json"),
        ("./nowhere", "correct training.base_model"),
        ("a/b/c", "correct training.base_model"),
        ("not a name!", "correct training.base_model"),
        ("pyproject.toml", "config.json"),
    ],
)
def test_a_base_model_that_cannot_be_found_is_an_error_that_names_it(
    base_model: str, next_step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").touch()
    with pytest.raises(ModelError) as caught:
        base_model_folder.resolve(base_model)
    assert repr(base_model) in caught.value.reason
    assert next_step in caught.value.next_step


def _load(folder: Path, labels: int = 3, max_length: int = 32) -> base_models.LoadedModel:
    return base_models.load_classifier(
        folder, [f"label {k}" for k in range(labels)], named="the base", max_length=max_length
    )


def _settings(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_folders_that_are_no_usable_model_are_errors(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    cases: dict[str, Any] = {
        "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
        "no weights": lambda folder: (folder / "model.safetensors").unlink(),
        "cut weights": lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100),
        "broken tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{"),
        "own code": lambda folder: _settings(folder, model_type="own", auto_map={"AutoConfig": "own.Config"}),
        "no classifier": lambda folder: _settings(folder, model_type="vit"),
        "other shape": lambda folder: _settings(folder, hidden_size=48),
    }
    advice = {}
    for name, damage in cases.items():
        folder = write_tiny_model(tmp_path / name)
        damage(folder)
        with pytest.raises(ModelError, match="the base") as caught:
            _load(folder)
        advice[name] = caught.value.next_step
    assert advice == snapshot


def test_of_a_classifier_with_another_number_of_classes_the_body_is_kept(tmp_path: Path) -> None:
    first = _load(write_tiny_model(tmp_path / "base"), labels=5)
    base_models.save_model(first, tmp_path / "five")
    second = _load(tmp_path / "five", labels=3)
    assert base_models.labels_of(second.model) == ["label 0", "label 1", "label 2"]
    body = [dict(loaded.model.bert.named_parameters()) for loaded in (first, second)]
    assert all(torch.equal(body[0][name], body[1][name]) for name in body[0])


def test_texts_are_cut_where_the_model_has_no_more_positions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = _load(write_tiny_model(tmp_path / "base"), max_length=512)
    assert loaded.max_length == 128
    assert [record.levelname for record in caplog.records if "128" in record.getMessage()] == ["WARNING"]


def test_roberta_counts_positions_from_after_the_padding_index() -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    model = RobertaForSequenceClassification(RobertaConfig(vocab_size=30, max_position_embeddings=66, **sizes))

    class Tokenizer:
        model_max_length = 10**30

    assert base_models.max_tokens(model, Tokenizer()) == 64


def test_dropout_is_set_in_every_architecture() -> None:
    import transformers

    names = "Bert DistilBert Roberta DebertaV2 Electra Albert MPNet ModernBert GPT2 T5"
    for name in names.split():
        config = getattr(transformers, f"{name}Config")()
        base_models._set_dropout(config, 0.33, name)
        left = {
            key: value
            for key, value in config.to_dict().items()
            if ("dropout" in key or "pdrop" in key) and value != 0.33
        }
        assert not left, name
        assert any(value == 0.33 for value in config.to_dict().values()), name


def test_a_missing_snapshot_is_an_error(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    with pytest.raises(SnapshotError, match="nowhere"):
        run(replace(job, snapshot=tmp_path / "nowhere"))
