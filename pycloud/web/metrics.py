# SPDX-License-Identifier: Apache-2.0
"""Counts and times of requests, and what Prometheus reads of the cloudlet itself.

Each app has its own registry, so that two apps in one process do not mix and
tests start from zero. Reading the cloudlet happens when Prometheus asks, but not more
often than every few seconds.
"""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pycloud.core.facade import Core
from pycloud.core.model.identifiers import InstanceId
from pycloud.core.model.runtime import InstanceState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REQUEST_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
_START_BUCKETS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
_FRESH_S = 8.0
"""How long figures that need all records are told again: every monitor that asks would
otherwise have them all read."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER_METHOD = "other"
"""Stands for all that clients think of themselves, of which there is no end."""
_Key = tuple[str, str, int]
"""Route, method, status."""


class Metrics:
    """What one app measures. Safe to use from several threads."""

    def __init__(self, core: Core) -> None:
        self._registry = CollectorRegistry()
        self._requests = RequestTally()
        self._registry.register(self._requests)
        self._cloudlet = CloudletMetrics(core, self._registry)
        self.observe = self._requests.observe

    def render(self) -> bytes:
        """Return everything in the text format of Prometheus."""
        self._cloudlet.refresh()
        return generate_latest(self._registry)


@dataclass(slots=True)
class _Row:
    """The requests of one kind that one thread answered."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(_REQUEST_BUCKETS_S) + 1))
    """By bucket; the last one is for everything slower."""
    seconds: float = 0.0


class RequestTally(Collector):
    """Counts and times of requests.

    Every thread counts in rows of its own, without a lock: all threads meet here at
    every request, and waiting for each other would cost more than all the rest. A
    reader may see a request in the one figure and not yet in the other.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._threads: dict[int, dict[_Key, _Row]] = {}
        self._lock = threading.Lock()

    def observe(self, route: str, method: str, *, status: int, seconds: float) -> None:
        """Count one answered request."""
        try:
            rows: dict[_Key, _Row] = self._local.rows
        except AttributeError:
            rows = self._begin_thread()
        key = (route, method if method in _METHODS else _OTHER_METHOD, status)
        row = rows.get(key)
        if row is None:
            row = rows[key] = _Row()
        row.counts[bisect_left(_REQUEST_BUCKETS_S, seconds)] += 1
        row.seconds += seconds

    def _begin_thread(self) -> dict[_Key, _Row]:
        # An id is given again only after its thread has ended, so its rows are free to
        # go on with; threads come and go, and their number must not make this grow.
        with self._lock:
            rows = self._threads.setdefault(threading.get_ident(), {})
        self._local.rows = rows
        return rows

    def describe(self) -> Iterator[Metric]:
        """Return nothing; there is nothing to read when the registry asks first."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the sums over all threads."""
        counters = CounterMetricFamily(
            "pycloud_http_requests", "Requests answered", labels=("route", "method", "status")
        )
        timers = HistogramMetricFamily(
            "pycloud_http_request_seconds", "Time from routing to reply", labels=("route",)
        )
        routes: dict[str, _Row] = {}
        totals: dict[_Key, int] = {}
        with self._lock:
            threads = list(self._threads.values())
        for key, row in (item for rows in threads for item in list(rows.items())):
            totals[key] = totals.get(key, 0) + sum(row.counts)
            whole = routes.setdefault(key[0], _Row())
            whole.counts = [
                mine + more for mine, more in zip(whole.counts, row.counts, strict=True)
            ]
            whole.seconds += row.seconds
        for (route, method, status), count in sorted(totals.items()):
            counters.add_metric((route, method, str(status)), count)
        for route, row in sorted(routes.items()):
            timers.add_metric((route,), _cumulative(row.counts), row.seconds)
        yield counters
        yield timers


def _cumulative(counts: Sequence[int]) -> list[tuple[str, float]]:
    """Return (upper bound, requests at most that slow) pairs, as Prometheus has them."""
    bounds = [*(str(bound) for bound in _REQUEST_BUCKETS_S), "+Inf"]
    return list(zip(bounds, accumulate(counts), strict=True))


class CloudletMetrics:
    """Instances by state, and starts by method; brought up to date when Prometheus asks.

    A start is counted once by each server, when its record is first seen here;
    records outlive their Instance long enough for any sensible scrape interval.
    """

    def __init__(self, core: Core, registry: CollectorRegistry) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._counted: set[InstanceId] = set()
        self._refreshed_s: float | None = None
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
        """Read the records of all Instances, unless that was done a moment ago."""
        with self._lock:
            now_s = self._core.clock.monotonic()
            if self._refreshed_s is None or now_s - self._refreshed_s >= _FRESH_S:
                self._read()
                self._refreshed_s = now_s

    def _read(self) -> None:
        states: Counter[InstanceState] = Counter()
        seen: set[InstanceId] = set()
        for instance in self._core.instances.all_instances():
            states[instance.state] += 1
            # Whatever became of it, a start that has an address was answered.
            if instance.start_method is not None and instance.address is not None:
                seen.add(instance.id)
                if instance.id not in self._counted:
                    last = instance.timeline[-1]
                    self._starts.labels(instance.start_method.value).observe(
                        (last.begin_ms + last.duration_ms) / 1000
                    )
        self._counted = seen
        for state in InstanceState:
            self._instances.labels(state.value).set(states[state])
