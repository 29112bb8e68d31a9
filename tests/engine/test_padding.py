"""Logits of a text do not depend on the batch that it is in: decoders follow the tokenizer, what cannot is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nightgate.engine import padding
from nightgate.engine.base_models import load_classifier, load_trained, save_model
from nightgate.errors import ModelError
from tests.support.tiny import write_tiny_model

pytestmark = pytest.mark.process

LABELS = ["bad", "fine", "good"]
TEXTS = ["good", "it broke and was returned late", "love it " * 40]
SMALL = {
    **dict.fromkeys(("hidden_size", "n_embd", "dim", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_attention_heads", "n_head", "n_heads"), 2),
    **dict.fromkeys(("num_key_value_heads", "encoder_layers"), 2),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "ffn_dim", "pooler_hidden_size"), 32),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    **dict.fromkeys(("bos_token_id", "eos_token_id"), 3),
}
ENCODERS = (
    *("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert"),
    *("mpnet", "deberta-v2", "albert", "modernbert"),
)
DECODERS = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def tokenizer_of(tiny: Path, **options: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny, **options)


def build(architecture: str, tokenizer: Any, pad_token_id: int) -> Any:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    known = AutoConfig.for_model(architecture)
    options = {name: value for name, value in SMALL.items() if hasattr(known, name)}
    config = AutoConfig.for_model(
        architecture, **options, vocab_size=len(tokenizer), pad_token_id=pad_token_id, num_labels=len(LABELS)
    )
    return AutoModelForSequenceClassification.from_config(config).eval()


def write(folder: Path, architecture: str, tokenizer: Any, pad_token_id: int) -> Path:
    build(architecture, tokenizer, pad_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def in_plain_transformers(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of `TEXTS` in one batch and alone, from the saved files."""
    from transformers import AutoModelForSequenceClassification

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), tokenizer_of(folder)

    def logits(texts: list[str]) -> torch.Tensor:
        found: torch.Tensor = model(**tokenizer(texts, truncation=True, padding=True, return_tensors="pt")).logits
        return found

    with torch.inference_mode():
        return logits(TEXTS), torch.cat([logits([text]) for text in TEXTS])


@pytest.mark.parametrize("architecture", DECODERS)
def test_a_decoder_gives_a_text_the_same_logits_alone_and_among_others(tiny: Path, architecture: str) -> None:
    tokenizer = tokenizer_of(tiny)
    model = build(architecture, tokenizer, tokenizer.pad_token_id)
    assert padding.make_independent_of_batch(model, tokenizer, 64, architecture) == ""


@pytest.mark.parametrize(
    ("architecture", "side"),
    # The last one counts positions from the start of the row; to others padding on the left means nothing.
    [("gpt_neox", "right"), ("llama", "right"), ("mistral", "right"), ("gpt2", "right"), ("gpt2", "left")],
)
def test_a_decoder_follows_the_padding_of_its_tokenizer_and_so_do_its_files(
    tiny: Path, tmp_path: Path, architecture: str, side: str
) -> None:
    tokenizer = tokenizer_of(tiny, padding_side=side)
    folder = write(tmp_path / "base", architecture, tokenizer, pad_token_id=4)
    together, alone = in_plain_transformers(folder)
    assert (together - alone).abs().max() > 1e-3, "without the change logits depend on the batch"
    loaded = load_classifier(folder, LABELS, named="the base", max_length=64)
    assert loaded.model.config.pad_token_id == tokenizer.pad_token_id == 0
    assert loaded.tokenizer.padding_side == "right"
    save_model(loaded, tmp_path / "saved")
    together, alone = in_plain_transformers(tmp_path / "saved")
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", ENCODERS)
def test_an_encoder_does_so_with_a_padding_id_of_its_own(tiny: Path, architecture: str) -> None:
    tokenizer = tokenizer_of(tiny)
    model = build(architecture, tokenizer, pad_token_id=1)
    assert padding.make_independent_of_batch(model, tokenizer, 64, architecture) == ""
    assert (model.config.pad_token_id, tokenizer.pad_token_id) == (1, 0)


def test_a_version_of_before_that_depends_on_the_batch_is_loaded_with_its_tokenizer_s_padding(
    tiny: Path, tmp_path: Path
) -> None:
    folder = write(tmp_path / "version", "gpt2", tokenizer_of(tiny), pad_token_id=4)
    assert load_trained(folder, named="version 1").model.config.pad_token_id == 0


def test_a_model_whose_logits_depend_on_the_batch_in_any_case_is_refused(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # FNet mixes all positions of a row, padding too.
    folder = write(tmp_path / "fnet", "fnet", tokenizer_of(tiny), pad_token_id=0)
    with pytest.raises(ModelError, match="the base") as caught:
        load_classifier(folder, LABELS, named="the base", max_length=64)
    assert "encoder" in caught.value.next_step
    # A champion is loaded all the same: a night that fails on it could not replace it.
    load_trained(folder, named="version 1")
    assert "version 1" in caplog.text


def test_a_tokenizer_without_a_padding_and_an_end_token_is_refused(tiny: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tiny)
    tokenizer.pad_token = None
    folder = write(tmp_path / "base", "gpt2", tokenizer, pad_token_id=0)
    with pytest.raises(ModelError) as caught:
        load_classifier(folder, LABELS, named="the base", max_length=64)
    assert "pad_token" in caught.value.next_step
