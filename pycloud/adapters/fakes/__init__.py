# SPDX-License-Identifier: Apache-2.0
"""In-memory twins of the ports that behave: a wrong call fails as the real one would.

They serve tests and `pycloud.hypervisor = fake:`; they keep nothing on disk, open no
socket and start no process. The twin of the store is `adapters/store/memory.py`.
"""

from pycloud.adapters.fakes.blobs import MemoryBlobs
from pycloud.adapters.fakes.clock import FakeClock
from pycloud.adapters.fakes.hypervisor import FAKE_FACTS, FakeDomain, FakeHypervisor, FakeStart
from pycloud.adapters.fakes.images import FakeImages, fake_qcow2, fake_raw
from pycloud.adapters.fakes.memory_states import fake_save_image
from pycloud.adapters.fakes.network import (
    Answer,
    FakeDiscovery,
    FakeNetwork,
    FakeProbe,
    FakeSensors,
)
from pycloud.adapters.fakes.packages import FakePackages

__all__ = [
    "FAKE_FACTS",
    "Answer",
    "FakeClock",
    "FakeDiscovery",
    "FakeDomain",
    "FakeHypervisor",
    "FakeImages",
    "FakeNetwork",
    "FakePackages",
    "FakeProbe",
    "FakeSensors",
    "FakeStart",
    "MemoryBlobs",
    "fake_qcow2",
    "fake_raw",
    "fake_save_image",
]
