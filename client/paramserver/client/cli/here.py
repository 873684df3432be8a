"""Commands that start processes on this machine: demo, train, serve, work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from paramserver.client.cli.output import print_demonstration, print_json, print_result
from paramserver.client.cli.progress import shown
from paramserver.wire.errors import JobFailed
from paramserver.wire.job import Job

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(demo)
    app.command()(train)
    app.command(context_settings=_PASS_ON)(serve)
    app.command(context_settings=_PASS_ON)(work)


def demo(
    mode: Annotated[str, typer.Option(help="sync, async or ssp.")] = "sync",
    workers: Annotated[int, typer.Option(help="Worker processes.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Train a linear regression on this machine and compare it with the closed form."""
    from paramserver.client.demo import demonstrate

    with shown() as progress:
        found = demonstrate(mode, workers, progress)
    if as_json:
        print_json(found.summary())
    else:
        print_demonstration(found)


def train(
    job_file: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job.")],
    workers: Annotated[int, typer.Option(help="Worker processes to start on this machine.")] = 2,
    server: Annotated[
        str | None, typer.Option(metavar="ADDR", help="Train on this running server and its workers instead.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Run directory, empty or new. [default: runs/<timestamp>-<task>]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a job: on processes of this machine, or on a running server."""
    from paramserver.client import rundirectory
    from paramserver.client.training import train as train_job

    job = Job.from_toml(job_file)
    directory = run or rundirectory.fresh_path(job)
    try:
        with shown() as progress:
            result = train_job(
                job, workers=workers, server=server, run=directory, base=job_file.parent, progress=progress
            )
    except JobFailed:
        if as_json:
            print_json(json.loads((directory / rundirectory.RESULT).read_text(encoding="utf-8")))
        raise
    except KeyboardInterrupt:
        print(f"interrupted; what there is of the run is in {directory}", file=sys.stderr)
        raise
    if as_json:
        print_json(result.summary())
    else:
        print_result(result)
    if result.status != "done":
        raise typer.Exit(1)


def serve(context: typer.Context) -> None:
    """Hold parameters for workers and clients (see `serve --help`)."""
    from paramserver.server.__main__ import main

    raise typer.Exit(main(context.args))


def work(context: typer.Context) -> None:
    """Compute gradients for a server (see `work --help`)."""
    from paramserver.worker.__main__ import main
    from paramserver.worker.process import exit_now

    exit_now(main(context.args))
