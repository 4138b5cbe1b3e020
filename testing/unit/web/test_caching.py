# SPDX-License-Identifier: Apache-2.0
"""Kept bodies are made once per revision."""

from pycloud.web.caching import BodyCache, KeptBody, etag_of


def test_body_is_made_once_for_a_revision() -> None:
    cache, made = BodyCache(), []

    def make() -> KeptBody:
        made.append(1)
        return KeptBody(b"x", etag_of(b"x"))

    first = cache.body("a", revision=1, make=make)
    again = cache.body("a", revision=1, make=make)
    later = cache.body("a", revision=2, make=make)
    assert first is again
    assert later == first
    assert len(made) == 2


def test_cache_forgets_the_oldest_beyond_its_capacity() -> None:
    cache, made = BodyCache(capacity=2), []

    def make() -> KeptBody:
        made.append(1)
        return KeptBody(b"x", "")

    for key in ("a", "b", "c", "a"):
        cache.body(key, revision=1, make=make)
    assert len(made) == 4


def test_etag_is_that_of_the_bytes() -> None:
    assert etag_of(b"a") == etag_of(b"a") != etag_of(b"b")
