# SPDX-License-Identifier: Apache-2.0
"""Records of any class out of its type hints: full, empty, or drawn at random.

For tests of whatever has to cope with every field of every record; values are of the
right type and otherwise as awkward as possible. Other tests take `testing.factories`.
"""

import types
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

R = TypeVar("R")

AWKWARD = "a\x00b.c$d/'\"\\ \u20ac\U0001f600\u2028"
AWKWARD_PAIRS = {AWKWARD: AWKWARD, "$where": "1", "a.b": "", "": "empty", "id": "_id"}
LARGEST = 2**63 - 1


def full(record_class: type[R]) -> R:
    """Return a record with every optional field set and two items in every tuple."""
    hints = get_type_hints(record_class)
    return record_class(**{item.name: _full(hints[item.name]) for item in fields(record_class)})


def empty(record_class: type[R]) -> R:
    """Return a record with nothing set that need not be."""
    hints = get_type_hints(record_class)
    required = [
        item.name
        for item in fields(record_class)
        if item.default is MISSING and item.default_factory is MISSING
    ]
    return record_class(**{name: _full(hints[name]) for name in required})


def _full(hint: Any) -> Any:
    if isinstance(hint, NewType):
        return _full(hint.__supertype__)
    if is_dataclass(hint):
        return full(hint)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return list(hint)[-1]
    if get_origin(hint) in (Union, types.UnionType):
        return _full(get_args(hint)[0])
    if get_origin(hint) is tuple:
        return (_full(get_args(hint)[0]),) * 2
    return {
        str: AWKWARD,
        int: LARGEST,
        float: 0.1,
        bool: True,
        datetime: datetime(2024, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC),
        dict[str, str]: AWKWARD_PAIRS,
    }[hint]


def drawn(record_class: type[R]) -> st.SearchStrategy[R]:
    """Return a strategy for records with any values of the right types."""
    hints = get_type_hints(record_class)
    return st.builds(
        record_class, **{item.name: _drawn(hints[item.name]) for item in fields(record_class)}
    )


def _zone(offset_min: int) -> timezone:
    return timezone(timedelta(minutes=offset_min))


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_LEAVES: dict[object, st.SearchStrategy[Any]] = {
    str: _TEXTS,
    int: st.integers(min_value=-LARGEST - 1, max_value=LARGEST),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    datetime: st.datetimes(
        # Away from the ends, because a time zone must not lead beyond them.
        min_value=datetime(2, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
        max_value=datetime(9998, 1, 1),  # noqa: DTZ001
        # Fixed offsets: a time that a clock change repeats equals no time of another zone.
        timezones=st.integers(-23 * 60, 23 * 60).map(_zone),
    ),
    dict[str, str]: st.dictionaries(_TEXTS, _TEXTS, max_size=3),
}


def _drawn(hint: Any) -> st.SearchStrategy[Any]:
    if isinstance(hint, NewType):
        return _drawn(hint.__supertype__)
    if is_dataclass(hint):
        return drawn(hint)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return st.sampled_from(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return st.none() | _drawn(get_args(hint)[0])
    if get_origin(hint) is tuple:
        return st.lists(_drawn(get_args(hint)[0]), max_size=3).map(tuple)
    return _LEAVES[hint]
