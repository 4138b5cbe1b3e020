# SPDX-License-Identifier: Apache-2.0
"""What every command shares: the settings, the way to the server, and the printer.

Everything is read when first needed, so that a command that needs no server asks for none.
"""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from requests.adapters import BaseAdapter

from pycloud.cli.api_client import PATIENCE_S, Api
from pycloud.cli.failures import ExitCode, Failure
from pycloud.cli.output import Format, Printer
from pycloud.core.access import ADMIN_TOKEN
from pycloud.settings import LoadedSettings, Settings, load

_EVERYWHERE = "0.0.0.0"  # noqa: S104  # compared with, not listened on


@dataclass(slots=True, kw_only=True)
class Session:
    """The options given before any command, and what follows from them.

    `transport` replaces the network, for tests and for programs that hold the server.
    """

    config: Path | None = None
    url: str | None = None
    token: str | None = None
    form: Format = Format.TABLE
    transport: BaseAdapter | None = None
    patience_s: float = PATIENCE_S
    _loaded: LoadedSettings | None = field(default=None, init=False)
    _api: Api | None = field(default=None, init=False)

    @property
    def loaded(self) -> LoadedSettings:
        """The settings and where each came from. Raises InvalidSettings."""
        if self._loaded is None:
            self._loaded = load(self.config)
        return self._loaded

    @property
    def settings(self) -> Settings:
        """The settings. Raises InvalidSettings."""
        return self.loaded.settings

    @property
    def printer(self) -> Printer:
        """A printer on the present standard output."""
        return Printer(self.form)

    @property
    def api(self) -> Api:
        """The server. Raises Failure if the URL is none."""
        if self._api is None:
            url = _checked_url(self.url or self._own_url())
            self._api = Api(
                url,
                token=self.token or self._own_token(url),
                transport=self.transport,
                patience_s=self.patience_s,
            )
        return self._api

    def _own_url(self) -> str:
        host = self.settings.api_host
        return f"http://{'127.0.0.1' if host == _EVERYWHERE else host}:{self.settings.api_port}"

    def _own_token(self, url: str) -> str | None:
        """Return our own cloudlet's token, for servers on this machine only."""
        if not self._is_own(urlsplit(url).hostname or ""):
            return None
        try:
            text = (self.settings.data_dir / ADMIN_TOKEN).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return None
        return text.strip() or None

    def _is_own(self, host: str) -> bool:
        if host in {"localhost", self.settings.api_host}:
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise Failure(
            f"{url!r} is not the URL of a server",
            exit_code=ExitCode.USAGE,
            advice="write it like http://192.0.2.10:9999",
        )
    return url.rstrip("/")
