# SPDX-License-Identifier: Apache-2.0
"""Two servers with a data directory each and one MongoDB: two hosts of one cloudlet.

They have the machine, and so libvirt, in common, which makes it harder: each sees domains
that only the other may touch.
"""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pymongo
import pytest

from testing.guest import guest_image
from testing.system.callers import Operator, Phone, ask_guest
from testing.system.cloudlet import Server, running_server, wait_until

DEADLINE_S = 30.0
ROUNDS = 12
"""Rounds of reconciliation that an orphan would not live through."""


@pytest.fixture
def hosts(mongo_url: str, tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """The host that will have the service, and one that has nothing."""
    name = f"hosts_{uuid4().hex}"
    shared = {"store": f"{mongo_url}/{name}"}
    with (
        running_server(tmp_path / "here", shared | {"port_range": "22880-22919"}) as here,
        running_server(tmp_path / "there", shared | {"port_range": "22920-22959"}) as there,
    ):
        yield here, there
    with pymongo.MongoClient(mongo_url) as client:
        client.drop_database(name)


def await_rounds(server: Server) -> None:
    """Let a server compare records and reality a few times."""
    with server.core() as core:
        clock, reconcile_s = core.clock, core.settings.reconcile_s
    begin_s = clock.monotonic()
    wait_until(
        lambda: clock.monotonic() - begin_s > ROUNDS * reconcile_s, DEADLINE_S, lambda: "no time"
    )


def test_instance_is_started_through_one_host_and_lives_on_the_other(
    hosts: tuple[Server, Server],
) -> None:
    here, there = hosts
    operators = [Operator(server.url, server.token) for server in hosts]
    names = [operator.get("/system")["host"]["id"] for operator in operators]
    assert len(set(names)) == 2
    operators[0].add_service("demo", guest_image(), prepare=True)
    operators[0].done(operators[0].call("POST", "/services/demo/prepare"))

    phone = Phone(int(there.url.rpartition(":")[2]))
    started = phone.get("/servicevm/start", serviceId="demo", join="false")
    assert started.status == 200, started.text
    instance_id, port = started.json["_id"], started.json["port"]
    await_rounds(there)

    instance = operators[1].instance(instance_id)
    assert (instance["host_id"], instance["state"]) == (names[0], "running")
    assert instance["start_method"] == "clone"
    assert 22880 <= port <= 22919
    assert ask_guest(port, "/")["service"]
    refused = operators[1].call("POST", f"/instances/{instance_id}/pause")
    assert (refused.status, refused.json["code"]) == (409, "on_another_host")
    assert names[0] in refused.json["detail"]

    assert phone.get("/servicevm/stop", instanceId=instance_id).status == 200
    here.require_agreement()
    there.require_agreement()
