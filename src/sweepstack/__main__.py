"""The command `sweepstack`, also as `python -m sweepstack`."""

import gc
import signal


def main() -> None:
    """Entry point of the console script; Ctrl-C ends it at once while it is still loading."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()  # imports leave no garbage, and looking for it takes a seventh of their time
    from sweepstack.cli.app import main

    try:
        main()
    finally:
        gc.enable()


if __name__ == "__main__":
    main()
