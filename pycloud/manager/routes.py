# SPDX-License-Identifier: Apache-2.0
"""The whole URL space of the Manager on one screen, with who may see what."""

from pycloud.manager.views import home
from pycloud.web.application import Endpoint, Route
from pycloud.web.security import Permission

_PUBLIC, _STATUS = Permission.PUBLIC, Permission.STATUS_READ

# fmt: off
ROUTES: tuple[Route, ...] = (
    Route("home", "/", (Endpoint("GET", home.home, _STATUS),)),
    Route("home.state", "/home/state", (Endpoint("GET", home.state, _STATUS),)),
    Route("static", "/static/{file_name}", (Endpoint("GET", home.static_file, _PUBLIC),)),
    Route("healthz", "/healthz", (Endpoint("GET", home.healthz, _PUBLIC),)),
)
# fmt: on
