# SPDX-License-Identifier: Apache-2.0
"""Ports for what surrounds a cloudlet: time, this host, secrets, other cloudlets."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from pycloud.core.model.fleet import (
    HostMetadata,
    Peer,
)


class Clock(Protocol):
    """Time, so that nothing else asks the operating system for it."""

    def now(self) -> datetime:
        """Return the present as an aware UTC datetime."""
        ...

    def monotonic(self) -> float:
        """Return seconds from an arbitrary origin that never goes back."""
        ...

    def sleep(self, duration_s: float) -> None:
        """Wait; only for polling with a deadline."""
        ...


class HostSensors(Protocol):
    """Load and size of the machine this server runs on."""

    def metadata(self) -> HostMetadata:
        """Return memory and processor figures, at most a second old."""
        ...

    def published_address(self) -> str:
        """Return the IPv4 address at which clients reach published ports."""
        ...


class Secrets(Protocol):
    """Small secrets of this cloudlet, readable by its owner only."""

    def read_or_create(self, name: str) -> str:
        """Return the secret of this name; a new random one is kept at the first call."""
        ...


class Discovery(Protocol):
    """Announce this cloudlet and see others."""

    def start(self) -> None:
        """Begin to announce and browse in the background; `problem` tells how it goes.

        A name that is taken or a network that is missing raises nothing: it is tried again.
        """
        ...

    def update_load(self, *, load_percent: int, services: Sequence[str]) -> None:
        """Change what the second service type tells about us; cheap, rate-limited."""
        ...

    def peers(self) -> tuple[Peer, ...]:
        """Return the other cloudlets seen at present."""
        ...

    def problem(self) -> str | None:
        """Return why we are not announced, in words for the operator; None if all is well."""
        ...

    def stop(self) -> None:
        """Say goodbye and stop; idempotent."""
        ...
