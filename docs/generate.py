"""Writes docs/config.md, the reference of every config key: `python docs/generate.py`.

Keys, defaults and comments come from the files of conf/, types and ranges from
sweepstack.config.schema, and all of the sweeper from sweepstack.config.sweeper; nothing is written
twice. A test fails when the page is stale.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweepstack.config import check, composition, schema, sweeper

PAGE = Path(__file__).with_name("config.md")
CONF = composition.folder("conf")
SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}

HEAD = """\
# Every config key

Written by `python docs/generate.py` from `conf/` and the schema; do not edit. A group's option is
chosen with `GROUP=OPTION`, a value with `GROUP.KEY=VALUE`. `sweepstack --help GROUP=OPTION` prints
the same comments, `sweepstack --cfg job` the composed config.

*Stack* says whether trials that differ in a key can be trained in one stack (*own*: each slot has
its own value) or not (*same*). What is off at 0, false or null (a weight decay, dropout, clipping,
an augmentation) shares a stack only with what is off too.
"""
SWEEP_HEAD = """\
## hydra.sweeper

What a sweep can be told; [sweeps.md](sweeps.md) explains the parts. Set on the command line
(`hydra.sweeper.n_trials=20`) or in a sweep's file.
"""
_UNQUOTED = re.compile(r"(?<![`\w.])((?:\w+\.)?_target_)")
LINE = re.compile(r"(?P<key>\w+):\s*(?P<value>[^#]*?)\s*(?:#\s*(?P<comment>.*))?")


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of one option: its default as written, its comment, and its field in the schema."""

    option: str
    name: str
    default: str
    comment: str
    allowed: str
    stack: str


def page() -> str:
    """The whole page."""
    parts = [HEAD, _top(), *(_group(name) for name in _groups()), SWEEP_HEAD, _sweeper()]
    return "\n".join(parts)


def _groups() -> list[str]:
    """In the order of conf/config.yaml."""
    text = (CONF / "config.yaml").read_text("utf-8")
    found = re.findall(r"^  - (\w+): \w+$", text, re.MULTILINE)
    assert set(found) == {*schema.OPTIONS, *schema.PLAIN}
    return found


def _top() -> str:
    text = (CONF / "config.yaml").read_text("utf-8")
    hints = typing.get_type_hints(schema.RunConfig)
    rows = []
    for comment, key, default in re.findall(r"^((?:# .*\n)+)(\w+): (.+)$", text, re.MULTILINE):
        words = " ".join(line.removeprefix("# ") for line in comment.splitlines())
        rows.append([f"`{key}`", f"`{default}`", check.describe(hints[key]), words])
    assert len(rows) == 3
    return _table("## Top level", ["key", "default", "allowed", "meaning"], rows)


def _group(group: str) -> str:
    files = sorted((CONF / group).glob("*.yaml"))
    keys = [key for file in files for key in _keys(group, file)]
    default = re.search(rf"^  - {group}: (\w+)$", (CONF / "config.yaml").read_text(), re.MULTILINE)
    assert default is not None
    options = []
    for file in files:
        mark = " (default)" if file.stem == default[1] else ""
        options.append([f"`{group}={file.stem}`{mark}", _about(file)])
    parts = [f"## {group}\n"]
    if len(files) > 1:
        parts = [_table(f"## {group}", ["option", "what it is"], options)]
    named = {name: [key for key in keys if key.name == name] for name in _names(keys)}
    rows = [_row(group, same, len(files)) for same in named.values()]
    if rows:
        header = ["key", "default", "allowed", "stack", "meaning"]
        parts.append(_table("", header, rows))
    return "\n".join(parts)


def _about(file: Path) -> str:
    """The comment that a file begins with."""
    lines = []
    for line in file.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines).replace("|", r"\|")


def _names(keys: Sequence[Key]) -> list[str]:
    return list(dict.fromkeys(key.name for key in keys))


def _keys(group: str, file: Path) -> Iterator[Key]:
    kind = schema.OPTIONS[group][file.stem] if group in schema.OPTIONS else schema.PLAIN[group]
    fields = {item.name: item for item in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for line in file.read_text("utf-8").splitlines():
        match = LINE.fullmatch(line)
        if match is None or match["key"] in ("name", "scheme"):  # the option itself
            continue
        if match["key"] == "_target_":
            yield Key(file.stem, "_target_", "???", match["comment"], "a string", "same")
            continue
        item = fields[match["key"]]
        yield Key(
            file.stem,
            item.name,
            match["value"],
            match["comment"] or "",
            _allowed(hints[item.name], item.metadata),
            "own" if item.metadata.get("dynamic") else "same",
        )


def _allowed(hint: Any, rules: Mapping[str, Any]) -> str:
    kept = {SIGNS[name]: bound for name, bound in rules.items() if name in SIGNS}
    bounds = " and ".join(f"{sign} {_bound(bound)}" for sign, bound in kept.items())
    words = check.describe(hint)
    if not bounds:
        return words
    several = words.removesuffix(" or null")
    null = ", or null" if several != words else ""
    comma = "," if " or " in several else ""
    return f"{several}{comma} {bounds}{null}"


def _bound(bound: float) -> str:
    return "2^63" if bound == 2**63 else str(bound)


def _row(group: str, keys: Sequence[Key], count: int) -> list[str]:
    """One key of a group; options that have another default or comment are named."""
    only = "" if len(keys) == count else f" ({', '.join(key.option for key in keys)})"
    return [
        f"`{group}.{keys[0].name}`{only}",
        _each({key.option: f"`{key.default}`" for key in keys}),
        _each({key.option: key.allowed for key in keys}),
        _each({key.option: key.stack for key in keys}),
        _each({key.option: key.comment for key in keys}).replace("|", r"\|"),
    ]


def _each(found: Mapping[str, str]) -> str:
    values = list(dict.fromkeys(found.values()))
    if len(values) == 1:
        return values[0]
    by = {value: [option for option, had in found.items() if had == value] for value in values}
    return "; ".join(f"{value} ({', '.join(options)})" for value, options in by.items())


def _sweeper() -> str:
    own = sweeper.Sweeper.__annotations__
    keys = sorted(dataclasses.fields(sweeper.Sweeper), key=lambda item: item.name not in own)
    head = ["key", "default", "allowed", "meaning"]
    rows = [_setting(f"`hydra.sweeper.{item.name}`", sweeper.Sweeper, item) for item in keys]
    parts = [_table("", head, rows)]
    for group, options in (("sampler", sweeper.SAMPLERS), ("pruner", sweeper.PRUNERS)):
        title = f"### hydra/sweeper/{group}\n\nA setting that is null is left to its class."
        about = [[f"`{name}`", str(kind.__doc__)] for name, kind in options.items()]
        parts.append(_table(title, ["option", "what it is"], about))
        named: dict[tuple[str, int], tuple[Any, Any, list[str]]] = {}
        for name, kind in options.items():
            for item in dataclasses.fields(kind):
                *_, names = named.setdefault((item.name, id(item)), (kind, item, []))
                names.append(name)
        rows = []
        for kind, item, names in named.values():
            only = "" if len(names) == len(options) else f" ({', '.join(names)})"
            rows.append(_setting(f"`hydra.sweeper.{group}.{item.name}`{only}", kind, item))
        parts.append(_table("", head, rows))
    return "\n".join(parts)


def _setting(key: str, kind: type, item: Any) -> list[str]:
    """A row of a key that the sweeper declares."""
    rules = item.metadata
    allowed = rules.get("allowed") or _allowed(typing.get_type_hints(kind)[item.name], rules)
    return [key, f"`{_yaml(item.default)}`", allowed, rules["meaning"]]


def _yaml(value: Any) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rows = [[_UNQUOTED.sub(r"`\1`", cell) for cell in row] for row in rows]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join([*([title, ""] if title else []), *lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
