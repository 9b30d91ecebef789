"""The command `iolaus`, also as `python -m iolaus`."""

import signal


def main() -> None:
    """Entry point of the console script; Ctrl-C ends it at once while it is still loading."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from iolaus.app import main

    main()


if __name__ == "__main__":
    main()
