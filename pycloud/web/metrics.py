# SPDX-License-Identifier: Apache-2.0
"""Counts and times of requests, and what Prometheus reads of the cloudlet itself.

Each app has its own registry, so that two apps in one process do not mix and
tests start from zero. Reading the cloudlet happens when Prometheus asks.
"""

import threading
from collections import Counter as TallyOf
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pycloud.core.facade import Core
from pycloud.core.model.identifiers import InstanceId
from pycloud.core.model.runtime import Instance, InstanceState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REQUEST_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
_START_BUCKETS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
_RECORDS_AT_ONCE = 500


class Metrics:
    """What one app measures. Safe to use from several threads."""

    def __init__(self, core: Core) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "pycloud_http_requests",
            "Requests answered",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "pycloud_http_request_seconds",
            "Time from the first to the last line of our code",
            ("route",),
            buckets=_REQUEST_BUCKETS_S,
            registry=self._registry,
        )
        # Looking a labelled child up costs more than counting; there are few of them.
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._timers: dict[str, Histogram] = {}
        self._cloudlet = CloudletMetrics(core, self._registry)

    def observe(self, route: str, method: str, *, status: int, seconds: float) -> None:
        """Count one answered request."""
        counter = self._counters.get((route, method, status))
        if counter is None:
            counter = self._requests.labels(route, method, str(status))
            self._counters[route, method, status] = counter
        counter.inc()
        timer = self._timers.get(route)
        if timer is None:
            timer = self._timers[route] = self._seconds.labels(route)
        timer.observe(seconds)

    def render(self) -> bytes:
        """Return everything in the text format of Prometheus."""
        self._cloudlet.refresh()
        return generate_latest(self._registry)


class CloudletMetrics:
    """Instances by state, and starts by method; brought up to date when Prometheus asks.

    A start is counted once by each server, when its record is first seen here;
    records outlive their Instance long enough for any sensible scrape interval.
    """

    def __init__(self, core: Core, registry: CollectorRegistry) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._counted: set[InstanceId] = set()
        self._instances = Gauge(
            "pycloud_instances", "Instances by state", ("state",), registry=registry
        )
        self._starts = Histogram(
            "pycloud_start_seconds",
            "Time from a request for an Instance to the first answer of its service",
            ("method",),
            buckets=_START_BUCKETS_S,
            registry=registry,
        )

    def refresh(self) -> None:
        """Read the records of all Instances."""
        with self._lock:
            states: TallyOf[InstanceState] = TallyOf()
            seen: set[InstanceId] = set()
            for instance in self._all():
                states[instance.state] += 1
                if instance.start_method is not None and instance.timeline:
                    seen.add(instance.id)
                    if instance.id not in self._counted:
                        last = instance.timeline[-1]
                        self._starts.labels(instance.start_method.value).observe(
                            (last.begin_ms + last.duration_ms) / 1000
                        )
            self._counted = seen
            for state in InstanceState:
                self._instances.labels(state.value).set(states[state])

    def _all(self) -> Iterator[Instance]:
        cursor: str | None = None
        while True:
            page = self._core.instances.instances(limit=_RECORDS_AT_ONCE, cursor=cursor)
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return
