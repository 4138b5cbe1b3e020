# SPDX-License-Identifier: Apache-2.0
"""The way from this host's own addresses to guests whose ports QEMU opens on loopback only.

QEMU's restricted user-mode network names no router to its guests, so a guest can answer
only callers on its own network. QEMU rewrites callers from loopback to such an address,
and no others: a port that it opened on 192.0.2.1 would take a phone's connection and
never answer. So QEMU listens on 127.0.0.1 alone, and one process per data directory, the
relay, listens on the published addresses at the same port and passes bytes to it.

    client.py    what the server calls: publish, withdraw, ensure
    table.py     which owner has which ports, in the data directory
    process.py   the relay: a process of its own, which outlives the server
    passing.py   one connection through the relay
    events.py    the relay's event loop
    addresses.py the IPv4 addresses of this host

The relay's own modules use the standard library only and import nothing else of pycloud,
because the relay stays in memory as long as a guest runs. This file must import nothing.
"""
