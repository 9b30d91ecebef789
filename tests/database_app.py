"""A Hydra app that reports five times, and whose workers note in acknowledged.txt what the study's
records have taken: JSON lines of the process, a trial's number, and a step and its value or how the
trial ended.

Trials pause between reports for `pause` seconds; in `trained.txt` stands when each was trained. The
first of each worker waits until `DATABASE_APP_WORKERS` have begun.
"""

import functools
import json
import multiprocessing
import os
import time
from pathlib import Path
from types import SimpleNamespace

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

import sweepstack
from sweepstack.study.book import bulk, public
from sweepstack.sweep.worker import Outcome, application, launch

NODE = {"defaults": [{"override hydra/sweeper": "sweepstack"}, "_self_"], "x": 0, "pause": 0.0}
ConfigStore.instance().store(name="database_app", node=NODE)
HERE = os.getcwd()
WORKERS = int(os.environ.get("DATABASE_APP_WORKERS", "1"))


def note(name: str, *lines: object) -> None:
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    file = os.open(os.path.join(HERE, name), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, text.encode())
    os.close(file)


def noting(write):
    @functools.wraps(write)
    def noted(self, reports=(), endings=()):
        reports = list(reports)
        lost = write(self, reports, endings)
        me = os.getpid()
        lines = [[me, r.trial.number, r.step, r.value] for r in reports]
        lines += [[me, e.trial.number, e.state.name, *(e.values or ())] for e in endings]
        note("acknowledged.txt", *(line for line in lines if line[1] not in lost))
        return lost

    return noted


for book in (bulk.BulkBook, public.PublicBook):
    if not hasattr(book.write, "noted"):  # the module is imported under two names
        book.write = noting(book.write)
        book.write.noted = True


class Reporter:
    """Runs trials without composing their configs, which takes most of the time."""

    equal = None

    def __init__(self, plan, worker):
        fixed = dict(word.split("=", 1) for word in plan.space.fixed)
        self.pause_s, self.worker = float(fixed.get("pause", 0.0)), worker

    def run(self, asked):
        for each in asked:
            self.meet()
            (x,) = (float(w.removeprefix("x=")) for w in each.overrides if w.startswith("x="))
            for step in range(1, 6):
                time.sleep(self.pause_s)
                self.worker.decisions.report(each, step, x + step / 8)
                self.worker.decisions.flush()
                note("trained.txt", [time.time(), os.getpid(), x, step])
            yield Outcome(each, "complete", (x,))

    def meet(self):
        note("begun.txt", os.getpid())
        while len(set(Path(HERE, "begun.txt").read_text().split())) < WORKERS:
            time.sleep(0.02)
        self.meet = lambda: None

    def close(self):
        pass


if os.environ.get("SWEEPSTACK_TEST_WORKERS"):  # "fork" or "spawn"
    application.HydraApp.runner = lambda self, plan, folder, worker: Reporter(plan, worker)
    context = multiprocessing.get_context(os.environ["SWEEPSTACK_TEST_WORKERS"])
    launch.multiprocessing = SimpleNamespace(get_context=lambda kind: context)


@hydra.main(version_base=None, config_path=None, config_name="database_app")
def main(cfg: DictConfig) -> float:
    for step in range(1, 6):
        time.sleep(cfg.pause)
        sweepstack.report(cfg.x + step / 8, step)
        note("trained.txt", [time.time(), os.getpid(), cfg.x, step])
    return float(cfg.x)


if __name__ == "__main__":
    main()
