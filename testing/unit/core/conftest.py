# SPDX-License-Identifier: Apache-2.0
"""Cloudlets that the tests of the core begin with."""

import pytest

from testing.composed import a_core
from testing.factories import a_service_draft
from testing.unit.core.steps import fill


@pytest.fixture
def cold():
    """A cloudlet with a Service that boots cold."""
    composed = a_core()
    composed.add_service()
    return composed


@pytest.fixture
def instant():
    """A cloudlet with a Service that has a memory state."""
    composed = a_core()
    composed.add_service(prepare=True)
    return composed


@pytest.fixture
def warm(instant):
    """A cloudlet with a waiting copy of its Service."""
    fill(instant)
    return instant


@pytest.fixture
def shared():
    """A cloudlet with a Service for up to three users of one Instance."""
    composed = a_core()
    composed.add_service(a_service_draft(sharing_limit=3))
    return composed
