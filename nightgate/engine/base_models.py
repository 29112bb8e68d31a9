"""Load a base model as a classifier with its tokenizer, and save the trained one as a plain folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nightgate import logs
from nightgate.engine.padding import CHOOSE_ANOTHER, make_independent_of_batch
from nightgate.errors import ModelError, first_line

log = logging.getLogger(__name__)

_NOISY_LOGGERS = ("transformers.modeling_utils", "transformers.distributed.tensor_parallel")
"""They warn at every load: of a new head, which every classifier has, and of layers that are not sharded."""
TOKENS_TO_CHECK = 64
"""Maximum length of texts in the check of a trained model's padding, which is loaded to serve."""


@dataclass(frozen=True)
class LoadedModel:
    """A classifier and its tokenizer."""

    model: Any
    tokenizer: Any
    max_length: int
    """Tokens per text: `training.max_length`, or the model's number of positions if that is less."""


def load_classifier(
    folder: Path,
    label_names: Sequence[str],
    *,
    named: str,
    max_length: int,
    dropout: float | None = None,
) -> LoadedModel:
    """Load the model in `folder` in float32 with a classification head for these labels, and its tokenizer.

    A new head is random: the caller seeds torch.

    Args:
        named: the model's name in messages.
        dropout: None keeps the model's own.

    Raises:
        ModelError: not a model, damaged, in need of code of its own, or not usable as a classifier whose logits are
            independent of the batch.
    """
    transformers = quiet_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder,
            num_labels=len(label_names),
            id2label=dict(enumerate(label_names)),
            label2id={name: index for index, name in enumerate(label_names)},
            trust_remote_code=False,
        )
        config.problem_type = "single_label_classification"
        if dropout is not None:
            _set_dropout(config, dropout, named)
        tokenizer = _tokenizer_class(folder, transformers).from_pretrained(folder, trust_remote_code=False)
        model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            # Of a classifier with another number of classes the body is kept, and the head is new.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except MemoryError:
        raise
    except Exception as error:
        raise _load_error(error, folder, named) from error
    _check_weights(model, info, named)
    _check_tokenizer(model, tokenizer, named)
    limit = max_tokens(model, tokenizer)
    if max_length > limit:
        log.warning("%s takes at most %d tokens: texts are cut there, not at max_length = %d", named, limit, max_length)
    max_length = min(max_length, limit)
    if flaw := make_independent_of_batch(model, tokenizer, max_length, named):
        raise ModelError(flaw, next_step=CHOOSE_ANOTHER)
    return LoadedModel(model, tokenizer, max_length)


def _check_tokenizer(model: Any, tokenizer: Any, named: str) -> None:
    """Check that the tokenizer belongs to the model, and give both a padding token."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"{named}: its tokenizer has neither a padding token nor an end token",
                next_step="choose another base model, or set pad_token in its tokenizer_config.json",
            )
        tokenizer.pad_token = tokenizer.eos_token
    config = model.config.get_text_config()
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    rows = model.get_input_embeddings().num_embeddings
    # Word tables are padded to round numbers, but never doubled: a tokenizer without its files is empty.
    if not rows / 2 <= len(tokenizer) <= rows:
        raise ModelError(
            f"{named}: its tokenizer ({type(tokenizer).__name__}) has {len(tokenizer)} tokens, the model {rows}",
            next_step="choose a folder whose tokenizer and weights belong together, with all files of the tokenizer",
        )


def _tokenizer_class(folder: Path, transformers: Any) -> Any:
    """XLMRobertaTokenizer for a BERT body with XLM-R's SentencePiece file alone, else AutoTokenizer.

    The published recipe's base model has this form. Where config.json does not name the tokenizer, AutoTokenizer
    chooses by the body, finds no vocab.txt, and returns an empty BERT tokenizer.
    """
    has_other = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    if (folder / "sentencepiece.bpe.model").is_file() and not has_other:
        return transformers.XLMRobertaTokenizer
    return transformers.AutoTokenizer


def load_trained(folder: Path, *, named: str) -> LoadedModel:
    """Load a model that Nightgate trained, with its own labels, dropout and maximum length.

    Raises:
        ModelError: missing, damaged, or lacking a head.
    """
    transformers = quiet_transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    except MemoryError:
        raise
    except Exception as error:
        raise _load_error(error, folder, named) from error
    if info["missing_keys"]:
        raise ModelError(
            f"{named} in {folder} lacks weights: {', '.join(sorted(info['missing_keys'])[:4])}",
            next_step="restore the folder from a backup, or train a new version",
        )
    max_length = max_tokens(model, tokenizer, own=True)
    # Of releases that did not check it; a model that cannot be loaded could not be replaced by a better one.
    if flaw := make_independent_of_batch(model, tokenizer, min(max_length, TOKENS_TO_CHECK), named):
        log.warning("%s", flaw)
    return LoadedModel(model, tokenizer, max_length)


def labels_of(model: Any) -> list[str]:
    """The model's label names in the order of its logits."""
    return [str(model.config.id2label[index]) for index in range(model.config.num_labels)]


def labels_in(folder: Path) -> list[str]:
    """The label names of the model in `folder`, in the order of its logits.

    Raises:
        ModelError: there is no readable config.json.
    """
    try:
        config = quiet_transformers().AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise _load_error(error, folder, "the model") from error
    return [str(config.id2label[index]) for index in range(config.num_labels)]


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """Write a stock folder: model.safetensors, config.json, tokenizer files.

    The tokenizer is saved with `model_max_length` and without fixed truncation or padding: a plain call
    `tokenizer(texts, truncation=True, padding=True)` then gives the tokens of the training.
    """
    tokenizer = loaded.tokenizer
    tokenizer.model_max_length = loaded.max_length
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    for name in ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of"):
        tokenizer.init_kwargs.pop(name, None)
    loaded.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def quiet_transformers() -> Any:
    """The transformers module without progress bars, and without warnings of new heads, which `_check_weights` logs.

    Its other warnings go to the night's log; without one, only its errors are shown.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if logs.adopt_libraries():
        for name in _NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
    else:
        transformers.utils.logging.set_verbosity_error()
    return transformers


def max_tokens(model: Any, tokenizer: Any, *, own: bool = False) -> int:
    """The model's number of positions; with `own`, at most the tokenizer's `model_max_length`."""
    positions = getattr(model.config, "max_position_embeddings", None)
    stated = int(tokenizer.model_max_length)
    if not isinstance(positions, int) or positions <= 0:
        return stated
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from padding_idx + 1.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            positions -= module.padding_idx + 1
            break
    return min(positions, stated) if own else positions


def _set_dropout(config: Any, dropout: float, named: str) -> None:
    """Set every dropout rate of a configuration: architectures have some thirty names for them."""
    changed = []
    for name in [name for name in dir(config) if "dropout" in name or name.endswith("pdrop")]:
        value = getattr(config, name)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            setattr(config, name, dropout)
            changed.append(name)
    if changed:
        log.debug("%s: dropout %g for %s", named, dropout, ", ".join(sorted(changed)))
    else:
        log.warning("%s: its configuration has no dropout, training.dropout = %g changes nothing", named, dropout)


def _check_weights(model: Any, info: dict[str, Any], named: str) -> None:
    body = f"{model.base_model_prefix}."
    missing = {str(key) for key in info["missing_keys"]} | {str(key[0]) for key in info["mismatched_keys"]}
    expected = [key for key in model.state_dict() if key.startswith(body)]
    if foreign := sorted(str(key[0]) for key in info["mismatched_keys"] if str(key[0]).startswith(body)):
        raise ModelError(
            f"{named}: weights of its body, such as {foreign[0]}, do not have the shape of config.json",
            next_step="choose a base model whose weights belong to its configuration",
        )
    absent = [key for key in expected if key in missing and ".pooler." not in key]
    if len(absent) > len(expected) / 2:
        raise ModelError(
            f"{named}: most of its weights do not fit its config.json, such as {absent[0]}",
            next_step="choose a base model whose weights belong to its configuration",
        )
    if absent:
        log.warning("%s lacks weights of its body, they start at random: %s", named, ", ".join(absent[:8]))
    if head := sorted(missing - set(absent)):
        log.debug("%s: a new head starts at random: %s", named, ", ".join(head))


def _load_error(error: Exception, folder: Path, named: str) -> ModelError:
    if not (folder / "config.json").is_file():
        return ModelError(
            f"{named}: {folder} holds no config.json, so it is no model folder",
            next_step="name the folder that holds config.json, model.safetensors and the tokenizer's files",
        )
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{named} needs Python code of its own to run, which Nightgate never executes",
            next_step="choose a base model whose architecture is part of transformers",
        )
    if "Unrecognized configuration class" in str(error):
        return ModelError(
            f"{named}: its architecture has no form for sequence classification in transformers",
            next_step=CHOOSE_ANOTHER,
        )
    return ModelError(
        f"{named} in {folder} cannot be loaded: {type(error).__name__}: {first_line(error)}",
        next_step="check that config.json, the weights and the tokenizer's files are whole; download them again if not",
    )
