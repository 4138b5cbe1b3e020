# SPDX-License-Identifier: Apache-2.0
"""Fixtures that more than one kind of test asks for."""

from collections.abc import Iterator

import pytest

from testing.mongo_server import running_mongo_server
from testing.real_host import RealHost, running_real_host


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let golden files be written anew: look at the difference before it is committed."""
    parser.addoption(
        "--refresh-golden", action="store_true", help="write golden files instead of comparing"
    )


@pytest.fixture(scope="session")
def mongo_url() -> Iterator[str]:
    """Address of a MongoDB-protocol server that lives as long as the test run."""
    with running_mongo_server() as url:
        yield url


@pytest.fixture(scope="session")
def real_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealHost]:
    """The real libvirt with a data directory that lives as long as the test run."""
    with running_real_host(tmp_path_factory.mktemp("real-host")) as host:
        yield host
