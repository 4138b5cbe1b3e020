# SPDX-License-Identifier: Apache-2.0
"""Exactly one of several callers wins, be they threads or processes."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier, Event

from testing.contract.contenders import lease_ports, raise_capacity, take_messages
from testing.contract.processes import contend
from testing.contract.stores import open_store
from testing.factories import THIS_HOST, a_host, a_message, a_service

THREADS = 6
PROCESSES = 3


def _race(action, store, *, count):
    """Let threads begin together; return what each of them returned."""
    barrier = Barrier(THREADS)

    def run(number):
        barrier.wait()
        return action(store, name=f"t{number}", count=count)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


def _flat(lists):
    return sorted(item for items in lists for item in items)


def test_add_lets_one_thread_win_each_id_when_all_try_at_once(store):
    won = _race(lease_ports, store, count=40)

    assert _flat(won) == list(range(20000, 20040))
    assert all(store.port_leases.count({"holder": f"t{n}"}) == len(won[n]) for n in range(THREADS))


def test_replace_loses_no_update_when_threads_compete(store):
    store.hosts.add(a_host(max_instances=0))

    _race(raise_capacity, store, count=15)

    host = store.hosts.get("local")
    assert host.max_instances == THREADS * 15
    assert host.generation == 1 + THREADS * 15


def test_remove_gives_each_record_to_one_thread_when_all_try_at_once(store):
    ids = [store.messages.add(a_message()).id for _ in range(40)]

    assert _flat(_race(take_messages, store, count=40)) == sorted(ids)


def test_record_is_read_whole_when_it_is_replaced_meanwhile(store):
    finished = Event()
    store.hosts.add(a_host(vcpus=0, max_instances=0))

    def write():
        for number in range(1, 300):
            host = store.hosts.get(THIS_HOST)
            store.hosts.replace(replace(host, vcpus=number, max_instances=number))
        finished.set()

    torn = 0
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        while not finished.is_set() and not writer.done():
            host = store.hosts.get(THIS_HOST)
            torn += not host.vcpus == host.max_instances == host.generation - 1
        writer.result()

    assert torn == 0


def test_revision_changes_for_every_reader_when_threads_write(store):
    def write(_store, *, name, count):
        seen = []
        for number in range(count):
            store.services.add(a_service(id=f"{name}-{number}"))
            seen.append(store.services.revision())
        return seen

    seen = _race(write, store, count=10)

    assert all(len(set(numbers)) == len(numbers) for numbers in seen)


def test_add_lets_one_process_win_each_id_when_all_try_at_once(address):
    won = contend("lease_ports", address, contenders=PROCESSES, count=60)

    assert _flat(won) == list(range(20000, 20060))


def test_replace_loses_no_update_when_processes_compete(address):
    store = open_store(address)
    store.hosts.add(a_host(max_instances=0))

    contend("raise_capacity", address, contenders=PROCESSES, count=40)

    assert store.hosts.get("local").max_instances == PROCESSES * 40
    store.close()


def test_remove_gives_each_record_to_one_process_when_all_try_at_once(address):
    store = open_store(address)
    ids = [store.messages.add(a_message()).id for _ in range(60)]

    taken = contend("take_messages", address, contenders=PROCESSES, count=60)

    assert _flat(taken) == sorted(ids)
    store.close()


def test_revision_changes_when_another_process_writes(address):
    store = open_store(address)
    before = store.port_leases.revision()

    contend("lease_ports", address, contenders=1, count=1)

    assert store.port_leases.revision() != before
    store.close()


def test_store_can_be_made_by_several_processes_at_once(address):
    won = contend("append_events", address, contenders=PROCESSES, count=1)

    assert _flat(won) == [1, 2, 3]


def test_records_are_there_when_the_store_is_opened_again(address):
    store = open_store(address)
    added = store.services.add(a_service())
    revision = store.services.revision()
    store.close()

    reopened = open_store(address)

    assert reopened.services.get(added.id) == added
    assert reopened.services.revision() == revision
    reopened.close()
