# SPDX-License-Identifier: Apache-2.0
"""pycloud: the server of a cloudlet, a data centre in a box one hop from mobile devices."""

__version__ = "0.1.0"
