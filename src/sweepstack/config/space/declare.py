"""From a command line, a sweep's YAML and its conditions to parameters, with all mistakes at once.

The YAML under `hydra.sweeper`, without Python:

    params:
      optimizer: adam,sgd                       # values as on the command line
      optimizer.momentum: interval(0,0.99)
      training.max_steps: 500                   # one value: the same in every trial
      model.hidden: [[50], [50, 50]]            # a list of lists: each of them
      optimizer.lr:                             # cases: one parameter in Optuna for each
        - {when: {optimizer: sgd}, values: "tag(log, interval(1e-3,1))"}
        - {when: {optimizer: adam}, values: "tag(log, interval(1e-5,1e-2))"}
    conditions:
      optimizer.momentum: {optimizer: sgd}      # exists only there; [sgd, rmsprop] is "either"

Several keys in one condition must all hold. Cases of one key must exclude each other; where none
holds the key keeps its value from the config. A command-line value replaces whatever `params` says
of that key, cases included; `conditions` hold for it all the same, so that
`optimizer.momentum=0.9` reaches sgd alone. A parent that the command line narrows to fewer choices
or to one value takes the parameters of the choices left out with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from sweepstack.config.check import shown
from sweepstack.config.errors import InputError, nearest, noted, one_line
from sweepstack.config.space import Parameter, Space, When, condition_text, grammar


@dataclass(frozen=True)
class _Draft:
    """One declared parameter, or one fixed override, before its conditions are looked at."""

    parameter: Parameter
    line: str | None = None
    """The override itself where the value is no sweep."""
    when: Mapping[str, Any] = field(default_factory=dict)


_Drafts = dict[str, list[_Draft]]


def parse(
    arguments: Sequence[str],
    params: Mapping[str, Any] | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> Space:
    """Read a search space.

    Args:
        arguments: overrides of the command line, sweeps or not; they win over `params`.
        params: `hydra.sweeper.params`, from a key to its values or cases.
        conditions: `hydra.sweeper.conditions`, from a key to {parent: value or list of values}.

    Raises:
        InputError: one line for each mistake, all of them.
    """
    mistakes: list[str] = []
    listed = _from_params(params or {}, mistakes)
    drafts = {**listed, **_from_arguments(arguments, mistakes)}
    _attach(conditions or {}, drafts, mistakes)
    resolution = _Resolution(drafts, listed, mistakes)
    for path in _parents_first(drafts, mistakes):
        resolution.resolve(path)
    if mistakes:
        raise InputError(list(dict.fromkeys(mistakes)))
    parameters = (parameter for found in resolution.found.values() for parameter in found)
    return Space(tuple(resolution.fixed), tuple(parameters))


def _from_arguments(arguments: Sequence[str], mistakes: list[str]) -> _Drafts:
    drafts: _Drafts = {}
    for argument in arguments:
        path = argument.partition("=")[0].lstrip("+~")
        drafts.setdefault(path, [])  # a broken value still is a declaration
        with noted(mistakes):
            drafts[path].append(_draft(argument))
    for path, found in drafts.items():
        if len(found) > 1 and any(draft.line is None for draft in found):
            mistakes.append(f"{path} is given {len(found)} times, a swept key only once")
            del found[1:]
    return drafts


def _draft(line: str) -> _Draft:
    override = grammar.read_override(line)
    return _Draft(grammar.parameter(override), None if override.is_sweep_override() else line)


def _from_params(params: Mapping[str, Any], mistakes: list[str]) -> _Drafts:
    drafts: _Drafts = {}
    for key, values in params.items():
        path = key.lstrip("+")
        drafts[path] = []
        cases = [values] if isinstance(values, Mapping) and "when" in values else values
        if not (isinstance(cases, list) and any(isinstance(case, Mapping) for case in cases)):
            with noted(mistakes):
                drafts[path].append(_values(key, values))
            continue
        for case in cases:
            with noted(mistakes):
                drafts[path].append(_case(key, case))
    return drafts


def _case(key: str, case: Any) -> _Draft:
    if not (isinstance(case, Mapping) and set(case) == {"when", "values"}):
        near = _nearest_field(case) if isinstance(case, Mapping) else ""
        raise InputError(f"{key}: a case must be {{when: ..., values: ...}}, got {case}{near}")
    if not (isinstance(case["when"], Mapping) and case["when"]):
        raise InputError(f"{key}: when must name a parent and its values, got {case['when']}")
    return replace(_values(key, case["values"]), when=case["when"])


def _values(key: str, values: Any) -> _Draft:
    if isinstance(values, Mapping):
        if "type" in values:
            return _Draft(grammar.from_mapping(key, values))
        quoted = one_line(grammar.text_of(values), 80)
        raise InputError(
            f"{key} must be values, {{type: float, low: ..., high: ...}} or {{when: ..., values: "
            f"...}} (a mapping as the value itself in quotes: "
            f"'{quoted}'), got {shown(values)}{_nearest_field(values)}"
        )
    if isinstance(values, list) and values and all(isinstance(item, list) for item in values):
        return _draft(f"{key}={','.join(map(grammar.text_of, values))}")
    return _draft(f"{key}={grammar.written(values)}")


def _nearest_field(mapping: Mapping[str, Any]) -> str:
    """What the first unknown field of a mapping was probably meant to be."""
    known = ["when", "values", *(name for names in grammar.FIELDS.values() for name in names)]
    return next((nearest(str(k), known) for k in mapping if k not in known), "")


def _attach(conditions: Mapping[str, Any], drafts: _Drafts, mistakes: list[str]) -> None:
    """Give the drafts of each key in `conditions` its condition."""
    for key, when in conditions.items():
        path = key.lstrip("+")
        if path not in drafts:
            near = nearest(path, drafts)
            mistakes.append(f"conditions name {path}, which the sweep does not set{near}")
        elif not (isinstance(when, Mapping) and when):
            mistakes.append(f"{path}: a condition must name a parent and its values, got {when}")
        elif any(draft.when for draft in drafts[path]):
            mistakes.append(f"{path} has conditions both under params and under conditions")
        else:
            drafts[path] = [
                # "~key" takes the key out of every trial, whatever it depends on.
                draft if (draft.line or "").startswith("~") else replace(draft, when=when)
                for draft in drafts[path]
            ]


def _parents_first(drafts: _Drafts, mistakes: list[str]) -> list[str]:
    """The declared order, except that a parent comes just before its first child."""
    ordered: list[str] = []

    def place(path: str, trail: tuple[str, ...]) -> None:
        if path in trail:
            circle = " -> ".join([*trail[trail.index(path) :], path])
            raise InputError([*mistakes, f"conditions go in a circle: {circle}"])
        if path in ordered:
            return
        for draft in drafts[path]:
            for parent in draft.when:
                if parent in drafts:
                    place(parent, (*trail, path))
        ordered.append(path)

    for path in drafts:
        place(path, ())
    return ordered


@dataclass
class _Resolution:
    """Conditions in the texts of their parents' values, path by path, parents first."""

    drafts: _Drafts
    listed: _Drafts
    mistakes: list[str]
    fixed: list[str] = field(default_factory=list)
    found: dict[str, list[Parameter]] = field(default_factory=dict)
    constants: dict[str, Parameter] = field(default_factory=dict)

    def resolve(self, path: str) -> None:
        """Make the parameters of `path`, or note that it is the same in all trials."""
        drafts, self.found[path] = self.drafts[path], []
        for draft in drafts:
            with noted(self.mistakes):
                when = self._when(path, draft.when)
                if when is None:
                    continue
                if draft.line is not None and not when:
                    self.fixed.append(draft.line)
                    self.constants[path] = draft.parameter
                    continue
                name = path
                if len(drafts) > 1:
                    texts = {p: [t for t, _ in _values_of(p, w)] for p, w in draft.when.items()}
                    name += f"[{condition_text(texts.items())}]"
                self.found[path].append(replace(draft.parameter, name=name, when=when))
        for one, other in combinations(self.found[path], 2):
            rival = dict(other.when)
            if not any(set(allowed).isdisjoint(rival.get(p, allowed)) for p, allowed in one.when):
                self.mistakes.append(
                    f"{path} has two cases that can hold together: {one.condition or 'always'}"
                    f" and {other.condition or 'always'}"
                )

    def _when(self, path: str, declared: Mapping[str, Any]) -> When | None:
        """The conditions that are left to check in a trial; None where they can never hold."""
        when: list[tuple[str, tuple[str, ...]]] = []
        never = False
        for parent, wanted in declared.items():
            if parent not in self.drafts:
                near = nearest(parent, [known for known in self.drafts if known != path])
                first = wanted[0] if isinstance(wanted, list) and wanted else wanted
                raise InputError(
                    f"{path} depends on {parent}, which the sweep does not set"
                    f"{near or f'; sweep or fix it, for example {parent}={first}'}"
                )
            allowed = self._allowed(path, parent, wanted)
            never = never or not allowed
            if parent not in self.constants:
                when.append((parent, allowed))
        return None if never else tuple(when)

    def _allowed(self, path: str, parent: str, wanted: Any) -> tuple[str, ...]:
        """Those of the wanted values that `parent` can still take."""
        constant = self.constants.get(parent)
        options = [constant] if constant else self.found[parent]
        for option in options:
            if option.size is None:
                raise InputError(f"{path} depends on {parent}, which is continuous")
        listed = self.listed.get(parent, [])
        declared = [draft.parameter for draft in listed if draft.line is None]
        allowed: list[str] = []
        for text, value in _values_of(parent, wanted):
            taken = _text_in(options, text, value)
            if taken is not None:
                allowed.append(taken)
            elif _text_in(declared, text, value) is None and (declared or not constant):
                both = [*declared, *options]
                known = dict.fromkeys(t for option in both for t in option.texts or [option.values])
                if known:  # otherwise the parent itself is a mistake already noted
                    raise InputError(
                        f"{path} depends on {parent}={text}, but {parent} must be one of"
                        f" {', '.join(known)}{nearest(text, known)}"
                    )
        return tuple(dict.fromkeys(allowed))


def _values_of(parent: str, wanted: Any) -> list[tuple[str, Any]]:
    """(text, value) of each wanted value; strings are read as on the command line."""
    if wanted == []:
        raise InputError(f"a condition on {parent} must name at least one value, got []")
    items = wanted if isinstance(wanted, list) else [wanted]
    lines = (f"{parent}={grammar.written(item)}" for item in items)
    rule = "a condition takes a value or a list of values"
    return [grammar.read_value(line, rule)[1:] for line in lines]


def _text_in(options: Sequence[Parameter], text: str, value: Any) -> str | None:
    for option in options:
        try:
            return option.text(option.label(text, value))
        except InputError:
            continue
    return None
