# SPDX-License-Identifier: Apache-2.0
"""The set-up script, on machines that lack something.

A machine is a folder of commands that is the whole PATH, with stand-ins for those that would
change the real one.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = (
    "awk bash cat comm cut df dirname dpkg env flock grep id mktemp mv python3 rm sed"
    " sha256sum sleep sort stat tail timeout touch true wc"
).split()
EVERYTHING_INSTALLED = (
    'for name in "$@"; do case $name in -*) ;; *) echo "$name installed" ;; esac; done'
)
NOTHING_INSTALLED = "exit 1"
DAY_S = 86400


class Machine:
    """A copy of the checkout's set-up and the commands that it may use."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        self.commands = folder / "commands"
        self.commands.mkdir()
        for tool in TOOLS:
            # The interpreter behind a version manager's stand-in, which would need that manager.
            found = "/usr/bin/python3" if tool == "python3" else shutil.which(tool)
            assert found, f"{tool} is missing on this machine"
            (self.commands / tool).symlink_to(found)
        shutil.copytree(ROOT / "scripts", self.checkout / "scripts")
        for name in ("setup.py", "pyproject.toml", "requirements.txt", "requirements-dev.txt"):
            shutil.copy(ROOT / name, self.checkout)
        self.replace("dpkg-query", EVERYTHING_INSTALLED)

    def replace(self, command: str, script: str) -> None:
        path = self.commands / command
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n", encoding="ascii")
        path.chmod(0o755)

    def be_user(self, sudo: str = 'while [[ $1 == -* ]]; do shift; done; exec "$@"') -> None:
        """Run as an ordinary user, whoever runs the tests; sudo asks for no password."""
        self.replace("id", "echo 1000")
        self.replace("sudo", sudo)

    def age_lists(self, days: int) -> None:
        """Let the package lists have been refreshed so long ago."""
        written_s = int(time.time()) - days * DAY_S
        self.replace("stat", f"echo {written_s}; echo {written_s - 1000}")

    def hurry(self, lock_deadline_s: int = 30) -> None:
        """Let the script look again at once, and give up on locks of others after this time."""
        self.replace("sleep", f"exec {shutil.which('sleep')} 0.1")
        self.change("^readonly LOCK_DEADLINE_S=300$", f"readonly LOCK_DEADLINE_S={lock_deadline_s}")

    def change(self, pattern: str, replacement: str) -> None:
        """Replace a line of the script."""
        script = self.checkout / "scripts" / "setup.sh"
        text, count = re.subn(pattern, replacement, script.read_text("utf-8"), flags=re.MULTILINE)
        assert count == 1
        script.write_text(text, "utf-8")

    def list_packages(self, lines: str) -> None:
        (self.checkout / "scripts" / "packages-run.txt").write_text(lines, encoding="ascii")

    def set_up(self, arguments: Sequence[str] = (), **variables: str) -> tuple[int, str]:
        done = subprocess.run(
            ["/bin/bash", str(self.checkout / "scripts" / "setup.sh"), *arguments],
            env={"PATH": str(self.commands), "HOME": str(self.checkout), **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_setup_says_nothing_when_everything_is_there() -> None:
    done = subprocess.run(
        [str(ROOT / "scripts" / "setup.sh"), "--dev", "--quiet"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=600,
        check=True,
    )

    assert done.stdout == b""
    assert done.stderr == b""


def test_setup_names_the_packages_when_there_is_no_apt(machine: Machine) -> None:
    machine.replace("dpkg-query", NOTHING_INSTALLED)
    machine.list_packages("qemu-utils\n")

    status, output = machine.set_up()

    assert status == 1
    assert "no apt-get" in output
    assert "qemu-utils" in output


def test_setup_installs_only_what_is_missing_and_for_this_machine(
    machine: Machine, tmp_path: Path
) -> None:
    machine.be_user()
    machine.replace("dpkg-query", 'echo "present installed"; exit 1')
    machine.replace(
        "apt-get", f'[[ " $* " == *" update "* ]] || echo "$@" >{tmp_path}/calls; exit 7'
    )
    machine.replace("dpkg", "[[ $1 != --print-architecture ]] || echo amd64")
    machine.list_packages(
        "# a comment\npresent\nabsent\nelsewhere [arm64]\nhere [arm64 amd64]\n"
        "unneeded (cat)\nneeded (no-such-command)\n"
    )
    (machine.checkout / "scripts" / "packages-guest.txt").unlink(missing_ok=True)

    status, output = machine.set_up()

    assert status == 1
    assert "apt-get could not install: absent here needed" in output
    assert (tmp_path / "calls").read_text().split()[-4:] == ["--", "absent", "here", "needed"]


@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        (
            "apt-get",
            "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)",
        ),
        ("dpkg", "dpkg: error: dpkg frontend lock was locked by another process with pid 7"),
    ],
)
def test_setup_tries_again_when_another_program_holds_a_lock(
    machine: Machine, tmp_path: Path, command: str, refusal: str
) -> None:
    machine.be_user()
    machine.hurry()
    machine.replace("dpkg-query", NOTHING_INSTALLED)
    machine.list_packages("absent\n")
    machine.replace(
        "apt-get", f'[[ " $* " == *" update "* ]] || {{ touch {tmp_path}/end; exit 7; }}'
    )
    machine.replace("dpkg", "[[ $1 != --print-architecture ]] || echo amd64")
    plain = (machine.commands / command).read_text().removeprefix("#!/bin/bash\n")
    machine.replace(
        command,
        'if [[ $1 != --print-architecture && " $* " != *" install "* ]]; then\n'
        f"  echo $LC_ALL >>{tmp_path}/tries\n"
        f"  (($(wc -l <{tmp_path}/tries) > 2)) || {{ echo '{refusal}' >&2; exit 100; }}\nfi\n"
        + plain,
    )

    status, output = machine.set_up()

    assert status == 1
    assert (tmp_path / "end").exists(), output
    assert "apt-get could not install: absent" in output
    # The messages of other languages would not be recognised.
    assert (tmp_path / "tries").read_text().splitlines() == ["C"] * 3
    assert output.count(refusal.removeprefix("E: ")) == 1
    assert "Waiting" in output


def test_setup_gives_up_when_a_lock_stays_held(machine: Machine) -> None:
    machine.be_user()
    machine.replace("dpkg-query", NOTHING_INSTALLED)
    machine.list_packages("absent\n")
    machine.replace("apt-get", "exit 0")
    machine.replace(
        "dpkg",
        "[[ $1 != --print-architecture ]] || { echo amd64; exit; }\n"
        "echo dpkg: error: dpkg frontend lock was locked by another process with pid 7; exit 2",
    )
    machine.hurry(lock_deadline_s=1)

    status, output = machine.set_up()

    assert status == 1
    assert "dpkg --configure -a failed" in output


def test_setup_does_not_wait_when_the_failure_is_another(machine: Machine, tmp_path: Path) -> None:
    machine.be_user()
    machine.replace("dpkg-query", NOTHING_INSTALLED)
    machine.list_packages("absent\n")
    machine.replace("apt-get", "exit 0")
    machine.replace(
        "dpkg",
        "[[ $1 != --print-architecture ]] || { echo amd64; exit; }\n"
        f"echo x >>{tmp_path}/tries; echo dpkg: error: the status database is broken; exit 2",
    )

    status, output = machine.set_up()

    assert status == 1
    assert "the status database is broken" in output
    assert "Waiting" not in output
    assert (tmp_path / "tries").read_text() == "x\n"


@pytest.mark.parametrize(
    ("age_days", "is_built", "is_refreshed"),
    [(30, False, True), (1, False, False), (30, True, False)],
)
def test_setup_refreshes_old_lists_when_the_guest_has_to_be_built(
    machine: Machine, tmp_path: Path, age_days: int, is_built: bool, is_refreshed: bool
) -> None:
    machine.be_user()
    machine.age_lists(age_days)
    machine.replace("apt-get", f'echo "$@" >>{tmp_path}/calls')
    # Ends the set-up where the system's packages are done.
    machine.replace("df", "echo Avail; echo 10")
    if is_built:
        packages = machine.checkout / ".cache" / "pycloud" / "guest-packages"
        packages.mkdir(parents=True)
        (packages / "packages-debian-12.json").touch()

    status, output = machine.set_up()

    assert status == 1
    assert "not enough disk space" in output
    assert (tmp_path / "calls").exists() is is_refreshed
    assert not is_refreshed or " update" in (tmp_path / "calls").read_text()


def test_setup_goes_on_with_old_lists_when_sudo_wants_a_password(
    machine: Machine, tmp_path: Path
) -> None:
    machine.be_user("exit 1")
    machine.age_lists(30)
    machine.replace("apt-get", f"touch {tmp_path}/calls")
    machine.replace("df", "echo Avail; echo 10")

    status, output = machine.set_up()

    assert status == 1
    assert "sudo apt-get update" in output
    assert "not enough disk space" in output
    assert not (tmp_path / "calls").exists()


def test_setup_refuses_before_it_starts_when_the_disk_is_too_full(machine: Machine) -> None:
    machine.replace("df", "echo Avail; echo 10")

    status, output = machine.set_up()

    assert status == 1
    assert "not enough disk space" in output
    assert not (machine.checkout / ".venv").exists()


def test_setup_names_the_interpreter_when_it_is_not_fit(machine: Machine) -> None:
    status, output = machine.set_up(PYCLOUD_PYTHON="/bin/true")

    assert status == 1
    assert "PYCLOUD_PYTHON=/bin/true is not Python 3.11" in output


def test_setup_makes_the_environment_anew_when_it_was_interrupted(machine: Machine) -> None:
    environment = machine.checkout / ".venv"
    environment.mkdir()
    (environment / ".pycloud-installing").touch()
    (environment / "half-written").touch()

    # An index that nobody serves ends the set-up right after the environment is made.
    status, output = machine.set_up(PIP_INDEX_URL="http://127.0.0.1:9/", PIP_RETRIES="0")

    assert status == 1
    assert "pip could not install setuptools" in output
    assert not (environment / "half-written").exists()
    assert (environment / ".pycloud-installing").exists()


def test_setup_explains_itself_when_an_argument_is_unknown(machine: Machine) -> None:
    status, output = machine.set_up(["--nonsense"])

    assert status == 1
    assert "Usage:" in output
    assert "unknown argument: --nonsense" in output


def lock_namespaces(machine: Machine, unshare: str) -> None:
    machine.replace("cat", "[[ $1 == /proc/sys/kernel/apparmor_* ]] && echo 1")
    machine.replace("unshare", unshare)
    machine.replace("df", "echo Avail; echo 10")


def test_setup_for_tests_tells_how_to_allow_namespaces_when_only_root_has_them(
    machine: Machine,
) -> None:
    machine.be_user()
    lock_namespaces(machine, "exit 1")

    status, output = machine.set_up(["--dev"])

    assert status == 1
    assert output.splitlines()[-1].endswith(
        "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    )


@pytest.mark.parametrize(
    ("arguments", "user", "unshare"),
    [
        ((), "1000", "exit 1"),
        (("--dev", "--unchecked"), "1000", "exit 1"),
        (("--dev",), "0", "exit 1"),
        (("--dev",), "1000", "exit 0"),
    ],
)
def test_setup_goes_on_when_no_namespaces_are_needed_or_they_can_be_had(
    machine: Machine, arguments: Sequence[str], user: str, unshare: str
) -> None:
    machine.be_user()
    machine.replace("id", f"echo {user}")
    lock_namespaces(machine, unshare)
    machine.replace("chromium", "exit 0")

    _, output = machine.set_up(arguments)

    assert "namespaces" not in output
    assert "not enough disk space" in output


def test_setup_for_tests_names_snapd_when_chromium_is_only_a_wrapper(machine: Machine) -> None:
    machine.change("/snap/bin/chromium", "/nonexistent/chromium")
    machine.replace("chromium-browser", "echo requires the chromium snap >&2; exit 1")

    status, output = machine.set_up(["--dev"])

    assert status == 1
    assert "snapd has to run" in output
    assert not (machine.checkout / ".venv").exists()
