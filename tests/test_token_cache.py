"""Tokens from the cache are those of the tokenizer, whatever was stored and in whatever state the file is."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightgate.encoding import Encoded, encode
from nightgate.token_cache import encode_cached, tokenizer_hash
from tests.tiny import write_tiny_model

WORDS = ["good", "bad", "lamp", "shoes", "returned", "würde", "größe", "价格", "😀", "-", ".", "unknownword", "a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tokens") / "base")


@pytest.fixture
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(autouse=True)
def see_what_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nightgate")


def random_texts(seed: int, count: int = 300) -> list[str]:
    """Short and long ones, some twice, some empty."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(0, 60))) for _ in range(count)]
    return [*texts, "", " ", "\0", "é", "e\u0301", "good " * 5000, *texts[:20]]


def night(tokenizer: Any, texts: list[str], cache: Path | None, max_length: int = 32) -> Encoded:
    return encode_cached(tokenizer, texts, max_length, cache=cache, name="tiny-train")


def assert_same(found: Encoded, expected: Encoded) -> None:
    assert (found.pad_id, found.pad_type_id, found.pad_left, found.max_length) == (
        expected.pad_id,
        expected.pad_type_id,
        expected.pad_left,
        expected.max_length,
    )
    for name in ("ids", "offsets", "type_ids"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs), name


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[int, int, int]]:
    """(from the cache, all, tokenised) of each call so far."""
    return [
        tuple(int(number) for number in re.findall(r"\d+", record.getMessage()))  # type: ignore[misc]
        for record in caplog.records
        if "tokens of" in record.getMessage()
    ]


@pytest.mark.parametrize("with_types", [False, True])
def test_nights_that_grow_shrink_and_are_shuffled_get_the_tokens_of_the_tokenizer(
    tokenizer: Any, tmp_path: Path, with_types: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer.model_input_names = ["input_ids", "attention_mask", *(["token_type_ids"] if with_types else [])]
    first = random_texts(1)
    shuffled = [first[row] for row in np.random.default_rng(0).permutation(len(first))]
    nights = [first, first, shuffled, random_texts(2, 50) + shuffled[:200], [], first]
    for texts in nights:
        assert_same(night(tokenizer, texts, tmp_path), encode(tokenizer, texts, 32))
    assert [(reused + new == rows) for reused, rows, new in said(caplog)] == [True] * len(nights)
    assert [new for _, _, new in said(caplog)[1:3]] == [0, 0]
    assert 0 < said(caplog)[3][2] <= 70
    # Exactly the rows of the last night are kept: the empty one left nothing.
    assert said(caplog)[5][0] == 0


def test_only_new_texts_are_tokenised_and_counted(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = [f"review {number}" for number in range(5000)]
    night(tokenizer, old, tmp_path)
    [stored] = (tmp_path / "tokens" / "tiny-train").iterdir()
    written = stored.stat().st_mtime_ns
    night(tokenizer, old[::-1], tmp_path)
    assert stored.stat().st_mtime_ns == written
    counted: list[tuple[int, int]] = []
    texts = [*old[100:], "one more", "and another"]
    encode_cached(tokenizer, texts, 32, lambda *done: counted.append(done), cache=tmp_path, name="tiny-train")
    assert counted == [(2, 2)]
    assert "tiny-train: tokens of 4,900 of 4,902 texts from the cache, 2 tokenised" in caplog.text


def test_another_tokenizer_or_length_never_gets_the_tokens_of_this_one(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = random_texts(3, 40)
    before = tokenizer_hash(tokenizer)
    night(tokenizer, texts, tmp_path)
    assert_same(night(tokenizer, texts, tmp_path, max_length=16), encode(tokenizer, texts, 16))
    tokenizer.add_tokens(["lamp shoes"])
    assert tokenizer_hash(tokenizer) != before
    assert_same(night(tokenizer, texts, tmp_path), encode(tokenizer, texts, 32))
    tokenizer.truncation_side = "left"
    assert_same(night(tokenizer, texts, tmp_path), encode(tokenizer, texts, 32))
    assert [reused for reused, _, _ in said(caplog)] == [0, 0, 0, 0]
    assert len(list((tmp_path / "tokens" / "tiny-train").iterdir())) == 2


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def _replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_cut_short, _flip, lambda path: path.write_bytes(b""), _replace_by_a_folder])
def test_a_damaged_file_is_a_warning_and_a_fresh_start(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    texts = random_texts(4, 40)
    night(tokenizer, texts, tmp_path)
    [stored] = (tmp_path / "tokens" / "tiny-train").iterdir()
    damage(stored)
    assert_same(night(tokenizer, texts, tmp_path), encode(tokenizer, texts, 32))
    assert said(caplog)[-1][0] == 0
    [warning] = {record.levelname for record in caplog.records} - {"INFO"}
    assert warning == "WARNING"


def test_a_cache_that_cannot_be_written_is_a_warning(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tokens").write_text("in the way")
    texts = random_texts(5, 20)
    assert_same(night(tokenizer, texts, tmp_path), encode(tokenizer, texts, 32))
    assert "cannot be written, the next night computes its rows anew" in caplog.text


def test_without_a_cache_or_with_a_tokenizer_in_python_nothing_is_kept(tokenizer: Any, tmp_path: Path) -> None:
    class InPython:
        """A tokenizer without a backend, as some models still have."""

        def __getattr__(self, name: str) -> Any:
            if name == "backend_tokenizer":
                raise AttributeError(name)
            return getattr(tokenizer, name)

        def __call__(self, *texts: Any, **options: Any) -> Any:
            return tokenizer(*texts, **options)

    texts = random_texts(6, 20)
    expected = encode(tokenizer, texts, 32)
    assert_same(night(tokenizer, texts, None), expected)
    assert_same(night(InPython(), texts, tmp_path), expected)
    assert list(tmp_path.iterdir()) == []
