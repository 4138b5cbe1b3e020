# SPDX-License-Identifier: Apache-2.0
"""A real server of the MongoDB protocol for tests, started by the tests themselves.

MongoDB is in no distribution's archive, so the server is made of the Maven packages listed in
`testing/mongo/`: fetched and compiled once into the test cache, then started from there. Who has
a MongoDB names it in `PYCLOUD_TEST_MONGO_URL`, and the tests use that one. This module must not be
imported by anything but tests; `python -m testing.mongo_server` fills the cache beforehand.
"""

import hashlib
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pymongo
from pymongo.errors import PyMongoError

from testing.cache import cache_dir

SOURCES = Path(__file__).parent / "mongo"
MAIN_CLASS = "MongoServerForTests"
INSTALL_TIMEOUT_S = 600
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 10


class MongoServerFailed(Exception):
    """The test server could not be fetched, built or started."""


@contextmanager
def running_mongo_server() -> Iterator[str]:
    """Run a fresh, empty server and give its `mongodb://127.0.0.1:PORT` address.

    The server is stopped at the end of the block, and ends by itself when this process dies.
    A server named by PYCLOUD_TEST_MONGO_URL is given as it is and neither emptied nor stopped, so
    callers use a database name of their own and drop it.

    Raises MongoServerFailed.
    """
    url = os.environ.get("PYCLOUD_TEST_MONGO_URL")
    if url:
        _wait_for_answer(url)
        yield url
        return
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pycloud-mongo-")))
        log_path = scratch / "log"
        log = stack.enter_context(log_path.open("wb"))
        process = _start(log)
        stack.callback(_stop, process)
        line = _first_line(process)
        if not line.strip().isdigit():
            raise MongoServerFailed(f"the server did not name its port:\n{_tail(log_path)}")
        url = f"mongodb://127.0.0.1:{int(line)}"
        _wait_for_answer(url)
        yield url


def ensure_installed() -> Path:
    """Fetch and compile the server unless this version of it is in the cache; return its folder.

    Raises MongoServerFailed.
    """
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        if source.is_file():
            digest.update(source.read_bytes())
    target = cache_dir() / f"mongo-server-{digest.hexdigest()[:16]}"
    if not target.exists():
        _install(target)
    return target


def _install(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mongo-server-", dir=target.parent) as scratch:
        staging = Path(scratch) / "server"
        staging.mkdir()
        maven = ["mvn", "--quiet", "--batch-mode", "--strict-checksums", "-Dstyle.color=never"]
        pom = ["--file", str(SOURCES / "pom.xml")]
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={staging}"]
        _run([*maven, *pom, *goal])
        _verify_jars(staging)
        source = str(SOURCES / f"{MAIN_CLASS}.java")
        _run(["javac", "-cp", f"{staging}/*", "-d", str(staging), source])
        try:
            staging.rename(target)
        except OSError as exc:
            # Another test run may have finished the same work first.
            if not target.exists():
                raise MongoServerFailed(f"cannot move the server to {target}: {exc}") from exc


def _verify_jars(folder: Path) -> None:
    listed = (SOURCES / "jars.sha256").read_text(encoding="ascii").splitlines()
    expected = {line.split()[1]: line.split()[0] for line in listed}
    found = {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in folder.iterdir()}
    if found != expected:
        differing = sorted(name for name, _ in set(found.items()) ^ set(expected.items()))
        raise MongoServerFailed(f"digests differ from {SOURCES}/jars.sha256: {differing}")


def _run(argv: list[str]) -> None:
    if shutil.which(argv[0]) is None:
        raise MongoServerFailed(f"{argv[0]} is missing; run ./scripts/setup.sh --dev")
    try:
        subprocess.run(
            argv,
            check=True,
            timeout=INSTALL_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except subprocess.TimeoutExpired as exc:
        raise MongoServerFailed(f"{argv[0]} took over {INSTALL_TIMEOUT_S} s") from exc
    except subprocess.CalledProcessError as exc:
        raise MongoServerFailed(f"{argv[0]} failed:\n{exc.stdout[-4000:]}") from exc


def _start(log: IO[bytes]) -> "subprocess.Popen[bytes]":
    folder = ensure_installed()
    # One thread of garbage collection and only the quick compiler: the tests need a prompt start.
    options = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx256m"]
    java = ["java", *options, "-cp", f"{folder}/*:{folder}", MAIN_CLASS]
    return subprocess.Popen(java, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)


def _first_line(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(START_TIMEOUT_S):
            raise MongoServerFailed(f"the server said nothing for {START_TIMEOUT_S} s")
    return process.stdout.readline()


def _wait_for_answer(url: str) -> None:
    client: pymongo.MongoClient[dict[str, object]] = pymongo.MongoClient(
        url, serverSelectionTimeoutMS=START_TIMEOUT_S * 1000
    )
    try:
        client.admin.command("ping")
    except PyMongoError as exc:
        raise MongoServerFailed(f"{url} does not answer: {exc}") from exc
    finally:
        client.close()


def _stop(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_TIMEOUT_S)


def _tail(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[-4000:]


if __name__ == "__main__":
    print(ensure_installed())
