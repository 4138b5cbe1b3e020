# SPDX-License-Identifier: Apache-2.0
"""Two servers on one store and one data directory share the work and never do it twice."""

import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pycloud.core.model.runtime import JobState
from testing.guest import guest_image
from testing.system.callers import Operator, ask_guest
from testing.system.cloudlet import Server, running_server, wait_until

JOBS = 24
ROOM = 3
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """Two servers that differ in nothing but their ports."""
    folder = tmp_path_factory.mktemp("pair")
    shared = {"job_workers": "1", "max_instances": str(ROOM), "port_range": "22960-22999"}
    place = {**shared, "data_dir": str(folder / "data")}
    with (
        running_server(folder / "first", place) as first,
        running_server(folder / "second", place) as second,
    ):
        yield first, second


def test_each_of_many_short_jobs_is_run_by_exactly_one_server(
    pair: tuple[Server, Server], tmp_path: Path
) -> None:
    first, second = pair
    operators = [Operator(server.url, first.token) for server in pair]
    operator = operators[0]
    image = tmp_path / "small.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"], check=True, timeout=60
    )
    wanted = [
        {"id": f"s{number}", "port": 80, "prepare": False, "upload_id": operator.upload(image)}
        for number in range(JOBS)
    ]
    answers = [
        operators[number % 2].call("POST", "/services", one) for number, one in enumerate(wanted)
    ]
    jobs = [operator.done(answer) for answer in answers]

    finished = [Counter(entry["job_id"] for entry in s.log("job_finished")) for s in pair]
    assert finished[0] + finished[1] == Counter(job["id"] for job in jobs)
    assert min(finished[0].total(), finished[1].total()) > 0
    assert [*first.log("job_lease_lost"), *second.log("job_lease_lost")] == []
    with first.core() as core:
        stored = core.jobs.jobs({"state": JobState.SUCCEEDED}, limit=500).items
        assert {job.attempts for job in stored} == {1}
    for one in wanted:
        assert len(operator.get(f"/services/{one['id']}/service-vms")["items"]) == 1
        operator.done(operator.call("DELETE", f"/services/{one['id']}"))
    first.require_agreement()


def test_two_servers_give_the_same_room_away_only_once(pair: tuple[Server, Server]) -> None:
    first, second = pair
    operators = [Operator(server.url, first.token) for server in pair]
    operators[0].add_service("demo", guest_image())
    operators[0].done(operators[0].call("POST", "/services/demo/prepare"))

    def start(number: int) -> dict[str, object]:
        operator = operators[number % 2]
        answer = operator.call("POST", "/instances", {"service_id": "demo"})
        return operator.job(answer)

    with ThreadPoolExecutor(2 * ROOM) as pool:
        jobs = list(pool.map(start, range(2 * ROOM)))

    outcomes = Counter(job["state"] for job in jobs)
    assert outcomes == {"succeeded": ROOM, "failed": ROOM}, jobs
    running = operators[1].get("/instances?state=running")["items"]
    assert len({instance["port"] for instance in running}) == ROOM
    for instance in running:
        assert ask_guest(instance["port"], "/visits", b"")["visits"] == 1
    second.require_agreement()

    assert first.kill() == -9
    operators[1].stop_all()
    assert operators[1].start("demo")["state"] == "running"
    operators[1].stop_all()
    second.require_agreement()
    first.start()
    wait_until(
        lambda: operators[0].get("/instances?state=running")["items"] == [],
        DEADLINE_S,
        first.log_text,
    )
