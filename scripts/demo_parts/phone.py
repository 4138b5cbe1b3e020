# SPDX-License-Identifier: Apache-2.0
"""The phone's side: it has a network, mDNS and HTTP, and knows nothing else of the cloudlet.

Written from the contract of the old clients and shares no code with the server.
"""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

import requests
from zeroconf import Error, ServiceBrowser, ServiceListener, Zeroconf

from demo_parts.story import DemoError, Stopwatch

SERVICE_TYPE = "_cloudlet._tcp.local."
PATIENCE_S = 6.0
"""An old client waits this long for cloudlets."""
_RESOLVE_MS = 3000
_ANSWER_TIMEOUT_S = 180.0
_DEVICE_ID = "demo-phone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A cloudlet that answered on the network."""

    name: str
    address: str
    port: int
    encryption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What the cloudlet says about a Service VM that it started."""

    instance_id: str
    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """The service's answer and how long it took to get it."""

    answer: dict[str, Any]  # Any: decoded JSON
    first_answer_s: float
    start_s: float


class Phone:
    """A mobile device near a cloudlet."""

    def __init__(self) -> None:
        self._http = requests.Session()
        # A proxy of the user's would not know the way to a cloudlet nearby.
        self._http.trust_env = False
        self._http.headers["X-Device-ID"] = _DEVICE_ID

    def find(self, name: str) -> tuple[Found | None, int]:
        """Return the cloudlet of this name, if it answers in time, and how many others did."""
        found: dict[str, Found] = {}
        seen = threading.Event()

        def look(zeroconf: Zeroconf, instance: str) -> None:
            one = _resolve(zeroconf, instance)
            if one is not None:
                found[one.name] = one
                if one.name == name:
                    seen.set()

        try:
            with Zeroconf() as zeroconf:
                browser = ServiceBrowser(zeroconf, SERVICE_TYPE, listener=_Listener(look))
                seen.wait(PATIENCE_S)
                browser.cancel()
        except (OSError, Error) as exc:
            raise DemoError(f"multicast DNS does not work here: {exc}") from exc
        return found.get(name), len(found.keys() - {name})

    def ask(self, cloudlet: Found, path: str, **query: str) -> Any:  # Any: decoded JSON
        """Call the cloudlet as old clients do: GET and a query."""
        url = f"http://{cloudlet.address}:{cloudlet.port}/api{path}"
        try:
            answer = self._http.get(url, params=query, timeout=_ANSWER_TIMEOUT_S)
        except requests.RequestException as exc:
            raise DemoError(f"the cloudlet does not answer at {url}: {_reason(exc)}") from exc
        if answer.status_code != requests.codes.ok:
            raise DemoError(f"GET {url} was answered {answer.status_code}: {answer.text.strip()}")
        return answer.json()

    def start(self, cloudlet: Found, service_id: str) -> Started:
        """Start a Service VM; the answer comes when its service answers."""
        told = self.ask(cloudlet, "/servicevm/start", serviceId=service_id, join="false")
        return Started(
            instance_id=told["_id"],
            address=told["fqdn"] or told["ip_address"],
            port=int(told["port"]),
        )

    def analyse(self, started: Started, content: bytes, watch: Stopwatch) -> Analysis:
        """Post a file to the service, and check its answer against our own checksum."""
        start_s = watch.seconds
        url = f"http://{started.address}:{started.port}/analyse"
        try:
            answer = self._http.post(url, data=content, timeout=_ANSWER_TIMEOUT_S)
            answer.raise_for_status()
            told = answer.json()
        except requests.RequestException as exc:
            raise DemoError(f"the service does not answer at {url}: {_reason(exc)}") from exc
        first_answer_s = watch.seconds
        if told.get("sha256") != hashlib.sha256(content).hexdigest():
            raise DemoError("the service computed another checksum than this machine does")
        return Analysis(answer=told, first_answer_s=first_answer_s, start_s=start_s)

    def stop(self, cloudlet: Found, started: Started) -> None:
        """Give the Service VM back."""
        self.ask(cloudlet, "/servicevm/stop", instanceId=started.instance_id)


class _Listener(ServiceListener):
    """Looks at every cloudlet that turns up, in a thread of its own: the library's may not wait."""

    def __init__(self, look: Callable[[Zeroconf, str], None]) -> None:
        self._look = look

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:  # noqa: ARG002  # its signature
        """Look at one that turned up."""
        threading.Thread(target=self._look, args=(zc, name), daemon=True).start()

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Look again at one that changed."""
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Do nothing; one that left does not answer."""


def _resolve(zeroconf: Zeroconf, instance: str) -> Found | None:
    info = zeroconf.get_service_info(SERVICE_TYPE, instance, timeout=_RESOLVE_MS)
    if info is None or info.port is None:
        return None
    addresses = [one for one in info.parsed_addresses() if _is_ipv4(one)]
    if not addresses:
        return None
    # Old clients take the last word of the name and what follows the first "=".
    label = instance.removesuffix(f".{SERVICE_TYPE}")
    text = (info.text or b"")[1:].decode("utf-8", errors="replace")
    return Found(
        name=label.split(" ")[-1],
        address=addresses[0],
        port=info.port,
        encryption=text.partition("=")[2],
    )


def _is_ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True


def _reason(exc: requests.RequestException) -> str:
    return type(exc).__name__ if isinstance(exc, requests.ConnectionError) else str(exc)
