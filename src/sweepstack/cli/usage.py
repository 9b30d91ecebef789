"""The text of `sweepstack --help`: how to call it, the groups, and every key with its comment."""

from __future__ import annotations

from collections.abc import Sequence

from sweepstack.config import overrides
from sweepstack.config import reading as config

_HEAD = """\
sweepstack: hyperparameter sweeps for PyTorch

  sweepstack                                        train the default run, an MLP on digits
  sweepstack model=convnet optimizer.lr=0.01        options (GROUP=OPTION), values (KEY=VALUE)
  sweepstack -m init=he,xavier training.seed=0,1,2  a sweep: one trial for every combination
  sweepstack -m +sweeps=init_activation_grid        a sweep from a file in sweeps/
  sweepstack --cfg hydra -p hydra.sweeper           what a sweep can be told
  sweepstack --resume outputs/runs/DATE_TIME        go on with a run that was stopped
  sweepstack --cfg job [OVERRIDES]                  print the composed config and train nothing
  sweepstack --help model=resnet                    this text, with that option's keys
  sweepstack --config-dir FOLDER                    groups of your own
  sweepstack --version, --hydra-help                versions, and what else Hydra knows
"""


def text(words: Sequence[str], config_dir: str | None = None) -> str:
    """The help for what `words` choose.

    Raises:
        InputError: a word is no override.
    """
    cfg = overrides.compose(words, config_dir)
    conf = config.folder("conf")
    parts = [_HEAD]
    for group, option in reversed(cfg.hydra.runtime.choices.items()):
        file = conf / group / f"{option}.yaml"
        if "/" in group or not file.is_file():
            continue
        others = sorted(path.stem for path in file.parent.glob("*.yaml") if path != file)
        rest = f"   (or {', '.join(others)})" if others else ""
        lines = [f"  {line}" for line in file.read_text("utf-8").splitlines()]
        parts.append("\n".join([f"{group}={option}{rest}", *lines, ""]))
    top = (conf / f"{config.CONFIG_NAME}.yaml").read_text("utf-8")
    keys = top[top.index("\n\n") : top.index("hydra:")].strip()
    parts.append("top level\n" + "\n".join(f"  {line}".rstrip() for line in keys.splitlines()))
    return "\n".join(parts)
