# SPDX-License-Identifier: Apache-2.0
"""JSON is read with a limit on everything."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycloud.web.bodies import DEEPEST_JSON, parse_json
from pycloud.web.errors import MalformedRequest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@given(JSON.filter(encodable))
def test_parse_json_returns_what_was_written(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@given(st.binary())
def test_parse_json_takes_or_refuses_any_bytes(content: bytes) -> None:
    with contextlib.suppress(MalformedRequest):
        parse_json(content)


def test_parse_json_takes_the_deepest_and_no_deeper() -> None:
    parse_json(b"[" * DEEPEST_JSON + b"]" * DEEPEST_JSON)
    with pytest.raises(MalformedRequest, match="nests deeper"):
        parse_json(b"[" * (DEEPEST_JSON + 1) + b"]" * (DEEPEST_JSON + 1))


def test_parse_json_does_not_count_brackets_in_text() -> None:
    assert parse_json(b'"' + b"[" * 1000 + b'"') == "[" * 1000
    assert parse_json(b'["\\"[[[[", "a"]') == ['"[[[[', "a"]


@pytest.mark.parametrize("content", [b"NaN", b"Infinity", b"-Infinity", b'"\\udc00"', b"'a'"])
def test_parse_json_refuses_what_json_is_not(content: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse_json(content)


@pytest.mark.parametrize("content", [b"8080.0", b"8.08e3", b"-0.0", b"1e300"])
def test_parse_json_reads_a_whole_number_as_an_integer(content: bytes) -> None:
    value = parse_json(content)
    assert type(value) is int
    assert value == float(content)


@pytest.mark.parametrize("content", [b"0.5", b"1e400"])
def test_parse_json_leaves_what_is_no_whole_number(content: bytes) -> None:
    assert type(parse_json(content)) is float
