# SPDX-License-Identifier: Apache-2.0
"""What the operator of the demo's cloudlet does: with `pycloud`, or as `pycloud` would.

Commands that the audience shall see are really run; questions that are asked again and
again go through the same client in this process, which is quicker.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from demo_parts.story import DemoError, Story
from pycloud.cli.api_client import Api
from pycloud.cli.failures import Failure
from pycloud.cli.following import is_final
from pycloud.cli.output import Json
from pycloud.core.access import ADMIN_TOKEN

PYCLOUD = Path(sys.executable).with_name("pycloud")
_COMMAND_TIMEOUT_S = 600.0
_JOB_TIMEOUT_S = 60.0
_COPIES_TIMEOUT_S = 30.0
_POLL_S = 0.1
_FORCED = (
    "API_HOST API_PORT CONFIG DATA_DIR LOG_FORMAT MANAGER_HOST MANAGER_PORT NAME PORT_RANGE"
    " RECONCILE_S STORE TOKEN URL"
).split()


class Operator:
    """Somebody with the administrator's token of the demo's cloudlet."""

    def __init__(self, url: str, *, data_dir: Path, config: Path, story: Story) -> None:
        self._config = config
        self._story = story
        token = (data_dir / ADMIN_TOKEN).read_text(encoding="ascii").strip()
        self._api = Api(url, token=token)

    def has_service(self, service_id: str) -> bool:
        """Return whether a service is in the catalogue."""
        return any(service["id"] == service_id for service in self._api.pages("/services"))

    def is_prepared(self, service_id: str) -> bool:
        """Return whether a service has a memory state."""
        current = self._api.get(f"/services/{service_id}")["service_vm_id"]
        stored = self._api.pages(f"/services/{service_id}/service-vms")
        return any(one["id"] == current and one["memory"] is not None for one in stored)

    def remove_service(self, service_id: str) -> None:
        """Remove a service with whatever runs of it."""
        self._finish(self._api.delete(f"/services/{service_id}", {"instances": "stop"}))

    def start_method(self, instance_id: str) -> str:
        """Return how an instance came to run."""
        return str(self._api.get(f"/instances/{instance_id}")["start_method"])

    def discovery_problem(self) -> str | None:
        """Return why the cloudlet is not announced, in its own words."""
        problem: str | None = self._api.get("/system")["discovery_problem"]
        return problem

    def keep_copies(self, service_id: str, count: int) -> bool:
        """Let as many copies wait for the next start; return whether they do before a deadline."""
        self._api.change(f"/services/{service_id}", {"warm_count": count})
        deadline_s = time.monotonic() + _COPIES_TIMEOUT_S
        while not self._holds(count):
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_POLL_S)
        return True

    def clear(self) -> None:
        """Stop every instance and waiting copy, so that no guest outlives the demo."""
        try:
            for found in self._api.pages("/instances"):
                if found["state"] not in {"stopped", "failed"}:
                    self._finish(self._api.delete(f"/instances/{found['id']}"))
            for service in self._api.pages("/services"):
                self._api.change(f"/services/{service['id']}", {"warm_count": 0})
            deadline_s = time.monotonic() + _COPIES_TIMEOUT_S
            while not self._holds(0):
                if time.monotonic() > deadline_s:
                    raise DemoError("a guest could not be ended; the next run will find it")
                time.sleep(_POLL_S)
        except Failure as exc:
            raise DemoError(f"cleaning up failed: {exc.message}", advice=exc.advice) from exc

    def show(self, *arguments: str) -> None:
        """Run a command that the audience sees, with its bars."""
        self._story.command(f"pycloud {' '.join(arguments)}")
        try:
            done = subprocess.run(
                [str(PYCLOUD), "--config", str(self._config), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env=environment(),
                text=True,
                timeout=_COMMAND_TIMEOUT_S,
                check=True,
            )
        except subprocess.TimeoutExpired as exc:
            raise DemoError("this command takes too long") from exc
        except subprocess.CalledProcessError as exc:
            raise DemoError(
                "this command failed; it says why above",
                advice=f"{PYCLOUD} --config {self._config} doctor",
            ) from exc
        for line in done.stdout.splitlines():
            self._story.result(line)

    def _holds(self, count: int) -> bool:
        """Return whether this many guests hold room and none is on its way."""
        if not all(is_final(job) for job in self._api.pages("/jobs")):
            return False
        return bool(self._api.get("/system")["host"]["instances"] == count)

    def _finish(self, job: Json | None) -> None:
        deadline_s = time.monotonic() + _JOB_TIMEOUT_S
        while job is not None and not is_final(job):
            if time.monotonic() > deadline_s:
                raise DemoError(f"the cloudlet does not come to an end with job {job['id']}")
            job = self._api.job(job["id"], hold_s=1)


def environment() -> dict[str, str]:
    """Return the environment without what belongs to the user's own cloudlet.

    How guests are run and how the network is reached stays as the user has it.
    """
    forced = {f"PYCLOUD_{setting}" for setting in _FORCED}
    return {name: value for name, value in os.environ.items() if name not in forced}
