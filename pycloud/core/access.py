# SPDX-License-Identifier: Apache-2.0
"""Who asks, and whether it is an administrator."""

import hashlib
import hmac

from pycloud.core.model.identifiers import Principal
from pycloud.core.ports import Secrets
from pycloud.errors import Unauthenticated

ADMIN = Principal("admin")
SYSTEM = Principal("system")
ADMIN_TOKEN = "admin.token"  # noqa: S105  # the name of the secret, not the secret


class Access:
    """Turns tokens into principals. Safe to use from several threads."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._digest: bytes | None = None

    def authenticate(self, token: str) -> Principal:
        """Return who the bearer of the token is. Raises Unauthenticated."""
        given = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        if not hmac.compare_digest(given, self._admin_digest()):
            raise Unauthenticated(
                "the token is not valid; the administrator's token is in the file"
                f" {ADMIN_TOKEN} of the data directory"
            )
        return ADMIN

    def is_admin(self, principal: Principal) -> bool:
        """Return whether the principal may change the cloudlet."""
        return principal in {ADMIN, SYSTEM}

    def prepare(self) -> None:
        """Make the administrator's token if there is none yet."""
        self._admin_digest()

    def _admin_digest(self) -> bytes:
        if self._digest is None:
            token = self._secrets.read_or_create(ADMIN_TOKEN)
            self._digest = hashlib.sha256(token.encode()).digest()
        return self._digest
