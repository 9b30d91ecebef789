"""What widens or fixes a swept key, in the grammar of the sweep's own overrides.

A key with cases (`optimizer.lr[optimizer=sgd]` and another for adam) cannot be widened by its own
override, which would hold for all cases: there all of its cases are written into
`hydra.sweeper.params`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from decimal import Decimal
from typing import Any, NamedTuple

from sweepstack.config import schema
from sweepstack.study.keys import Parameter, label
from sweepstack.study.view import StudyView

ADDED = 2
"""Values that are added to a list whose end is best."""
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_RESERVED = {"null", "true", "false", "nan", "inf"}


class Limit(NamedTuple):
    """The number at which a key stops to make sense, and whether it is allowed itself."""

    value: float
    closed: bool = True


def limit(key: str, upper: bool) -> Limit:
    """What the schema allows for `key` at one end; infinity for a key that it does not know."""
    group, _, name = key.partition(".")
    closed, opened = ("le", "lt") if upper else ("ge", "gt")
    classes = [*schema.OPTIONS.get(group, {}).values()]
    classes += [schema.PLAIN[group]] if group in schema.PLAIN else []
    for found in (found for option in classes for found in fields(option)):
        if found.name == name:
            value = found.metadata.get(closed, found.metadata.get(opened))
            if value is not None:
                return Limit(value, opened not in found.metadata)
            break
    return Limit(math.inf if upper else -math.inf)


def is_natural(parameter: Parameter, bound: float, upper: bool) -> bool:
    """Whether nothing lies beyond `bound`: zero (no momentum, no dropout), a count of one, the
    schema's own limit or, for a share that must stay below it, what is within a twentieth."""
    end, closed = limit(parameter.column, upper)
    if not upper:
        counts = parameter.is_integer or isinstance(bound, int)
        return bound == 0 or bound <= end or (counts and bound == 1)
    if not parameter.declared and bound == 1:
        return True  # of another program's key nothing is known: it may be a share
    return bound >= end - (0.05 * abs(end) if not closed and end < math.inf else 0)


def widened(view: StudyView, parameter: Parameter, upper: bool) -> str | None:
    """The override that lets `parameter` go further at one end; None where it cannot."""
    values = _values(parameter, upper) if parameter.declared else None
    if values is None:
        return None
    cases = view.keys[parameter.column].parameters
    if len(cases) == 1:
        return f"{parameter.key}={values}"
    texts = []
    for other in cases:
        kept = values if other.name == parameter.name else _values(other, None)
        if kept is None:
            return None
        when = ", ".join(f"{key}: [{', '.join(v)}]" for key, v in other.when.items())
        texts.append(f"{{when: {{{when}}}, values: {quoted(kept)}}}")
    return f"hydra.sweeper.params={{{parameter.key}: [{', '.join(texts)}]}}"


def declared(parameter: Parameter) -> str | None:
    """The override that sweeps a key as it was swept; None for one with conditions."""
    values = None if parameter.when else _values(parameter, None)
    return None if values is None else f"{parameter.key}={values}"


def fixed(parameter: Parameter, value: Any) -> str | None:
    """The override that gives a key one value in all trials."""
    if not parameter.declared:
        return None
    if not parameter.is_choice:
        return f"{parameter.key}={_written(value, parameter.is_integer)}"
    for choice, text in zip(parameter.choices, _texts(parameter), strict=False):
        if label(choice) == value or str(label(choice)) == str(value):
            return f"{parameter.key}={text}"
    return None


def of_point(view: StudyView, row: Mapping[str, Any]) -> str | None:
    """A configuration as a point for `hydra.sweeper.enqueue`: a list of overrides."""
    words = []
    for key in view.settings:
        value = row[key]
        if value is None or value != value:
            continue
        cases = view.keys[key].parameters
        word = next(filter(None, (fixed(case, value) for case in cases)), None)
        if word is None:
            return None
        words.append(quoted(word))
    return f"[{','.join(words)}]" if words else None


def numbers(parameter: Parameter) -> list[float] | None:
    """The values of a list of at least three numbers, in their own order."""
    return parameter.numbers if len(parameter.choices) >= 3 else None


def quoted(text: str) -> str:
    """A string in Hydra's grammar."""
    if _PLAIN.fullmatch(text) and text.lower() not in _RESERVED:
        return text
    escaped = re.sub(r"(\\*)\"", lambda m: m[1] * 2 + '\\"', text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f'"{escaped}{chr(92) * trailing}"'


def _texts(parameter: Parameter) -> list[str]:
    return [str(text) for text in parameter.entry.get("texts") or ()]


def _values(parameter: Parameter, upper: bool | None) -> str | None:
    """The values of a parameter as an override has them, wider at one end unless `upper` is
    None."""
    if parameter.is_choice:
        texts = _texts(parameter)
        if upper is None:
            return ",".join(texts) or None
        listed = numbers(parameter)
        more = list(_beyond(parameter, sorted(listed), upper)) if listed else []
        return ",".join([*texts, *more]) if more else None
    if parameter.span is None:
        return None
    low, high = parameter.span
    if upper is not None:
        wider = _wider(parameter, low, high, upper)
        if wider is None:
            return None
        low, high = (low, wider) if upper else (wider, high)
    whole, step = parameter.is_integer, parameter.entry.get("step")
    if step is not None and not (whole and step == 1):
        # The end is excluded: half a step more takes the last value in and no other.
        by = Decimal(str(step))
        end = float(Decimal(str(high)) + (by if whole else by / 2))
        return f"range({_written(low, whole)},{_written(end, whole)},{_written(step, whole)})"
    inner = f"interval({_written(low, whole)},{_written(high, whole)})"
    inner = f"int({inner})" if whole else inner
    return f"tag(log,{inner})" if parameter.is_log else inner


def _wider(parameter: Parameter, low: float, high: float, upper: bool) -> float | None:
    """The new end: ten times further on a logarithmic scale (twice for whole numbers), else as
    far again as the range is wide; half of the way to a limit where that would pass it."""
    whole = parameter.is_integer
    bound, further = (high, high - low) if upper else (low, low - high)
    end = bound + further
    if parameter.is_log:
        factor = 2 if whole else 10
        end = bound * factor if upper else bound / factor
    end = _inside(parameter, end, bound, upper)
    step = parameter.entry.get("step") or (1 if whole else None)
    if step:  # a bound lies on a step
        by, origin = Decimal(str(step)), Decimal(str(low))
        steps = (Decimal(str(end)) - origin) / by
        end = float(origin + by * (math.floor(steps) if upper else math.ceil(steps)))
    end = int(end) if whole else float(f"{end:.3g}")
    if parameter.is_log and end <= 0:
        return None
    return end if (end > high if upper else end < low) else None


def _inside(parameter: Parameter, end: float, bound: float, upper: bool) -> float:
    value, closed = limit(parameter.column, upper)
    if not upper and bound > 0 and value == -math.inf:
        value, closed = 0.0, True  # a positive number does not become negative unasked
    if (end >= value if upper else end <= value) and math.isfinite(value):
        return value if closed else (bound + value) / 2
    return end


def _beyond(parameter: Parameter, ordered: Sequence[float], upper: bool) -> Iterator[str]:
    """The next values of a list, as its last ones go on: by a factor, or by a difference."""
    last, before, middle = ordered[:-4:-1] if upper else ordered[:3]
    whole = all(isinstance(number, int) for number in ordered)
    # A list is geometric unless its differences are more alike than its ratios.
    is_even = abs(last - before) == abs(before - middle)
    ratio = last / before if ordered[0] > 0 and not is_even else None
    for _ in range(ADDED):
        following = last * ratio if ratio else last + (last - before)
        allowed = _inside(parameter, float(f"{following:.3g}"), last, upper)
        following = round(allowed) if whole else float(f"{allowed:.3g}")
        if following == last or (not upper and following <= 0 < ordered[0]):
            return
        yield _written(following, whole)
        before, last = last, following


def _written(number: float, whole: bool = False) -> str:
    """A number as Hydra reads it: whole numbers without a point, others with one."""
    return str(int(number)) if whole else repr(float(number))
