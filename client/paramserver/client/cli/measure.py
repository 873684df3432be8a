"""`paramserver bench`: what training costs on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from paramserver.client.cli.output import print_json

if TYPE_CHECKING:
    from paramserver.client.bench.apply import Applied
    from paramserver.client.bench.pulls import Pulled
    from paramserver.client.bench.rounds import Measured

bench = typer.Typer(help="Measure what training costs on this machine, beside what it could do at best.")


@bench.command("round")
def round_(
    size: Annotated[int, typer.Option(help="Parameters, float32.")] = 1_000_000,
    workers: Annotated[int, typer.Option(help="Worker processes, one shard each.")] = 2,
    rounds: Annotated[int, typer.Option(help="Synchronous rounds.")] = 200,
    servers: Annotated[int, typer.Option(help="Server processes, which share the parameters.")] = 1,
    transport: Annotated[str, typer.Option(help="shm (shared memory), stream, or auto: shm where possible.")] = "auto",
    wire: Annotated[str, typer.Option(help="full; bf16, fp16 (both ways); int8, topk, sign (gradients).")] = "full",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time synchronous rounds: push, add up, apply, pull."""
    from paramserver.client.bench.rounds import measure_rounds

    found = measure_rounds(size, workers, rounds, transport, wire, servers)
    if as_json:
        print_json(found.summary())
        return
    print(f"{found.size:,} parameters, {found.workers} workers, {found.transport}, {found.rounds} rounds")
    print(f"round  median {found.median_ms:.3f} ms, p10 {found.p10_ms:.3f}, p90 {found.p90_ms:.3f}")
    print(f"wire   {found.wire}, {found.bytes_pushed:,.0f} bytes pushed and {found.bytes_pulled:,.0f} pulled a round")
    if found.unpaced_floor_ms is not None:
        print(f"bare   not paced {found.unpaced_floor_ms:.3f} ms, ratio {found.unpaced_ratio:.2f}")
    _print_floor(found)


@bench.command("async")
def async_(
    size: Annotated[int, typer.Option(help="Parameters, float32.")] = 10_000,
    workers: Annotated[int, typer.Option(help="Worker processes, one shard each.")] = 2,
    updates: Annotated[int, typer.Option(help="Asynchronous updates of all workers together.")] = 4_000,
    transport: Annotated[str, typer.Option(help="shm (shared memory), stream, or auto: shm where possible.")] = "auto",
    durability: Annotated[str, typer.Option(help="none, snapshot or log.")] = "none",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time asynchronous updates: push, apply, make safe, pull."""
    from paramserver.client.bench.updates import measure_updates

    found = measure_updates(size, workers, updates, transport, durability)
    if as_json:
        print_json(found.summary())
        return
    print(
        f"{found.size:,} parameters, {found.workers} workers, {found.transport}, durability {found.durability}, "
        f"{found.updates} updates"
    )
    print(f"rate   {found.updates_per_s:.0f} updates/s")
    print(f"update median {found.median_ms:.3f} ms, p10 {found.p10_ms:.3f}, p90 {found.p90_ms:.3f}")
    print(f"CPU    {found.cpu_s_per_gb:.2f} s/GB")
    for name, peak in found.peak_rss_mb.items():
        print(f"memory {name} {peak:.0f} MB, floor {found.floor_rss_mb[name]:.0f} MB")


@bench.command()
def pull(
    size: Annotated[int, typer.Option(help="Parameters, float32.")] = 1_000_000,
    pulls: Annotated[int, typer.Option(help="How often θ is pulled.")] = 200,
    transport: Annotated[str, typer.Option(help="shm (shared memory), stream, or auto: shm where possible.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time how long one worker takes to have θ."""
    from paramserver.client.bench.pulls import measure_pulls

    found = measure_pulls(size, pulls, transport)
    if as_json:
        print_json(found.summary())
        return
    print(f"{found.size:,} parameters, 1 worker, {found.transport}, {found.pulls} pulls")
    print(f"pull   median {found.median_ms:.3f} ms, p10 {found.p10_ms:.3f}, p90 {found.p90_ms:.3f}")
    _print_floor(found)


@bench.command()
def apply(
    size: Annotated[int, typer.Option(help="Parameters, float32.")] = 25_000_000,
    workers: Annotated[int, typer.Option(help="Contributions that make an update.")] = 2,
    updates: Annotated[int, typer.Option(help="How many updates.")] = 20,
    optimizer: Annotated[str, typer.Option(help="Its name in a job file.")] = "sgd",
    momentum: Annotated[float, typer.Option(help="Of sgd.")] = 0.0,
    plain: Annotated[bool, typer.Option("--numpy", help="Keep to numpy where numba is installed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time the server's work on an update alone: add up, apply."""
    from paramserver.client.bench.apply import measure_apply

    found = measure_apply(size, workers, updates, optimizer, momentum, plain)
    if as_json:
        print_json(found.summary())
        return
    print(
        f"{found.size:,} parameters, {found.workers} workers, {found.optimizer} in {found.code}, "
        f"{found.threads} threads, {found.updates} updates"
    )
    print(f"update median {found.median_ms:.3f} ms, p10 {found.p10_ms:.3f}, p90 {found.p90_ms:.3f}")
    _print_floor(found)


def _print_floor(found: Measured | Pulled | Applied) -> None:
    print(f"floor  median {found.floor_ms:.3f} ms, ratio {found.ratio:.2f}")
    print(f"CPU    {found.cpu_s_per_gb:.2f} s/GB, floor {found.floor_cpu_s_per_gb:.2f} s/GB")
    print("memory " + ", ".join(f"{name} {peak:.0f} MB" for name, peak in found.peak_rss_mb.items()))
