"""Synthetic product reviews from a seeded grammar: the rows of `source = { kind = "sample" }`.

They are hard for the reasons that real reviews are: opinions are mixed ("the screen is superb, but the battery died"),
some praise is sarcasm, neighbouring stars overlap, and a share of the stars is wrong. No model reaches an F1 of 1.0.
A few rows are unusable or repeated, to exercise quarantine and deduplication.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, TypeVar

from nightgate.config import SampleSource

T = TypeVar("T")

COLUMNS = ("review_id", "text", "stars", "created_at", "product")

_STARS = (0.16, 0.13, 0.17, 0.22, 0.32)
"""Shares of reviewers who mean 1 to 5 stars."""
_PRAISE = (0.04, 0.22, 0.52, 0.80, 0.96)
"""Probability that an aspect is praised, for 1 to 5 stars."""
_WRONG_BY_ONE = 0.08
_WRONG = 0.03
_VERDICT = 0.80
_STRAY_VERDICT = 0.15
"""Probability that a verdict has the wording of a neighbouring star."""
_SARCASM = 0.05
_SHORT = 0.04
_REPEATED = 0.008
_UNUSABLE = 0.005

_PRODUCTS: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "headphones": {
        "the sound": (
            ("is rich and clear", "surprised me, even the bass is clean", "is the best I have had at this price"),
            ("is thin and tinny", "crackles at any volume above half", "cuts out whenever I turn my head"),
        ),
        "the battery": (
            ("easily lasts a week of commuting", "charges in no time", "still holds up after months"),
            ("died within a month", "barely lasts two hours", "has to be charged every single day"),
        ),
        "the fit": (
            ("is snug without pressing", "stays comfortable on long flights", "works with my glasses"),
            ("gives me a headache after an hour", "is so loose that they slide off", "pinches my ears"),
        ),
        "the connection": (
            ("is instant and never drops", "reaches through two walls", "just works with all my devices"),
            ("drops every few minutes", "takes five attempts each morning", "stutters as soon as I walk around"),
        ),
    },
    "coffee maker": {
        "the coffee": (
            ("tastes like in a good cafe", "comes out hot and strong", "is smooth, never bitter"),
            ("is lukewarm at best", "tastes of plastic even after ten rinses", "is weak whatever I set"),
        ),
        "the water tank": (
            ("is big enough for the whole family", "comes off easily for filling", "fits under any tap"),
            ("leaks all over the counter", "cracked in the second week", "is a pain to get back in"),
        ),
        "cleaning": (
            ("takes a minute", "is easy, everything goes in the dishwasher", "hardly needs any thought"),
            ("is a nightmare of tiny parts", "takes longer than drinking the coffee", "never gets rid of the smell"),
        ),
        "the timer": (
            ("wakes me with fresh coffee every day", "is simple to set", "has never failed me"),
            ("forgets its settings overnight", "starts whenever it likes", "cannot be set without the manual"),
        ),
    },
    "backpack": {
        "the zips": (
            ("run smoothly", "feel like they will last for years", "are sturdy and waterproof"),
            ("jam all the time", "broke on the first trip", "came apart in my hands"),
        ),
        "the straps": (
            ("are well padded", "spread the weight nicely", "adjust in seconds"),
            ("cut into my shoulders", "tore at the seam", "keep slipping loose"),
        ),
        "the space inside": (
            ("is well thought out", "swallows a laptop and a week of clothes", "has a pocket for everything"),
            ("is much smaller than in the pictures", "is one big hole with no order", "does not even fit a folder"),
        ),
        "the fabric": (
            ("kept everything dry in a storm", "still looks new after a year", "feels tough but light"),
            ("soaks through in light rain", "frayed after a few weeks", "smells of chemicals"),
        ),
    },
    "desk lamp": {
        "the light": (
            ("is warm and even", "is bright enough for fine work", "does not tire my eyes"),
            ("flickers", "is far too dim to read by", "has a cold, ugly tint"),
        ),
        "the arm": (
            ("stays exactly where I put it", "moves smoothly in every direction", "reaches across the whole desk"),
            ("sinks down slowly all evening", "wobbles at every touch", "snapped when I adjusted it"),
        ),
        "the switch": (
            ("is easy to find in the dark", "has just the right steps", "feels solid"),
            ("gets hot, which scares me", "only works on the third press", "fell inside the base"),
        ),
        "the base": (
            ("is heavy and steady", "takes up hardly any room", "looks elegant"),
            ("tips over if you look at it", "scratched my desk", "arrived bent"),
        ),
    },
    "running shoes": {
        "the cushioning": (
            ("feels like running on clouds", "saved my knees", "is soft without being mushy"),
            ("went flat after fifty miles", "is hard as a board", "gave me shin pain"),
        ),
        "the size": (
            ("is spot on", "runs true, as described", "leaves just enough room for the toes"),
            ("runs a full size small", "is different on the left and the right", "is nothing like the chart"),
        ),
        "the sole": (
            ("grips well on wet roads", "shows no wear so far", "is light and flexible"),
            ("came unglued in the rain", "is slippery on anything wet", "wore through in two months"),
        ),
        "the look": (
            ("gets me compliments", "is even nicer than online", "goes with everything"),
            ("is cheap and shiny", "has nothing to do with the photo", "faded after one wash"),
        ),
    },
    "tablet": {
        "the screen": (
            ("is gorgeous", "is sharp and bright, even outdoors", "makes reading a pleasure"),
            ("has dead pixels", "scratches if you breathe on it", "is washed out and dim"),
        ),
        "the speed": (
            ("is more than enough for everything I do", "is a huge step up from my old one", "never lets me wait"),
            ("is painful, every tap takes seconds", "got worse with each update", "is a joke with two apps open"),
        ),
        "the battery life": (
            ("covers a full day with ease", "is excellent", "beats what they promise"),
            ("is gone before lunch", "dropped by half in three months", "is nowhere near what they promise"),
        ),
        "the sound from the speakers": (
            ("fills a room", "is fine for films", "is better than I expected"),
            ("is tinny and hollow", "buzzes when it gets loud", "is so quiet that I need headphones"),
        ),
    },
}

_VERDICTS: tuple[tuple[str, ...], ...] = (
    (
        "Complete waste of money.", "Sent it straight back.", "Do not buy this {product}.", "Worst {product} in years.",
        "I want a refund.", "Absolutely useless.", "I regret ordering this.", "Avoid at all costs.", "Total junk.",
        "It went into the bin after {count} days.", "How can anyone sell this?", "Never again from this brand.",
        "I would give zero stars if I could.", "A scam, plain and simple.", "My {who} is furious, and so am I.",
        "Returned, and still waiting for my {price}.", "Save yourself the trouble.", "Utterly unusable.",
    ),
    (
        "Disappointed.", "I expected more.", "Would not buy it again.", "Not worth the price.", "Below average, sadly.",
        "It does the minimum, no more.", "I am looking for something else now.", "For {price} this is rather poor.",
        "Too many flaws for my taste.", "It works, but I do not enjoy it.", "My old {product} was better.",
        "I will probably replace it soon.", "Looks better than it is.", "Not terrible, but not good either.",
        "I cannot really recommend it.", "A let-down after all the praise.", "My {who} talked me out of keeping it.",
    ),
    (
        "It is okay.", "Average, nothing special.", "Mixed feelings.", "You get what you pay for.", "Fine for now.",
        "It does the job, with limits.", "Neither good nor bad.", "Decent, but there are better ones.",
        "Acceptable for {price}.", "Some things I like, some I do not.", "A middling {product}.", "It will do.",
        "I am on the fence about it.", "Half happy, half annoyed.", "Three stars seem fair.",
        "Nothing to write home about.",
        "Good enough for a {who}, not for a {trade}.", "I neither love it nor hate it.",
    ),
    (
        "Good value overall.", "Happy with it, mostly.", "Would recommend, with small reservations.", "A solid buy.",
        "Nearly perfect.", "Pleased so far.", "Better than most.", "Small flaws, but I like it.", "A good {product}.",
        "Does what I wanted, and does it well.", "I would buy it again.", "One star off for the little things.",
        "My {who} likes it too.", "Well worth {price}.", "Not flawless, still a good choice.", "Quite satisfied.",
        "Only details could be improved.", "A pleasant surprise for the price.",
    ),
    (
        "Love it!", "Best {product} I have ever owned.", "Could not be happier.", "Highly recommended!",
        "Absolutely perfect.",
        "Worth every penny.", "I bought a second one for my {who}.", "Five stars, no question.", "Flawless.",
        "I cannot imagine a better {product}.", "Exceeded all my expectations.", "A joy every single day.",
        "Even my {who} is jealous.", "Buy it, you will not regret it.", "Simply outstanding.",
        "Where was this all my life?",
        "I would pay twice the price.", "Exactly what a {product} should be.",
    ),
)  # fmt: skip

_SHORTS: tuple[tuple[str, ...], ...] = (
    ("Rubbish.", "Terrible {product}", "Broken on arrival.", "Never again", "Junk, avoid"),
    ("Not great", "Poor {product}.", "meh, not for me", "Disappointing {product}"),
    ("It's ok", "So so.", "Average {product}", "does what it should, no more"),
    ("Good {product}", "Nice.", "Pretty good", "good value for money"),
    ("Perfect!", "Great {product}!", "Excellent", "Love this {product}", "Amazing!!"),
)

_SARCASMS = (
    "Great, another {product} for the bin.",
    "Wonderful, if you enjoy talking to customer service.",
    "Fantastic quality, it lasted a whole {days} days.",
    "Just what I needed: more rubbish in the house.",
    "Congratulations to whoever designed this {product}, a true work of art.",
    "Five stars for the packaging, the {product} inside I cannot say that of.",
)

_OPENINGS = (
    "", "", "", "Bought this {product} {when}.", "I have had this {product} for {days} days now.",
    "My {who} gave me this {product}.",
    "Got it for my {who}.", "This is my second {product} from this brand.", "Ordered the {colour} {product} {when}.",
    "I compared a dozen before I chose this {product}.", "After {days} days of use, here is my view.",
    "Arrived {when}, in {colour}.",
    "I am a {trade}, so I use a {product} every day.", "Not my first {product}, by far.",
)  # fmt: skip

_FACTS = (
    "Delivery took {days} days.", "I use it about {count} times a week.", "The {colour} is close to the picture.",
    "My {who} uses it as well.", "I paid {price} for it.", "It replaced one that I had for {count} years.",
    "The manual comes in {count} languages.", "Packaging was plain.", "There is a {colour} version too.",
)  # fmt: skip

_NOUNS = {"headphones": "pair of headphones", "running shoes": "pair of running shoes"}
"""Nouns for products whose name is a plural."""

_WORDS: dict[str, tuple[str, ...]] = {
    "when": ("last week", "in the sale", "a month ago", "for Christmas", "on a whim", "after reading the reviews"),
    "who": ("wife", "husband", "son", "daughter", "mother", "father", "neighbour", "flatmate", "boss", "sister"),
    "colour": ("black", "blue", "grey", "red", "green", "white", "silver", "sand"),
    "trade": ("student", "nurse", "teacher", "driver", "designer", "cook", "carpenter", "musician", "consultant"),
    "price": ("19.99", "24.50", "35", "49.90", "60", "75", "89.99", "120"),
}

_AGREEING = ("{0} {1}, and {2} {3}.", "{0} {1}. {2} {3} as well.", "{0} {1} and {2} {3}.", "{0} {1}. Also, {2} {3}.")
_OPPOSED = (
    "{0} {1}, but {2} {3}.", "{0} {1}. On the other hand, {2} {3}.", "Although {0} {1}, {2} {3}.",
    "{0} {1}, yet {2} {3}.",
)  # fmt: skip


def sample_reviews(source: SampleSource, until: datetime) -> dict[str, list[Any]]:
    """The reviews of the `source.days` days before `until` (aware), as lists by column, oldest day first.

    `stars` is 1 to 5 (0 in a few unusable rows), `created_at` an aware datetime in UTC. The rows of a day depend on
    the seed and the date alone: the next night has the same rows and one more day.
    """
    until = until.astimezone(UTC)
    since = until - timedelta(days=source.days)
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for offset in range(source.days + 1):
        for row in _day(source, since.date() + timedelta(days=offset)):
            if since <= row[3] < until:
                for name, value in zip(COLUMNS, row, strict=True):
                    columns[name].append(value)
    return columns


def _day(source: SampleSource, day: date) -> list[tuple[str, str, int, datetime, str]]:
    # Only random() is used: Python guarantees its sequence for a seed in all versions, but not that of choice().
    rng = random.Random(f"nightgate sample {source.seed} {day.isoformat()}")
    midnight = datetime.combine(day, time(), tzinfo=UTC)
    rows: list[tuple[str, str, int, datetime, str]] = []
    for number in range(source.rows_per_day):
        review_id = f"r{day:%Y%m%d}-{number:05d}"
        created_at = midnight + timedelta(seconds=int(rng.random() * 86_400))
        product = _pick(rng, tuple(_PRODUCTS))
        meant = _weighted(rng, _STARS)
        text, stars = _review(rng, product, meant), _clicked(rng, meant) + 1
        place = rng.random()
        if place < _REPEATED and rows:
            _, text, stars, _, product = _pick(rng, rows)
        elif place > 1 - _UNUSABLE:
            text, stars = _pick(rng, (("", stars), (" &nbsp; ", stars), (text, 0)))
        rows.append((review_id, text, stars, created_at, product))
    return rows


def _clicked(rng: random.Random, meant: int) -> int:
    """The recorded stars (from 0) of a reviewer who means `meant`, sometimes wrong."""
    place = rng.random()
    if place < _WRONG:
        return int(rng.random() * 5)
    if place < _WRONG + _WRONG_BY_ONE:
        return _neighbour(rng, meant)
    return meant


def _review(rng: random.Random, product: str, meant: int) -> str:
    if rng.random() < _SHORT:
        return _filled(rng, _pick(rng, _SHORTS[meant]), product)
    parts = [_filled(rng, _pick(rng, _OPENINGS), product)]
    if meant <= 1 and rng.random() < _SARCASM * 2:
        parts.append(_filled(rng, _pick(rng, _SARCASMS), product))
    aspects = list(_PRODUCTS[product].items())
    for _ in range(2 - int(rng.random() < 0.35) + int(rng.random() < 0.15)):
        if len(aspects) >= 2:
            first, second = (aspects.pop(int(rng.random() * len(aspects))) for _ in range(2))
            parts.append(_opinions(rng, meant, first, second))
    if rng.random() < 0.35:
        parts.append(_filled(rng, _pick(rng, _FACTS), product))
    if rng.random() < _VERDICT:
        worded = _neighbour(rng, meant) if rng.random() < _STRAY_VERDICT else meant
        verdict = _filled(rng, _pick(rng, _VERDICTS[worded]), product)
        parts.insert(0 if rng.random() < 0.3 else len(parts), verdict)
    return _as_typed(rng, [part for part in parts if part])


def _opinions(
    rng: random.Random,
    meant: int,
    first: tuple[str, tuple[tuple[str, ...], tuple[str, ...]]],
    second: tuple[str, tuple[tuple[str, ...], tuple[str, ...]]],
) -> str:
    praised = [rng.random() < _PRAISE[meant] for _ in range(2)]
    frame = _pick(rng, _AGREEING if praised[0] == praised[1] else _OPPOSED)
    words = [_pick(rng, both[0 if good else 1]) for (_, both), good in zip((first, second), praised, strict=True)]
    sentence = frame.format(first[0], words[0], second[0], words[1])
    # Each sentence begins with a capital; aspects are in lower case.
    return ". ".join(piece[:1].upper() + piece[1:] for piece in sentence.split(". "))


def _as_typed(rng: random.Random, parts: Sequence[str]) -> str:
    """The parts joined as in real reviews: mostly clean, some in capitals, some careless, some with HTML."""
    place = rng.random()
    if place < 0.03:
        return "<br />".join(parts).replace(" and ", " &amp; ")
    text = " ".join(parts)
    if place < 0.06:
        return text.upper()
    if place < 0.14:
        return text.lower().replace(",", "").replace("'", "")
    if place < 0.17:
        return text.replace(". ", "...  ").rstrip(".") + " :)"
    return text


def _filled(rng: random.Random, text: str, product: str) -> str:
    if "{" not in text:
        return text
    values = {name: _pick(rng, words) for name, words in _WORDS.items()}
    noun = _NOUNS.get(product, product)
    return text.format(product=noun, days=2 + int(rng.random() * 90), count=2 + int(rng.random() * 8), **values)


def _neighbour(rng: random.Random, star: int) -> int:
    return min(4, max(0, star + (1 if rng.random() < 0.5 else -1)))


def _pick(rng: random.Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _weighted(rng: random.Random, weights: Sequence[float]) -> int:
    place = rng.random() * sum(weights)
    for index, weight in enumerate(weights):
        place -= weight
        if place < 0:
            return index
    return len(weights) - 1
