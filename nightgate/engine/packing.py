"""Encoders run on packed texts: the stock modules with their stock weights, without a token of padding.

An adapter names the parts of an architecture's encoder, so that one function runs them all. The last layer is computed
for the first token of each text alone, where the head reads nothing else: its keys and values still come from every
token. `packed` gives back the adapted model or the reason why there is none.

Architectures: BERT, RoBERTa, XLM-R (Multilingual-MiniLM has BERT's body), CamemBERT, ELECTRA, DistilBERT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nightgate.engine.attention import Layout, attend, attend_from_first
from nightgate.engine.dropout import Dropout


@dataclass(frozen=True)
class PackedBatch:
    """Texts one after the other; see `Encoded.packed`."""

    ids: Tensor
    """int64 [tokens]."""
    types: Tensor | None
    """int64 [tokens], or None where the tokenizer gives none."""
    layout: Layout


@dataclass(frozen=True)
class Layer:
    """The parts of one post-norm encoder layer, by the names of the original paper's figure."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    activation: Callable[[Tensor], Tensor]
    down: nn.Linear
    norm: nn.LayerNorm
    heads: int
    attention_dropout: float
    output_dropout: float
    down_dropout: float

    def __call__(self, hidden: Tensor, layout: Layout, dropout: Dropout, *, training: bool) -> Tensor:
        """[tokens, width] to [tokens, width]."""
        qkv = _together(hidden, self.query, self.key, self.value)
        attended = attend(qkv, layout, self.heads, dropout, self.attention_dropout if training else 0.0)
        return self._above_attention(hidden, attended, dropout, training)

    def first_tokens(self, hidden: Tensor, layout: Layout, dropout: Dropout, *, training: bool) -> Tensor:
        """[tokens, width] to [texts, width]: the same, for the first token of each text."""
        first = hidden.index_select(0, layout.first)
        key_value = _together(hidden, self.key, self.value)
        rate = self.attention_dropout if training else 0.0
        attended = attend_from_first(self.query(first), key_value, layout, self.heads, dropout, rate)
        return self._above_attention(first, attended, dropout, training)

    def _above_attention(self, hidden: Tensor, attended: Tensor, dropout: Dropout, training: bool) -> Tensor:
        after_attention, after_down = (self.output_dropout, self.down_dropout) if training else (0.0, 0.0)
        hidden = self.attention_norm(dropout.add(hidden, self.output(attended), after_attention))
        inner = self.down(self.activation(self.up(hidden)))
        normed: Tensor = self.norm(dropout.add(hidden, inner, after_down))
        return normed


class PackedClassifier:
    """A stock classifier, run on packed batches. It holds no weights of its own."""

    def __init__(self, model: Any, adapter: Adapter, *, cls_only: bool = True) -> None:
        self.model, self.cls_only = model, cls_only
        self.dropout = Dropout()
        body = getattr(model, model.base_model_prefix)
        self._embeddings = body.embeddings
        self._project: Callable[[Tensor], Tensor] = getattr(body, "embeddings_project", nn.Identity())
        self._layers = [adapter.layer(layer) for layer in adapter.layers(body)]
        self._head = adapter.head
        self._takes_types = adapter.takes_types
        # RoBERTa and its kin count positions from padding_idx + 1, and give none to a padding token.
        self._padding = int(body.embeddings.padding_idx) if adapter.counts_from_padding else None

    def __call__(self, batch: PackedBatch) -> Tensor:
        """Logits [texts, labels]."""
        layout, training = batch.layout, self.model.training
        inputs: dict[str, Any] = {"input_ids": batch.ids[None], "position_ids": self._positions(batch)[None]}
        if self._takes_types:
            types = torch.zeros_like(batch.ids) if batch.types is None else batch.types
            inputs["token_type_ids"] = types[None]
        hidden = self._project(self._embeddings(**inputs))[0]
        *lower, last = self._layers
        for layer in lower:
            hidden = layer(hidden, layout, self.dropout, training=training)
        if self.cls_only:
            first = last.first_tokens(hidden, layout, self.dropout, training=training)
        else:
            first = last(hidden, layout, self.dropout, training=training)[layout.first]
        return self._head(self.model, first[:, None])

    def _positions(self, batch: PackedBatch) -> Tensor:
        if self._padding is None:
            return batch.layout.place_in_text
        counted = batch.ids != self._padding
        running = counted.cumsum(0)
        layout = batch.layout
        before = (running - counted.long())[layout.first][layout.text_of_token]
        return (running - before) * counted + self._padding


@dataclass(frozen=True)
class Adapter:
    """How an architecture names its parts."""

    layers: Callable[[Any], Sequence[Any]]
    """The encoder's layers, from the model's body."""
    layer: Callable[[Any], Layer]
    head: Callable[[Any, Tensor], Tensor]
    """Logits from the first tokens, [texts, 1, width], by the stock head."""
    takes_types: bool = True
    counts_from_padding: bool = False


def packed(model: Any, *, cls_only: bool = True) -> tuple[PackedClassifier | None, str]:
    """The model on packed batches, or None, and why."""
    architecture = model.config.model_type
    adapter = _ADAPTERS.get(architecture)
    if adapter is None:
        return None, f"{architecture} has no adapter for packed texts"
    if getattr(model.config, "is_decoder", False) or getattr(model.config, "add_cross_attention", False):
        return None, f"this {architecture} is set up as a decoder"
    try:
        return PackedClassifier(model, adapter, cls_only=cls_only), f"{architecture} takes packed texts"
    except AttributeError as error:
        # Another version of transformers may name its parts otherwise.
        return None, f"this {architecture} is not built as its adapter expects: {error}"


def _together(hidden: Tensor, *parts: nn.Linear) -> Tensor:
    """What several linear layers make of the same tokens, side by side: one large product is faster than small ones."""
    weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
    return functional.linear(hidden, weight, bias)


def _bert_layer(layer: Any) -> Layer:
    attention, output = layer.attention.self, layer.attention.output
    return Layer(
        query=attention.query,
        key=attention.key,
        value=attention.value,
        output=output.dense,
        attention_norm=output.LayerNorm,
        up=layer.intermediate.dense,
        activation=layer.intermediate.intermediate_act_fn,
        down=layer.output.dense,
        norm=layer.output.LayerNorm,
        heads=attention.num_attention_heads,
        attention_dropout=attention.dropout.p,
        output_dropout=output.dropout.p,
        down_dropout=layer.output.dropout.p,
    )


def _distilbert_layer(layer: Any) -> Layer:
    attention, feed_forward = layer.attention, layer.ffn
    return Layer(
        query=attention.q_lin,
        key=attention.k_lin,
        value=attention.v_lin,
        output=attention.out_lin,
        attention_norm=layer.sa_layer_norm,
        up=feed_forward.lin1,
        activation=feed_forward.activation,
        down=feed_forward.lin2,
        norm=layer.output_layer_norm,
        heads=attention.n_heads,
        attention_dropout=attention.dropout.p,
        output_dropout=0.0,
        down_dropout=feed_forward.dropout.p,
    )


def _bert_head(model: Any, first: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.dropout(model.bert.pooler(first)))
    return logits


def _classifier_head(model: Any, first: Tensor) -> Tensor:
    logits: Tensor = model.classifier(first)
    return logits


def _distilbert_head(model: Any, first: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.dropout(functional.relu(model.pre_classifier(first[:, 0]))))
    return logits


def _encoder_layers(body: Any) -> Sequence[Any]:
    layers: Sequence[Any] = body.encoder.layer
    return layers


def _transformer_layers(body: Any) -> Sequence[Any]:
    layers: Sequence[Any] = body.transformer.layer
    return layers


_ROBERTA = Adapter(_encoder_layers, _bert_layer, _classifier_head, counts_from_padding=True)

_ADAPTERS = {
    "bert": Adapter(_encoder_layers, _bert_layer, _bert_head),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": Adapter(_encoder_layers, _bert_layer, _classifier_head),
    "distilbert": Adapter(_transformer_layers, _distilbert_layer, _distilbert_head, takes_types=False),
}
