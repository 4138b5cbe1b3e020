# SPDX-License-Identifier: Apache-2.0
"""Instances: start, join, pause, resume, stop, and know where each one stands."""

from pycloud.core.instances.lifecycle import (
    Instances,
    Join,
    Started,
    StartRequest,
    StopMode,
)
from pycloud.core.instances.starting import Starting
from pycloud.core.instances.stopping import Stopping

__all__ = ["Instances", "Join", "StartRequest", "Started", "Starting", "StopMode", "Stopping"]
