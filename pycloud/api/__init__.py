# SPDX-License-Identifier: Apache-2.0
"""The Cloudlet API: the wire format of old phones under /api, everything new under /api/v2."""

from pycloud.api.application import main, make_app

__all__ = ["main", "make_app"]
