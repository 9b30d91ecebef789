"""What a person writes as values of a key, in Hydra's override grammar, as one `Parameter`.

    init=he,xavier   choice(he,xavier)          choice
    range(0,5)                                  int 0..4: the end is excluded, as in Hydra
    range(0,1,0.25)                             float in steps, the end excluded
    interval(0,1)  interval(1,32)               float, both ends included
    int(interval(1,32))                         int, both ends included
    tag(log, interval(1e-4,1))                  drawn from the logarithm; also int and int range
    sort(...)  shuffle(...)                     choices in that order
    optimizer=glob(*)  glob(a*,exclude=adam)    options of a config group

`shuffle` draws its order from the key and the values, so that the same command resumes the same
space. A range that runs downwards is the same set of numbers, upwards. A YAML may also hold the
mappings of older hydra-optuna-sweeper configs: {type: float, low:, high:, log:, step:}, the same
with type int, and {type: categorical, choices: [...]}; their ends are included. Other than
hydra-optuna-sweeper, whose range(1,5) includes 5, ranges mean here what they mean to Hydra.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from math import ceil, inf, isfinite
from typing import Any, Literal

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
    Sweep,
    Transformer,
)

from sweepstack.config import check
from sweepstack.config.composition import UNREADABLE
from sweepstack.config.errors import InputError, nearest, one_line
from sweepstack.config.space import Label, Parameter

MAX_SHUFFLED = 100_000
"""Maximum number of shuffled values of a range: each is held, and kept in the study."""
_PARSER = OverridesParser.create()
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_PARSER_TERMS = re.compile(
    r"Lexer|no viable|mismatched input|extraneous|missing [A-Z]|token recogn"
)
_FITS = "have a step that fits into its range"
_RESERVED = {"null", "true", "false", "nan", "inf"}
_NUMBER = ("type", "low", "high", "log", "step")
FIELDS = {"float": _NUMBER, "int": _NUMBER, "categorical": ("type", "choices")}
"""What a mapping of older configs may hold, by its type."""


def text_of(value: Any) -> str:
    """Write `value` so that Hydra reads it back as the same value of the same type."""
    return str(Transformer.str(_quoted(value)))


def written(value: Any) -> str:
    """A value of a YAML file as an override writes it; strings are read as on the command line."""
    return value if isinstance(value, str) else text_of(value)


def _quoted(value: Any) -> Any:
    if isinstance(value, QuotedString):
        value = value.text
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _RESERVED
        return value if plain else QuotedString(value, Quote.single)
    if isinstance(value, Mapping):
        return {key: _quoted(item) for key, item in value.items()}
    return [_quoted(item) for item in value] if isinstance(value, list | tuple) else value


def read_override(text: str) -> Override:
    """Parse one override such as "init=he,xavier"; InputError if it is none."""
    try:
        return _PARSER.parse_overrides([text])[0]
    except UNREADABLE as error:
        raise InputError(_explain(text, str(error))) from None


def read_value(text: str, rule: str) -> tuple[str, str, Any]:
    """Path, value as text, and value of an override; InputError if it is none, or a sweep against
    the `rule`."""
    override = read_override(text)
    if override.is_sweep_override():
        raise InputError(f"{rule}, got {text}")
    return path_of(override), text_of(override.value()), override.value()


def path_of(override: Override) -> str:
    """The key of `override` without "+", "++" or "~"."""
    return override.get_key_element().lstrip("+~")


def _explain(text: str, message: str) -> str:
    key = text.partition("=")[0]
    unknown = re.search(r"Unknown function '(\w+)'", message)
    if unknown:
        known = sorted(_PARSER.functions.definitions)
        near = nearest(unknown[1], known)
        return f"{key} uses the function '{unknown[1]}', known are {', '.join(known)}{near}"
    if "empty choice" in message:
        return f"{key} must offer at least one value, got {text.partition('=')[2]}"
    if "NoneType is incompatible" in message:
        return f"{key}: choice() cannot hold null, write a plain list such as {key}=null,1"
    lines = [line for line in message.splitlines() if not line.startswith(("Error pars", "See "))]
    reason = one_line(" ".join(lines))
    if _PARSER_TERMS.match(reason):  # says what the parser expected, which helps nobody
        reason = "it must look like KEY=VALUE or KEY=VALUE,VALUE, with quotes around '=' or spaces"
    return f"'{one_line(text, 80)}' cannot be read: {reason}"


def parameter(override: Override) -> Parameter:
    """The parameter that `override` declares; a value that is no sweep is its only choice.

    Raises:
        InputError: the rule that the values break.
    """
    key = override.get_key_element()
    value: Any = override.value()
    written = str(override.input_line)
    tags = value.tags if isinstance(value, Sweep) else set()
    for tag in sorted(tags - {"log"}):
        raise InputError(f"the only tag is log, got '{tag}' in {written}{nearest(tag, ['log'])}")
    log = "log" in tags
    if isinstance(value, IntervalSweep):
        bounds: Any = (value.start, value.end)
        return _number(key, bounds[0], bounds[1], None, log, written)
    if isinstance(value, RangeSweep):
        return _range(key, value, log, written)
    if log:
        raise InputError(f"tag(log, ...) needs an interval or a range, got {written}")
    if isinstance(value, ChoiceSweep):
        return _choice(key, value.list, value.shuffle, written)
    if isinstance(value, list | dict | str | int | float | None):
        return _choice(key, [value], False, written)
    hydra = GlobalHydra.instance().hydra
    loader: Any = hydra and hydra.config_loader
    options = loader.get_group_options(override.key_or_group) if loader else []
    if not options:
        raise InputError(f"glob(...) needs a config group, got {written}")
    return _choice(key, value.filter(options), False, written)


def from_mapping(key: str, mapping: Mapping[str, Any]) -> Parameter:
    """The parameter of a mapping such as {type: int, low: 1, high: 8}, its ends included."""
    written = f"{key}={dict(mapping)}"
    kind = check.option(f"{key}: type", mapping["type"], FIELDS)
    for name in mapping:
        if name not in FIELDS[kind]:
            raise InputError(f"{key}: unknown field '{name}'{nearest(name, FIELDS[kind])}")
    if kind == "categorical":
        choices = mapping.get("choices")
        return _choice(key, choices if isinstance(choices, list) else [], False, written)
    low: Any = mapping.get("low")
    high: Any = mapping.get("high")
    step, log = mapping.get("step"), mapping.get("log", False)
    allowed = (int,) if kind == "int" else (int, float)
    if any(type(n) not in allowed for n in (low, high, *([] if step is None else [step]))):
        raise InputError(f"{key} needs numbers of type {kind} as low and high, got {written}")
    if not isinstance(log, bool):
        raise InputError(f"{key}: log must be true or false, got {log!r}")
    if kind == "float":
        low, high = float(low), float(high)
        step = None if step is None else float(step)
    return _number(key, low, high, step, log, written)


def _choice(key: str, values: Sequence[Any], shuffled: bool, written: str) -> Parameter:
    if not values:
        raise InputError(f"{key.lstrip('+')} must offer at least one value, got {written}")
    if any(map(_holds_sweep, values)):
        raise InputError(f"a list cannot hold another sweep, got {written}")
    texts = [text_of(value) for value in values]
    twice = sorted(text for text, count in Counter(texts).items() if count > 1)
    if twice:
        raise InputError(f"{key.lstrip('+')} offers {twice[0]} twice in {written}")
    labels = [_label(value, text) for value, text in zip(values, texts, strict=True)]
    if len(set(labels)) < len(labels):  # 1 == 1.0 == True to Optuna: tell them apart by text
        labels = list(texts)
    pairs = list(zip(labels, texts, strict=True))
    if shuffled:
        random.Random(f"{key} {texts}").shuffle(pairs)
    choices, written_as = (tuple(side) for side in zip(*pairs, strict=True))
    return Parameter(key.lstrip("+"), key, "choice", choices, written_as)


def _holds_sweep(value: Any) -> bool:
    if isinstance(value, list | dict):
        return any(map(_holds_sweep, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Sweep | Glob)


def _label(value: Any, text: str) -> Label:
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list | dict) or (isinstance(value, float) and not isfinite(value)):
        return text
    label: Label = value
    return label


def _range(key: str, sweep: RangeSweep, log: bool, written: str) -> Parameter:
    bounds: Any = (sweep.start, sweep.stop)
    (start, stop), step = bounds, sweep.step
    path = key.lstrip("+")
    finite = all(isfinite(number) for number in (start, stop, step))
    _require(finite, path, "have finite bounds", written)
    _require(step != 0, path, "have a step other than 0", written)
    if (stop - start) * step <= 0:
        raise InputError(f"{path} must have at least one value, got the empty {written}")
    _require(abs(step) <= abs(stop - start), path, _FITS, written)
    # Hydra adds up binary fractions and so puts 0.9 into range(0,0.9,0.3); decimals do not.
    first, end, by = (Decimal(str(number)) for number in (start, stop, step))
    last = first + (ceil((end - first) / by) - 1) * by
    number = float if any(isinstance(n, float) for n in (start, stop, step)) else int
    low, high = (number(n) for n in sorted((first, last)))
    found = _number(key, low, high, number(abs(by)), log, written)
    if not sweep.shuffle:
        return found
    if found.size is None or found.size > MAX_SHUFFLED:
        raise InputError(f"{path} can shuffle at most {MAX_SHUFFLED:,} values, got {written}")
    return _choice(key, list(found.labels()), True, written)


def _number(
    key: str, low: float, high: float, step: float | None, log: bool, written: str
) -> Parameter:
    """An int where both bounds are ints, otherwise a float; `high` is lowered onto a step."""
    path, whole = key.lstrip("+"), isinstance(low, int) and isinstance(high, int)
    _require(isfinite(low) and isfinite(high), path, "have finite bounds", written)
    _require(low <= high, path, "have low <= high", written)
    _require(low > 0 or not log, path, "be > 0 to be drawn from its logarithm", written)
    if whole and step is None:
        step = 1
    if step is not None:
        if log and not (whole and step == 1):
            raise InputError(f"{path} can have log or a step, not both, got {written}")
        _require(0 < step < inf, path, "have a step > 0", written)
        _require(low == high or step <= high - low, path, _FITS, written)
        by = Decimal(str(step))
        last = Decimal(str(low)) + (Decimal(str(high)) - Decimal(str(low))) // by * by
        high = int(last) if whole else float(last)
    kind: Literal["int", "float"] = "int" if whole else "float"
    return Parameter(path, key, kind, low=low, high=high, log=log, step=step)


def _require(holds: bool, path: str, rule: str, written: str) -> None:
    if not holds:
        raise InputError(f"{path} must {rule}, got {written}")
