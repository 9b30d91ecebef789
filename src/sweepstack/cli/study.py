"""The command `sweepstack-study`: what studies found, for people at a terminal.

    sweepstack-study list                       studies, trials by state, best, when
    sweepstack-study show STUDY                 tables of what was swept, and what the doctor finds
    sweepstack-study report STUDY               one HTML file with every plot and table
    sweepstack-study compare A B                which is better, paired by equal configurations
    sweepstack-study best STUDY -o FOLDER       what won, as a config; --retrain: was it luck?
    sweepstack-study export STUDY -o x.csv      one row per trial; --history: per evaluation
    sweepstack-study rerun STUDY 17             train it again alone and compare (exit code 5)
    sweepstack-study pull STUDY                 files of trials that other machines trained
    sweepstack-study work STUDY                 join it, from this or another machine
    sweepstack-study workers STUDY              who works on it: host, GPU, since when, pace
    sweepstack-study stop STUDY                 ask its workers to stop, wherever they are
    sweepstack-study rename OLD NEW             its folder and report too
    sweepstack-study copy STUDY NEW --to URL    here or into another storage, with its files
    sweepstack-study merge A B -n NEW           one study of several that ask the same
    sweepstack-study prune-files STUDY          models and checkpoints that are not needed; asks
    sweepstack-study delete STUDY               its rows, folder and report; asks first
    sweepstack-study dashboard                  optuna-dashboard on the studies, on 127.0.0.1

A command's module is imported when it is called, so that --help is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from sweepstack import STORAGE
from sweepstack.config import commands
from sweepstack.config.errors import EXIT_INPUT, EnvironmentFault, InputError, nearest

_GROUPS = {
    "Read a study": (
        *("list", "show", "report", "dashboard", "compare", "best", "export", "pull", "workers"),
    ),
    "Train": ("rerun", "work"),
    "Keep house": ("stop", "delete", "rename", "copy", "merge", "prune-files"),
}
"""The commands in the order in which a newcomer needs them."""
_EPILOG = """\
sweepstack-study COMMAND --help shows the options of a command. Studies are read
from outputs/studies.db here or in a folder above, or from --storage."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    with commands.running("sweepstack-study"):
        sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code.

    Raises:
        SweepstackError: what is wrong, in one line.
    """
    parsed = parser()
    if "_ARGCOMPLETE" in os.environ:  # set by a shell's Tab key, where argcomplete is installed
        import argcomplete

        argcomplete.autocomplete(parsed)
    for name in arguments[:1]:
        if not name.startswith("-") and name not in parsed.commands:
            known = ", ".join(parsed.commands)
            near = nearest(name, parsed.commands)
            raise InputError(f"COMMAND must be one of {known}, got '{name}'{near}")
    if not arguments:
        parsed.print_help(sys.stderr)
        return EXIT_INPUT
    options = parsed.parse_args(arguments)
    if options.command not in _GROUPS["Keep house"]:  # what writes works in this folder alone
        from sweepstack import storage

        options.storage = storage.above(options.storage)
    return int(options.run(options))


class _Parser(argparse.ArgumentParser):
    """argparse whose mistakes are one line."""

    commands: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """Say what is wrong."""
        raise InputError(f"{message}; see {self.prog} --help")


def parser() -> _Parser:
    """All commands and their options."""
    common = _Parser(add_help=False)
    common.add_argument(
        "--storage",
        default=STORAGE,
        metavar="URL",
        help="database URL, SQLite file or Optuna journal (default: %(default)s)",
    )
    study = _Parser(add_help=False, parents=[common])
    named = study.add_argument(
        "study", metavar="STUDY", help="the study's name, as `list` shows it"
    )
    _complete(named, _names)
    top = _Parser(prog="sweepstack-study", formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = top.add_subparsers(dest="command", required=True, metavar="COMMAND", help=SUPPRESS)
    about: dict[str, str] = {}

    def add(
        run: Callable[[argparse.Namespace], int],
        parent: _Parser,
        help: str,
        text: str | None = None,
    ) -> argparse.ArgumentParser:
        name = run.__name__.lstrip("_").replace("_", "-")
        says = text or f"{help[0].upper()}{help[1:]}."
        added = kinds.add_parser(name, parents=[parent], help=help, description=says)
        added.set_defaults(run=run)
        about[name] = help
        return added

    _add_reading(add, common, study)
    again = "Train a trial again alone, from what the study keeps, and compare. "
    again += "Exit code 0: it agrees within the tolerance; 5: it differs."
    _add_rerun_options(add(_rerun, study, "train a trial again alone and compare it", again))
    _add_work_options(add(_work, study, "join a study: run its trials on this machine too", _JOIN))
    _add_house_keeping(add, common, study)
    what = "serve optuna-dashboard on the studies, until Ctrl-C"
    _add_dashboard_options(add(_dashboard, common, what))
    top.usage, top.description = "sweepstack-study COMMAND ...", _described(about)
    top.commands = tuple(about)
    return top


def _add_reading(
    add: Callable[..., argparse.ArgumentParser], common: _Parser, study: _Parser
) -> None:
    listed = add(_list, common, "all studies: trials by state, best value, last activity")
    listed.add_argument("--json", action="store_true", help="print JSON, for programs")
    show = add(_show, study, "the table of a study, and what its doctor finds")
    show.add_argument(
        "--watch", action="store_true", help="repeat while a sweep runs, until Ctrl-C"
    )
    show.add_argument(
        "--every", type=_seconds, default=2.0, metavar="SECONDS", help="with --watch (default: 2)"
    )
    show.add_argument("--json", action="store_true", help="print JSON, for programs")
    several = add(_compare, common, "which of several studies is better, and by how much")
    names = several.add_argument("studies", metavar="STUDY", nargs="+", help="two or more names")
    _complete(names, _names)
    several.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="as a page too")
    best = add(_best, study, "what won; -o writes it as a config to train")
    best.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="write its config there")
    best.add_argument(
        "--retrain",
        nargs="*",
        metavar="KEY=VALUE",
        help="train it with fresh seeds (seeds=5) and overrides: was it luck?",
    )
    _add_trust(best)
    where = "default: outputs/reports/STUDY.html"
    page = add(_report, study, "all plots and tables, as one HTML file")
    page.add_argument("-o", "--output", type=Path, metavar="FILE.html", help=where)
    export = add(_export, study, "a row per trial, as CSV or Parquet")
    export.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.csv|.parquet")
    export.add_argument("--history", action="store_true", help="write a row per evaluation instead")
    pulled = add(_pull, study, "fetch the files of trials that other machines trained")
    what = "folder or URL of its artifacts, if it is another than the study names"
    pulled.add_argument("--from", dest="place", metavar="PLACE", help=what)


def _add_house_keeping(
    add: Callable[..., argparse.ArgumentParser], common: _Parser, study: _Parser
) -> None:
    moved = add(_rename, study, "give a study another name, its folder and report too")
    moved.add_argument("new", metavar="NEW", help="the new name")
    copied = add(_copy, study, "copy a study with its files")
    copied.add_argument("new", metavar="NEW", help="the copy's name")
    copied.add_argument("--to", metavar="URL", help="storage of the copy (default: the same)")
    merged = add(_merge, common, "one study of the finished trials of several")
    _complete(
        merged.add_argument("studies", metavar="STUDY", nargs="+", help="two or more"), _names
    )
    merged.add_argument("-n", "--name", required=True, metavar="NEW", help="the new study's name")
    spare = add(
        _prune_files, study, "remove models and checkpoints that are not needed; asks first"
    )
    spare.add_argument(
        "--keep", type=_count, default=1, metavar="K", help="trials that keep models (default: 1)"
    )
    spare.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    spare.add_argument("-y", "--yes", action="store_true", help="do not ask")
    add(_workers, study, "who works on a study: host, GPU, since when, trials per minute")
    add(_stop, study, "ask the workers of a study to stop, on whatever machine")
    gone = add(_delete, study, "delete a study with the files of its trials; asks first")
    gone.add_argument("-y", "--yes", action="store_true", help="do not ask")


def _complete(argument: argparse.Action, how: Callable[..., list[str]]) -> None:
    """Tell argcomplete what an argument may be."""
    argument.completer = how  # type: ignore[attr-defined]


def _names(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    from sweepstack import storage

    return storage.names(parsed_args.storage)


def _described(about: Mapping[str, str]) -> str:
    """All commands, below what they are for."""
    groups = {title: [name for name in names if name in about] for title, names in _GROUPS.items()}
    grouped = {name for names in groups.values() for name in names}
    groups["More"] = [name for name in about if name not in grouped]
    parts = [
        "\n".join([title, *(f"  {name:<14}{about[name]}" for name in names)])
        for title, names in groups.items()
        if names
    ]
    return "\n\n".join([*parts, _EPILOG])


def _add_trust(to: argparse.ArgumentParser) -> None:
    what = "packages that may be imported, as `trust` in a run"
    to.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=what)


def _add_rerun_options(again: argparse.ArgumentParser) -> None:
    again.add_argument("number", type=int, metavar="NUMBER", help="of the trial, as in the report")
    again.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="overrides, such as training.device=cpu"
    )
    _add_trust(again)
    again.add_argument("--config-dir", metavar="FOLDER", help="your own configs, as for the sweep")
    again.add_argument(
        "--probe", action="store_true", help="measure how far rounding grows, even if it agrees"
    )
    again.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="default: outputs/reruns/STUDY-NUMBER"
    )


_JOIN = """Run trials of a study, from what the study keeps of its command, until it has its total.
Ctrl-C leaves it: trials in hand are requeued. Any number of machines may join and leave."""


def _add_work_options(work: argparse.ArgumentParser) -> None:
    where = "overrides for this machine, such as data.root=/data or training.device=cpu"
    work.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=where)
    work.add_argument(
        "--workers", type=int, default=1, metavar="K", help="processes (default: %(default)s)"
    )
    _add_trust(work)
    work.add_argument("--config-dir", metavar="FOLDER", help="your own configs, as for the sweep")


def _add_dashboard_options(dashboard: argparse.ArgumentParser) -> None:
    dashboard.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    dashboard.add_argument(
        "--port", type=_port, default=8080, help="port, 0 for any free one (default: %(default)s)"
    )
    dashboard.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another host name to answer to, such as a proxy's",
    )
    login = dashboard.add_mutually_exclusive_group()
    login.add_argument(
        "--token", nargs="?", const="", help="what browsers must give; without TOKEN a random one"
    )
    login.add_argument(
        "--no-token", action="store_true", help="let other machines in without a token"
    )


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"must be 0 to 65535, got {text}")
    return int(text)


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) < 10**6):
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return int(text)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"must be 0.1 to 3600 seconds, got {text}")
    return seconds


def _list(options: argparse.Namespace) -> int:
    from sweepstack import storage
    from sweepstack.reporting import overview
    from sweepstack.runs import progress

    url, opened = storage.look(options.storage)
    with storage.named(url):
        overview.show_list(opened, progress.console(), as_json=options.json)
    return 0


def _show(options: argparse.Namespace) -> int:
    from sweepstack.reporting import overview

    if options.json:
        return overview.show_json(options.study, options.storage)
    return overview.show(options.study, options.storage, options.every if options.watch else None)


def _report(options: argparse.Namespace) -> int:
    from sweepstack.reporting import report
    from sweepstack.runs.progress import say, shown
    from sweepstack.study import view

    if options.output is not None:
        report.check(options.output)
    opened = view.open_study(options.study, options.storage)
    path = report.write(opened, options.output or report.place_of(opened))
    say(f"report: {shown(path)}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from sweepstack.reporting import comparison, report
    from sweepstack.study import view

    if options.output is not None:
        report.check(options.output)
    views = [view.open_study(name, options.storage) for name in options.studies]
    return comparison.compare(views, options.output)


def _best(options: argparse.Namespace) -> int:
    from sweepstack.cli import best
    from sweepstack.study import view

    if options.retrain is None:
        return best.winner(view.open_study(options.study, options.storage), options.output)
    seeds, words = best.read(options.retrain)
    opened = view.open_study(options.study, options.storage)
    return best.retrain(opened, seeds, words, options.trust, options.output)


def _export(options: argparse.Namespace) -> int:
    from sweepstack.reporting import overview
    from sweepstack.runs.progress import say, shown
    from sweepstack.study import view

    overview.check_output(options.output)
    opened = view.open_study(options.study, options.storage)
    table = opened.history if options.history else opened.frame
    overview.write(table, options.output)
    say(f"{len(table)} rows: {shown(options.output)}")
    return 0


def _rerun(options: argparse.Namespace) -> int:
    from sweepstack.runs import rerun
    from sweepstack.study import view

    return rerun.rerun(
        view.open_study(options.study, options.storage),
        options.number,
        overrides=options.overrides,
        trust=options.trust,
        folder=options.output,
        config_dir=options.config_dir,
        probe=options.probe,
    )


def _pull(options: argparse.Namespace) -> int:
    from sweepstack.runs.progress import say
    from sweepstack.storage.artifacts import SETTING, Store, place
    from sweepstack.study import view

    opened = view.open_study(options.study, options.storage)
    store = opened.store
    if store is None:
        raise InputError(f"study {opened.name} has no artifacts: no sweep was given {SETTING}")
    if options.place is not None:
        store = Store(place(options.place), store.key)
    small, models = opened.missing(), opened.missing(models=True)
    taken, with_models = opened.take(small, models, store)
    said = f"; models: {', '.join(map(str, sorted(with_models)))}" if with_models else ""
    say(f"study {opened.name}: files of {len(taken)} trials taken from {store.where}{said}")
    if left := sorted(small - taken):
        named = ", ".join(map(str, left[:20])) + (", ..." if len(left) > 20 else "")
        raise EnvironmentFault(
            f"{len(left)} of {len(opened.trials)} trials are not in {store.where}: {named}; the "
            "machines that trained them put them there when the sweep's command is run again"
        )
    return 0


def _work(options: argparse.Namespace) -> int:
    from sweepstack.cli import work

    return work.work(
        options.study,
        options.storage,
        workers=options.workers,
        given=options.overrides,
        trust=options.trust,
        config_dir=options.config_dir,
    )


def _workers(options: argparse.Namespace) -> int:
    from sweepstack.reporting import overview
    from sweepstack.study import view

    return overview.show_workers(view.open_study(options.study, options.storage))


def _stop(options: argparse.Namespace) -> int:
    import time

    from sweepstack import storage
    from sweepstack.runs import progress, register
    from sweepstack.study import view
    from sweepstack.study.attributes import STOP

    found = view.open_study(options.study, options.storage)
    with storage.named(found.where):
        where = found.where if "://" in found.where else f"journal:///{found.where}"
        opened = storage.connect(where)
        asked = opened.get_study_id_from_name(options.study)
        opened.set_study_user_attr(asked, STOP, repr(time.time()))
        alive = sum(entry.is_alive for entry in register.workers(found.study))
    progress.say(
        f"asked {alive} worker{'s' * (alive != 1)} of study {options.study} to stop: each does "
        "with its next claim or report; run the sweep's command again to resume"
    )
    return 0


def _delete(options: argparse.Namespace) -> int:
    from sweepstack.cli import housekeeping

    return housekeeping.remove(options.study, options.storage, is_sure=options.yes)


def _rename(options: argparse.Namespace) -> int:
    from sweepstack.cli import housekeeping

    return housekeeping.rename(options.study, options.new, options.storage)


def _copy(options: argparse.Namespace) -> int:
    from sweepstack.cli import housekeeping

    return housekeeping.copy(options.study, options.new, options.storage, options.to)


def _merge(options: argparse.Namespace) -> int:
    from sweepstack.cli import merging

    return merging.merge(options.studies, options.name, options.storage)


def _prune_files(options: argparse.Namespace) -> int:
    from sweepstack.cli import housekeeping

    return housekeeping.prune_files(
        options.study,
        options.storage,
        keep=options.keep,
        dry_run=options.dry_run,
        is_sure=options.yes,
    )


def _dashboard(options: argparse.Namespace) -> int:
    from sweepstack.reporting import dashboard

    return dashboard.serve(
        options.storage,
        options.host,
        options.port,
        allowed=options.allow_host,
        token=options.token,
        is_open=options.no_token,
    )


if __name__ == "__main__":
    main()
