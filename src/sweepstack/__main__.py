"""The command `sweepstack`, also as `python -m sweepstack`."""

import signal


def main() -> None:
    """Entry point of the console script; Ctrl-C ends it at once while it is still loading."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sweepstack.cli.app import main

    main()


if __name__ == "__main__":
    main()
