"""Near-duplicates are found within a night and over nights, and what they do not cover stays bounded."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nightgate.data import near_duplicates
from nightgate.data.near_duplicates import NearDuplicates, sketch
from nightgate.data.split_memory import Keys, hash_of
from nightgate.errors import SnapshotError
from nightgate.text_rules import canonical_text
from tests.support.near_copies import near_copy, review


def found(near: NearDuplicates, texts: list[str]) -> Keys:
    return near.find([texts], len(texts))


def share_a_cluster(one: Keys, other: Keys) -> list[bool]:
    return [bool((set(a) & set(b)) - {0}) for a, b in zip(one.tolist(), other.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("text", "other", "same"),
    [
        ("Great product!", "great, PRODUCT", True),
        ("Straße 7", "STRASSE 7!!", True),
        ("très bon", "TRÈS-BON", True),
        ("素晴らしい。", "素晴らしい!", True),
        ("2 stars", "3 stars", False),
        ("bat", "bit", False),
        ("अच्छा", "अच्छी", False),  # vowel signs are no letters for Unicode
    ],
)
def test_the_canonical_text_has_letters_digits_and_vowel_signs_alone(text: str, other: str, same: bool) -> None:
    assert (canonical_text(text) == canonical_text(other)) is same
    keys, signatures = sketch([text, other])
    assert (keys[0] == keys[1]) is np.bool_(same)
    assert not signatures.any()  # too short to compare


def test_texts_without_letters_and_digits_share_nothing() -> None:
    assert not found(NearDuplicates(), ["!!!", "???", "👍"]).any()


@pytest.mark.parametrize("over_nights", [False, True])
def test_near_copies_are_found_and_other_texts_are_not(tmp_path: Path, over_nights: bool) -> None:
    random_ = random.Random(7)
    texts = [review(random_) for _ in range(2000)]
    copies = [near_copy(text, number, random_) for number, text in enumerate(texts[:500])]
    near = NearDuplicates()
    if over_nights:
        first = found(near, texts)
        near = NearDuplicates.open(tmp_path, near.write(tmp_path))
        later = found(near, copies)
    else:
        both = found(near, [*texts, *copies])
        first, later = both[: len(texts)], both[len(texts) :]
    assert np.mean(share_a_cluster(first[:500], later)) > 0.97
    assert np.count_nonzero(first[500:, 1]) < 5
    assert near.clusters(later[:, 0])[:, 1].tolist() == later[:, 1].tolist()


def test_the_order_of_the_texts_of_a_night_does_not_matter() -> None:
    random_ = random.Random(3)
    texts = [review(random_) for _ in range(300)]
    texts += [near_copy(text, number, random_) for number, text in enumerate(texts)]
    clusters = found(NearDuplicates(), texts)
    order = random_.sample(range(len(texts)), len(texts))
    assert found(NearDuplicates(), [texts[place] for place in order]).tolist() == clusters[order].tolist()


@pytest.mark.parametrize("nights", [1, 5])
def test_a_template_ties_no_more_texts_than_a_cluster_may_have(nights: int) -> None:
    template = "Your order {:06d} was sent today and will arrive within three working days."
    near, random_ = NearDuplicates(), random.Random(2)
    for start in range(0, 5, 5 // nights):
        found(near, [template.format(number) for number in range(start, start + 5 // nights)])
    tied = found(near, [template.format(number) for number in range(5)])
    assert np.count_nonzero(tied[:, 1]) == 4  # all but the one whose key names the cluster
    # The next would be more than five, then more than 5 % of the texts.
    assert not found(near, [template.format(number) for number in range(5, 10)])[:, 1:].any()
    found(near, [review(random_) for _ in range(90)])
    assert not found(near, [template.format(10)])[:, 1:].any()
    found(near, [review(random_) for _ in range(40)])
    assert found(near, [template.format(11)])[:, 1].any()
    assert not found(NearDuplicates(), [template.format(number) for number in range(6)])[:, 1:].any()


def test_texts_beyond_the_limit_are_found_by_equal_letters_and_digits_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_MOST_TEXTS", 10)
    random_ = random.Random(5)
    texts = [review(random_) for _ in range(20)]
    near = NearDuplicates()
    first = found(near, texts)
    copies = found(near, [near_copy(text, 2, random_) for text in texts])
    assert sum(share_a_cluster(first, copies)) == 10
    assert all(share_a_cluster(first, found(near, [text.upper() for text in texts])))


def test_files_are_only_added(tmp_path: Path) -> None:
    random_ = random.Random(9)
    texts = [review(random_) for _ in range(50)]
    near = NearDuplicates()
    found(near, texts)
    [file] = near.write(tmp_path)
    content = (tmp_path / file).read_bytes()
    near = NearDuplicates.open(tmp_path, [file])
    found(near, texts)
    assert near.write(tmp_path) == []
    found(near, [review(random_)])
    [more] = near.write(tmp_path)
    assert pq.read_table(tmp_path / more).num_rows == 1
    assert (tmp_path / file).read_bytes() == content


def test_files_of_before_are_read_as_what_they_hold(tmp_path: Path) -> None:
    random_ = random.Random(4)
    texts = [review(random_) for _ in range(100)]
    texts += [near_copy(text, number, random_) for number, text in enumerate(texts[:50])]
    near = NearDuplicates()
    found(near, texts)
    now = pq.read_table(tmp_path / near.write(tmp_path)[0]).to_pydict()
    # Their keys had 64 bits, and their signatures 8 bits a hash.
    whole = {hash_of(canonical_text(text)) & (1 << 48) - 1: hash_of(canonical_text(text)) for text in texts}
    keys, signatures = sketch(texts)
    signature_of = dict(zip(keys.tolist(), map(bytes, signatures), strict=True))
    flooded, template = now["key"][0], (1 << 64) - 2
    roots = [whole.get(root, 0) for root in now["root"]]
    roots[0] = template
    before = pa.table(
        [
            pa.array([whole[key] for key in now["key"]], pa.uint64()),
            pa.array(roots, pa.uint64()),
            pa.array([signature_of[key] for key in now["key"]], pa.binary(32)),
        ],
        ["key", "root", "signature"],
    )
    sketched = {"sketch": near_duplicates._SKETCH.replace("4 bits", "8 bits")}
    pq.write_table(before.replace_schema_metadata(sketched), tmp_path / "before.parquet")
    earlier = NearDuplicates.open(tmp_path, ["before.parquet"])
    others = np.setdiff1d(keys, [np.uint64(flooded)])
    assert earlier.clusters(others).tolist() == near.clusters(others).tolist()
    assert earlier.clusters(np.array([flooded], np.uint64)).tolist() == [[flooded, 0]]
    copies = [near_copy(text, 1, random_) for text in texts[50:100]]
    assert found(earlier, copies).tolist() == found(near, copies).tolist()


def test_a_flood_of_one_template_is_compared_in_bounded_memory() -> None:
    template = "Your order {:06d} was sent today and will arrive within three working days."
    near = NearDuplicates()
    found(near, [template.format(number) for number in range(20_000)])
    tracemalloc.start()
    assert not found(near, [template.format(number) for number in range(20_000, 25_000)])[:, 1:].any()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20


def test_a_missing_file_or_signatures_that_were_made_otherwise_are_named(tmp_path: Path) -> None:
    near = NearDuplicates()
    found(near, ["a text that is long enough to be compared"])
    file = tmp_path / near.write(tmp_path)[0]
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({"sketch": "minhash 1"}), file)
    with pytest.raises(SnapshotError, match=file.name):
        NearDuplicates.open(tmp_path, [file.name])
    file.unlink()
    with pytest.raises(SnapshotError, match=file.name):
        NearDuplicates.open(tmp_path, [file.name])
