"""The entry point: the commands, and how their errors become messages and exit statuses."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import typer

from paramserver.client.cli import here, there
from paramserver.client.cli.measure import bench
from paramserver.wire.errors import Busy, NotReady, ParamserverError, RequestError, Unreachable

app = typer.Typer(
    help="Train numpy models over any number of processes and machines, with the same bits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
here.register(app)
there.register(app)
app.add_typer(bench, name="bench")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit_on_signal)
    try:
        app(args=None if arguments is None else list(arguments), prog_name="paramserver")
    except ParamserverError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(exit_status(error))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def exit_status(error: ParamserverError) -> int:
    """Return the exit status for an error; what the server cannot do in its state counts as a wrong request."""
    match error:
        case Unreachable():
            return 3
        case RequestError() | Busy() | NotReady():
            return 2
        case _:
            return 1


def _exit_on_signal(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    # As an exception it passes through everything that has to be stopped on the way out.
    sys.exit(128 + number)
