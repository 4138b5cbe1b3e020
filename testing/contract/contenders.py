# SPDX-License-Identifier: Apache-2.0
"""What several server processes do to one store at the same time, for tests of races.

Run as `python -m testing.contract.contenders ACTION ADDRESS NAME COUNT`: the process
opens the store, says `ready`, waits for a line on standard input, acts, and prints one
line of JSON.
"""

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace

from pycloud.core.ports import Store
from pycloud.errors import DuplicateRecord, NotFound, StaleRecord
from testing.contract.stores import open_store
from testing.factories import THIS_HOST, a_message, a_port_lease, an_event


def lease_ports(store: Store, *, name: str, count: int) -> list[int]:
    """Try to lease each of `count` ports; return those that were got."""
    got = []
    for port in range(20000, 20000 + count):
        try:
            store.port_leases.add(a_port_lease(port=port, holder=name))
        except DuplicateRecord:
            continue
        got.append(port)
    return got


def raise_capacity(store: Store, *, name: str, count: int) -> int:
    """Add one to a number of the Host, `count` times; return how often others were faster."""
    lost = 0
    for _ in range(count):
        while True:
            host = store.hosts.get(THIS_HOST)
            try:
                store.hosts.replace(replace(host, max_instances=host.max_instances + 1))
            except StaleRecord:
                lost += 1
            else:
                break
    return lost


def take_messages(store: Store, *, name: str, count: int) -> list[str]:
    """Deliver the messages of a device, each of which only one may get."""
    taken = []
    for message in store.messages.find({"device_id": "phone"}, limit=count).items:
        try:
            store.messages.remove(message.id, generation=message.generation)
        except (NotFound, StaleRecord):
            continue
        taken.append(message.id)
    return taken


def append_events(store: Store, *, name: str, count: int) -> list[int]:
    """Append events; return the numbers they were given."""
    events = (an_event(resource=f"{name}/{number}") for number in range(count))
    return [store.events.append(event).sequence for event in events]


def write_until_killed(store: Store, *, name: str, count: int) -> None:
    """Add, change and remove messages, and say of each which is known to be stored."""
    for number in itertools.count():
        message = store.messages.add(a_message(id=f"{name}-{number:06d}"))
        store.messages.replace(replace(message, message="changed"))
        if number % 3 == 2:
            store.messages.remove(f"{name}-{number - 1:06d}")
        store.events.append(an_event(resource=message.id))
        print(message.id, flush=True)


ACTIONS: dict[str, Callable[..., object]] = {
    action.__name__: action
    for action in (lease_ports, raise_capacity, take_messages, append_events, write_until_killed)
}


def main() -> None:
    """Carry out the action named on the command line."""
    action, address, name, count = sys.argv[1:]
    store = open_store(address)
    print("ready", flush=True)
    sys.stdin.readline()
    result = ACTIONS[action](store, name=name, count=int(count))
    print(json.dumps(result), flush=True)
    store.close()


if __name__ == "__main__":
    main()
