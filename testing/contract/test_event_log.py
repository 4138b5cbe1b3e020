# SPDX-License-Identifier: Apache-2.0
"""What every event log does: one order, no gaps for readers, and a bounded length."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event as Flag

import pytest

from pycloud.core.model.runtime import Event
from pycloud.errors import InvalidInput
from testing.contract.processes import contend
from testing.contract.stores import open_store
from testing.factories import an_event
from testing.samples import empty, full


def _sequences(events):
    return [event.sequence for event in events]


def _append(store, count, *, kind="instance"):
    return [store.events.append(an_event(kind=kind)) for _ in range(count)]


def test_append_numbers_events_from_one(store):
    assert _sequences(_append(store, 3)) == [1, 2, 3]


@pytest.mark.parametrize("sample", [full, empty])
def test_after_gives_back_every_field_when_all_or_none_are_set(store, sample):
    appended = store.events.append(replace(sample(Event), sequence=0))

    assert appended == replace(sample(Event), sequence=1)
    assert store.events.after(0, limit=1) == (appended,)


def test_append_refuses_text_that_is_not_unicode(store):
    with pytest.raises(InvalidInput):
        store.events.append(an_event(data={"name": "\ud800"}))

    assert store.events.latest() == 0


def test_after_gives_later_events_oldest_first_up_to_the_limit(store):
    appended = _append(store, 5)

    assert store.events.after(1, limit=3) == tuple(appended[1:4])
    assert store.events.after(3, limit=10) == tuple(appended[3:])
    assert store.events.after(5, limit=10) == ()


@pytest.mark.parametrize(("sequence", "count"), [(10**30, 0), (-(10**30), 2)])
def test_after_takes_any_number_that_a_client_may_send(store, sequence, count):
    _append(store, 2)

    assert len(store.events.after(sequence, limit=10)) == count


def test_after_gives_only_the_kinds_asked_for(store):
    for kind in ("instance", "job", "app", "job"):
        _append(store, 1, kind=kind)

    assert _sequences(store.events.after(0, limit=10, kinds=["job"])) == [2, 4]
    assert _sequences(store.events.after(2, limit=10, kinds=["job", "app"])) == [3, 4]
    assert store.events.after(0, limit=10, kinds=["nothing"]) == ()
    assert len(store.events.after(0, limit=2, kinds=["job", "app"])) == 2


def test_latest_is_the_highest_number_given_so_far(store):
    before = store.events.latest()
    _append(store, 3)

    assert (before, store.events.latest()) == (0, 3)


@pytest.mark.parametrize(
    ("keep", "kept"), [(0, []), (2, [4, 5]), (5, [1, 2, 3, 4, 5]), (9, [1, 2, 3, 4, 5])]
)
def test_trim_keeps_the_newest_events(store, keep, kept):
    _append(store, 5)

    store.events.trim(keep=keep)

    assert _sequences(store.events.after(0, limit=10)) == kept


def test_numbers_go_on_when_all_events_were_dropped(store):
    _append(store, 3)
    store.events.trim(keep=0)

    latest = store.events.latest()
    appended = store.events.append(an_event())

    assert (latest, appended.sequence) == (3, 4)


def test_trim_does_nothing_when_there_are_no_events(store):
    store.events.trim(keep=0)

    assert store.events.latest() == 0


def test_reader_misses_no_event_when_threads_append_meanwhile(store):
    finished = Flag()
    seen = []

    def follow():
        last = 0
        while True:
            done = finished.is_set()
            events = store.events.after(last, limit=1000)
            seen.extend(_sequences(events))
            last = seen[-1] if seen else 0
            if done:
                return

    with ThreadPoolExecutor(5) as pool:
        reader = pool.submit(follow)
        writers = [pool.submit(_append, store, 40) for _ in range(4)]
        given = [_sequences(writer.result()) for writer in writers]
        finished.set()
        reader.result()

    assert all(numbers == sorted(numbers) for numbers in given)
    assert sorted(number for numbers in given for number in numbers) == list(range(1, 161))
    assert seen == list(range(1, 161))


def test_every_event_has_its_own_number_when_processes_append(address):
    given = contend("append_events", address, contenders=3, count=40)

    store = open_store(address)
    assert sorted(number for numbers in given for number in numbers) == list(range(1, 121))
    assert _sequences(store.events.after(0, limit=200)) == list(range(1, 121))
    store.close()


def test_events_and_their_numbers_are_there_when_the_store_is_opened_again(address):
    store = open_store(address)
    appended = _append(store, 3)
    store.events.trim(keep=1)
    store.close()

    reopened = open_store(address)

    assert reopened.events.after(0, limit=10) == (appended[-1],)
    assert reopened.events.append(an_event()).sequence == 4
    reopened.close()
