# SPDX-License-Identifier: Apache-2.0
"""Everything the core needs from outside, as protocols in the core's own words.

What crosses a port is content ids, streams and specs, never a path of this
machine: a Host may be elsewhere. Adapters translate every error of their
driver into the tree of `pycloud.errors` at their own boundary.
"""

from pycloud.core.ports.content import Blobs, ImageFacts, Images, Packages, Report, UnpackedPackage
from pycloud.core.ports.machines import (
    BridgedNetwork,
    DomainSpec,
    GuestView,
    Hypervisor,
    MemoryCapture,
    PhaseSink,
    Probe,
    ProbeTarget,
    UserNetwork,
)
from pycloud.core.ports.store import EventLog, Repository, Slice, Store, every
from pycloud.core.ports.surroundings import Clock, Discovery, HostSensors, Secrets

__all__ = [
    "Blobs",
    "BridgedNetwork",
    "Clock",
    "Discovery",
    "DomainSpec",
    "EventLog",
    "GuestView",
    "HostSensors",
    "Hypervisor",
    "ImageFacts",
    "Images",
    "MemoryCapture",
    "Packages",
    "PhaseSink",
    "Probe",
    "ProbeTarget",
    "Report",
    "Repository",
    "Secrets",
    "Slice",
    "Store",
    "UnpackedPackage",
    "UserNetwork",
    "every",
]
