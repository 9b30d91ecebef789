"""`sweepstack predict` and `sweepstack export`: a trained model put to use."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sweepstack import STORAGE
from sweepstack.config import errors, trust
from sweepstack.config.errors import EnvironmentFault, InputError

if TYPE_CHECKING:
    from sweepstack.runs.prediction import Predictor


class _Parser(argparse.ArgumentParser):
    """argparse whose mistakes are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong."""
        raise InputError(f"{message}; see {self.prog} --help")


def run(arguments: Sequence[str]) -> None:
    """Run `predict ...` or `export ...`.

    Raises:
        SweepstackError: what is wrong, in one line.
    """
    options = _parser().parse_args(arguments)
    if options.command == "predict":
        _predict(options)
    else:
        _export(options)


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE", help="whose modules may run"
    )
    common.add_argument("--storage", default=STORAGE, metavar="URL", help="of STUDY")
    top = _Parser(prog="sweepstack")
    commands = top.add_subparsers(dest="command", required=True, parser_class=_Parser)
    usage = "sweepstack predict (RUN | STUDY NUMBER) (FILE | FOLDER) [-o FILE.csv] [--samples N]"
    add = commands.add_parser("predict", parents=[common], usage=usage)
    what = "the folder of a run, or a study's name and a trial's number; then pictures (a file or "
    what += "a folder), arrays (.npz, .npy, .pt, .safetensors) or a table (.csv, .parquet)"
    add.add_argument("words", nargs="+", help=what)
    add.add_argument("-o", "--output", type=Path, metavar="FILE.csv", help="default: printed")
    what = "predictions with dropout on, for the column std (default: 50 if the model has dropout)"
    add.add_argument("--samples", type=int, metavar="N", help=what)
    usage = "sweepstack export (RUN | STUDY NUMBER) -o FILE.onnx|.pt2|.safetensors|.pt"
    add = commands.add_parser("export", parents=[common], usage=usage)
    what = "the folder of a run, or a study's name and a trial's number"
    add.add_argument("words", nargs="+", help=what)
    add.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    return top


def _predict(options: argparse.Namespace) -> None:
    *words, path = options.words
    if not words:
        raise InputError(
            "sweepstack predict needs a run and a FILE or FOLDER, got only one of both"
        )
    if options.samples is not None and options.samples != 0 and options.samples < 2:
        raise InputError(f"--samples must be 0 or >= 2, got {options.samples}")
    output: Path | None = options.output
    if output is not None:
        if output.suffix.lower() != ".csv":
            raise InputError(f"--output must end with .csv, got '{output}'")
        if not output.absolute().parent.is_dir():
            raise EnvironmentFault(f"cannot write {output}: there is no folder {output.parent}")
        if output.exists() and Path(path).exists() and output.samefile(path):
            raise InputError(f"--output must not be what is predicted, got '{output}'")
    import torch

    from sweepstack.runs import prediction

    torch.manual_seed(0)  # the same masks each time
    rows = prediction.predict(_model(words, options), Path(path), options.samples)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    if output is None:
        sys.stdout.write(text.getvalue())
        return
    errors.write_bytes(output, text.getvalue().encode())
    print(f"{len(rows) - 1} rows: {output}")


def _export(options: argparse.Namespace) -> None:
    from sweepstack.runs import prediction

    prediction.check_export(options.output)
    prediction.export(_model(options.words, options), options.output)
    print(f"model: {options.output}")


def _model(words: Sequence[str], options: argparse.Namespace) -> Predictor:
    """The model of a run's folder, or of a study's trial."""
    from sweepstack.runs import prediction

    if len(words) > 2 or (len(words) == 2 and not words[1].isdecimal()):
        raise InputError(
            "a model is named by the folder of its run, or by STUDY and NUMBER, got "
            f"{' '.join(words)}"
        )
    trust.see_own_packages(options.trust)
    if len(words) == 1:
        return prediction.load(words[0], options.trust)
    from sweepstack.storage import above
    from sweepstack.study import view

    found = view.open_study(words[0], above(options.storage))
    number = int(words[1])
    if number >= len(found.trials):
        last = len(found.trials) - 1
        raise InputError(f"the trials of {found.name} are 0 to {last}, got {number}")
    folder = found.files({number}, models={number})
    if folder is None:
        raise EnvironmentFault(f"the folder of study {found.name} is not here: name that of a run")
    return prediction.load(folder / str(number), options.trust)
