"""Generated reviews, and copies of them with a small change."""

from __future__ import annotations

import random
import re

_SYLLABLES = [first + second for first in "bcdfglmnprstv" for second in ("a", "e", "i", "o", "u", "an", "er", "ing")]


def review(random_: random.Random) -> str:
    """Some forty words of a vocabulary of 4,000, the first of which are the most frequent."""
    words = (int(4000 * random_.random() ** 2) for _ in range(random_.randint(20, 60)))
    sentence = " ".join("".join(_SYLLABLES[word // step % 104] for step in (1, 37, 1009)) for word in words)
    return sentence.capitalize() + "."


def near_copy(text: str, number: int, random_: random.Random) -> str:
    """`text` in another case, with other punctuation, a digit, a signature or a misspelt word, by turns."""
    words = text.split()
    misspelt = random_.randrange(len(words))
    return (
        text.upper(),
        re.sub(r"[.,]", "", text) + "!!",
        f"{text} {random_.randint(0, 9)}",
        f"{text} - Anna",
        " ".join([*words[:misspelt], words[misspelt][:-1] + "x", *words[misspelt + 1 :]]),
    )[number % 5]
