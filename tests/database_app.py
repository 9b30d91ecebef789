"""A Hydra app that reports five times, and whose workers note in acknowledged.txt what the study's
records have taken: JSON lines of a trial's number, a step and its value, or how the trial ended.

Trials pause between reports for `pause` seconds; in `trained.txt` stands when each was trained.
"""

import functools
import json
import os
import time

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

import sweepstack
from sweepstack.study.book import bulk, public

NODE = {"defaults": [{"override hydra/sweeper": "sweepstack"}, "_self_"], "x": 0, "pause": 0.0}
ConfigStore.instance().store(name="database_app", node=NODE)
HERE = os.getcwd()


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
        lines = [[r.trial.number, r.step, r.value] for r in reports]
        lines += [[e.trial.number, e.state.name, *(e.values or ())] for e in endings]
        note("acknowledged.txt", *(line for line in lines if line[0] not in lost))
        return lost

    return noted


for book in (bulk.BulkBook, public.PublicBook):
    if not hasattr(book.write, "noted"):  # the module is imported under two names
        book.write = noting(book.write)
        book.write.noted = True


@hydra.main(version_base=None, config_path=None, config_name="database_app")
def main(cfg: DictConfig) -> float:
    for step in range(1, 6):
        time.sleep(cfg.pause)
        sweepstack.report(cfg.x + step / 8, step)
        note("trained.txt", [time.time(), os.getpid(), cfg.x, step])
    return float(cfg.x)


if __name__ == "__main__":
    main()
