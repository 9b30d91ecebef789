"""What numbers may depend on besides the config: versions, git commit, platform.

A run's manifest.json and every worker of a sweep keep it, so that a rerun can say what has changed.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

PACKAGES = ("sweepstack", "torch", "torchvision", "hydra-core", "optuna", "numpy", "scikit-learn")


@cache
def environment() -> dict[str, Any]:
    """`versions` of Python and `PACKAGES`, `git` (commit of the working folder and whether its
    tree was dirty; None outside of git), and `platform`. Asked once per process."""
    return {"git": _git(), "versions": _versions(), "platform": platform.platform()}


def key_of(found: Mapping[str, Any]) -> str:
    """A short name of an environment, the same for equal ones: 8 hexadecimal digits."""
    text = json.dumps(found, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git() -> dict[str, Any] | None:
    def ask(*words: str) -> str:
        command = ["git", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        commit = ask("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
