"""Commands that start processes on this machine: demo, train, chaos, serve, work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from paramserver.client.cli.output import print_demonstration, print_json, print_result, print_verdict
from paramserver.client.cli.progress import shown
from paramserver.wire.errors import JobFailed, RequestError
from paramserver.wire.job import Job

Transport = Annotated[
    str,
    typer.Option(
        metavar="auto|shm|stream|grpc",
        help="Of the workers here: shared memory, messages, messages in gRPC alone, or the best possible.",
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(demo)
    app.command()(train)
    app.command()(chaos)
    app.command(context_settings=_PASS_ON)(serve)
    app.command(context_settings=_PASS_ON)(work)


def demo(
    mode: Annotated[str, typer.Option(help="sync, async or ssp.")] = "sync",
    workers: Annotated[int, typer.Option(help="Worker processes.")] = 4,
    servers: Annotated[int, typer.Option(help="Server processes, which share the parameters.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Train a linear regression on this machine and compare it with the closed form."""
    from paramserver.client.demo import demonstrate

    with shown() as progress:
        found = demonstrate(mode, workers, progress, servers)
    if as_json:
        print_json(found.summary())
    else:
        print_demonstration(found)


def train(
    job_file: Annotated[Path | None, typer.Argument(metavar="JOB.toml", help="The job.", show_default=False)] = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes to start on this machine. [default: 2, or as before]")
    ] = None,
    servers: Annotated[
        int | None,
        typer.Option(help="Server processes, which share the parameters. [default: server.partitions of the job]"),
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="ADDR", help="Train on this running server and its workers instead.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Run directory, empty or new. [default: runs/<timestamp>-<task>]"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN_DIR", help="Go on with this run of this machine, broken off or finished."),
    ] = None,
    transport: Transport = "auto",
    as_json: AsJson = False,
) -> None:
    """Train a job: on processes of this machine, or on a running server."""
    from paramserver.client import rundirectory, training

    if (job_file is None) == (resume is None) or (resume and (server or run)):
        raise RequestError("name either a job file or, alone, a run to go on with: --resume RUN_DIR")
    if server and transport != "auto":
        raise RequestError(f"the workers of {server} chose their transport: paramserver work --transport {transport}")
    try:
        with shown() as progress:
            if job_file is None:
                assert resume is not None
                directory = resume
                result = training.resume(directory, workers, progress, transport=transport)
            else:
                job = Job.from_toml(job_file)
                directory = run or rundirectory.fresh_path(job)
                count = 2 if workers is None else workers
                result = training.train(
                    job, count, servers, server, directory, job_file.parent, progress, transport=transport
                )
    except JobFailed:
        if as_json:
            print_json(json.loads((directory / rundirectory.RESULT).read_text(encoding="utf-8")))
        raise
    except KeyboardInterrupt:
        print(f"interrupted; go on with: paramserver train --resume {directory}", file=sys.stderr)
        raise
    if as_json:
        print_json(result.summary())
    else:
        print_result(result)
    if result.status != "done":
        raise typer.Exit(1)


def chaos(
    job_file: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job.")],
    kills: Annotated[int, typer.Option(help="How many processes are killed.")] = 20,
    seed: Annotated[int, typer.Option(help="Chooses when and whom.")] = 0,
    workers: Annotated[int, typer.Option(help="Worker processes.")] = 3,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Directory of both runs. [default: runs/<timestamp>-<task>]")
    ] = None,
    transport: Annotated[
        str, typer.Option(metavar="auto|stream|mixed", help="Of the workers; mixed: they take turns.")
    ] = "mixed",
    mode: Annotated[str | None, typer.Option(metavar="MODE", help="sync, async or ssp, in place of the job's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train a job twice, once under random kill -9, freezes and faulty messages, and compare the bits."""
    from paramserver.client import rundirectory
    from paramserver.client.chaos import torment

    job = Job.from_toml(job_file)
    if mode is not None:
        tables = job.model_dump()
        tables["train"]["mode"] = mode
        job = Job.from_dict(tables, origin=str(job_file))
    directory = run or rundirectory.fresh_path(job)
    with shown() as progress:
        found = torment(
            job,
            kills,
            seed,
            directory,
            workers,
            job_file.parent,
            progress,
            narrate=lambda act: print(f"chaos: {act}", file=sys.stderr),
            transport=transport,
        )
    if as_json:
        print_json(found.summary())
    else:
        print_verdict(found)
    if not found.passed:
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
