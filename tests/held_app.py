"""sweepstack, or with `study` as its first word sweepstack-study, whose workers wait where a test
is to find them, however late it looks.

HOLD is a JSON mapping: a worker waits between two blocks of steps once so many trials of the study
have `finished`, one of its own has so many `reports`, and all of those have done so many `steps`;
what is not named is 0. It goes on when there is a file `go` in the folder of the command, or when
it is asked to stop. With PUBLIC studies are kept by Optuna's public API alone.
"""

import json
import os
import sys
import time
from pathlib import Path

from sweepstack.reporting.scoreboard import count_finished
from sweepstack.sweep import studies
from sweepstack.sweep.worker.trainer import Trainer

GO, HOLD = Path("go").absolute(), json.loads(os.environ.get("HOLD", "null"))


def is_held(trainer, specs):
    live = [trainer._training[spec.number].live for spec in specs]
    return (
        any(len(one.values) >= HOLD.get("reports", 0) for one in live)
        and min(one.step for one in live) >= HOLD.get("steps", 0)
        and count_finished(trainer.worker.book.counts()) >= HOLD.get("finished", 0)
    )


def stepped(self, steps, specs):
    plain(self, steps, specs)
    if is_held(self, specs):
        while self.worker.stop.code is None and not GO.exists():
            time.sleep(0.01)


plain = Trainer.stepped
if HOLD is not None:
    Trainer.stepped = stepped
if "PUBLIC" in os.environ:
    studies.bulk_problem = lambda: "tables that are used"

if __name__ == "__main__":
    from sweepstack.__main__ import main
    from sweepstack.cli import study

    if sys.argv[1] == "study":
        study.main(sys.argv[2:])
    else:
        main()
