"""A Hydra app whose trials misbehave where `trouble` says so; the fault tests sweep it.

Every call leaves a line in ran.txt. `trouble` maps a kind to the values of x that have it:
    die     the process is killed, as by the kernel when memory is short
    exit    the task ends the process in good order, as scripts do
    wait    it goes on when there is a file `go`
    stay    as wait, and Ctrl-C only leaves a file `heard`; stays_X is there once it can hear
and with trouble.hold=true all of them wait.
"""

import os
import signal
import sys
import time
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

NODE = {
    "defaults": [{"override hydra/sweeper": "sweepstack"}, "_self_"],
    "x": 0,
    "trouble": {"die": [], "exit": [], "wait": [], "stay": [], "hold": False},
}
ConfigStore.instance().store(name="fault_app", node=NODE)


def wait() -> None:
    while not Path("go").exists():
        time.sleep(0.02)


@hydra.main(version_base=None, config_path=None, config_name="fault_app")
def main(cfg: DictConfig) -> float:
    file = os.open("ran.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{cfg.x}\n".encode())
    os.close(file)
    if cfg.x in cfg.trouble.die:
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.x in cfg.trouble.exit:
        sys.exit(7)
    if cfg.trouble.hold or cfg.x in cfg.trouble.wait:
        wait()
    if cfg.x in cfg.trouble.stay:
        try:
            Path(f"stays_{cfg.x}").touch()  # from here on it hears
            wait()
        except KeyboardInterrupt:
            Path("heard").touch()
            wait()
    return float(cfg.x)


if __name__ == "__main__":
    main()
