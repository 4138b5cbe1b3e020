# SPDX-License-Identifier: Apache-2.0
"""Long operations as durable records: asked for, worked on, watched, cancelled, recovered."""

from pycloud.core.jobs.ledger import Jobs
from pycloud.core.jobs.procedure import Lane, Procedure, Recovery, Step, StepContext
from pycloud.core.jobs.runner import JobRunner

__all__ = ["JobRunner", "Jobs", "Lane", "Procedure", "Recovery", "Step", "StepContext"]
