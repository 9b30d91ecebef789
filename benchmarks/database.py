"""What PostgreSQL itself can do: the statements of many workers, sent by pgbench.

    uv run python benchmarks/database.py "postgresql://me@/studies?host=/run/postgresql"

A thousand Python workers need a cluster of machines; their database is one. So their statements, as
recorded from one worker (`benchmarks/workers.py` runs real ones), are sent by `pgbench`, with a
connection for each worker, which costs next to no CPU. A worker claims a trial, writes its two
parameters, a report and its end; every 15 s it sends a heartbeat with its entry in the register and
looks for a stop mark; all together they look for the dead once a second. What is counted anew by
each claim is 3 times as many trials as there are workers, as on average. It is not measured: the
starts, the reading of the register, and a network.

Printed for each rate of trials that is asked for: the claims a second that the server did, the
median and 99th percentile of one in ms (all its statements, and the wait for the study), how long
the study is waited for, CPU time of the server and of pgbench for each trial, and cores busy. The
study is made and deleted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from workers import server_cpu_s

from sweepstack import storage
from sweepstack.sweep import studies

NAME = "benchmark-database"
CLAIM = r"""
SELECT extract(epoch from clock_timestamp()) AS began \gset
BEGIN;
SELECT study_id, set_config('synchronous_commit', 'off', true) FROM studies WHERE study_id = :study FOR NO KEY UPDATE;
SELECT coalesce(max(last), :floor) AS newest, sum(count) AS near FROM (SELECT CASE WHEN state IN ('WAITING', 'FAIL') THEN trial_id ELSE -1 END AS one, state, count(*) AS count, max(trial_id) AS last FROM trials WHERE study_id = :study AND trial_id > :floor GROUP BY one, state) AS tally \gset
INSERT INTO trials (number, study_id, state, datetime_start) VALUES (:newest, :study, 'RUNNING', LOCALTIMESTAMP);
SELECT trial_id AS trial, number FROM trials WHERE study_id = :study AND trial_id > :newest ORDER BY number \gset
INSERT INTO trial_heartbeats (trial_id, heartbeat) VALUES (:trial, CURRENT_TIMESTAMP);
INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (:trial, 'sweepstack.worker', '"node:client_id/1:1:1"');
COMMIT;
INSERT INTO benchmark_claims VALUES (:began, extract(epoch from clock_timestamp()));
\set floor :newest - 2 * :workers
"""  # noqa: E501
REST = r"""
\if :trial > 0
INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) VALUES (:trial, 'a', 0.5, '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}'), (:trial, 'b', 3.0, '{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 3}}');
INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type) VALUES (:trial, 1, 1.0, 'FINITE');
BEGIN;
SELECT trial_id FROM trials WHERE state = 'RUNNING' AND trial_id IN (:trial) FOR UPDATE;
INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (:trial, 'loss', '1.0'), (:trial, 'sweepstack.overrides', '["a=0.5", "b=3"]'), (:trial, 'sweepstack.environment', '"0123456789"');
INSERT INTO trial_values (trial_id, objective, value, value_type) VALUES (:trial, 0, 1.0, 'FINITE');
UPDATE trials SET state = 'COMPLETE', datetime_complete = LOCALTIMESTAMP WHERE trial_id = :trial;
COMMIT;
\endif
"""  # noqa: E501
BEAT = r"""
UPDATE trial_heartbeats SET heartbeat = CURRENT_TIMESTAMP WHERE trial_id = :trial;
UPDATE study_user_attributes SET value_json = repeat('x', 250) WHERE study_id = :study AND key = 'sweepstack.workers.:client_id';
SELECT key, value_json FROM study_user_attributes WHERE study_id = :study AND key IN ('sweepstack.stop', 'sweepstack.stop.x');
"""  # noqa: E501
LOOK = r"""
SELECT a.value_json, min(heartbeat) FROM trial_user_attributes a JOIN trials t ON t.trial_id = a.trial_id LEFT JOIN trial_heartbeats h ON h.trial_id = t.trial_id WHERE t.study_id = :study AND t.trial_id > :floor AND t.state = 'RUNNING' AND a.key = 'sweepstack.worker' GROUP BY a.value_json;
"""  # noqa: E501


def measure(opened: RDBStorage, study: int, workers: int, rate: float, seconds: int) -> None:
    """Ask for so many trials a second, and print what came of it."""
    beats, url = workers / 15, opened.engine.url
    scripts = {"trial": (REST + CLAIM, rate), "beat": (BEAT, beats), "look": (LOOK, 1.0)}
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name, (text, weight) in scripts.items():
            # pgbench does not replace variables within quotes.
            inserted = text.replace("'\"node:client_id/1:1:1\"'", "'\"node' || :client_id || '\"'")
            inserted = inserted.replace(
                "'sweepstack.workers.:client_id'", "'sweepstack.workers.' || :client_id"
            )
            Path(folder, f"{name}.sql").write_text(inserted.strip() + "\n")
            files += ["-f", f"{folder}/{name}.sql@{max(1, round(10 * weight))}"]
        host = url.query.get("host") or url.host or "localhost"
        command = [
            *("pgbench", "-n", "-M", "prepared", "-c", str(workers), "-j", "2", "-T", str(seconds)),
            *("-R", str(rate + beats + 1), *files),
            *("-r", "-h", str(host), "-p", str(url.port or 5432), "-U", url.username or "postgres"),
            *("-D", f"study={study}", "-D", "trial=0", "-D", "floor=0", "-D", f"workers={workers}"),
            str(url.database),
        ]
        with opened.engine.begin() as page:
            page.exec_driver_sql("DROP TABLE IF EXISTS benchmark_claims")
            page.exec_driver_sql(
                "CREATE UNLOGGED TABLE benchmark_claims (began float, ended float)"
            )
        with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
            busy = "SELECT count(*) FROM pg_stat_activity"
            while process.poll() is None and rows(opened, busy)[0][0] < workers:
                time.sleep(0.5)  # they connect
            time.sleep(seconds / 3)  # and prepare their statements
            before, began = [server_cpu_s("postgres"), server_cpu_s("pgbench")], time.time()
            time.sleep(seconds / 2)
            after, ended = [server_cpu_s("postgres"), server_cpu_s("pgbench")], time.time()
            out, error = process.communicate()
        if process.returncode:
            print(error[-500:])
        spent = [(b - a) / (ended - began) for a, b in zip(before, after, strict=True)]
        which = f"WHERE began BETWEEN {began} AND {ended}"
        times = rows(opened, f"SELECT 1e3 * (ended - began) FROM benchmark_claims {which}")
        with opened.engine.begin() as page:
            page.exec_driver_sql("DROP TABLE benchmark_claims")
        took = sorted(float(row[0]) for row in times)
        say(f"{workers} workers, {rate:g} trials/s", spent, ended - began, out, took or [0.0])


def rows(opened: RDBStorage, query: str) -> Sequence[Any]:
    """What a query finds."""
    with opened.engine.begin() as page:
        return page.exec_driver_sql(query).all()


def say(what: str, spent: list[float], seconds: float, said: str, times: list[float]) -> None:
    """Print a row; `spent` are cores that the server and pgbench used."""
    p50, p99 = times[len(times) // 2], times[int(0.99 * (len(times) - 1))]
    wait = [line.split()[0] for line in said.splitlines() if "FOR NO KEY UPDATE" in line]
    a_second = len(times) / seconds
    print(
        f"{what}: {a_second:.0f} claims/s, p50 {p50:.1f} p99 {p99:.1f} ms, mean wait for the study "
        f"{''.join(wait)} ms; CPU of a trial {1e3 * spent[0] / a_second:.2f} ms server, "
        f"{1e3 * spent[1] / a_second:.2f} ms pgbench; {sum(spent):.2f} of {os.cpu_count()} cores",
        flush=True,
    )


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", help="of a PostgreSQL database; pgbench must be on the PATH")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--rates", type=float, nargs="+", default=[17, 100, 1000])
    parser.add_argument("--seconds", type=int, default=30)
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = storage.connect(given.url)
    assert isinstance(opened, RDBStorage)
    for rate in given.rates:
        study = optuna.create_study(study_name=NAME, storage=opened)
        book = studies.book_of(opened)(study, opened, None)
        for worker in range(given.workers):
            study.set_user_attr(f"sweepstack.workers.{worker}", "x" * 250)
        try:
            measure(opened, book.study_id, given.workers, rate, given.seconds)
        finally:
            with book.deletion():
                time.sleep(0)


if __name__ == "__main__":
    main()
