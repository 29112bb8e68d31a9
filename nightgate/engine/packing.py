"""Encoders on packed texts: the stock modules and weights of transformers, without padding.

An adapter names the parts of an architecture's encoder, so that one function runs all architectures. The last layer is
computed for the first token of each text alone, which is all that the head reads; its keys and values still come from
every token.

Architectures: BERT, RoBERTa, XLM-R (Multilingual-MiniLM has BERT's body), CamemBERT, ELECTRA, DistilBERT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nightgate.engine.attention import Layout, attend, attend_from_first
from nightgate.engine.dropout import Dropout


@dataclass(frozen=True)
class PackedBatch:
    """Concatenated token ids of a batch of texts."""

    ids: Tensor
    """int64 [tokens]."""
    types: Tensor | None
    """int64 [tokens], or None where the tokenizer gives none."""
    layout: Layout


@dataclass(frozen=True)
class Layer:
    """The parts of one post-norm encoder layer."""

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
        qkv = _concatenated(hidden, self.query, self.key, self.value)
        attended = attend(qkv, layout, self.heads, dropout, self.attention_dropout if training else 0.0)
        return self._above_attention(hidden, attended, dropout, training)

    def first_tokens(self, hidden: Tensor, layout: Layout, dropout: Dropout, *, training: bool) -> Tensor:
        """[tokens, width] to [texts, width]: the output for the first token of each text."""
        first = hidden.index_select(0, layout.first)
        key_value = _concatenated(hidden, self.key, self.value)
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
    """A stock classifier on packed batches, without weights of its own."""

    def __init__(self, model: Any, adapter: Adapter, *, cls_only: bool = True) -> None:
        self.model, self.cls_only = model, cls_only
        self.dropout = Dropout()
        body = getattr(model, model.base_model_prefix)
        self._embeddings = body.embeddings
        self._project: Callable[[Tensor], Tensor] = getattr(body, "embeddings_project", nn.Identity())
        self._layers = [adapter.layer(layer) for layer in adapter.layers(body)]
        self._head = adapter.head
        self._takes_types = adapter.takes_types
        # RoBERTa counts positions from padding_idx + 1, and gives none to a padding token.
        self._padding = int(body.embeddings.padding_idx) if adapter.counts_from_padding else None

    def __call__(self, batch: PackedBatch) -> Tensor:
        """Logits [texts, labels], by a head that is computed in the type of the weights, also under autocast."""
        layout, training = batch.layout, self.model.training
        inputs: dict[str, Any] = {"input_ids": batch.ids[None], "position_ids": self._positions(batch)[None]}
        if self._takes_types:
            types = torch.zeros_like(batch.ids) if batch.types is None else batch.types
            inputs["token_type_ids"] = types[None]
        hidden = self._project(self._embeddings(**inputs))[0]
        if hidden.is_cpu and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
            # Norms, activations, dropout and residuals follow the type of their input. fp16 could overflow there.
            hidden = hidden.bfloat16()
        *lower, last = self._layers
        for layer in lower:
            hidden = layer(hidden, layout, self.dropout, training=training)
        if self.cls_only:
            first = last.first_tokens(hidden, layout, self.dropout, training=training)
        else:
            first = last(hidden, layout, self.dropout, training=training)[layout.first]
        with torch.autocast(first.device.type, enabled=False):
            return self._head(self.model, first[:, None].to(self.model.dtype))

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
    """Access to the parts of an architecture."""

    layers: Callable[[Any], Sequence[Any]]
    """The encoder's layers, of the model's body."""
    layer: Callable[[Any], Layer]
    head: Callable[[Any, Tensor], Tensor]
    """The stock head: logits from the first tokens, [texts, 1, width]."""
    takes_types: bool = True
    counts_from_padding: bool = False


def packed(model: Any, *, cls_only: bool = True) -> tuple[PackedClassifier | None, str]:
    """The model on packed batches, or None, and the reason."""
    architecture = model.config.model_type
    adapter = _ADAPTERS.get(architecture)
    if adapter is None:
        return None, f"{architecture} has no adapter for packed texts"
    if getattr(model.config, "is_decoder", False) or getattr(model.config, "add_cross_attention", False):
        return None, f"this {architecture} is configured as a decoder"
    try:
        return PackedClassifier(model, adapter, cls_only=cls_only), f"{architecture} takes packed texts"
    except AttributeError as error:
        # Another version of transformers may have other names.
        return None, f"this {architecture} does not have the parts that its adapter names: {error}"


def _concatenated(hidden: Tensor, *parts: nn.Linear) -> Tensor:
    """Concatenated outputs of linear layers on the same tokens: one large product is faster than several small ones."""
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


_ROBERTA = Adapter(attrgetter("encoder.layer"), _bert_layer, _classifier_head, counts_from_padding=True)

_ADAPTERS = {
    "bert": Adapter(attrgetter("encoder.layer"), _bert_layer, _bert_head),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": Adapter(attrgetter("encoder.layer"), _bert_layer, _classifier_head),
    "distilbert": Adapter(attrgetter("transformer.layer"), _distilbert_layer, _distilbert_head, takes_types=False),
}
