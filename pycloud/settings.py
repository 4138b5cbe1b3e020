# SPDX-License-Identifier: Apache-2.0
"""Every setting of pycloud: key, type, default, unit and what is allowed, on one screen.

A setting `name` of the table below is written `pycloud.name = value` in an `.ini`
file or `PYCLOUD_NAME=value` in the environment, which wins. This module reads
text into a frozen `Settings`; it opens no file but the `.ini` it is given.
"""

import configparser
import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from pycloud.errors import InvalidSettings

PREFIX = "pycloud."
ENVIRONMENT_PREFIX = "PYCLOUD_"
_NO_SETTINGS = (
    # the command line
    "PYCLOUD_CONFIG",
    "PYCLOUD_TOKEN",
    "PYCLOUD_URL",
    # set-up and tests
    "PYCLOUD_PYTHON",
    "PYCLOUD_TEST_CACHE",
    "PYCLOUD_TEST_MONGO_URL",
)
"""Variables of the environment that begin like a setting and mean something else."""
_DEFAULTS = "DEFAULT"
_OVERRIDING = "set "
"""Before a key, it makes PasteDeploy prefer the section's value to that of [DEFAULT]."""
_PERCENT = re.compile(r"%\(here\)s|%%")


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a setting is read: its parser and a sentence that says what is allowed."""

    parse: Callable[[str], Any]  # Any: every kind has its own value type.
    allowed: str


def _setting(default: object, kind: _Kind, help_text: str) -> Any:  # Any: as dataclasses.field
    return field(default=default, metadata={"kind": kind, "help": help_text})


def _integer(low: int, high: int) -> _Kind:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return _Kind(parse, f"a whole number from {low} to {high}")


def _number(low: float, high: float) -> _Kind:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return _Kind(parse, f"a number from {low:g} to {high:g}")


def _choice(*allowed: str) -> _Kind:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(text)
        return text

    return _Kind(parse, "one of " + ", ".join(allowed))


def _pattern(expression: str, allowed: str) -> _Kind:
    compiled = re.compile(expression)

    def parse(text: str) -> str:
        if compiled.fullmatch(text) is None:
            raise ValueError(text)
        return text

    return _Kind(parse, allowed)


def _parse_port_range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    first, last = int(low), int(high)
    if not 1024 <= first <= last <= 65535:
        raise ValueError(text)
    return first, last


def _parse_interfaces(text: str) -> tuple[str, ...]:
    names = tuple(text.split())
    if not all(_INTERFACE_NAME.fullmatch(name) for name in names):
        raise ValueError(text)
    return names


def _parse_path(text: str) -> Path:
    try:
        path = Path(text).expanduser()
    except RuntimeError as exc:  # There is no such user.
        raise ValueError(text) from exc
    if not path.is_absolute():
        raise ValueError(text)
    return path


def _parse_bind(text: str) -> str:
    address = IPv4Address(text)
    if address.is_multicast or address == _LIMITED_BROADCAST:
        raise ValueError(text)
    return text


def _parse_published(text: str) -> str:
    if text != "auto" and IPv4Address(_parse_bind(text)).is_unspecified:
        raise ValueError(text)
    return text


def _parse_fqdn(text: str) -> str:
    if text:
        _check_host(text)
    if "_" in text:
        raise ValueError(text)
    return text


def _parse_store(text: str) -> str:
    if text.startswith("sqlite:///"):
        if named := text.removeprefix("sqlite:///"):
            _parse_path(named)
    elif (found := _MONGODB_URL.fullmatch(text)) is not None:
        for place in found["places"].split(","):
            _check_place(place)
    elif text != "memory:":
        raise ValueError(text)
    return text


def _check_place(text: str) -> None:
    """Raise ValueError unless this is HOST, HOST:PORT or the path of a socket."""
    found = _PLACE.fullmatch(text)
    if found is None or not 1 <= int(found["port"] or 1) <= 65535:
        raise ValueError(text)
    if found["bracketed"]:
        IPv6Address(found["bracketed"])
    elif not found["socket"]:
        _check_host(found["host"])


def _check_host(text: str) -> None:
    """Raise ValueError unless this may be the name of a host, or is an IPv4 address."""
    if _NUMERIC.fullmatch(text):
        IPv4Address(text)
    elif len(text) > _MAX_HOST_NAME or not all(
        _HOST_LABEL.fullmatch(label) for label in text.removesuffix(".").split(".")
    ):
        raise ValueError(text)


_INTERFACE_NAME = re.compile(r"[^\s/:,]{1,15}")
_LIMITED_BROADCAST = IPv4Address("255.255.255.255")
_MAX_HOST_NAME = 253
_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_NUMERIC = re.compile(r"[0-9.]+")
_MONGODB_URL = re.compile(
    r"""mongodb(\+srv)?://([^@/?]*@)?(?P<places>[^@/?]+)(/[^/\\. "$*<>:|?]*)?(\?\S*)?"""
)
_PLACE = re.compile(
    r"(?P<socket>%2[Ff][^:]*)|(\[(?P<bracketed>[^\]]*)\]|(?P<host>[^:\[\]]*))(:(?P<port>[0-9]{1,5}))?"
)
_PORT = _integer(0, 65535)
_PORT_RANGE = _Kind(_parse_port_range, "FIRST-LAST with 1024 <= FIRST <= LAST <= 65535")
_INTERFACES = _Kind(_parse_interfaces, "names of network interfaces, separated by spaces")
_PATH = _Kind(_parse_path, "an absolute path, or one that begins with ~")
_STORE = _Kind(
    _parse_store,
    "sqlite:/// alone or followed by an absolute path, mongodb://HOST[:PORT]/DATABASE with"
    " %-encoded special characters, or memory:",
)
_HYPERVISOR = _pattern(
    r"(qemu(\+\w+)?://[^/\s]*/(session|system)(\?\S*)?|fake:)",
    "qemu:///session, qemu:///system or fake:",
)
_NAME = _pattern(
    r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}|",
    "letters, digits, '_' and '-', at most 63, no spaces or dots; empty: the host name",
)
_ADDRESS = _Kind(_parse_published, "the IPv4 address of a host, or auto")
_BIND = _Kind(_parse_bind, "the IPv4 address of a host; 0.0.0.0 for all interfaces")
_BRIDGE = _pattern(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}|", "the name of a bridge, or empty for user-mode networking"
)
_HOSTNAME = _Kind(_parse_fqdn, "a host name, or empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings. Build one with `load` or `from_mapping`; change by `replace`."""

    # fmt: off
    # where things are
    data_dir: Path = _setting(Path("~/.local/share/pycloud").expanduser(), _PATH, "disks, memory states, records, tokens")
    store: str = _setting("sqlite:///", _STORE, "records; sqlite:/// alone is store.sqlite3 in data_dir")
    hypervisor: str = _setting("qemu:///session", _HYPERVISOR, "libvirt connection")
    # who we are
    name: str = _setting("", _NAME, "name that phones remember; empty: the host name")
    fqdn: str = _setting("", _HOSTNAME, "name that clients can resolve to this host; empty: none")
    publish_address: str = _setting("auto", _ADDRESS, "address told to clients; auto: publish_bind or api_host if that is one address, else that of the default route")
    publish_bind: str = _setting("0.0.0.0", _BIND, "address on which ports of Instances listen")
    # the two apps
    api_host: str = _setting("0.0.0.0", _BIND, "address on which the Cloudlet API listens")
    api_port: int = _setting(9999, _PORT, "port of the Cloudlet API")
    manager_host: str = _setting("127.0.0.1", _BIND, "address on which the Manager listens")
    manager_port: int = _setting(9998, _PORT, "port of the Manager")
    wsgi_server: str = _setting("waitress", _choice("waitress", "granian"), "HTTP server of the Cloudlet API; granian is for hundreds of clients and guards less")
    wsgi_threads: int = _setting(16, _integer(2, 256), "requests worked on at the same time")
    connection_limit: int = _setting(2000, _integer(16, 100_000), "open connections of one app")
    connections_per_address: int = _setting(256, _integer(4, 100_000), "open connections of one client address")
    request_head_timeout_s: float = _setting(10.0, _number(0.1, 600), "time a client has to send a request head")
    request_body_timeout_s: float = _setting(120.0, _number(0.1, 3600), "time a client may stall within a request body")
    max_body_mib: int = _setting(68, _integer(1, 4096), "largest piece of an upload, in one request; other bodies have 256 KiB at most")
    log_format: str = _setting("text", _choice("text", "json"), "one line per event, for people or for machines")
    log_level: str = _setting("INFO", _choice("DEBUG", "INFO", "WARNING", "ERROR"), "least severe level that is logged")
    # instances
    network_bridge: str = _setting("", _BRIDGE, "bridge that guests join; empty: user-mode networking")
    port_range: tuple[int, int] = _setting((20000, 20999), _PORT_RANGE, "host ports given to Instances")
    max_instances: int = _setting(32, _integer(1, 10_000), "Instances that may exist at the same time")
    reserved_memory_mib: int = _setting(1024, _integer(0, 10_000_000), "memory left to the host itself")
    memory_overcommit: float = _setting(1.0, _number(0.1, 16), "guest memory promised per memory there is")
    start_timeout_s: float = _setting(120.0, _number(1, 3600), "time a service has to answer after a start")
    stop_timeout_s: float = _setting(10.0, _number(0, 600), "time a guest has to power off before it is ended")
    idle_timeout_s: int = _setting(0, _integer(0, 31_536_000), "an unused Instance is stopped after this; 0: never")
    max_lifetime_s: int = _setting(0, _integer(0, 31_536_000), "every Instance is stopped after this; 0: never")
    keep_finished_s: int = _setting(3600, _integer(0, 31_536_000), "how long finished Instances and Jobs are listed")
    warm_total: int = _setting(4, _integer(0, 256), "waiting copies on this host at most; 0: none")
    warm_per_service: int = _setting(1, _integer(0, 64), "waiting copies of each popular Service")
    warm_popular_s: int = _setting(3600, _integer(0, 31_536_000), "a Service started within this time is popular")
    warm_min_free_mib: int = _setting(2048, _integer(0, 10_000_000), "below this much free memory no copies wait")
    cpu_model: str = _setting("auto", _pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "a QEMU CPU model, or auto"), "CPU model of new guests")
    emulator_tb_mib: int = _setting(256, _integer(16, 4096), "translation cache of each guest without KVM")
    # what comes from outside
    max_image_gib: int = _setting(64, _integer(1, 65_536), "largest disk image, as a file and as a disk")
    max_app_mib: int = _setting(512, _integer(1, 65_536), "largest client package")
    upload_timeout_s: int = _setting(86_400, _integer(60, 31_536_000), "an unfinished upload is dropped after this")
    tool_timeout_s: int = _setting(1800, _integer(10, 86_400), "time that one run of qemu-img may take")
    # jobs
    job_workers: int = _setting(4, _integer(1, 64), "Jobs worked on at the same time by one server")
    job_lease_s: float = _setting(8.0, _number(0.2, 600), "a Job whose server is silent for this long is taken over; the same for all servers of a host")
    reconcile_s: float = _setting(4.0, _number(0.2, 3600), "time between two comparisons of records and reality")
    keep_events: int = _setting(10_000, _integer(100, 10_000_000), "events kept for readers that come late")
    # discovery
    discovery: str = _setting("zeroconf", _choice("zeroconf", "avahi", "off"), "who announces: pycloud, avahi-daemon, nobody")
    discovery_interfaces: tuple[str, ...] = _setting((), _INTERFACES, "interface names to announce on; empty: all")
    # fmt: on


ORIGIN_DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSettings:
    """Settings and, for every key, where its value came from, in words."""

    settings: Settings
    origins: Mapping[str, str]


def from_mapping(values: Mapping[str, str], *, origin: str = "arguments") -> LoadedSettings:
    """Build Settings from `pycloud.*` keys; the environment wins over `values`.

    Keys of other programs are left alone. Raises InvalidSettings for an unknown
    key of ours or a value that is not allowed.
    """
    texts: dict[str, tuple[str, str]] = {
        key.removeprefix(PREFIX): (text, origin)
        for key, text in values.items()
        if key.startswith(PREFIX)
    }
    known = {item.name: item for item in fields(Settings)}
    for name, (text, _) in texts.items():
        if name not in known:
            meant = _did_you_mean(PREFIX + name, [PREFIX + other for other in known])
            raise InvalidSettings(PREFIX + name, _shown(text), allowed=meant)
    texts |= _from_environment(known)
    parsed: dict[str, Any] = {  # Any: as in `_Kind`.
        name: _parse(name, text, known[name].metadata["kind"]) for name, (text, _) in texts.items()
    }
    origins = {name: texts[name][1] if name in texts else ORIGIN_DEFAULT for name in known}
    return LoadedSettings(settings=Settings(**parsed), origins=origins)


def from_deployment(
    global_config: Mapping[str, str], own: Mapping[str, str], *, origin: str
) -> LoadedSettings:
    """Build Settings from what PasteDeploy hands to an app or a server under `pserve`.

    Raises InvalidSettings, also for what only the file shows to be wrong.
    """
    if path := global_config.get("__file__"):
        load(Path(path))
    return from_mapping({**global_config, **own}, origin=origin)


def load(path: Path | None) -> LoadedSettings:
    """Read an `.ini` file as `pserve` does, or take defaults without one.

    [DEFAULT] comes first; then every section counts, and later ones win. Raises
    InvalidSettings, also when the file cannot be read.
    """
    if path is None:
        return from_mapping({})
    # No section can have an empty name, so [DEFAULT] is read as a section like the others.
    parser = configparser.ConfigParser(
        interpolation=None, default_section="", strict=False, delimiters=("=",)
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    try:
        with path.open(encoding="utf-8") as stream:
            parser.read_file(stream)
    except (OSError, UnicodeDecodeError, configparser.Error) as exc:
        raise InvalidSettings("config", str(path), allowed=f"a readable .ini file ({exc})") from exc
    meanings = {"%(here)s": str(path.resolve().parent), "%%": "%"}
    values = {
        key: _PERCENT.sub(lambda match: meanings[match[0]], text)
        for key, text in _joined({name: dict(parser.items(name)) for name in parser.sections()})
    }
    return from_mapping(values, origin=str(path))


def describe(settings: Settings) -> list[tuple[str, str, str]]:
    """Return (name, value as it would be written, help) of every setting, in order."""
    return [
        (item.name, _written(getattr(settings, item.name)), str(item.metadata["help"]))
        for item in fields(Settings)
    ]


def _joined(sections: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield our keys in the order in which they count, the last of each being the one.

    PasteDeploy silently passes over a section's key that stands in [DEFAULT] as well, and
    the server of the same file keeps to [DEFAULT] anyway. So that is an error here.
    """
    defaults = sections.get(_DEFAULTS, {})
    yield from defaults.items()
    for name, section in sections.items():
        if name == _DEFAULTS:
            continue
        for written, text in section.items():
            key = written.removeprefix(_OVERRIDING).strip()
            if key.startswith(PREFIX) and key == written and defaults.get(key, text) != text:
                raise InvalidSettings(
                    key,
                    _shown(text),
                    allowed=f"[{_DEFAULTS}] sets it as well, and pserve takes that; set it once",
                )
            yield key, text


def _from_environment(known: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return the settings of the environment. Raises InvalidSettings for a misspelt one."""
    settings = {ENVIRONMENT_PREFIX + name.upper(): name for name in known}
    found = {}
    for variable, text in os.environ.items():
        if variable in settings:
            found[settings[variable]] = (text, f"environment {variable}")
        elif variable.startswith(ENVIRONMENT_PREFIX) and variable not in _NO_SETTINGS:
            meant = _did_you_mean(variable.upper(), [*settings, *_NO_SETTINGS])
            # What it holds may be a token under a misspelt name.
            raise InvalidSettings(variable, "...", allowed=meant)
    return found


def _parse(name: str, text: str, kind: _Kind) -> object:
    try:
        return kind.parse(text.strip())
    except ValueError as exc:
        raise InvalidSettings(PREFIX + name, _shown(text), allowed=kind.allowed) from exc


def _shown(text: str) -> str:
    """Return a value for an error message, without the user and password of a URL."""
    return re.sub(r"(?<=://).*@", "***@", text)


def _written(value: object) -> str:
    if isinstance(value, tuple):
        separator = "-" if value and isinstance(value[0], int) else " "
        return separator.join(str(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"there is no such setting{hint} (`pycloud config show` lists all)"
