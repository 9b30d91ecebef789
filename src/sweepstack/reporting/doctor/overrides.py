"""What widens or fixes a swept key, in the grammar of the sweep's own overrides.

A key with cases (`optimizer.lr[optimizer=sgd]` and another for adam) cannot be widened by its own
override, which would hold for all cases: there all of its cases are written into
`hydra.sweeper.params`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any

from sweepstack.config import schema
from sweepstack.reporting.doctor.evidence import Case, Evidence

MORE = 2
"""Values that are added to a list whose end is best."""
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_RESERVED = {"null", "true", "false", "nan", "inf"}


@dataclass(frozen=True)
class Limits:
    """Between which numbers a key makes sense; the ends are allowed where they are closed."""

    low: float = -math.inf
    high: float = math.inf
    low_closed: bool = True
    high_closed: bool = True


def limits(key: str) -> Limits:
    """What the schema allows for `key`; of a key that it does not know nothing is known."""
    group, _, name = key.partition(".")
    classes = [*schema.OPTIONS.get(group, {}).values()]
    classes += [schema.PLAIN[group]] if group in schema.PLAIN else []
    for option in classes:
        for found in fields(option):
            if found.name == name:
                rules = found.metadata
                low, high = rules.get("ge", rules.get("gt")), rules.get("le", rules.get("lt"))
                return Limits(
                    -math.inf if low is None else low,
                    math.inf if high is None else high,
                    "gt" not in rules,
                    "lt" not in rules,
                )
    return Limits()


def is_natural(case: Case, bound: float, upper: bool) -> bool:
    """Whether nothing lies beyond `bound`: zero (no momentum, no dropout), a count of one, the
    schema's own limit or, for a share that must stay below it, what is within a twentieth."""
    allowed = limits(case.column)
    if not upper:
        counts = case.entry.get("kind") == "int" or isinstance(bound, int)
        return bound == 0 or bound <= allowed.low or (counts and bound == 1)
    if not case.declared and bound in (1, 1.0):
        return True  # of another program's key nothing is known: it may be a share
    near = 0.05 * abs(allowed.high) if not allowed.high_closed and allowed.high < math.inf else 0
    return bound >= allowed.high - near


def widened(evidence: Evidence, case: Case, upper: bool) -> str | None:
    """The override that lets `case` go further at one end; None where it cannot."""
    if not case.declared:
        return None
    values = _values(case, upper)
    if values is None:
        return None
    cases = [other for other in evidence.cases if other.column == case.column]
    if len(cases) == 1:
        return f"{case.entry['key']}={values}"
    texts = []
    for other in cases:
        kept = values if other.name == case.name else _values(other, None)
        if kept is None:
            return None
        when = ", ".join(f"{key}: [{', '.join(v)}]" for key, v in other.when.items())
        texts.append(f"{{when: {{{when}}}, values: {quoted(kept)}}}")
    return f"hydra.sweeper.params={{{case.entry['key']}: [{', '.join(texts)}]}}"


def declared(case: Case) -> str | None:
    """The override that sweeps a key as it was swept; None for one with conditions."""
    values = None if case.when else _values(case, None)
    return None if values is None else f"{case.entry['key']}={values}"


def fixed(case: Case, value: Any) -> str | None:
    """The override that gives a key one value in all trials."""
    entry = case.entry
    if not case.declared:
        return None
    if entry.get("kind") != "choice":
        return f"{entry['key']}={_written(value, entry.get('kind') == 'int')}"
    for label, text in zip(entry.get("choices", ()), entry.get("texts", ()), strict=False):
        same = "null" if label is None else label
        if (type(same) is type(value) and same == value) or str(same) == str(value):
            return f"{entry['key']}={text}"
    return None


def of_point(evidence: Evidence, row: Mapping[str, Any]) -> str | None:
    """A configuration as a point for `hydra.sweeper.enqueue`: a list of overrides."""
    words = []
    for key in evidence.varied:
        value = row[key]
        if value is None or value != value:
            continue
        cases = [case for case in evidence.cases if case.column == key]
        word = next(filter(None, (fixed(case, value) for case in cases)), None)
        if word is None:
            return None
        words.append(quoted(word))
    return f"[{','.join(words)}]" if words else None


def numbers(case: Case) -> list[float] | None:
    """The values of a list of at least three numbers, in their own order."""
    if case.entry.get("kind") != "choice":
        return None
    choices = case.entry.get("choices") or ()
    if len(choices) < 3 or not all(
        type(choice) in (int, float) and math.isfinite(choice) for choice in choices
    ):
        return None
    return list(choices)


def span(case: Case) -> tuple[float, float] | None:
    """The bounds of a parameter of numbers, if it has any."""
    low, high = case.entry.get("low"), case.entry.get("high")
    if case.entry.get("kind") == "choice" or not (_is_number(low) and _is_number(high)):
        return None
    assert low is not None
    assert high is not None
    if case.entry.get("log") and low <= 0:
        return None
    return (low, high) if low < high else None


def quoted(text: str) -> str:
    """A string in Hydra's grammar."""
    if _PLAIN.fullmatch(text) and text.lower() not in _RESERVED:
        return text
    escaped = re.sub(r"(\\*)\"", lambda m: m[1] * 2 + '\\"', text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f'"{escaped}{chr(92) * trailing}"'


def _values(case: Case, upper: bool | None) -> str | None:
    """The values of `case` as an override has them, wider at one end unless `upper` is None."""
    entry = case.entry
    if entry.get("kind") == "choice":
        texts = [str(text) for text in entry.get("texts") or ()]
        if upper is None:
            return ",".join(texts) or None
        listed = numbers(case)
        more = list(_beyond(case, sorted(listed), upper)) if listed else []
        return ",".join([*texts, *more]) if more else None
    bounds = span(case)
    if bounds is None:
        return None
    low, high = bounds
    if upper is not None:
        wider = _wider(case, low, high, upper)
        if wider is None:
            return None
        low, high = (low, wider) if upper else (wider, high)
    return _interval(entry, low, high)


def _interval(entry: Mapping[str, Any], low: float, high: float) -> str:
    whole, step = entry.get("kind") == "int", entry.get("step")
    if step is not None and not (whole and step == 1):
        # The end is excluded: half a step more takes the last value in and no other.
        by = Decimal(str(step))
        end = Decimal(str(high)) + (by if whole else by / 2)
        return (
            f"range({_written(low, whole)},{_written(float(end), whole)},{_written(step, whole)})"
        )
    inner = f"interval({_written(low, whole)},{_written(high, whole)})"
    inner = f"int({inner})" if whole else inner
    return f"tag(log,{inner})" if entry.get("log") else inner


def _wider(case: Case, low: float, high: float, upper: bool) -> float | None:
    """The new end: ten times further on a logarithmic scale (twice for whole numbers), else as
    far again as the range is wide; half of the way to a limit where that would pass it."""
    whole, log = case.entry.get("kind") == "int", case.entry.get("log")
    step = case.entry.get("step")
    factor = (2 if whole else 10) if log else None
    if upper:
        end = high * factor if factor else high + (high - low)
    else:
        end = low / factor if factor else low - (high - low)
    end = _inside(case, end, high if upper else low, upper)
    if whole and not step:
        step = 1
    if step:  # a bound lies on a step
        by, origin = Decimal(str(step)), Decimal(str(low))
        steps = (Decimal(str(end)) - origin) / by
        end = float(origin + by * (math.floor(steps) if upper else math.ceil(steps)))
    end = int(end) if whole else float(f"{end:.3g}")
    if log and end <= 0:
        return None
    return end if (end > high if upper else end < low) else None


def _inside(case: Case, end: float, bound: float, upper: bool) -> float:
    allowed = limits(case.column)
    limit = allowed.high if upper else allowed.low
    closed = allowed.high_closed if upper else allowed.low_closed
    if not upper and bound > 0 and limit == -math.inf and case.column not in ("", None):
        limit, closed = 0.0, True  # a positive number does not become negative unasked
    if (end >= limit if upper else end <= limit) and math.isfinite(limit):
        return limit if closed else (bound + limit) / 2
    return end


def _beyond(case: Case, ordered: Sequence[float], upper: bool) -> Iterator[str]:
    """The next values of a list, as its last ones go on: by a factor, or by a difference."""
    last, before = (ordered[-1], ordered[-2]) if upper else (ordered[0], ordered[1])
    whole = all(isinstance(number, int) for number in ordered)
    positive = ordered[0] > 0
    ratio = last / before if positive else None
    middle = ordered[-3] if upper else ordered[2]
    # A list is geometric unless its differences are more alike than its ratios.
    if positive and abs(last - before) == abs(before - middle):
        ratio = None
    for _ in range(MORE):
        following = last * ratio if ratio else last + (last - before)
        following = float(f"{following:.3g}")
        allowed = _inside(case, following, last, upper)
        following = round(allowed) if whole else float(f"{allowed:.3g}")
        if following == last or (not upper and following <= 0 < ordered[0]):
            return
        yield _written(following, whole)
        before, last = last, following


def _written(number: float, whole: bool = False) -> str:
    """A number as Hydra reads it: whole numbers without a point, others with one."""
    return str(int(number)) if whole else repr(float(number))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
