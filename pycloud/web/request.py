# SPDX-License-Identifier: Apache-2.0
"""The request as views see it: the core, the settings and who is asking.

Everything here is computed when first asked for, because most requests of a
phone need none of it.
"""

import ipaddress
import itertools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar, cast

from pyramid.request import Request as PyramidRequest

from pycloud.core.facade import Core
from pycloud.core.model.identifiers import DeviceId, JobId, Principal, checked_id
from pycloud.errors import InvalidInput
from pycloud.settings import Settings
from pycloud.web.waiting import ENVIRON_KEY, WaitRoom

current_request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""The id of the request that this thread works on, for log lines."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PROCESS = os.urandom(4).hex()
_NUMBERS = itertools.count(1)
"""Ids need to be told apart, not kept secret; randomness for each would cost a system call."""
_UNSERVED_ROOM = WaitRoom(places=4)
"""For applications that run without our server, such as under a test client."""


def bearer_token(authorization: str) -> str | None:
    """Return the token that an Authorization header brings, None without one."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


T = TypeVar("T")


class lazy(Generic[T]):  # noqa: N801  # read as a decorator, like `property`
    """Compute an attribute when first asked for, then keep it in the instance.

    `functools.cached_property` takes a lock that all requests share in Python 3.11.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:  # Any: whatever class it stands in
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __get__(self, owner: Any, kind: type | None = None) -> T:  # Any: as above
        """Compute the value and put it in the place of this descriptor."""
        value = self._compute(owner)
        owner.__dict__[self._compute.__name__] = value
        return value


class Request(PyramidRequest):  # type: ignore[misc]  # pyramid has no types
    """A request of either app."""

    # JSON bodies are bounded before they are read, so none has to go through a file.
    request_body_tempfile_limit = 1024 * 1024

    new_job_id: JobId | None = None
    """The id for a Job that this request makes; None for any."""
    on_job: Callable[[JobId], None] | None = None
    """Told which Job this request is about to wait for."""

    @property
    def core(self) -> Core:
        """What the cloudlet can do."""
        return cast("Core", self.registry.core)  # cast: the registry takes any attribute

    @property
    def settings(self) -> Settings:
        """The settings this app was made with."""
        return cast("Settings", self.registry.cloudlet_settings)  # cast: as above

    @lazy
    def device_id(self) -> DeviceId | None:
        """The device that asks, as it says itself; None if it says nothing sensible."""
        try:
            return DeviceId(checked_id(self.environ.get("HTTP_X_DEVICE_ID", "")))
        except InvalidInput:
            return None

    @lazy
    def token(self) -> str | None:
        """The bearer token that was sent, None without one."""
        return bearer_token(self.environ.get("HTTP_AUTHORIZATION", ""))

    @lazy
    def principal(self) -> Principal:
        """Who asks. Raises Unauthenticated for a token that is not valid."""
        if self.token is not None:
            return self.core.access.authenticate(self.token)
        if self.device_id is not None:
            return Principal(f"device:{self.device_id}")
        return Principal(f"address:{self.client_address}")

    @lazy
    def is_admin(self) -> bool:
        """Whether an administrator asks. Raises Unauthenticated for an invalid token."""
        return self.token is not None and self.core.access.is_admin(self.principal)

    @property
    def client_address(self) -> str:
        """The address at the other end of the connection."""
        return cast("str", self.environ.get("REMOTE_ADDR", "0.0.0.0"))  # noqa: S104  # cast: WSGI; nobody's address

    @property
    def is_local(self) -> bool:
        """Whether the connection comes from this very host."""
        try:
            return ipaddress.ip_address(self.client_address).is_loopback
        except ValueError:
            return False

    @lazy
    def request_id(self) -> str:
        """The id of this request: the caller's own if it is sensible, else a fresh one."""
        given: str = self.environ.get("HTTP_X_REQUEST_ID", "")
        if given and _REQUEST_ID.fullmatch(given):
            return given
        return f"{_PROCESS}{next(_NUMBERS):08x}"

    @contextmanager
    def waiting_place(self) -> Iterator[bool]:
        """Take a place among the requests that may wait; yields False if there is none."""
        with self.wait_room.place() as taken:
            yield taken

    @property
    def wait_room(self) -> WaitRoom:
        """The room of the server that took this request."""
        return cast("WaitRoom", self.environ.get(ENVIRON_KEY, _UNSERVED_ROOM))  # cast: WSGI

    def is_abandoned(self) -> bool:
        """Return whether the client left or the server is about to end."""
        has_left = self.environ.get("waitress.client_disconnected")
        return self.wait_room.closing or (has_left is not None and has_left())
