# SPDX-License-Identifier: Apache-2.0
"""What is read out of foreign domain descriptions, and what is refused."""

from dataclasses import replace

import pytest

from pycloud.adapters.libvirt.domain_plan import OptionRom, PciAddress, VideoModel
from pycloud.adapters.libvirt.domain_xml import render
from pycloud.adapters.libvirt.saved_hardware import read_saved_guest
from pycloud.errors import StateUnusable
from testing.unit.adapters.libvirt.plans import all_plans

FOREIGN = """<domain type='qemu' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>svm</name><uuid>c7a5fdbd-cdaf-4455-926a-d65c16db1801</uuid>
  <memory unit='KiB'>524288</memory><currentMemory unit='KiB'>524288</currentMemory>
  <vcpu placement='static'>2</vcpu>
  <resource><partition>/machine</partition></resource>
  <os><type arch='x86_64' machine='pc-i440fx-6.2'>hvm</type><boot dev='hd'/></os>
  <features><acpi/><apic/><pae/></features>
  <cpu mode='custom' match='exact' check='full'>
    <model fallback='forbid'>qemu64</model><feature policy='require' name='x2apic'/>
    <feature policy='disable' name='svm'/>
  </cpu>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/></clock>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>restart</on_crash>
  <pm><suspend-to-mem enabled='no'/><suspend-to-disk enabled='no'/></pm>
  <devices>
    <emulator>/bin/rm</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/etc/shadow'/>
      <backingStore type='file'><format type='raw'/><source file='/etc/passwd'/></backingStore>
      <target dev='vda' bus='virtio'/><alias name='d'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/>
    </disk>
    <controller type='usb' index='0' model='piix3-uhci'>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x01' function='0x2'/>
    </controller>
    <controller type='pci' index='0' model='pci-root'/>
    <interface type='user'>
      <mac address='52:54:00:01:02:03'/><model type='virtio'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x03' function='0x0'/>
    </interface>
    <serial type='pty'><target type='isa-serial' port='0'><model name='isa-serial'/></target></serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <input type='mouse' bus='ps2'/>
    <graphics type='vnc' port='-1' autoport='yes' listen='0.0.0.0'/>
    <audio id='1' type='none'/>
    <video><model type='cirrus' vram='16384' heads='1' primary='yes'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0'/></video>
    <memballoon model='virtio'>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x06' function='0x0'/></memballoon>
  </devices>
  <qemu:commandline><qemu:arg value='-redir'/><qemu:arg value='tcp:16001::80'/></qemu:commandline>
</domain>"""


def test_saved_guest_is_read_when_all_its_devices_are_known():
    guest = read_saved_guest(FOREIGN.encode())

    assert (guest.memory_mib, guest.vcpus) == (512, 2)
    assert guest.machine.machine == "pc-i440fx-6.2"
    assert guest.machine.accelerator == "tcg"
    assert guest.hardware.video.model is VideoModel.CIRRUS
    assert guest.hardware.balloon == PciAddress(slot=6)
    assert guest.hardware.usb == PciAddress(slot=1, function=2)
    assert guest.hardware.nic.rom is OptionRom.DEFAULT
    assert guest.hardware.has_hpet
    assert [feature.policy for feature in guest.hardware.cpu_features] == ["require", "disable"]


def test_saved_guest_leaves_no_text_of_its_own_when_it_is_rebuilt():
    guest = read_saved_guest(FOREIGN.encode())
    plan = replace(all_plans()["x86_64-linux-user"], hardware=guest.hardware, machine=guest.machine)

    text = render(plan)

    for foreign in ("/etc", "/bin/rm", "0.0.0.0", "redir", "svm<"):
        assert foreign not in text


def test_saved_guest_of_ours_has_the_hardware_it_was_made_with():
    plan = all_plans()["save-image"]

    guest = read_saved_guest(render(plan).encode())

    assert guest.hardware == plan.hardware
    assert guest.machine == plan.machine
    assert (guest.memory_mib, guest.vcpus) == (plan.memory_mib, plan.vcpus)


def _with(old, new):
    assert old in FOREIGN
    return FOREIGN.replace(old, new)


REFUSED = {
    "a machine that QEMU forgot": _with("pc-i440fx-6.2", "pc-1.0"),
    "a chipset with bridges": _with("pc-i440fx-6.2", "pc-q35-6.2"),
    "another architecture": _with("arch='x86_64'", "arch='ppc64'"),
    "another hypervisor": _with("type='qemu' id", "type='xen' id"),
    "a host device": _with("<input ", "<hostdev mode='subsystem' type='pci'/><input "),
    "a second disk": _with("<input ", "<disk type='file' device='disk'/><input "),
    "a second card": _with("<input ", "<interface type='user'/><input "),
    "a drive for disks": _with("device='disk'>", "device='cdrom'>"),
    "a disk with a thread": _with("type='qcow2'/>", "type='qcow2' iothread='1'/>"),
    "a bridged card": _with("<interface type='user'>", "<interface type='bridge'>"),
    "another bus": _with("bus='0x00' slot='0x05'", "bus='0x01' slot='0x05'"),
    "no address": _with("slot='0x03'", "slot='0x00'"),
    "a tablet": _with("<input type='mouse' bus='ps2'/>", "<input type='tablet' bus='usb'/>"),
    "a sound card": _with("<audio id='1' type='none'/>", "<sound model='ich6'/>"),
    "a shared folder": _with("<audio id='1' type='none'/>", "<filesystem type='mount'/>"),
    "a console of its own": _with("<target type='serial' port", "<target type='virtio' port"),
    "a reporting balloon": _with("'virtio'>\n      <address type='pci' domain='0x0000' bus='0x00' slot='0x06'",
        "'virtio' freePageReporting='on'>\n      <address type='pci' domain='0x0000' bus='0x00' slot='0x06'"),
    "an unsaid balloon": _with("memballoon", "watchdog"),
    "a ballooned guest": _with("<currentMemory unit='KiB'>524288", "<currentMemory unit='KiB'>262144"),
    "processors to come": _with("<vcpu placement='static'>", "<vcpu current='1'>"),
    "a kernel beside the disk": _with("<boot dev='hd'/>", "<kernel>/boot/vmlinuz</kernel>"),
    "unknown features": _with("<pae/>", "<smm state='on'/>"),
    "the host's processor": _with("mode='custom' match='exact'", "mode='host-passthrough'"),
    "a policy of its own": _with("policy='disable'", "policy='force'"),
    "a model with spaces": _with(">qemu64<", ">qemu64,+x -device y<"),
    "huge pages": _with("<vcpu", "<memoryBacking><hugepages/></memoryBacking><vcpu"),
    "an emulator's argument": _with("value='-redir'", "value='-device'"),
    "an emulator's variable": _with("<qemu:arg value='-redir'/>", "<qemu:env name='a' value='b'/>"),
    "another timer": _with("name='rtc'", "name='tsc'"),
    "no NIC address": _with("52:54:00:01:02:03", "x"),
    "a document type": "<!DOCTYPE domain [<!ENTITY a 'b'>]>" + FOREIGN,
    "something else": "<network/>",
    "no XML": "<domain",
    "nothing": "",
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_saved_guest_is_refused_when_it_has(what):
    with pytest.raises(StateUnusable):
        read_saved_guest(REFUSED[what].encode())
