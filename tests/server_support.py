"""Database servers of a test's own: PostgreSQL and MariaDB, in a folder, ended with the test."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest


def free_port() -> int:
    """A port for a server that starts later, and that may stop for a while. None that the kernel
    gives to connections: while the server is away, one of them might have it."""
    while True:
        port = random.SystemRandom().randrange(10_000, 20_000)
        with contextlib.suppress(OSError), socket.socket() as found:
            found.bind(("127.0.0.1", port))
            return port


class Server:
    """A server with an empty database `sweeps`; a context manager. Servers refuse to run as root,
    so that as root `user` runs it."""

    user = ""

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="sweepstack-server-"))
        if os.getuid() == 0 and self.user:
            shutil.chown(self.folder, self.user)

    def _run(self, *command: str | Path) -> None:
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, **self._as_user())

    def _as_user(self) -> dict[str, Any]:
        return {"cwd": "/"} | ({"user": self.user, "group": self.user} if os.getuid() == 0 else {})

    def __enter__(self) -> Server:
        try:
            self.make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.with_name(f"{self.folder.name}.log").unlink(missing_ok=True)

    url = ""

    def make(self) -> None:
        raise NotImplementedError

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def restart(self) -> None:
        self.stop()
        self.start()


class PostgreSQL(Server):
    """As Debian and others install it, with a commit written to the disk."""

    user = "postgres"

    def __init__(self) -> None:
        places = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
        found = str(places[-1]) if places else shutil.which("pg_ctl")
        if found is None:
            pytest.skip("needs PostgreSQL's server (apt-get install postgresql)")
        pytest.importorskip("psycopg")
        self.programs = Path(found).parent
        super().__init__()
        self.url = f"postgresql://tester@127.0.0.1:{self.port}/sweeps"

    def make(self) -> None:
        data = self.folder / "data"
        self._run(self.programs / "initdb", "-D", data, "-U", "tester", "--auth=trust")
        self.start()
        at = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "tester")
        self._run(self.programs / "createdb", *at, "sweeps")

    def _control(self, *words: str) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1"
        data = self.folder / "data"
        self._run(self.programs / "pg_ctl", "-D", data, "-w", "-o", options, *words)

    def start(self) -> None:
        self._control("start")

    def stop(self) -> None:
        if (self.folder / "data" / "postmaster.pid").exists():
            self._control("-m", "fast", "stop")

    def restart(self) -> None:
        self._control("-m", "fast", "restart")


class MariaDB(Server):
    """As Debian installs it."""

    user = "mysql"

    def __init__(self) -> None:
        if shutil.which("mariadbd") is None or shutil.which("mariadb-install-db") is None:
            pytest.skip("needs MariaDB's server (apt-get install mariadb-server)")
        pytest.importorskip("pymysql")
        super().__init__()
        self.url = f"mysql+pymysql://tester@127.0.0.1:{self.port}/sweeps"
        self._process: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        data = f"--datadir={self.folder / 'data'}"
        tmp, access = f"--tmpdir={self.folder}", "--auth-root-authentication-method=normal"
        self._run("mariadb-install-db", data, tmp, access)
        self.start()
        words = (
            "CREATE DATABASE sweeps; CREATE USER tester@'127.0.0.1'; "
            "GRANT ALL ON sweeps.* TO tester@'127.0.0.1'"
        )
        self._run("mariadb", f"--socket={self.folder}/socket", "-u", "root", "-e", words)

    def start(self) -> None:
        socket_, data = f"--socket={self.folder}/socket", f"--datadir={self.folder / 'data'}"
        place = (f"--port={self.port}", "--bind-address=127.0.0.1", "--skip-name-resolve")
        files = (f"--{name}={self.folder}/{name}" for name in ("log-error", "pid-file"))
        tmp = f"--tmpdir={self.folder}"
        command = ["mariadbd", "--no-defaults", data, socket_, *place, *files, tmp]
        self._process = subprocess.Popen(command, **self._as_user())
        ping = ["mariadb-admin", f"--socket={self.folder}/socket", "-u", "root", "ping"]
        latest = time.monotonic() + 60
        while subprocess.run(ping, capture_output=True).returncode:
            assert time.monotonic() < latest, (self.folder / "log-error").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(60)
            self._process = None


class Proxy(Server):
    """Optuna's gRPC server over a SQLite file; it ends without a word."""

    def __init__(self) -> None:
        pytest.importorskip("grpc")
        super().__init__()
        self.url = f"grpc://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        self.start()

    def start(self) -> None:
        serve = (
            "import sys; from optuna.storages import get_storage, run_grpc_proxy_server as run; "
            "run(get_storage(sys.argv[1]), host='127.0.0.1', port=int(sys.argv[2]))"
        )
        command = [sys.executable, "-W", "ignore", "-c", serve, f"sqlite:///{self.folder}/s.db"]
        log = (self.folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [*command, str(self.port)], cwd=self.folder, stdout=log, stderr=log
            )
        latest = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < latest, (self.folder / "log").read_text()
            time.sleep(0.1)

    def _answers(self) -> bool:
        with socket.socket() as found:
            return found.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
