# SPDX-License-Identifier: Apache-2.0
"""The gate for disk images: parse first, refuse early, then convert under limits."""

from pycloud.adapters.images.gate import QemuImages

__all__ = ["QemuImages"]
