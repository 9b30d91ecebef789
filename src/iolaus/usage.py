"""The text of `iolaus --help`: how to call it, the groups, and every key with its comment.

Called by `app.py`; imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from iolaus import config, overrides

_HEAD = """\
iolaus: hyperparameter sweeps for PyTorch

  iolaus                                        train the default run, an MLP on digits
  iolaus model=convnet optimizer.lr=0.01        choose options (GROUP=OPTION) and values (KEY=VALUE)
  iolaus -m init=he,xavier training.seed=0,1,2  a sweep: one trial for every combination
  iolaus -m +sweeps=init_activation_grid        a sweep from a file in sweeps/
  iolaus --cfg hydra -p hydra.sweeper           what a sweep can be told
  iolaus --resume outputs/runs/DATE_TIME        go on with a run that was stopped
  iolaus --cfg job [OVERRIDES]                  print the composed config and train nothing
  iolaus --help model=resnet                    this text, with that option's keys
  iolaus --config-dir FOLDER                    groups of your own
  iolaus --version, --hydra-help                versions, and what else Hydra knows
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
