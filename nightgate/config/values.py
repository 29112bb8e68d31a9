"""Types for the text fields of a pipeline file: timezones, crons, durations, sizes and labels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Annotated
from zoneinfo import available_timezones

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from nightgate.cron import check_cron, check_nightly
from nightgate.text_rules import normalise_text


class Section(BaseModel):
    """A table of the file: frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )


@cache
def _timezones() -> frozenset[str]:
    """All timezones of this machine, cached: they are some 600 files."""
    return frozenset(available_timezones())


def _known_timezone(name: str) -> str:
    if name not in _timezones():
        raise ValueError(f"{name!r} is not a timezone of the IANA database, such as 'UTC' or 'Europe/Berlin'")
    return name


def _duration(text: object) -> object:
    if text != "" and not re.fullmatch(r"[1-9][0-9]{0,4}[dwh]", str(text)):
        raise ValueError(f"{text!r} is not a duration: write a number and d, w or h, such as '365d', or '' for none")
    return text


def _time_format(text: str) -> str:
    if text in {"", "epoch_s", "epoch_ms"}:
        return text
    sample = datetime(2026, 1, 31, 3, 15, tzinfo=UTC)
    try:
        day = datetime.strptime(sample.strftime(text), text).date()
    except ValueError as error:
        raise ValueError(f"{text!r} is not a format of strptime: {error}") from error
    if day != sample.date():
        raise ValueError(f"{text!r} has no year, month and day, as '%d-%m-%Y' has, and is not 'epoch_s' or 'epoch_ms'")
    return text


Timezone = Annotated[str, AfterValidator(_known_timezone)]
NightlyCron = Annotated[str, AfterValidator(check_nightly)]
Cron = Annotated[str, AfterValidator(check_cron)]
Duration = Annotated[str, BeforeValidator(_duration)]
Column = Annotated[str, Field(min_length=1, max_length=200)]
Label = Annotated[str, Field(max_length=100)] | bool | int | float
TimeFormat = Annotated[str, AfterValidator(_time_format)]
Size = Annotated[str, Field(pattern=r"^([1-9][0-9]{0,5}[MGT]B)?$")]
_BYTES = {"MB": 10**6, "GB": 10**9, "TB": 10**12}


def duration(text: str) -> timedelta | None:
    """A validated duration as a timedelta; None for ''."""
    if not text:
        return None
    unit = {"d": "days", "w": "weeks", "h": "hours"}[text[-1]]
    return timedelta(**{unit: int(text[:-1])})


def canonical_label(value: object) -> str | None:
    """A label as the same text from every file format: `5`, `5.0`, `"5"` and `" 5 "` are `"5"`, `True` is `"true"`.

    Text is normalised as texts of rows are. None for a missing value (None, NaN, blank text).
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    text = label_name(value)
    if re.fullmatch(r"-?[0-9]+\.0+", text):
        return text.split(".")[0]
    return text.lower() if text.lower() in {"true", "false"} else text or None


def label_name(label: object) -> str:
    """A label as it is shown: a truth value as in the pipeline file, a text normalised as texts of rows are."""
    return str(label).lower() if isinstance(label, bool) else normalise_text(str(label))


def labels_by_value(labels: Mapping[str, str | float] | Iterable[str | float]) -> dict[str, str]:
    """The label of each canonical source value, from `data.labels` in either form."""
    pairs = labels.items() if isinstance(labels, Mapping) else ((label, label) for label in labels)
    return {str(canonical_label(value)): label_name(label) for value, label in pairs}


def num_bytes(text: str) -> int | None:
    """The bytes of a validated size; None for ''."""
    return int(text[:-2]) * _BYTES[text[-2:]] if text else None
