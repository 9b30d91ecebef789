"""TensorBoard's files as tests read them, and whether a logger's package is there."""

from __future__ import annotations

import importlib.util

import pytest


def needs(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


needs_tensorboard = needs("tensorboard")


def events(folder):
    """All events of the one file of a folder, in the order of writing."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (file,) = folder.glob("events.out.tfevents.*")
    return list(EventFileLoader(str(file)).Load())


def scalars(folder):
    """name -> [(step, value)], as they lie in the file: a step that is there twice is seen."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "scalars":
                number = value.tensor.float_val[0]
                found.setdefault(value.tag, []).append((event.step, number))
    return found
