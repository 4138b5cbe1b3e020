# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a cloudlet in memory whose Jobs run in the background, and clients for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from webtest import TestApp

from testing.stand import Stand, make_stand


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    """A cloudlet with its Jobs at work."""
    built = make_stand(tmp_path)
    built.core.background.runner.start()
    yield built
    built.probe.let_go()
    built.core.background.runner.stop()


@pytest.fixture
def phone(stand: Stand) -> TestApp:
    """The Cloudlet API as a phone elsewhere in the network calls it."""
    return stand.api()
