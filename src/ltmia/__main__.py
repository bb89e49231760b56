"""Entry point of the `ltmia` command: exit codes and one-message errors for every command.

0 done or gate passed, 1 gate failed, 2 could not run, 3 inconclusive.
"""

import os
import signal
import sys
from types import FrameType

COULD_NOT_RUN = 2
INTERRUPTED = 130


def main() -> None:
    """Run the command line; any error exits 2 with one message, or with a traceback under --debug."""
    # Torch reads this when it is loaded. By default, waiting threads spin and block the core that the working thread
    # needs: next to another program an audit then takes many times as long. Sleeping threads cost nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    signal.signal(signal.SIGTERM, _interrupt)
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        _run()
        return
    try:
        _run()
    except KeyboardInterrupt:
        _stop("interrupted; the same command resumes")
    except BrokenPipeError:
        # The reader of our output left; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(COULD_NOT_RUN)
    except Exception as error:  # noqa: BLE001  the outermost frame: an uncaught error would exit 1, "gate failed"
        _stop(_message(error))


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """Handle SIGTERM like Ctrl-C, so that worker processes end and semaphores are released."""
    raise KeyboardInterrupt


def _run() -> None:
    from ltmia.cli.app import app

    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:  # the library's code for Ctrl-C; here only 0 to 3 have a meaning
            raise KeyboardInterrupt from end
        raise


def _message(error: Exception) -> str:
    from typer.main import get_command

    from ltmia.cli.app import app
    from ltmia.cli.flags import in_flags
    from ltmia.errors import LtmiaError

    if isinstance(error, LtmiaError):
        return in_flags(str(error), get_command(app))
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'file system'}: {error.strerror}"
    return f"{type(error).__name__}: {error} (unexpected; run again with --debug for a traceback)"


def _stop(message: str) -> None:
    print(f"ltmia: {message}", file=sys.stderr)  # noqa: T201  the command's one message to its user
    sys.exit(COULD_NOT_RUN)


if __name__ == "__main__":
    main()
