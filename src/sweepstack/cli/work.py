"""`sweepstack-study work STUDY`: join a study from any machine, from what the study keeps.

It is the sweep's own command, put together again: the arguments and the settings of `hydra.sweeper`
that the study keeps (`attributes.SWEEP`), on this machine's places. Nothing of a study is trusted,
by the rules of `rerun` (`runs.rerun.restore`): no setting of Hydra, package, folder of configs,
file of weights, download, server of a logger or function is taken from it. What it asks must be the
question that its sweep asked, or nothing runs.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sweepstack import storage
from sweepstack.config import composition, sweeper
from sweepstack.config import trust as trust_rule
from sweepstack.config.errors import EnvironmentFault, InputError, masked, nearest, one_line
from sweepstack.config.space import Space, points
from sweepstack.reporting.report.content import command_of
from sweepstack.runs.progress import say
from sweepstack.runs.rerun import changes_since, data_read
from sweepstack.storage import url as storage_url
from sweepstack.study.attributes import ENVIRONMENT, FOLDER
from sweepstack.study.view import StudyView, open_study, outputs
from sweepstack.sweep import plan
from sweepstack.sweep.plan import PLACES
from sweepstack.sweep.sweep import sweep
from sweepstack.sweep.worker.training_app import TrainingApp
from sweepstack.training import device

SETTINGS = ("workers_per_gpu", "storage_timeout_s", "trusted_storage", "report", "artifacts")
"""Keys of `hydra.sweeper` that a machine decides for itself."""
MAX_WORKERS = 1024
Node = dict[str, Any]


def work(
    name: str,
    where: str,
    *,
    workers: int = 1,
    given: Sequence[str] = (),
    trust: Sequence[str] = (),
    config_dir: str | None = None,
) -> int:
    """Run trials of a study until it has its total, beside whoever else works on it.

    Args:
        name: the study's.
        where: its storage, as for `open_study`.
        workers: processes.
        given: overrides that say where and how trials are run here (`plan.PLACES`, `SETTINGS`).
        trust: packages that the study's configs may name besides the closed table.
        config_dir: the user's folder of configs, as for the sweep.

    Returns:
        The exit code, 0.

    Raises:
        InputError: there is no such study, it cannot be joined, or an override is wrong.
        EnvironmentFault, NothingCompleted, Stopped, TrainingFailed: as for any sweep.
    """
    if not 1 <= workers <= MAX_WORKERS:
        raise InputError(f"--workers must be 1 to {MAX_WORKERS}, got {workers}")
    words, settings = _given(given)
    view = open_study(name, where)
    recorded, node = _recorded(view)
    app = TrainingApp(*_configs_of(view, config_dir))
    url = view.where if "://" in view.where else f"journal:///{view.where}"
    node |= settings | {"study_name": view.name, "storage": url, "n_jobs": workers}
    kept, notes = _kept(recorded, words)
    words = [*kept, *words, *([f"trust=[{','.join(trust)}]"] if trust else [])]
    _check_function(node, trust)
    space = plan.read(node, words, app.prefix).space
    _check_words(space, given)
    with _hinted():
        config = app.read([*space.fixed, *next(points.to_check(space))])
    try:
        device.resolve(config.training)
    except EnvironmentFault:
        if any(_key(word) == "training.device" for word in given):
            raise
        notes.append(f"this machine has no training.device={config.training.device}: using auto")
        words = [w for w in words if _key(w) != "training.device"] + ["training.device=auto"]
    for line in [*_changes(view), *notes, *data_read(config.data)]:
        say(line)
    folder = view.folder or outputs(view.where) / "studies" / _folder(view)
    with _hinted():
        sweep(node, words, app, joins=folder.absolute())
    return 0


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _given(given: Sequence[str]) -> tuple[list[str], Node]:
    """Overrides of the user, and those of `hydra.sweeper` apart.

    Raises:
        InputError: one changes more than where and how trials are run.
    """
    own = {f"hydra.sweeper.{key}": key for key in SETTINGS}
    known = [*sorted(PLACES - {"trust"}), "model.weights", *own]
    mistakes, words = [], []
    for word in given:
        key = _key(word)
        if "=" not in word:
            mistakes.append(f"work takes overrides KEY=VALUE, got {one_line(word, 80)}")
        elif key == "trust":
            mistakes.append("packages are trusted with --trust PACKAGE, not with trust=[...]")
        elif key not in known:
            near = nearest(key, known)
            mistakes.append(
                f"work takes only keys that say where and how trials are run, {', '.join(known)}; "
                f"any other makes another question, got {one_line(word, 80)}{near}"
            )
        elif key not in own:
            words.append(word)
    if mistakes:
        raise InputError(mistakes)
    found = [word for word in given if _key(word) in own]
    node = composition.compose(found, with_hydra=True).hydra.sweeper if found else {}
    return words, {own[_key(word)]: node[own[_key(word)]] for word in found}


def _recorded(view: StudyView) -> tuple[list[str], Node]:
    """The arguments and the settings of the sweeper that a study keeps.

    Raises:
        InputError: another program's, or not kept.
    """
    asked = view.asked
    application, arguments = asked.get("application"), asked.get("arguments")
    name = application.get("name") if isinstance(application, Mapping) else None
    study = f"study {one_line(view.name)}"
    if name is None:
        raise InputError(f"{study} was not made by a sweep of sweepstack: run its own program")
    if name != "sweepstack":
        raise InputError(
            f"{study} is another program's ({one_line(name, 40)}), which work cannot start: run "
            f"its command, here or on any other machine; it joins the study{_command(view)}"
        )
    settings = asked.get("settings")
    if not isinstance(settings, Mapping) or not isinstance(arguments, list):
        raise InputError(
            f"{study} does not keep all of its command (a merged study, or another version's): run "
            f"that command once, which joins the study; then work can{_command(view)}"
        )
    unknown = [str(key) for key in settings if key not in sweeper.defaults(sweeper.Sweeper)]
    if unknown or not all(isinstance(word, str) for word in arguments):
        more = f": hydra.sweeper has no {one_line(', '.join(unknown), 80)}" if unknown else ""
        raise InputError(f"{study} keeps a command that this version does not write{more}")
    node = {key: settings[key] for key in settings if key not in SETTINGS}
    deadline = asked.get("deadline")
    if isinstance(deadline, int | float) and deadline > time.time() and "timeout_s" in node:
        node["timeout_s"] = deadline - time.time()  # the end of the sweep that is joined
    return arguments, node


def _command(view: StudyView) -> str:
    """The command of a study, for a shell."""
    command = command_of(view.asked)
    url = masked(view.where)
    if command and storage_url.absolute(url) != storage_url.absolute(storage.DEFAULT):
        command += f" hydra.sweeper.storage='{url}'"
    return f": {command}" if command else ""


def _configs_of(view: StudyView, config_dir: str | None) -> tuple[str | None, str]:
    """The user's folder of configs and the primary config; a study may not name a folder.

    Raises:
        InputError: the sweep had a folder, and the user does not give it.
    """
    application = view.asked["application"]
    before, name = application.get("config_dir"), application.get("config_name")
    if before and config_dir is None:
        raise InputError(
            f"study {one_line(view.name)} was swept with --config-dir {one_line(before, 80)}: give "
            "it again, a study may not name it"
        )
    is_name = config_dir is not None and re.fullmatch(r"[\w-]+", str(name))
    return config_dir, str(name) if is_name else composition.CONFIG_NAME


def _kept(recorded: Sequence[str], given: Sequence[str]) -> tuple[list[str], list[str]]:
    """The recorded arguments that count here, and a line on those that do not."""
    ours, dropped = {_key(word) for word in given}, []
    kept = []
    for word in recorded:
        names = trust_rule.parts(word)
        if names[0] in ("hydra", "trust", "logger") or "download" in names:
            dropped += [] if _key(word) in ours else [one_line(word, 60)]
        elif _key(word) not in ours:
            kept.append(word)
    listed = ", ".join(word for word in dropped if not word.startswith("trust="))
    return kept, [f"left out, give it again if you want it here: {listed}"] if listed else []


def _check_function(node: Node, trust: Sequence[str]) -> None:
    """Refuse to import a function that a study names, unless its package is trusted."""
    name = node.get("custom_search_space")
    if name and not trust_rule.within(str(name).lstrip("."), trust):
        raise InputError(
            f"hydra.sweeper.custom_search_space is '{one_line(name, 80)}', and a study is not "
            "trusted to name code: if you trust it, add --trust PACKAGE"
        )


def _check_words(space: Space, given: Sequence[str]) -> None:
    """Refuse what a study's overrides, fixed or swept, may not say.

    Raises:
        InputError: an override calls a resolver, names no option, or a file of weights that the
            user does not give again.
    """
    ours = set(given)
    for word in dict.fromkeys(_words(space)):
        if word in ours or _key(word) == "trust":
            continue
        if why := trust_rule.beyond_values(word):
            raise InputError(f"the study is refused: its override '{one_line(word, 80)}' {why}")
        is_weights = trust_rule.parts(word)[:2] == ["model", "weights"]
        if is_weights and word.partition("=")[2] != "null":
            raise InputError(
                f"the study starts from {one_line(word, 120)}, and is not trusted to name files: "
                "if you trust it, add that word to the command"
            )


def _words(space: Space) -> Iterator[str]:
    yield from space.fixed
    for overrides in points.to_check(space):
        yield from overrides


@contextlib.contextmanager
def _hinted() -> Iterator[None]:
    """Add to a refusal of what is not trusted how to trust it."""
    try:
        yield
    except InputError as error:
        rule = "package of trust=[...]"
        hint = "; a study is not trusted: if you trust it, add --trust PACKAGE"
        lines = [line + hint if rule in line else line for line in error.mistakes]
        raise InputError(lines) from None


def _changes(view: StudyView) -> list[str]:
    """What is not as it was where the study's other workers are, the most similar of them."""
    known = [v for k, v in view.user_attrs.items() if k.startswith(f"{ENVIRONMENT}.")]
    return min(map(changes_since, known), key=len, default=[])


def _folder(view: StudyView) -> str:
    """The name of the folder of its trials; that in the database may be anything."""
    found = view.user_attrs.get(FOLDER)
    is_name = isinstance(found, str) and re.fullmatch(r"[^/\\\0]{1,255}", found)
    return str(found) if is_name and found not in (".", "..") else view.name.replace("/", "-")
