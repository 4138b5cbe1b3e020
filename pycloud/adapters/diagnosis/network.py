# SPDX-License-Identifier: Apache-2.0
"""The network: our ports, the address that clients are told, the bridge, and mDNS."""

import contextlib
import errno
import http.client
import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import psutil

from pycloud.adapters.discovery.avahi_file import LEGACY_FILE, MODERN_FILE
from pycloud.adapters.interfaces import (
    EVERYWHERE,
    interface_addresses,
    multicast_addresses,
    preferred_address,
    settled_address,
)
from pycloud.adapters.libvirt.neighbours import searchable_networks
from pycloud.core.model.diagnosis import Finding, Verdict
from pycloud.settings import Settings

MDNS_PORT = 5353
_ANSWER_TIMEOUT_S = 2.0
_HEALTHY = b"ok\n"
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_BRIDGES = Path("/sys/class/net")
_BRIDGE_HELPER_CONFIG = Path("/etc/qemu/bridge.conf")


def server_ports(settings: Settings) -> Iterator[Finding]:
    """Say whether both apps can listen, or a cloudlet does already."""
    places = (
        ("Cloudlet API", "api_port", settings.api_host, settings.api_port),
        ("Manager", "manager_port", settings.manager_host, settings.manager_port),
    )
    for name, setting, host, port in places:
        yield server_port(name, setting, host, port)


def server_port(name: str, setting: str, host: str, port: int) -> Finding:
    """Judge one place to listen on."""
    title = f"{name} port" if name == "Manager" else "API port"
    if port == 0:
        return Finding(name=title, verdict=Verdict.OK, detail="any free port")
    problem = _bind_problem(socket.SOCK_STREAM, host, port)
    if problem is None:
        return Finding(name=title, verdict=Verdict.OK, detail=f"{port} is free on {host}")
    if problem != errno.EADDRINUSE:
        reason = errno.errorcode.get(problem, str(problem))
        return Finding(
            name=title,
            verdict=Verdict.FAIL,
            detail=f"nothing can listen on {host}:{port} ({reason})",
            fix=f"set pycloud.{setting} (above 1023) or its host to an address of this machine",
        )
    if _is_ours("127.0.0.1" if host == EVERYWHERE else host, port):
        detail = f"a {name} is running on {port}"
        return Finding(name=title, verdict=Verdict.OK, detail=detail)
    return Finding(
        name=title,
        verdict=Verdict.FAIL,
        detail=f"another program listens on {host}:{port}",
        fix=f"ss -ltnp 'sport = :{port}'   # stop it, or set pycloud.{setting}",
    )


def port_range(settings: Settings) -> Iterator[Finding]:
    """Say whether the ports for Instances are theirs alone."""
    low, high = settings.port_range
    size = high - low + 1
    taken = [port for port in _listening_ports() if low <= port <= high]
    shown = f"{low}-{high}, {size - len(taken)} of {size} free"
    clashes = [port for port in (settings.api_port, settings.manager_port) if low <= port <= high]
    ephemeral = _ephemeral_range()
    if clashes:
        yield Finding(
            name="port range",
            verdict=Verdict.FAIL,
            detail=f"{low}-{high} holds the server's own port {clashes[0]}",
            fix="set pycloud.port_range to other ports",
        )
    elif len(taken) == size:
        yield Finding(
            name="port range",
            verdict=Verdict.FAIL,
            detail=f"all ports of {low}-{high} are in use",
            fix="set pycloud.port_range to a wider range",
        )
    elif ephemeral is not None and low <= ephemeral[1] and ephemeral[0] <= high:
        yield Finding(
            name="port range",
            verdict=Verdict.WARN,
            detail=f"{shown}; the kernel gives {ephemeral[0]}-{ephemeral[1]} to any program",
            fix=f"sudo sysctl net.ipv4.ip_local_reserved_ports={low}-{high}",
        )
    elif settings.max_instances > size:
        yield Finding(
            name="port range",
            verdict=Verdict.WARN,
            detail=f"{shown}, fewer than the {settings.max_instances} instances allowed",
            fix="set pycloud.port_range to a wider range",
        )
    else:
        yield Finding(name="port range", verdict=Verdict.OK, detail=shown)


def address(settings: Settings) -> Iterator[Finding]:
    """Say at which address clients look for us, and whether we listen there."""
    settled = settled_address(settings)
    told = settled or preferred_address()
    problems = tuple(_where_nobody_listens(settings, told))
    if problems:
        yield from problems
    elif not _is_here(told):
        yield Finding(
            name="address",
            verdict=Verdict.WARN,
            detail=f"clients are told {told}, which no interface here has",
            fix="set pycloud.publish_address = auto, unless a router forwards that address",
        )
    elif not IPv4Address(told).is_loopback:
        yield Finding(name="address", verdict=Verdict.OK, detail=f"clients are told {told}")
    elif settled is None:
        yield Finding(
            name="address",
            verdict=Verdict.WARN,
            detail="only this machine itself can reach the cloudlet: no network is up",
            fix="ip -brief address   # connect to the network that the devices are on",
        )
    else:
        yield Finding(
            name="address",
            verdict=Verdict.WARN,
            detail=f"clients are told {told}, at which only this machine itself can reach us",
            fix="set pycloud.publish_address = auto, and pycloud.publish_bind and"
            f" pycloud.api_host = {EVERYWHERE}",
        )


def _where_nobody_listens(settings: Settings, told: str) -> Iterator[Finding]:
    places = (
        ("publish_bind", settings.publish_bind, "the ports of instances"),
        ("api_host", settings.api_host, "the Cloudlet API"),
    )
    for setting, bind, what in places:
        if bind == EVERYWHERE:
            continue
        if not _is_here(bind):
            yield Finding(
                name="address",
                verdict=Verdict.FAIL,
                detail=f"{what} cannot be reached at {bind}, which no interface here has",
                fix=f"set pycloud.{setting} = {EVERYWHERE}   # or see: ip -brief address",
            )
        elif bind != told and _is_here(told):  # Elsewhere, a router may forward it to us.
            is_chosen = settings.publish_address != "auto"
            yield Finding(
                name="address",
                verdict=Verdict.FAIL,
                detail=f"clients are told {told}, but {what} can be reached at {bind} alone",
                fix="set pycloud.publish_address = auto"
                if is_chosen
                else f"set pycloud.{setting} = {EVERYWHERE}",
            )


def bridge(settings: Settings) -> Iterator[Finding]:
    """Say whether guests can join the bridge of the settings; nothing without one."""
    name = settings.network_bridge
    if not name:
        return
    if not (_BRIDGES / name / "bridge").is_dir():
        yield Finding(
            name="bridge",
            verdict=Verdict.FAIL,
            detail=f"there is no bridge {name}",
            fix=f"sudo ip link add {name} type bridge && sudo ip link set {name} up",
        )
    elif settings.hypervisor == "qemu:///session" and not _helper_allows(name):
        yield Finding(
            name="bridge",
            verdict=Verdict.FAIL,
            detail=f"{_BRIDGE_HELPER_CONFIG} does not let guests of users join {name}",
            fix=f"echo 'allow {name}' | sudo tee --append {_BRIDGE_HELPER_CONFIG}",
        )
    elif not searchable_networks(name):
        yield Finding(
            name="bridge",
            verdict=Verdict.WARN,
            detail=f"this host has no address on {name} in a network of at most 1024 addresses,"
            " so it cannot find out the address of a guest there",
            fix=f"sudo ip address add ADDRESS/24 dev {name}",
        )
    else:
        yield Finding(
            name="bridge",
            verdict=Verdict.OK,
            detail=f"guests join {name}; services start cold there",
        )


def discovery(settings: Settings) -> Iterator[Finding]:
    """Say whether devices can find this cloudlet by themselves."""
    if settings.discovery == "off":
        yield Finding(
            name="discovery",
            verdict=Verdict.WARN,
            detail="pycloud.discovery = off: no device finds this cloudlet by itself",
            fix="set pycloud.discovery = zeroconf",
        )
        return
    usable = multicast_addresses(settings.discovery_interfaces)
    if not any(not item.is_loopback for item in usable):
        yield Finding(
            name="discovery",
            verdict=Verdict.WARN,
            detail="no network interface is up on which devices could find this cloudlet",
            fix="ip -brief address   # and see pycloud.discovery_interfaces",
        )
        return
    yield _announcer(settings, ", ".join(dict.fromkeys(item.interface for item in usable)))


def _announcer(settings: Settings, interfaces: str) -> Finding:
    avahi = _avahi_runs()
    if settings.discovery == "avahi":
        return _avahi_announcer(settings, interfaces) if avahi else _AVAHI_IS_DOWN
    if _bind_problem(socket.SOCK_DGRAM, "", MDNS_PORT) is not None:
        owner = "avahi-daemon" if avahi else "another program"
        return Finding(
            name="discovery",
            verdict=Verdict.FAIL,
            detail=f"{owner} owns UDP port {MDNS_PORT} for itself, so we cannot announce",
            fix="sudo discovery/install.sh   # and set pycloud.discovery = avahi"
            if avahi
            else f"ss -lunp 'sport = :{MDNS_PORT}'   # names it",
        )
    shared = ", beside avahi-daemon" if avahi else ""
    return Finding(
        name="discovery",
        verdict=Verdict.OK,
        detail=f"UDP port {MDNS_PORT} can be used on {interfaces}{shared}",
    )


_AVAHI_IS_DOWN = Finding(
    name="discovery",
    verdict=Verdict.FAIL,
    detail="pycloud.discovery = avahi, but avahi-daemon does not run",
    fix="sudo systemctl enable --now avahi-daemon   # or set pycloud.discovery = zeroconf",
)


def _avahi_announcer(settings: Settings, interfaces: str) -> Finding:
    name = f" --name={settings.name}" if settings.name else ""
    fix = f'sudo discovery/install.sh --owner="$USER" --port={settings.api_port}{name}'
    if not LEGACY_FILE.exists():
        return Finding(
            name="discovery",
            verdict=Verdict.FAIL,
            detail=f"avahi-daemon does not announce us: {LEGACY_FILE} is missing",
            fix=fix,
        )
    if not os.access(MODERN_FILE, os.W_OK):
        return Finding(
            name="discovery",
            verdict=Verdict.WARN,
            detail=f"{MODERN_FILE} cannot be written; newer clients learn nothing of our services",
            fix=fix,
        )
    detail = f"avahi-daemon announces us on {interfaces}"
    return Finding(name="discovery", verdict=Verdict.OK, detail=detail)


# -- looking ---------------------------------------------------------------------------


def _is_here(address: str) -> bool:
    """Return whether a socket of this machine can have this address."""
    known = {item.address for item in interface_addresses()}
    return address in known or IPv4Address(address).is_loopback


def _bind_problem(kind: socket.SocketKind, host: str, port: int) -> int | None:
    """Return the error number of listening there, None if it works."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if kind == socket.SOCK_DGRAM:
            # As every mDNS responder does that is willing to share the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            probe.bind((host, port))
            if kind == socket.SOCK_STREAM:
                probe.listen(1)
        except OSError as exc:
            return exc.errno
    return None


def _is_ours(host: str, port: int) -> bool:
    """Return whether what listens there answers /healthz as our apps do."""
    connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        content = answer.read(len(_HEALTHY) + 1)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return answer.status == http.HTTPStatus.OK and content == _HEALTHY


def _listening_ports() -> set[int]:
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return set()
    found = (item.laddr for item in connections if item.status == psutil.CONN_LISTEN)
    return {place.port for place in found if place}


def _ephemeral_range() -> tuple[int, int] | None:
    with contextlib.suppress(OSError, ValueError):
        low, high = _EPHEMERAL_RANGE.read_text(encoding="ascii").split()
        return int(low), int(high)
    return None


def _helper_allows(name: str) -> bool:
    try:
        lines = _BRIDGE_HELPER_CONFIG.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    return any(line.split()[:2] in (["allow", name], ["allow", "all"]) for line in lines)


def _avahi_runs() -> bool:
    return any(process.info["name"] == "avahi-daemon" for process in psutil.process_iter(["name"]))
