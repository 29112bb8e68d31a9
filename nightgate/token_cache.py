"""Token ids that one night leaves to the next, by text, tokenizer and maximum length: a night tokenises its new rows.

<cache>/tokens/<name>/<tokenizer>-<max_length>.safetensors      exactly the rows of the last night that used it
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nightgate import cache_files
from nightgate.cache_files import Keys
from nightgate.encoding import Encoded, encode

log = logging.getLogger(__name__)

FILES_KEPT = 2
"""Of a name: a candidate and a champion may have different tokenizers."""


def encode_cached(
    tokenizer: Any,
    texts: Sequence[str],
    max_length: int,
    on_chunk: Callable[[int, int], None] | None = None,
    *,
    cache: Path | None,
    name: str,
) -> Encoded:
    """As `encode`, to the last id; only texts that the last night did not have are tokenised.

    Args:
        on_chunk: called with the number of texts tokenised so far, and of those to tokenise.
        cache: None keeps nothing.
        name: of the set of texts, such as `clothing-train`; a file name.
    """
    tokenizer_key = None if cache is None else tokenizer_hash(tokenizer)
    if cache is None or tokenizer_key is None:
        return encode(tokenizer, texts, max_length, on_chunk)
    path = cache / "tokens" / name / f"{tokenizer_key[:16]}-{max_length}.safetensors"
    every_key = cache_files.text_keys(texts)
    keys, first, of_text = np.unique(every_key, return_index=True, return_inverse=True)
    # Nothing to tokenise still tells the padding and the types.
    stored_keys, stored = _read(path, encode(tokenizer, [], max_length))
    known, place = cache_files.find(keys, stored_keys)
    found = encode(tokenizer, [texts[row] for row in first[~known]], max_length, on_chunk)
    place[~known] = len(stored) + np.arange(len(found))
    both = _concatenated(stored, found)
    if not known.all() or len(stored) != len(keys):
        _write(path, keys, both.select(place))
        cache_files.keep_newest(path.parent, FILES_KEPT)
    reused = int(known[of_text].sum())
    counts = f"{reused:,} of {len(texts):,} texts from the cache, {len(texts) - reused:,} tokenised"
    log.info("%s: tokens of %s", name, counts)
    return both.select(place[of_text])


def tokenizer_hash(tokenizer: Any) -> str | None:
    """Of all that decides which ids a text gets, apart from the maximum length; None for a tokenizer in Python.

    The tokenizer's own truncation and padding are taken off, as in `encode`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    import tokenizers

    backend.no_padding()
    backend.no_truncation()
    parts = (
        type(tokenizer).__name__,
        tokenizers.__version__,
        getattr(tokenizer, "truncation_side", "right"),
        "token_type_ids" in tokenizer.model_input_names,
        backend.to_str(),
    )
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path, empty: Encoded) -> tuple[Keys, Encoded]:
    """Keys, ascending, and their tokens; `empty` where nothing usable is stored."""
    types = set() if empty.type_ids is None else {"type_ids"}
    arrays = cache_files.read(path, {"keys", "offsets", "ids"} | types)
    if arrays is None:
        return cache_files.text_keys([]), empty
    tokens = replace(empty, ids=arrays["ids"], type_ids=arrays.get("type_ids"), offsets=arrays["offsets"])
    return cache_files.bytes_as_keys(arrays["keys"]), tokens


def _write(path: Path, keys: Keys, tokens: Encoded) -> None:
    types = {} if tokens.type_ids is None else {"type_ids": tokens.type_ids}
    keys_as_bytes = cache_files.keys_as_bytes(keys)
    cache_files.write(path, {"keys": keys_as_bytes, "offsets": tokens.offsets, "ids": tokens.ids, **types})


def _concatenated(first: Encoded, second: Encoded) -> Encoded:
    types = None
    if first.type_ids is not None and second.type_ids is not None:
        types = np.concatenate([first.type_ids, second.type_ids])
    return replace(
        first,
        ids=np.concatenate([first.ids, second.ids]),
        type_ids=types,
        offsets=np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
    )
