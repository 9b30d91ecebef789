"""Odd command lines by a seed, and what must hold for each: it is refused in plain lines and
leaves nothing behind, or it does something.

A line is a few words, each a key with a value; both are sound or odd. What would be sound and
take long is left out (`LONG`), so that a command that takes longer than `LIMIT_S` hangs.
"""

from __future__ import annotations

import os
import random
import shlex
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from textwrap import dedent

import warm
from omegaconf import OmegaConf

from sweepstack.config import composition, sweeper

LIMIT_S = 20
ALLOWED = {0, 1, 2, 3, 4, 5}
"""Exit codes that a command which nobody interrupts may have."""

ODD = (
    *("", "???", "null", "true", "yes", "nan", "-nan", "inf", "-inf", "0", "-0", "-1", "1e309"),
    *(
        "-1e-320",
        "9" * 30,
        "1e30",
        "0x1f",
        "010",
        "12:30",
        "1_000",
        "١٢",
        "fast",
        "ünï",
        "日本語",
        "💥",
    ),
    *("'", '"', "'a", "''", "' '", "'a b'", "a b", " a", "a ", "\\", "a\\,b", "a\nb", "a\tb"),
    *("\x1b[31mred", "\x07", "\x7f", "a\rb", "\u2028", "\udcff", "a\u0300", "a" * 5000, "1" * 5000),
    *("[", "]", "[]", "[1,2]", "[[1],[2]]", "[a,[b,{c:1}]]", "[null]", "[,]", "{}", "{a:1}", "{"),
    *(
        "{name:mlp}",
        "{_target_:os.system}",
        "[" * 99 + "]" * 99,
        "[" * 2000,
        "{a:{b:[1,{c:2}]}}",
        "[1,",
        "(",
        ")",
        "=",
        "a=b",
        ",",
    ),
    *("1,", ",1", "1,,2", "1,1", "${", "${}", "${nothing}", "${optimizer.lr}", "${oc.env:NOT_SET}"),
    *("${oc.env:HOME}", "${hydra:job.num}", "${now:%Y}", "${nothing:1}", "$(ls)", "`ls`", "*", "~"),
    *("../..", "/", "/dev/null", "/dev/full", "/proc/self", "%s", "{0}", "<b>", "; ls", "#", "# a"),
    *(
        "a/b",
        "a\\b",
        ".",
        "..",
        "-",
        "--",
        "-1e5",
        "+1",
        "@",
        "a@b",
        "a:b",
        "http://x/y",
        "!!int 1",
    ),
)
SWEPT = (
    *("glob(*)", "glob()", "glob([a*,b*],exclude=c*)", "glob(3)", "interval(0,1)", "interval(1,0)"),
    *("interval(0)", "interval(a,b)", "interval(0,inf)", "interval(nan,1)", "interval(0,1,2)"),
    *("interval(1e-4,1e-1)", "tag(log,interval(1e-4,1))", "tag(log,interval(0,1))", "tag(log,1,2)"),
    *(
        "tag(lgo,interval(1,2))",
        "tag(interval(1,2))",
        "tag(a,b,interval(1,2))",
        "tag()",
        "tag(log)",
    ),
    *("int(interval(1,3))", "int(interval(1.5,1.6))", "int(a,b)", "float(1,2)", "str(1,2)"),
    *("bool(a,b)", "json_str(1,2)", "range(0,3)", "range(3)", "range(3,0)", "range(3,0,-1)"),
    *(
        "range(0,1,0)",
        "range(0,1,nan)",
        "range(0,1e9,1e-9)",
        "range(0,inf)",
        "range(a,b)",
        "range()",
    ),
    *("range(0,1,0.25)", "shuffle(range(0,3))", "shuffle(1,2,3)", "shuffle(a)", "shuffle()"),
    *("shuffle(interval(0,1))", "shuffle(range(0,10000000))", "sort(3,1,2)", "sort(a,1,[2])"),
    *("sort(range(0,3),reverse=true)", "sort(1,2,reverse=maybe)", "sort(interval(0,1))"),
    *(
        "choice(1,2)",
        "choice(a)",
        "choice()",
        "choice(null,1)",
        "choice(a,a)",
        "choice(1,1.0,true)",
    ),
    *(
        "choice([1],[2])",
        "choice(choice(1,2),3)",
        "choice({a:1},{b:2})",
        "choice(a,b",
        "choise(a,b)",
    ),
    *("choice('',' ')", "extend_list(1)", "1,2", "a,b", "0.1,0.01", "[1],[2,3]", "null,1", "nan,1"),
    *("inf,1", "???,1", "true,false", "${seed},1", "'a,b',c", "x" * 3000 + ",y", "1,'1'", "\x1b,1"),
)
GROUPS = {
    "data": ("digits", "quadratic", "mnist", "image_folder", "cifar10"),
    "model": ("mlp", "convnet", "resnet", "custom"),
    "init": ("he", "xavier", "torch"),
    "optimizer": ("adam", "sgd", "rmsprop"),
    "schedule": ("constant", "cosine", "one_cycle", "plateau", "step"),
    "regularization": ("default",),
    "batch": ("default",),
    "early_stopping": ("none", "patience"),
    "training": ("default",),
    "logger": ("none", "tensorboard", "csv"),
    "hydra/sweeper": ("sweepstack", "basic"),
    "hydra/launcher": ("basic", "joblib"),
    "hydra/sweeper/sampler": ("tpe", "random", "grid", "gp", "cmaes", "qmc", "brute_force"),
    "hydra/sweeper/pruner": ("none", "median", "asha", "hyperband", "patient", "threshold"),
    "hydra/job_logging": ("default", "disabled", "none"),
    "sweeps": ("lr_sensitivity", "init_activation_grid", "depth_width", "regularization_tpe"),
}
SOUND = {
    "training.max_steps": "1",
    "training.max_epochs": "null",
    "training.seed": "7",
    "training.width": "1",
    "model.hidden": "[4]",
    "batch.size": "16",
    "optimizer.lr": "0.01",
    "regularization.dropout": "0.5",
    "objective": "val_loss",
    "trust": "[torchvision]",
    "hydra.run.dir": "here",
    "hydra.sweep.dir": "there",
    "hydra.sweeper.study_name": "s",
    "hydra.sweeper.n_trials": "2",
    "hydra.sweeper.storage": "sqlite:///s.db",
    "hydra.sweeper.direction": "minimize",
    "hydra.sweeper.objectives": "[val_loss,val_accuracy]",
    "hydra.sweeper.constraints": "[val_accuracy>=0.1]",
    "hydra.sweeper.timeout_s": "9",
}
LONG = {
    *("training.max_steps", "training.max_epochs", "training.seeds", "training.compile"),
    *("hydra.sweeper.n_trials", "hydra.sweeper.n_jobs", "model.hidden", "model.depth"),
    *("model.channels", "data.download", "hydra.sweeper.max_steps_total"),
}
"""Keys whose large values are sound and take long."""
HYDRA = (
    *("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.mode", "hydra.job.name"),
    *("hydra.job.chdir", "hydra.verbose", "hydra.searchpath", "hydra.output_subdir", "hydra"),
    *("hydra.job.num", "hydra.callbacks", "hydra.launcher", "hydra.sweeper", "hydra.job_logging"),
    *("hydra.job.env_set", "hydra.runtime.cwd", "hydra.help.template", "hydra.nothing"),
)
FLAGS = (
    *(("--cfg", "job"), ("--cfg", "all"), ("--cfg", "hydra"), ("--cfg", "x"), ("--cfg",)),
    *(("--cfg", "job", "-p", "optimizer"), ("--cfg", "job", "-p", "no.such"), ("-p", "optimizer")),
    *(
        ("--cfg", "job", "--resolve"),
        ("--resolve",),
        ("--help",),
        ("--hydra-help",),
        ("--version",),
    ),
    *(
        ("--info",),
        ("--info", "defaults-tree"),
        ("--info", "x"),
        ("--run",),
        ("--multirun",),
        ("-m",),
    ),
    *(("--config-name", "nothing"), ("--config-name",), ("--config-name", "config"), ("-h",)),
    *(("--config-name", "a file"), ("--config-dir", "a file"), ("--config-dir", "a folder")),
    *(("--config-dir", ""), ("--config-dir",), ("--config-path", "a folder"), ("-cn", ""), ("-x",)),
    *(("--resume",), ("--resume", "a file"), ("--resume", "a folder"), ("--resume", ""), ("--",)),
    *(
        ("--resume=a folder",),
        ("--shell-completion", "x"),
        ("--package", "x"),
        ("--experimental-rerun",),
    ),
    *(
        ("--experimental-rerun", "a file"),
        ("--nothing=1",),
        ("--multirun=1",),
        ("-c", "job"),
        ("-",),
    ),
)
STUDY_WORDS = (
    *(
        "list",
        "show",
        "report",
        "export",
        "rerun",
        "delete",
        "lits",
        "",
        "--help",
        "-h",
        "--version",
    ),
    *("s", "t", "0", "1", "99", "-1", "1e3", "nothing", "--watch", "--every", "--history", "-o"),
    *(
        "x.csv",
        "x.html",
        "x.parquet",
        "x",
        "a file",
        "a folder",
        "a folder/x.csv",
        "no folder/x.csv",
    ),
    *(
        "--storage",
        "sqlite:///outputs/studies.db",
        "outputs/studies.db",
        "a file",
        "a folder",
        "--",
    ),
    *("postgresql+nothing://u:p@h/d", "sqlite://", "sqlite:///no folder/s.db", "redis://h", "://"),
    *(
        "optimizer.lr=1",
        "training.device=cpu",
        "optimizer.lr=x",
        "~model",
        "model=nothing",
        "a=1,2",
    ),
    *("--trust", "os", "--config-dir", "--nothing", "--output", "--port", "--host"),
)
"""Words of `sweepstack-study`; `dashboard`, which serves until Ctrl-C, has tests of its own."""
STUDY_LINES = (
    *(("list",), ("show", "s"), ("report", "s"), ("report", "s", "-o", "x.html")),
    *(("export", "s", "-o", "x.csv"), ("export", "s", "--history", "-o", "x.csv")),
    *(("rerun", "s", "0"), ("rerun", "s", "0", "training.device=cpu")),
    *(("rerun", "s", "0", "-o", "x"), ("list", "--storage", "outputs/studies.db")),
)
APP = """
    import hydra

    @hydra.main(version_base=None, config_path="conf", config_name="config")
    def main(cfg):
        return float(cfg.x)

    if __name__ == "__main__":
        main()
"""
APP_CONFIG = """
    defaults: [override hydra/sweeper: sweepstack, _self_]
    x: 1.0
    y: {a: 1, b: [1, 2]}
    z: null
    hydra: {sweeper: {report: false}}
"""


@dataclass(frozen=True)
class Line:
    """One command line: the `program` (sweepstack, sweepstack-study, app) and its words."""

    program: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(
            word[:60] + "..." * (len(word) > 60) for word in (self.program, *self.words)
        )


def line_of(seed: int, number: int) -> Line:
    """The line of that number: the same one on every machine."""
    rng = random.Random(f"{seed} {number}")
    program = rng.choices(
        ["sweepstack", "sweepstack -m", "sweepstack-study", "app"], [40, 35, 15, 10]
    )[0]
    if program == "sweepstack-study":
        return Line(program, _study_words(rng))
    if program == "app":
        words = [_app_word(rng) for _ in range(rng.randint(1, 3))]
        return Line("app", ("-m", "hydra.sweeper.n_trials=2", *words))
    words = [_word(rng, program) for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 5]))]
    given = ["training.device=cpu", "hydra.sweeper.report=false"]
    keys = {word.partition("=")[0] for word in words}
    given += [] if "training.max_steps" in keys else ["training.max_steps=1"]
    if program == "sweepstack -m":
        given += ["hydra.sweeper.n_trials=2", "hydra.sweeper.timeout_s=9"]
        given += ["hydra.sweeper.dry_run=true"] if rng.random() < 0.8 else []
        given.insert(0, "-m")
    if rng.random() < 0.12:
        words += rng.choice(FLAGS)
    return Line("sweepstack", (*given, *words))


def _word(rng: random.Random, program: str) -> str:
    kind = rng.random()
    if kind < 0.2:
        key = rng.choice(list(GROUPS))
        value = rng.choice([rng.choice(GROUPS[key]), _odd(rng, key)])
    elif kind < 0.3:
        key = rng.choice(list(SOUND))
        value = SOUND[key]
    elif kind < 0.4:
        key, value = rng.choice(HYDRA), _odd(rng, "")
    else:
        key = rng.choice(_keys()) if kind < 0.95 else rng.choice(ODD)
        value = _odd(rng, key)
    if program == "sweepstack -m" and rng.random() < 0.4:
        value = rng.choice(SWEPT)
    return _misspelt(rng, key, value)


def _app_word(rng: random.Random) -> str:
    key = rng.choice(["x", "y", "y.a", "y.b", "z", "+new", *_sweeper_keys()])
    if key in ("hydra.sweeper.n_trials", "hydra.sweeper.n_jobs"):
        return f"{key}={rng.choice(['0', '-1', 'x', 'nan', '[1]', '1.5', '1'])}"
    return f"{key}={rng.choice(rng.choice([ODD, SWEPT]))}"


def _odd(rng: random.Random, key: str) -> str:
    value = rng.choice(ODD)
    if key in LONG and value in (
        "null",
        "true",
        "yes",
        "9" * 30,
        "1e30",
        "1_000",
        "1" * 5000,
        "12:30",
    ):
        return "-3"
    return value


def _misspelt(rng: random.Random, key: str, value: str) -> str:
    kind = rng.random()
    prefix = "" if kind < 0.75 else rng.choice(["+", "++", "~", "+++", "~~", "-", " "])
    if kind > 0.97:
        return rng.choice([f"{prefix}{key}", f"={value}", f"{key}={value}=", f"{key} = {value}"])
    if 0.9 < kind < 0.94 and len(key) > 2:
        at = rng.randrange(1, len(key))
        key = rng.choice(
            [key[:at] + key[at + 1 :], key.upper(), key + ".x", key + "." + key, key[:-1]]
        )
    if prefix == "~" and rng.random() < 0.7:
        return f"~{key}"
    return f"{prefix}{key}={value}"


def _study_words(rng: random.Random) -> tuple[str, ...]:
    words = list(rng.choice(STUDY_LINES))
    for _ in range(rng.choice([0, 1, 1, 2])):
        odd = rng.choice(STUDY_WORDS) if rng.random() < 0.7 else rng.choice(ODD)
        at = rng.randrange(len(words) + 1)
        if rng.random() < 0.5 or at == len(words):
            words.insert(at, odd)
        else:
            words[at] = odd
    return tuple(word for word in words if word != "--watch")  # goes on until Ctrl-C


@lru_cache(maxsize=1)
def _keys() -> list[str]:
    """Every key of the default config and of the sweeper."""

    def leaves(node: object, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        inner = [leaves(value, f"{prefix}.{name}") for name, value in node.items()]
        return [prefix, *(key for keys in inner for key in keys)]

    plain = OmegaConf.to_container(composition.compose())
    return [key for name, node in plain.items() for key in leaves(node, name)] + _sweeper_keys()


def _sweeper_keys() -> list[str]:
    keys = [key for key in sweeper.defaults(sweeper.Sweeper) if key != "report"]
    keys += ["sampler.name", "sampler.seed", "sampler.n_startup_trials", "params.x"]
    return [f"hydra.sweeper.{key}" for key in [*keys, "pruner.name", "nothing"]]


def copy_studies(database: Path, to: Path) -> None:
    """One file of a database that is still open elsewhere."""
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(to)) as copy:
        source.backup(copy)


def furnish(folder: Path, line: Line, studies: Path) -> None:
    """What lies in the folder in which the line is run."""
    folder.mkdir()
    (folder / "a folder").mkdir()
    (folder / "a file").write_text("not: [what\n")
    if line.program == "sweepstack-study":
        (folder / "outputs").mkdir()
        (folder / "outputs" / "studies.db").write_bytes(studies.read_bytes())
    elif line.program == "app":
        (folder / "app.py").write_text(dedent(APP))
        (folder / "conf").mkdir()
        (folder / "conf" / "config.yaml").write_text(dedent(APP_CONFIG))


def faults(line: Line, folder: Path, studies: Path) -> list[str]:
    """Run the line in a new `folder`; what it did that no command may do."""
    furnish(folder, line, studies)
    before = _contents(folder)
    out, err = folder.with_suffix(".out"), folder.with_suffix(".err")
    words = [*warm.COMMANDS.get(line.program, ["app.py"]), *line.words]
    began = time.monotonic()
    process = warm.start(words, folder, out, err, {**os.environ, "COLUMNS": "100"})
    process.join(LIMIT_S)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return [f"hangs: {time.monotonic() - began:.0f} s"]
    said = err.read_text("utf-8", "backslashreplace")
    found = []
    if process.exitcode not in ALLOWED:
        found.append(f"exit code {process.exitcode}")
    own = (
        line.program != "app" or "sweepstack: " in said or "sweepstack_sweeper" in said
    )  # or Hydra's own
    if own and "Traceback" in said + out.read_text("utf-8", "backslashreplace"):
        found.append("a traceback")
    if process.exitcode in (2, 3) and own:
        lines = said.removesuffix("\n").split("\n")
        if not all(text.startswith(f"{_name(line)}: ") for text in lines):
            found.append("a line that does not begin with the program's name")
        if not all(text.isprintable() for text in lines):
            found.append("control characters")
        if max(map(len, lines)) > 2000:
            found.append("a line of more than 2,000 characters")
    if process.exitcode == 2 and _contents(folder) != before:
        found.append(f"left {sorted(set(_contents(folder)) - set(before))}")
    return [f"{fault}\n{said[-3000:]}" for fault in found]


def _name(line: Line) -> str:
    return "sweepstack-study" if line.program == "sweepstack-study" else "sweepstack"


def _contents(folder: Path) -> dict[str, bytes | None]:
    # __pycache__ is Python's; SQLite keeps the other two beside a database that is read.
    paths = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    paths = [path for path in paths if not path.name.endswith(("-shm", "-wal"))]
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in paths
    }
