# SPDX-License-Identifier: Apache-2.0
"""Where tests keep what they fetch or build once: guests, servers of other protocols.

Everything in it can be made again; nothing that a test decides on may depend on what an earlier
run left there, so entries are named after a digest of what they are made from.
"""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the folder, `~/.cache/pycloud/testing` unless PYCLOUD_TEST_CACHE names another."""
    override = os.environ.get("PYCLOUD_TEST_CACHE")
    if override:
        return Path(override).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pycloud" / "testing"
