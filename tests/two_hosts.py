"""Two hosts that share a PostgreSQL and an artifact folder alone; run by hand, as root.

    python tests/two_hosts.py

Each host is a set of namespaces of its own (host name, processes, network) and a folder; the
database is reached by its Unix socket. Both run the same command at the same time; then each makes
the report and trains a trial of the other again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from sweepstack import storage
from sweepstack.study.attributes import WORKER
from sweepstack.study.view import open_study

BIN = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), Path("/usr/bin"))
HERE = Path(sys.executable).parent
WORDS = (
    *("-m", "init=he,xavier,lecun", "training.seed=range(0,8)", "training.max_steps=150"),
    *("training.width=4", "training.eval_every=50", "hydra.sweeper.study_name=two"),
)


def database(root: Path, *command: str) -> None:
    as_postgres = [str(BIN / command[0]), *command[1:]]
    subprocess.run(["runuser", "-u", "postgres", "--", *as_postgres], check=True, cwd=root)


def on(root: Path, host: str, *command: str) -> subprocess.Popen[str]:
    (root / host).mkdir(exist_ok=True)
    inner = 'hostname "$0"; ip link set lo up 2>/dev/null; exec "$@"'
    return subprocess.Popen(
        [
            *("unshare", "--uts", "--pid", "--net", "--fork", "--mount-proc"),
            *("sh", "-c", inner, host, str(HERE / command[0]), *command[1:]),
        ],
        cwd=root / host,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def said(process: subprocess.Popen[str]) -> str:
    text = process.communicate()[0]
    print(f"--- {process.args[-1]}: exit code {process.returncode}\n{text}")
    assert process.returncode == 0, text
    return text


def here(root: Path, host: str) -> list[int]:
    found = (root / host / "outputs/studies/two").glob("*/metrics.json")
    return sorted(int(path.parent.name) for path in found)


def main() -> None:
    root = Path(tempfile.mkdtemp(prefix="sweepstack-hosts-"))
    os.chmod(root, 0o777)
    data, shared = root / "data", root / "shared"
    database(root, "initdb", "-A", "trust", "-D", str(data))
    options = f"-k {root} -c listen_addresses="
    database(root, "pg_ctl", "-D", str(data), "-w", "-o", options, "-l", str(root / "log"), "start")
    try:
        database(root, "createdb", "-h", str(root), "studies")
        url = f"postgresql://postgres@/studies?host={root}"
        storage.close(storage.connect(url))  # whose tables two starts would make at once
        sweep = ("sweepstack", *WORDS, f"hydra.sweeper.storage='{url}'")
        place = f"hydra.sweeper.artifacts={shared}"
        first = on(root, "one", *sweep, place, "hydra.sweeper.report=false")
        second = on(root, "two", *sweep, place, "hydra.sweeper.report=false")
        said(first), said(second)
        study = ("sweepstack-study",)
        trained = {
            trial.number: trial.user_attrs[WORKER].partition("/")[0]
            for trial in open_study("two", url).trials
        }
        print("trials trained by host:", Counter(trained.values()))
        assert set(trained.values()) == {"one", "two"}
        for host in ("one", "two"):
            shutil.rmtree(root / host / "outputs/studies")  # as if it had trained nothing
            said(on(root, host, *study, "report", "two", "--storage", url))
            assert here(root, host) == list(range(24)), here(root, host)
            for other in ("one", "two"):
                number = next(str(number) for number in trained if trained[number] == other)
                said(on(root, host, *study, "rerun", "two", number, "--storage", url))
            said(on(root, host, *study, "pull", "two", "--storage", url))
    finally:
        database(root, "pg_ctl", "-D", str(data), "-m", "fast", "stop")
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
