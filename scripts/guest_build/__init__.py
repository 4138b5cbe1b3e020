# SPDX-License-Identifier: Apache-2.0
"""Parts of the demo guest builder, in the order the bytes travel.

`packages` fetches and unpacks distribution packages, `kernel_modules` picks drivers, `initramfs`
packs the guest's root, `disk` makes the bootable image. They run with the system's Python alone
and must not import pycloud.
"""
