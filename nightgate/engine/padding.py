"""Check that a text's logits do not depend on the batch that it is in: the longest text decides how others are padded.

Encoders mask padding, so that its token id is of no matter. Decoders read the last token that is not
`config.pad_token_id`, and some count positions from the start of the row: they need the tokenizer's padding id, and
padding on the right.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from nightgate.engine.encoding import encode
from nightgate.errors import ModelError, first_line, is_out_of_memory

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference between a text's logits alone and in a batch, as a share of the largest logit."""
TEXTS = ("it broke within a week and was sent back", "late, and not what the picture shows; " * 200)
"""The second is as long as the model allows: sparse attention differs from that length on."""

CHOOSE_ANOTHER = "choose an encoder such as BERT, RoBERTa, DeBERTa, MiniLM or ModernBERT"


def make_independent_of_batch(model: Any, tokenizer: Any, max_length: int, named: str) -> str:
    """Change how texts are padded where that changes logits; returns what is wrong if they still depend on the batch.

    `save_model` writes the changes, so plain transformers pads in the same way.

    Raises:
        ModelError: the model cannot classify a text.
    """
    changed: list[str] = []
    difference = _difference(model, tokenizer, max_length, named)
    for change in (_follow_tokenizer, _pad_right):
        if difference > TOLERANCE and (what := change(model, tokenizer)):
            changed.append(what)
            difference = _difference(model, tokenizer, max_length, named)
    if difference > TOLERANCE:
        tried = f", with {' and '.join(changed)} too" if changed else ""
        depends = "the logits of a text depend on the other texts of its batch"
        return f"{named}: {depends}{tried}: by {difference:.1e} of the largest, allowed is {TOLERANCE:g}"
    if changed:
        log.info("%s: %s, because its logits would depend on the batch", named, " and ".join(changed))
    return ""


def _follow_tokenizer(model: Any, tokenizer: Any) -> str:
    config, wanted = model.config.get_text_config(), tokenizer.pad_token_id
    before, config.pad_token_id = config.pad_token_id, wanted
    return f"padding id {wanted} instead of {before}" if before != wanted else ""


def _pad_right(_: Any, tokenizer: Any) -> str:
    before, tokenizer.padding_side = tokenizer.padding_side, "right"
    return "padding on the right" if before != "right" else ""


def _difference(model: Any, tokenizer: Any, max_length: int, named: str) -> float:
    """Largest difference between the logits of `TEXTS` alone and in one batch, as a share of the largest logit."""
    encoded = encode(tokenizer, TEXTS, max_length)
    rows, was_training = np.arange(len(TEXTS)), model.training
    model.eval()
    try:
        # Not inference_mode: tensors that a model caches would be of no use to the training. The batch comes first: it
        # is the first short batch that makes BigBird leave sparse attention.
        with torch.no_grad():
            together, *alone = (
                model(**{name: x.to(model.device) for name, x in encoded.batch(some).items()}).logits
                for some in (rows, *rows[:, None])
            )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{named} cannot classify a text: {type(error).__name__}: {first_line(error)}", next_step=CHOOSE_ANOTHER
        ) from error
    finally:
        model.train(was_training)
    separate = torch.cat(alone)
    if not torch.isfinite(separate).all():
        return 0.0  # NaN in the weights is reported by the training
    apart = (together - separate).abs().nan_to_num(nan=torch.inf).max()
    return float(apart / separate.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
