"""Packed texts give the stock model's logits and gradients, for every architecture that has an adapter."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nightgate.engine import devices, forward
from nightgate.engine.attention import Layout, attend, attend_from_first
from nightgate.engine.dropout import LEVELS, Dropout
from nightgate.engine.encoding import Encoded
from nightgate.engine.forward import Packed, Padded
from nightgate.engine.partition import cut

pytestmark = pytest.mark.process

LABELS, VOCABULARY, LONGEST = 5, 200, 60
SHAPE = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 80,
    "vocab_size": VOCABULARY,
    "num_labels": LABELS,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
}
WITH_ADAPTER = {
    "bert": ({}, 0),
    "roberta": ({"pad_token_id": 1}, 1),
    "xlm-roberta": ({"pad_token_id": 1}, 1),
    "camembert": ({"pad_token_id": 1}, 1),
    "electra": ({"embedding_size": 24}, 0),
    "distilbert": ({"dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 96}, 0),
}
WITHOUT = {"mpnet": 1, "deberta-v2": 0, "albert": 0}


def build(architecture: str, options: dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    shape = SHAPE if architecture != "distilbert" else {name: SHAPE[name] for name in ("vocab_size", "num_labels")}
    if architecture == "distilbert":
        shape |= {"initializer_range": 0.2, "max_position_embeddings": 80}
    config = AutoConfig.for_model(architecture, **shape, **options)
    return AutoModelForSequenceClassification.from_config(config).to(dtype).eval()


def texts(pad: int, rows: int = 40, seed: int = 0, *, typed: bool = False) -> Encoded:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, LONGEST, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(5, VOCABULARY, offsets[-1]).astype(np.int32)
    # A text may spell out the padding token: it stays a token like any other.
    ids[offsets[3] + 1] = pad
    types = rng.integers(0, 2, offsets[-1]).astype(np.int8) if typed else None
    return Encoded(ids, types, offsets, pad, 0, False, LONGEST)


def gradients(path: Packed | Padded, encoded: Encoded, rows: Any, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    path.model.zero_grad()
    logits = path.logits(encoded, rows)
    functional.cross_entropy(logits, labels).backward()
    return logits.detach(), {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in path.model.named_parameters()
    }


@pytest.mark.parametrize("architecture", WITH_ADAPTER)
@pytest.mark.parametrize("cls_only", [True, False])
def test_packed_texts_give_the_logits_and_gradients_of_padded_ones(architecture: str, cls_only: bool) -> None:
    options, pad = WITH_ADAPTER[architecture]
    model, encoded = build(architecture, options), texts(pad, typed=architecture == "bert")
    chosen = forward.choose(model, encoded, cls_only=cls_only)
    assert isinstance(chosen, Packed), chosen.reason
    rows = np.random.default_rng(1).permutation(40)[:16]
    labels = torch.from_numpy(rows % LABELS)
    logits, found = gradients(chosen, encoded, rows, labels)
    stock_logits, stock = gradients(Padded(model, ""), encoded, rows, labels)
    torch.testing.assert_close(logits, stock_logits, rtol=0, atol=1e-13)
    for name, expected in stock.items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-13, msg=name)


@pytest.mark.parametrize("architecture", WITHOUT)
def test_an_architecture_without_an_adapter_is_padded_and_the_reason_names_it(architecture: str) -> None:
    model = build(architecture, {"pad_token_id": WITHOUT[architecture]}, torch.float32)
    chosen = forward.choose(model, texts(WITHOUT[architecture]))
    assert isinstance(chosen, Padded)
    assert architecture in chosen.reason


def test_a_model_that_packing_gets_wrong_is_padded() -> None:
    model = build("bert", {})
    # As another version of transformers might.
    stock = model.bert.encoder.layer[1].forward
    model.bert.encoder.layer[1].forward = lambda *args, **kwargs: stock(*args, **kwargs) + 0.01
    chosen = forward.choose(model, texts(0))
    assert isinstance(chosen, Padded)
    assert "allowed 0.0001" in chosen.reason


def test_a_model_without_the_parts_that_its_adapter_names_is_padded() -> None:
    model = build("bert", {})
    layer = model.bert.encoder.layer[0].attention
    layer.self.queries = layer.self.query
    del layer.self.query
    from nightgate.engine import packing

    adapted, why = packing.packed(model)
    assert adapted is None
    assert "query" in why


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_bf16_is_checked_on_the_models_own_rows(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "LEAST_WIDTH", SHAPE["hidden_size"])
    tentative = devices.Picked(torch.device("cpu"), torch.bfloat16, "native", is_tentative=True)
    model, encoded = build(architecture, {"pad_token_id": 1}, torch.float32), texts(1)
    chosen, full = forward.choose(model, encoded, tentative), forward.choose(model, encoded)
    assert chosen.picked == tentative
    found, expected = (forward.run(path, encoded, batch_size=8) for path in (chosen, full))
    assert 0 < np.abs(found - expected).max() < forward.BF16_TOLERANCE * np.abs(expected).max()
    # The norm removes the constant, but bf16 has lost the hidden state beside it.
    model.base_model.encoder.layer[1].output.dense.bias.data += 1000
    wrong = forward.choose(model, encoded, tentative)
    assert wrong.picked.precision == "fp32"
    assert "allowed is 5%" in wrong.picked.reason
    asked = devices.pick("bf16")
    assert forward.choose(model, encoded, asked).picked == asked


def test_the_order_of_rows_is_kept_and_every_row_is_scored_once() -> None:
    model, encoded = build("bert", {}, torch.float32), texts(0)
    chosen = forward.choose(model, encoded)
    everything = forward.run(chosen, encoded, batch_size=4)
    with torch.inference_mode():
        one_by_one = torch.cat([chosen.logits(encoded, np.array([row])) for row in range(40)]).numpy()
    np.testing.assert_allclose(everything, one_by_one, atol=1e-5)
    assert sorted(np.concatenate(list(chosen.batches(encoded, 4))).tolist()) == list(range(40))


@pytest.mark.parametrize("least", [0, 400])
def test_a_packed_batch_has_at_most_the_tokens_of_the_padded_one_unless_these_are_few(
    monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    monkeypatch.setattr(forward, "TOKENS_OF_A_BATCH", least)
    encoded = texts(0)
    chosen = forward.choose(build("bert", {}, torch.float32), encoded)
    sizes = [int(encoded.lengths[rows].sum()) for rows in chosen.batches(encoded, 4)]
    most = max(4 * int(encoded.lengths.max()), least)
    assert most / 2 < max(sizes) <= most
    assert len(sizes) < 10


def test_a_padded_batch_in_parts_by_length_is_the_same_batch() -> None:
    model = build("mpnet", {"pad_token_id": 1})
    encoded = texts(1)
    rows = np.arange(16)
    lengths = np.sort(encoded.lengths[rows])
    parts = cut(lengths, 1, 16)
    assert len(parts) > 1
    assert np.concatenate([np.arange(16)[part] for part in parts]).tolist() == list(range(16))
    padded = sum((part.stop - part.start) * int(lengths[part].max()) for part in parts)
    assert padded < 16 * int(lengths.max())
    inputs = encoded.batch(rows)
    torch.testing.assert_close(Padded(model, "").logits(encoded, rows), model(**inputs).logits, rtol=0, atol=1e-12)


def stock_attention(qkv: Tensor, lengths: Any, heads: int) -> Tensor:
    out = []
    for text in qkv.split([int(length) for length in lengths]):
        query, key, value = text.view(len(text), 3, heads, -1).permute(1, 2, 0, 3)
        out.append(functional.scaled_dot_product_attention(query, key, value).transpose(0, 1).reshape(len(text), -1))
    return torch.cat(out)


@pytest.mark.parametrize("lengths", [[3, 3, 7, 7, 7, 12], [5], [1, 1], [4, 9, 9, 90]])
def test_attention_stays_within_each_text(lengths: list[int]) -> None:
    torch.manual_seed(0)
    layout = Layout(np.array(lengths), torch.device("cpu"))
    qkv = torch.randn(sum(lengths), 3 * 24, dtype=torch.float64, requires_grad=True)
    ours = attend(qkv, layout, 3, Dropout(), 0.0)
    expected = stock_attention(qkv, lengths, 3)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)
    weights = torch.randn_like(ours)
    (found,) = torch.autograd.grad((ours * weights).sum(), qkv)
    (stock,) = torch.autograd.grad((expected * weights).sum(), qkv)
    torch.testing.assert_close(found, stock, rtol=0, atol=1e-12)
    first = attend_from_first(qkv[layout.first, :24], qkv[:, 24:], layout, 3, Dropout(), 0.0)
    torch.testing.assert_close(first, expected[layout.first], rtol=0, atol=1e-13)


def test_attention_with_dropout_has_the_right_gradient() -> None:
    layout = Layout(np.array([2, 4]), torch.device("cpu"))
    qkv = torch.randn(6, 3 * 8, dtype=torch.float64, requires_grad=True)

    def attended(values: Tensor) -> Tensor:
        dropout = Dropout()
        dropout.seed(7)
        return attend(values, layout, 2, dropout, 0.4)

    assert torch.autograd.gradcheck(attended, qkv)
    # Both texts in one group: the shorter one ends before the group's width.
    assert [group.count for group in layout.groups] == [2]


def test_dropout_keeps_the_share_and_the_mean_and_repeats_by_seed() -> None:
    dropout, ones = Dropout(), torch.ones(200_000)
    zeros = torch.zeros_like(ones)
    dropout.seed(1, 2)
    found = dropout.add(zeros, ones, 0.1)
    again = dropout.add(zeros, ones, 0.1)
    dropout.seed(1, 2)
    assert torch.equal(found, dropout.add(zeros, ones, 0.1))
    assert not torch.equal(found, again)
    # Five standard errors of a share of 0.1 in 200,000.
    assert abs(float((found == 0).double().mean()) - round(0.1 * LEVELS) / LEVELS) < 0.0034
    assert abs(float(found.double().mean()) - 1) < 0.004
    assert torch.equal(dropout.add(zeros, ones, 0.0), ones)


def test_dropout_drops_the_same_elements_in_every_precision() -> None:
    zeros = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        dropout, ones = Dropout(), torch.ones(1000, dtype=dtype)
        dropout.seed(1)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            zeros.append(dropout.add(torch.zeros_like(ones), ones, 0.3) == 0)
    assert 200 < int(zeros[0].sum()) < 400
    assert torch.equal(zeros[0], zeros[1])
    assert torch.equal(zeros[0], zeros[2])


def test_dropout_of_neighbours_is_independent() -> None:
    dropout = Dropout()
    dropout.seed(3)
    mask, _ = dropout.mask(400_000, 0.5, torch.float32)
    assert mask is not None
    values = mask.double() - 0.5
    for lag in (1, 2, 3, 4, 5, 8, 16):
        # Five standard errors of a correlation over 400,000 pairs.
        assert abs(float((values[:-lag] * values[lag:]).mean()) / 0.25) < 0.008


def test_the_partition_has_the_least_total_cost() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        widths = np.sort(rng.integers(1, 9, 7))
        inner = np.flatnonzero(np.diff(widths)) + 1

        def cost(ends: Any, widths: Any = widths) -> int:
            bounds = [0, *ends, len(widths)]
            return sum((b - a) * int(widths[b - 1]) ** 2 + 20 for a, b in itertools.pairwise(bounds))

        choices = itertools.chain.from_iterable(itertools.combinations(inner, k) for k in range(len(inner) + 1))
        found = cut(widths, 2, 20)
        assert [part.stop for part in found[:-1]] == [part.start for part in found[1:]]
        assert (found[0].start, found[-1].stop) == (0, 7)
        assert cost([part.stop for part in found[:-1]]) == min(cost(ends) for ends in choices)
    assert cut(np.zeros(0, np.int64), 2, 1) == []
