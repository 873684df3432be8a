"""Commands for what runs or ran elsewhere: status, watch, evaluate, export, checkpoint, set, stop, log, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paramserver.client.cli.output import print_json, print_metrics, print_status
from paramserver.client.cli.progress import shown
from paramserver.client.cli.summary import summary
from paramserver.client.connection.client import Client
from paramserver.wire.errors import JobFailed, RequestError
from paramserver.wire.v1 import paramserver_pb2 as pb

Server = Annotated[str, typer.Option(metavar="ADDR", help="host:port or unix:PATH.")]
Timeout = Annotated[float, typer.Option(metavar="S", help="Seconds to wait for a server that does not answer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]

_SERVER = "127.0.0.1:50051"
_TIMEOUT_S = 10.0


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (status, watch, evaluate, export, checkpoint, stop):
        app.command()(command)
    app.command("set")(set_policy)
    app.command("log")(log_)
    app.command()(verify)


def log_(
    version: Annotated[int, typer.Option(help="Of θ; 1 and more.")],
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Ask this run directory, or a server's state directory.")
    ] = None,
    server: Server = _SERVER,
    recompute: Annotated[
        bool, typer.Option("--hash", help="With --run: compute θ's hash again if it is not known.")
    ] = False,
    timeout: Timeout = _TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Tell which contributions made a version of θ, and its hash."""
    from paramserver.client.verify import contributions, hash_of

    if run is not None:
        origin = contributions(run, version)
        if recompute and not origin.theta_sha256:
            origin = origin._replace(theta_sha256=hash_of(run, version))
    else:
        if recompute:
            raise RequestError("--hash needs --run: a server does not compute its versions again")
        with Client(server, timeout) as client:
            origin = client.origin(version)
    if as_json:
        rows = [contribution._asdict() for contribution in origin.contributions]
        print_json({"version": version, "theta_sha256": origin.theta_sha256 or None, "contributions": rows})
        return
    print(f"version {version}: {len(origin.contributions)} contributions")
    for c in origin.contributions:
        print(
            f"  shard {c.shard}, step {c.step} by {c.worker}: {c.samples} samples, loss {c.loss:.6g}, "
            f"computed at version {c.computed_at}"
        )
    print(f"θ sha256 {origin.theta_sha256 or 'not known; --run DIR --hash computes it'}")


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory, or a server's state directory.")],
    start: Annotated[
        int, typer.Option("--from", metavar="VERSION", help="Begin at a snapshot of this version; 0: at the start.")
    ] = 0,
    base: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where relative paths of the job start. [default: as in the run]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute a run again and compare losses and hashes; exit status 1 if they differ."""
    from paramserver.client.verify import verify as compute_again

    found = compute_again(run, base, start)
    if as_json:
        print_json(found.summary())
    else:
        print(f"{'SAME' if found.same else 'DIFFERENT'}: {found.reason}")
        print(f"{found.losses} losses and {found.hashes} hashes compared")
        print(f"θ sha256 {found.theta_sha256}")
    if not found.same:
        raise typer.Exit(1)


def status(server: Server = _SERVER, timeout: Timeout = _TIMEOUT_S, as_json: AsJson = False) -> None:
    """Show the state of a server, its job and its workers."""
    with Client(server, timeout) as client:
        reply = client.status()
    if as_json:
        print_json(summary(reply))
    else:
        print_status(reply)


def watch(server: Server = _SERVER, timeout: Timeout = _TIMEOUT_S, as_json: AsJson = False) -> None:
    """Follow the job until it has ended; the exit status tells how."""
    last = pb.StatusReply()
    with Client(server, timeout) as client, shown() as progress:
        for update in client.watch():
            progress(update)
            last = update.status
    if as_json:
        print_json(summary(last))
    else:
        print_status(last)
    if last.state != "done":
        raise JobFailed(f"the job was {last.state}: {last.reason}" if last.state == "stopped" else last.reason)


def evaluate(
    server: Server = _SERVER,
    base: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where relative paths of the job start. [default: here]")
    ] = None,
    timeout: Timeout = _TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Score the current parameters on the job's test data."""
    with Client(server, timeout) as client:
        metrics = client.evaluate(base)
    if as_json:
        print_json({"metrics": metrics})
    else:
        print_metrics(metrics)


def export(
    out: Annotated[Path, typer.Option(metavar="PATH", help="theta.npz or theta.safetensors.")],
    server: Server = _SERVER,
    timeout: Timeout = _TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Write the current parameters to a file."""
    from paramserver.client.files import check_format, write_theta
    from paramserver.wire.fingerprint import theta_sha256

    check_format(out)
    with Client(server, timeout) as client:
        theta, version = client.pull()
    write_theta(out, theta)
    found = {
        "out": str(out),
        "version": version,
        "parameters": sum(values.size for values in theta.values()),
        "theta_sha256": theta_sha256(theta),
    }
    if as_json:
        print_json(found)
    else:
        print(f"{out}: version {version}, {found['parameters']} parameters in {len(theta)} tensors")
        print(f"θ sha256 {found['theta_sha256']}")


def set_policy(
    server: Server = _SERVER,
    mode: Annotated[str | None, typer.Option(metavar="MODE", help="sync, async or ssp.")] = None,
    quorum: Annotated[int | None, typer.Option(help="sync: contributions that close a round; 0: all.")] = None,
    staleness: Annotated[int | None, typer.Option(help="ssp: steps that a shard may be ahead.")] = None,
    max_delay: Annotated[
        int | None, typer.Option(help="async, ssp: versions that a contribution may be old; 0: any.")
    ] = None,
    timeout: Timeout = _TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Change the policy of the running job; what is left out stays as it is."""
    with Client(server, timeout) as client:
        train = client.set_policy(mode, quorum=quorum, staleness=staleness, max_delay=max_delay).train
    policy = train.model_dump(include={"mode", "quorum", "staleness", "max_delay"})
    if as_json:
        print_json(policy)
    else:
        print(", ".join(f"{name} = {value}" for name, value in policy.items()))


def checkpoint(server: Server = _SERVER, timeout: Timeout = _TIMEOUT_S, as_json: AsJson = False) -> None:
    """Have the server write a snapshot of its job now."""
    with Client(server, timeout) as client:
        found = client.checkpoint()
    if as_json:
        print_json(found._asdict())
    else:
        print(f"{found.file}: version {found.version}")
        print(f"θ sha256 {found.theta_sha256 or '–'}")


def stop(server: Server = _SERVER, timeout: Timeout = _TIMEOUT_S, as_json: AsJson = False) -> None:
    """End the running job; its parameters stay readable."""
    with Client(server, timeout) as client:
        version = client.stop("stopped from the command line")
    if as_json:
        print_json({"version": version})
    else:
        print(f"stopped; the parameters have version {version}")
