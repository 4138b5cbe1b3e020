# SPDX-License-Identifier: Apache-2.0
"""The Manager: pages for the people who run a cloudlet. So far it shows how things stand."""

from pycloud.manager.application import main, make_app

__all__ = ["main", "make_app"]
