# SPDX-License-Identifier: Apache-2.0
"""What every repository does with lists: order, pages, cursors and filters."""

from datetime import timedelta

import pytest

from pycloud.core.ports import every
from pycloud.errors import InvalidInput
from testing.factories import A_MOMENT, a_job, a_message, an_instance


def _add_messages(store, count, *, first=0):
    return [
        store.messages.add(
            a_message(id=f"m{number:03d}", created_at=A_MOMENT + timedelta(seconds=number // 2))
        )
        for number in range(first, first + count)
    ]


def _ids(page):
    return [record.id for record in page.items]


def _walk(repository, where=None, *, limit):
    pages = [repository.find(where, limit=limit)]
    while pages[-1].next_cursor is not None:
        pages.append(repository.find(where, limit=limit, cursor=pages[-1].next_cursor))
    return pages


def test_find_orders_by_creation_and_then_by_id(store):
    for record_id, offset_us in [("b", 0), ("z", -1), ("a", 0), ("c", 1), ("B", 0)]:
        moment = A_MOMENT + timedelta(microseconds=offset_us)
        store.messages.add(a_message(id=record_id, created_at=moment))

    assert _ids(store.messages.find()) == ["z", "B", "a", "b", "c"]


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (8, [7])])
def test_find_gives_every_record_once_when_all_pages_are_read(store, limit, sizes):
    added = _add_messages(store, 7)

    pages = _walk(store.messages, limit=limit)

    assert [len(page.items) for page in pages] == sizes
    assert [record for page in pages for record in page.items] == added


def test_find_gives_an_empty_page_when_there_is_nothing(store):
    page = store.messages.find()

    assert page.items == ()
    assert page.next_cursor is None


def test_find_reads_all_pages_of_a_filter_when_other_records_lie_between(store):
    wanted = []
    for number in range(20):
        state = "running" if number % 3 == 0 else "stopped"
        instance = store.instances.add(an_instance(state=state, owner=f"device:{number % 2}"))
        if state == "running" and number % 2:
            wanted.append(instance)

    pages = _walk(store.instances, {"owner": "device:1", "state": "running"}, limit=2)

    assert [record for page in pages for record in page.items] == wanted


def test_cursor_goes_on_behind_its_record_when_that_and_others_are_removed(store):
    _add_messages(store, 8)
    first = store.messages.find(limit=3)
    for record_id in ("m000", "m002", "m004"):
        store.messages.remove(record_id)

    second = store.messages.find(limit=3, cursor=first.next_cursor)

    assert _ids(second) == ["m003", "m005", "m006"]


def test_cursor_neither_repeats_nor_hides_when_records_are_added_meanwhile(store):
    _add_messages(store, 6, first=4)
    first = store.messages.find(limit=3)
    _add_messages(store, 4, first=0)
    _add_messages(store, 2, first=10)

    rest = _walk_from(store.messages, first.next_cursor)

    assert _ids(first) == ["m004", "m005", "m006"]
    assert rest == ["m007", "m008", "m009", "m010", "m011"]


def _walk_from(repository, cursor):
    ids = []
    while cursor is not None:
        page = repository.find(limit=2, cursor=cursor)
        ids.extend(_ids(page))
        cursor = page.next_cursor
    return ids


def test_cursor_leads_to_an_empty_end_when_everything_behind_it_is_removed(store):
    _add_messages(store, 4)
    first = store.messages.find(limit=2)
    store.messages.remove("m002")
    store.messages.remove("m003")

    page = store.messages.find(limit=2, cursor=first.next_cursor)

    assert (page.items, page.next_cursor) == ((), None)


@pytest.mark.parametrize("cursor", ["", "nonsense", "W10", "\u20ac"])
def test_find_refuses_a_broken_cursor(store, cursor):
    with pytest.raises(InvalidInput) as caught:
        store.messages.find(cursor=cursor)

    assert caught.value.pointer == "cursor"


@pytest.mark.parametrize("limit", [0, -5])
def test_find_refuses_a_page_without_items(store, limit):
    with pytest.raises(InvalidInput) as caught:
        store.messages.find(limit=limit)

    assert caught.value.pointer == "limit"


def test_find_takes_any_large_limit(store):
    added = _add_messages(store, 2)

    assert store.messages.find(limit=10**30).items == tuple(added)


@pytest.mark.parametrize("field", ["message", "id", "shoe_size", "device_id = 'a' OR 1", "$where"])
def test_find_and_count_refuse_a_field_that_is_not_indexed(store, field):
    for call in (store.messages.find, store.messages.count):
        with pytest.raises(InvalidInput) as caught:
            call({field: "a"})
        assert caught.value.pointer == field


@pytest.mark.parametrize("value", ["", "' OR '1' = '1", "a\x00b", "%", "\U0001f600"])
def test_find_compares_values_literally_when_they_look_like_queries(store, value):
    store.messages.add(a_message(device_id="phone"))
    wanted = store.messages.add(a_message(device_id=value))

    assert store.messages.find({"device_id": value}).items == (wanted,)


def test_find_and_count_refuse_a_value_that_is_not_unicode(store):
    for call in (store.messages.find, store.messages.count):
        with pytest.raises(InvalidInput) as caught:
            call({"device_id": "\ud800"})
        assert caught.value.pointer == "device_id"


def test_find_gives_a_large_list_within_one_page(store):
    for _ in range(300):
        store.jobs.add(a_job())

    assert len(store.jobs.find({"state": "queued"}).items) == 300


def test_every_reads_beyond_a_page_though_records_go_meanwhile(store):
    added = _add_messages(store, 503)

    seen = []
    for message in every(store.messages):
        seen.append(message)
        store.messages.remove(message.id)

    assert seen == added
    assert store.messages.count() == 0


def test_every_reads_only_what_the_filter_asks_for(store):
    for number in range(4):
        store.instances.add(an_instance(state="running" if number % 2 else "stopped"))

    states = [instance.state for instance in every(store.instances, {"state": "running"})]

    assert states == ["running", "running"]
