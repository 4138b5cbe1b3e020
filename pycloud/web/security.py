# SPDX-License-Identifier: Apache-2.0
"""Who may do what: one permission per route, one rule per permission, default deny.

A view never asks who calls in order to allow something; it names a permission
in the table of routes and the rule below decides before the view runs.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from pyramid.security import Allowed, Denied

from pycloud.core.model.identifiers import InstanceId, Principal, checked_id
from pycloud.web.request import Request


class Permission(StrEnum):
    """What a route may ask for."""

    PUBLIC = "public"
    """Everybody, as the wire contract of old phones demands."""
    INSTANCE_CONTROL = "instance.control"
    """Whoever started the Instance in the path, and administrators."""
    METRICS_READ = "metrics.read"
    """Programs on this host, and administrators."""
    STATUS_READ = "status.read"
    """People on this host, and administrators."""
    ADMIN = "admin"
    """Administrators."""


DENY_ALL = "nobody"
"""The default permission: a view that names none is never run."""


def _everybody(request: Request) -> bool:  # noqa: ARG001  # a rule takes the request
    return True


def _administrator(request: Request) -> bool:
    return bool(request.is_admin)


def _owner_or_administrator(request: Request) -> bool:
    if request.is_admin:
        return True
    instance_id = InstanceId(checked_id(request.matchdict["instance_id"], pointer="instance_id"))
    return bool(request.core.instances.instance(instance_id).owner == request.principal)


def _local_or_administrator(request: Request) -> bool:
    return bool(request.is_local or request.is_admin)


RULES: Mapping[str, Callable[[Request], bool]] = {
    Permission.PUBLIC: _everybody,
    Permission.INSTANCE_CONTROL: _owner_or_administrator,
    Permission.METRICS_READ: _local_or_administrator,
    Permission.STATUS_READ: _local_or_administrator,
    Permission.ADMIN: _administrator,
}


class SecurityPolicy:
    """Pyramid's view of the rules."""

    def identity(self, request: Request) -> Principal:
        """Return who asks."""
        principal: Principal = request.principal
        return principal

    def authenticated_userid(self, request: Request) -> str:
        """Return who asks, as text."""
        principal: Principal = request.principal
        return principal

    def permits(self, request: Request, context: Any, permission: str) -> Allowed | Denied:  # noqa: ARG002  # Any: we have no traversal; pyramid's signature
        """Apply the rule of the permission; what has no rule is denied."""
        rule = RULES.get(permission)
        if rule is not None and rule(request):
            return _ALLOWED
        return Denied(f"{permission} is not granted")

    def remember(self, request: Request, userid: str, **kw: Any) -> list[tuple[str, str]]:  # noqa: ARG002  # Any: pyramid's signature
        """Return no headers: nobody is remembered between two requests."""
        return []

    def forget(self, request: Request, **kw: Any) -> list[tuple[str, str]]:  # noqa: ARG002  # Any: as above
        """Return no headers, as `remember`."""
        return []


_ALLOWED = Allowed("granted")
