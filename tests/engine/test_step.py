"""The engine's step gives the losses and weights of the stock step, with each of its optimisations."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from nightgate.config.training import Training
from nightgate.engine import cuda_graphs
from nightgate.engine.base_models import LoadedModel, load_classifier
from nightgate.engine.devices import Picked
from nightgate.engine.encoding import Encoded, encode
from nightgate.engine.optimizer import learning_rates, make_optimizer
from nightgate.engine.step import Engine, Wins
from nightgate.training.inputs import balanced
from tests.support.tiny import write_tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
    pytest.mark.process,
]

CPU = torch.device("cpu")
LABELS = ("bad", "middling", "good")
STEPS = 10
SENTENCES = (
    "great shoes and a very good price",
    "broken",
    "it was okay for the price but the colour of the dress is not that of the lamp",
    "hate it",
    "love love love",
    "too small returned and never again would recommend this awful product to happy people",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("engine") / "base", dropout=0.0)


def load(base: Path, dtype: torch.dtype = torch.float64, dropout: float | None = None) -> LoadedModel:
    torch.manual_seed(1)
    loaded = load_classifier(base, LABELS, named="the base", max_length=32, dropout=dropout)
    loaded.model.to(dtype)
    return loaded


def texts(loaded: LoadedModel, rows: int = 90, seed: int = 0) -> tuple[Encoded, Any]:
    rng = np.random.default_rng(seed)
    chosen = [" ".join(rng.choice(SENTENCES, int(rng.integers(1, 4)))) for _ in range(rows)]
    return encode(loaded.tokenizer, chosen, loaded.max_length), rng.choice(len(LABELS), rows, p=(0.1, 0.3, 0.6))


def recipe(**training: Any) -> Training:
    return Training(**{"epochs": 2, "learning_rate": 3e-3, "batch_size": 8, **training})


def weights_of(training: Training, labels: Any) -> Any:
    return balanced(labels, len(LABELS)) if training.class_weight == "balanced" else None


def batches(rows: int = 90) -> list[Any]:
    order = np.random.default_rng(5).permutation(rows)
    return [order[start : start + 8] for start in range(0, 8 * STEPS, 8)]


def engine_of(loaded: LoadedModel, training: Training, train: Encoded, *others: Encoded, **options: Any) -> Engine:
    return Engine(loaded, training, Picked(CPU, torch.float32, "the test"), STEPS, train, *others, **options)


def stock_steps(loaded: LoadedModel, training: Training, train: Encoded, labels: Any) -> list[float]:
    """Losses of a plain loop: padded batches, stock forward, clipping, AdamW, a scheduler."""
    model = loaded.model.train()
    optimizer = make_optimizer(model, training)
    rate = learning_rates(training, STEPS)
    weights = weights_of(training, labels)
    losses = []
    for number, rows in enumerate(batches(), 1):
        for group in optimizer.param_groups:
            group["lr"] = rate(number)
        logits = model(**train.batch(rows)).logits
        loss = functional.cross_entropy(
            logits,
            torch.from_numpy(labels[rows]),
            None if weights is None else torch.from_numpy(weights),
            label_smoothing=training.label_smoothing,
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def exported(engine: Engine, folder: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForSequenceClassification

    engine.export(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


BALANCED = {"class_weight": "balanced", "label_smoothing": 0.1}
WINS = {
    "none": Wins(packed=False, cls_only=False, trimmed=False),
    "packed": Wins(cls_only=False, trimmed=False),
    "padded and trimmed": Wins(packed=False),
    "packed, first token only": Wins(trimmed=False),
    "all": Wins(),
}


@pytest.mark.parametrize("wins", WINS)
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "warmup_ratio": 0.3, **BALANCED}])
def test_ten_steps_in_fp64_are_those_of_the_stock_loop(
    base: Path, tmp_path: Path, wins: str, options: dict[str, Any]
) -> None:
    stock, ours = load(base), load(base)
    train, labels = texts(stock)
    expected = stock_steps(stock, recipe(**options), train, labels)
    weights = weights_of(recipe(**options), labels)
    engine = engine_of(ours, recipe(**options), train, wins=WINS[wins], class_weights=weights)
    assert (engine.vocabulary is not None) == WINS[wins].trimmed
    found = [float(engine.step(rows, labels[rows])) for rows in batches()]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert engine.table is not None
    assert not engine.table._zeros.any(), "a row of an earlier batch would move in every later step"
    for name, tensor in exported(engine, tmp_path / "model").items():
        torch.testing.assert_close(tensor, stock.model.state_dict()[name], rtol=0, atol=1e-10, msg=name)


def test_plain_transformers_gives_the_engines_logits_tokens_seen_only_in_evaluation_included(
    base: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    ours = load(base, torch.float32)
    train, labels = texts(ours)
    fresh = encode(ours.tokenizer, ["a pan? cheap! happy 99", "great shoes"], 32)
    assert np.setdiff1d(fresh.ids, train.ids).size
    engine = engine_of(ours, recipe(), train, fresh)
    for rows in batches():
        engine.step(rows, labels[rows])
    logits = engine.logits(fresh, batch_size=2)
    engine.export(tmp_path / "model")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        expected = plain(**fresh.batch(np.arange(2))).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_resumed_engine_gives_the_same_numbers(base: Path, dtype: torch.dtype) -> None:
    loaded = load(base, dtype, dropout=0.1)
    train, labels = texts(loaded)

    def steps(engine: Engine, chosen: list[Any]) -> list[float]:
        torch.manual_seed(3)
        engine.seed(3, 1)
        return [float(engine.step(rows, labels[rows])) for rows in chosen]

    first = engine_of(loaded, recipe(weight_decay=0.01), train)
    steps(first, batches()[:4])
    weights, moments = copy.deepcopy(first.weights()), copy.deepcopy(first.moments())
    uninterrupted = steps(first, batches()[4:])
    second = engine_of(load(base, dtype, dropout=0.1), recipe(weight_decay=0.01), train)
    second.restore(weights, moments, step=4)
    assert steps(second, batches()[4:]) == uninterrupted
    for name, tensor in first.weights().items():
        assert torch.equal(second.weights()[name], tensor), name


def test_a_model_whose_encoder_and_decoder_share_a_word_table_takes_the_steps_of_the_stock_loop(base: Path) -> None:
    from transformers import T5Config, T5ForSequenceClassification

    words = load(base)
    special = {"eos_token_id": words.tokenizer.sep_token_id, "pad_token_id": words.tokenizer.pad_token_id}
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "num_labels": len(LABELS)}
    config = T5Config(vocab_size=len(words.tokenizer), dropout_rate=0.0, decoder_start_token_id=0, **sizes, **special)
    torch.manual_seed(1)
    stock = replace(words, model=T5ForSequenceClassification(config).double())
    ours = copy.deepcopy(stock)
    train, labels = texts(stock)
    expected = stock_steps(stock, recipe(), train, labels)
    engine = engine_of(ours, recipe(), train)
    found = [float(engine.step(rows, labels[rows])) for rows in batches()]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, BALANCED])
def test_a_batch_that_does_not_fit_is_computed_in_parts_and_the_step_stays_the_same(
    base: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    whole, parts = load(base), load(base)
    train, labels = texts(whole)
    limit = int(0.4 * max(train.lengths[rows].sum() for rows in batches()))

    def short_of_memory(_module: Any, _inputs: Any, named: dict[str, Any]) -> None:
        if parts.model.training and named["position_ids"].numel() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    parts.model.bert.embeddings.register_forward_pre_hook(short_of_memory, with_kwargs=True)
    training = recipe(**options)
    weights = weights_of(training, labels)
    one = engine_of(whole, training, train, class_weights=weights)
    other = engine_of(parts, training, train, class_weights=weights)
    with caplog.at_level(logging.WARNING):
        for rows in batches():
            expected, found = one.step(rows, labels[rows]), other.step(rows, labels[rows])
            assert float(found) == pytest.approx(float(expected), abs=1e-12)
    assert one.micro_batches == 1
    assert other.micro_batches == 4
    assert len(caplog.records) == 2, "at 2 and at 4 parts"
    for name, tensor in one.weights().items():
        torch.testing.assert_close(other.weights()[name], tensor, rtol=0, atol=1e-11)


def test_a_single_row_that_does_not_fit_is_an_error(base: Path) -> None:
    loaded = load(base)
    train, labels = texts(loaded)
    engine = engine_of(loaded, recipe(), train)

    def never(_module: Any, _inputs: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 40960000000 bytes.")

    loaded.model.bert.embeddings.LayerNorm.register_forward_pre_hook(never)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        engine.step(batches()[0], labels[batches()[0]])
    assert engine.micro_batches == 8


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.0, **BALANCED}])
def test_steps_of_fixed_shape_equal_plain_steps(base: Path, options: dict[str, Any]) -> None:
    plain, filled = load(base), load(base)
    train, labels = texts(plain)
    weights = weights_of(recipe(**options), labels)
    one = engine_of(plain, recipe(**options), train, class_weights=weights)
    other = engine_of(filled, recipe(**options), train, wins=Wins(graphs=True), class_weights=weights)
    assert one.graphs is None
    assert other.graphs is not None
    for rows in [*batches()[:-1], batches()[-1][:3]]:
        expected, found = one.step(rows, labels[rows]), other.step(rows, labels[rows])
        assert float(found) == pytest.approx(float(expected), abs=1e-12)
    assert len(other.graphs._buckets) > 1
    for name, tensor in one.weights().items():
        torch.testing.assert_close(other.weights()[name], tensor, rtol=0, atol=1e-10, msg=name)


def test_graphs_are_recorded_on_a_gpu_if_the_setting_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not cuda_graphs.are_wanted(torch.device("cuda"))
    monkeypatch.setenv("NIGHTGATE_CUDA_GRAPHS", "1")
    assert cuda_graphs.are_wanted(torch.device("cuda"))
    assert not cuda_graphs.are_wanted(CPU)


@pytest.mark.parametrize("shape", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_rates_are_those_of_transformers_schedulers(shape: Any, warmup: float) -> None:
    from transformers import get_scheduler

    training = recipe(lr_scheduler_type=shape, warmup_ratio=warmup)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=training.learning_rate)
    name = "constant_with_warmup" if shape == "constant" and warmup else shape
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=round(40 * warmup), num_training_steps=40)
    rate = learning_rates(training, 40)
    for step in range(1, 41):
        assert rate(step) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-15)
        optimizer.step()
        scheduler.step()


def test_a_vocabulary_in_full_use_stays_whole(base: Path) -> None:
    loaded = load(base)
    known = loaded.model.get_input_embeddings().num_embeddings
    ids = np.tile(np.arange(known, dtype=np.int32), 2)
    everything = Encoded(ids, None, np.array([0, len(ids)]), 0, 0, False, 1000)
    loaded.model.bert.embeddings.position_embeddings = nn.Embedding(1000, 32).double()
    loaded.model.bert.embeddings.position_ids = torch.arange(1000)[None]
    loaded.model.bert.embeddings.token_type_ids = torch.zeros(1, 1000, dtype=torch.int64)
    engine = engine_of(loaded, recipe(), everything)
    assert engine.vocabulary is None
    assert engine.digest() == ""
