"""What the tests of the command line share: a short run, the folder it leaves, what it says."""

from __future__ import annotations

SHORT = ("training.max_steps=60", "training.eval_every=20", "training.device=cpu")


def only_run(folder):
    (run,) = (folder / "outputs" / "runs").iterdir()
    return run


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def contents(folder):
    """The bytes of each of the `files`."""
    return {name: (folder / name).read_bytes() for name in files(folder)}


def complaint(done, code):
    """The lines on stderr, each starting with the program's name; nothing on stdout, unless it is a
    run that failed."""
    assert done.returncode == code, done.stderr
    assert code == 1 or done.stdout == "", done.stdout
    lines = done.stderr.splitlines()
    assert lines, done
    assert all(line.startswith("sweepstack: ") for line in lines), done.stderr
    assert "Traceback" not in done.stderr
    return [line.removeprefix("sweepstack: ") for line in lines]
