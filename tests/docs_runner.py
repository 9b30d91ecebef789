"""Runs the steps of a page one after the other in one folder: `python docs_runner.py STEPS.json`.

Each step is a fork of this process, which has imported torch once, so that a page takes seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path


def run(kind: str, words: list[str]) -> None:
    """One step, in a process of its own."""
    sys.path.insert(0, str(Path.cwd()))
    if kind == "python":
        Path("block.py").write_text(words[0], "utf-8")
        runpy.run_path("block.py", run_name="__main__")
    elif kind == "script":
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
    elif kind == "study":
        from sweepstack.cli import study as cli

        cli.main(words)
    else:
        from sweepstack.cli import app

        sys.argv = ["sweepstack", *words]
        app.main()


def main() -> None:
    """Run all steps; stop at the first that fails."""
    importlib.import_module("warm_preload")

    for kind, words in json.loads(Path(sys.argv[1]).read_text("utf-8")):
        print(f"$ {kind} {' '.join(words)}", flush=True)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                run(kind, words)
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if status:
            print(f"exit code {os.waitstatus_to_exitcode(status)} of: {kind} {' '.join(words)}")
            sys.exit(1)


if __name__ == "__main__":
    main()
