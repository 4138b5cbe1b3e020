# SPDX-License-Identifier: Apache-2.0
"""Size and load of this machine, as phones want to know it before they choose a cloudlet."""

import re
import subprocess
import threading
from pathlib import Path

import psutil

from pycloud.adapters.interfaces import preferred_address, settled_address
from pycloud.core.model.fleet import CpuInfo, HostMetadata, MemoryInfo
from pycloud.core.ports import Clock
from pycloud.settings import Settings

_MAX_AGE_S = 0.9
_NOMINAL_MHZ = 1000.0
"""Told when nothing else is known: old clients drop a cloudlet whose speed is not above 0."""
_LSCPU_TIMEOUT_S = 5.0
_MAX_MHZ = re.compile(r"^CPU (?:max )?MHz:\s*([0-9.]+)\s*$", re.MULTILINE)
_CPUINFO_MHZ = re.compile(r"^cpu MHz\s*:\s*([0-9.]+)\s*$", re.MULTILINE)
_CACHE_SIZE = re.compile(r"([0-9]+)([KMG]?)")
_KIB = {"": 1 / 1024, "K": 1, "M": 1024, "G": 1024 * 1024}


class PsutilSensors:
    """The HostSensors port on Linux. Thread-safe; never waits to measure a load."""

    def __init__(self, settings: Settings, clock: Clock, *, root: Path = Path("/")) -> None:
        self._settings = settings
        self._clock = clock
        self._root = root
        self._lock = threading.Lock()
        self._cpu_times = _cpu_times()
        self._usage_percent = 0.0
        self._fallback_mhz: float | None = None
        self._cache_kib = _last_level_cache_kib(root)
        self._metadata: HostMetadata | None = None
        self._measured_at_s = 0.0

    def metadata(self) -> HostMetadata:
        """Return figures at most a second old; the load is the mean since the last reading."""
        with self._lock:
            now_s = self._clock.monotonic()
            if self._metadata is None or now_s - self._measured_at_s >= _MAX_AGE_S:
                self._metadata = self._measure()
                self._measured_at_s = now_s
            return self._metadata

    def published_address(self) -> str:
        """Return the address of the settings, or the one that others most likely reach."""
        return settled_address(self._settings) or preferred_address()

    def _measure(self) -> HostMetadata:
        memory = psutil.virtual_memory()
        return HostMetadata(
            memory=MemoryInfo(max_bytes=memory.total, free_bytes=memory.available),
            cpu=CpuInfo(
                max_cores=max(1, psutil.cpu_count() or 1),
                usage_percent=self._measure_usage_percent(),
                speed_mhz=self._speed_mhz(),
                cache_kib=self._cache_kib,
            ),
        )

    def _measure_usage_percent(self) -> float:
        busy_s, total_s = _cpu_times()
        busy_before_s, total_before_s = self._cpu_times
        if total_s > total_before_s:
            share = (busy_s - busy_before_s) / (total_s - total_before_s)
            self._usage_percent = round(min(max(100 * share, 0.0), 100.0), 1)
            self._cpu_times = (busy_s, total_s)
        return self._usage_percent

    def _speed_mhz(self) -> float:
        try:
            frequency = psutil.cpu_freq()
        except (OSError, NotImplementedError, RuntimeError):
            frequency = None  # Some virtual machines and containers hide it.
        if frequency is not None:
            for value in (frequency.current, frequency.max):
                if value and value > 0:
                    return float(value)
        if self._fallback_mhz is None:
            self._fallback_mhz = _cpuinfo_mhz(self._root) or _lscpu_mhz() or _NOMINAL_MHZ
        return self._fallback_mhz


def _cpu_times() -> tuple[float, float]:
    """Return (busy, all) processor seconds since boot.

    Linux counts the time of guests within that of their processes, and waiting for a
    disk is not work.
    """
    times = psutil.cpu_times()
    guest_s = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    total_s = sum(times) - guest_s
    return total_s - times.idle - getattr(times, "iowait", 0.0), total_s


def _cpuinfo_mhz(root: Path) -> float | None:
    found = _CPUINFO_MHZ.search(_text(root / "proc/cpuinfo"))
    return float(found[1]) or None if found else None


def _lscpu_mhz() -> float | None:
    try:
        result = subprocess.run(
            ["lscpu"],
            capture_output=True,
            check=True,
            text=True,
            timeout=_LSCPU_TIMEOUT_S,
            env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = _MAX_MHZ.search(result.stdout)
    return float(found[1]) or None if found else None


def _last_level_cache_kib(root: Path) -> int:
    levels: dict[int, int] = {}
    for index in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, size = _text(index / "level").strip(), _text(index / "size").strip()
        parsed = _CACHE_SIZE.fullmatch(size)
        if level.isdigit() and parsed is not None:
            levels[int(level)] = round(int(parsed[1]) * _KIB[parsed[2]])
    if levels:
        return levels[max(levels)]
    found = re.search(r"^cache size\s*:\s*([0-9]+) KB", _text(root / "proc/cpuinfo"), re.MULTILINE)
    return int(found[1]) if found else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
