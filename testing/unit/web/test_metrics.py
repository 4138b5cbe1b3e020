# SPDX-License-Identifier: Apache-2.0
"""Requests are counted without a lock and without loss."""

import threading

from prometheus_client import CollectorRegistry, generate_latest

from pycloud.web.metrics import RequestTally


def rendered(tally: RequestTally) -> str:
    registry = CollectorRegistry()
    registry.register(tally)
    return generate_latest(registry).decode()


def test_tally_adds_up_what_all_threads_counted() -> None:
    tally = RequestTally()

    def count() -> None:
        for _ in range(1000):
            tally.observe("home", "GET", status=200, seconds=0.25)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = rendered(tally)
    assert 'pycloud_http_requests_total{method="GET",route="home",status="200"} 4000.0' in text
    assert 'pycloud_http_request_seconds_sum{route="home"} 1000.0' in text


def test_tally_sorts_times_into_cumulative_buckets() -> None:
    tally = RequestTally()
    for seconds in (0.001, 0.002, 0.3, 99.0):
        tally.observe("home", "GET", status=200, seconds=seconds)
    text = rendered(tally)
    assert 'bucket{le="0.001",route="home"} 1.0' in text
    assert 'bucket{le="0.0025",route="home"} 2.0' in text
    assert 'bucket{le="1.0",route="home"} 3.0' in text
    assert 'bucket{le="+Inf",route="home"} 4.0' in text


def test_tally_does_not_grow_with_the_number_of_threads_that_were() -> None:
    tally = RequestTally()
    for _ in range(50):
        thread = threading.Thread(
            target=tally.observe, args=("a", "GET"), kwargs={"status": 200, "seconds": 0.1}
        )
        thread.start()
        thread.join()
    assert 'status="200"} 50.0' in rendered(tally)
    assert len(tally._threads) < 50


def test_tally_does_not_grow_with_the_methods_that_clients_think_of() -> None:
    tally = RequestTally()
    for number in range(50):
        tally.observe("home", f"METHOD{number}", status=405, seconds=0.1)
    assert 'method="other",route="home",status="405"} 50.0' in rendered(tally)
    assert "METHOD1" not in rendered(tally)
