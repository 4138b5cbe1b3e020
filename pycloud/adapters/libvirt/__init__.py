# SPDX-License-Identifier: Apache-2.0
"""Virtual machines through stock libvirt and QEMU: the ports Hypervisor, MemoryCapture, GuestView.

`libvirt_adapters` builds all three on one connection. Domain XML comes only from our
own builder, no XML from outside ever reaches libvirt, and domains that do not carry our
tag are never touched.
"""

from dataclasses import dataclass

from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.libvirt.driver import LibvirtHypervisor
from pycloud.adapters.libvirt.guest_view import LibvirtGuestView
from pycloud.adapters.libvirt.host import LibvirtHost
from pycloud.adapters.libvirt.memory_capture import LibvirtMemoryCapture
from pycloud.core.ports import Blobs, Clock
from pycloud.settings import Settings

__all__ = [
    "LibvirtAdapters",
    "libvirt_adapters",
    "LibvirtHypervisor",
    "LibvirtMemoryCapture",
    "LibvirtGuestView",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LibvirtAdapters:
    """The three ports, on one connection."""

    hypervisor: LibvirtHypervisor
    memory_capture: LibvirtMemoryCapture
    guest_view: LibvirtGuestView


def libvirt_adapters(
    uri: str, *, data: DataDirectory, blobs: Blobs, settings: Settings, clock: Clock
) -> LibvirtAdapters:
    """Build the adapters; libvirt is reached at the first call, not before."""
    host = LibvirtHost(uri, data=data, settings=settings, clock=clock)
    return LibvirtAdapters(
        hypervisor=LibvirtHypervisor(host),
        memory_capture=LibvirtMemoryCapture(host, blobs),
        guest_view=LibvirtGuestView(host),
    )
