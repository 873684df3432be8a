"""What commands print on stdout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from paramserver.client.chaos import Verdict
from paramserver.client.demo import Demonstration
from paramserver.client.training import Result
from paramserver.wire.v1 import paramserver_pb2 as pb


def print_json(found: Mapping[str, Any]) -> None:
    """Print one JSON object in one line."""
    print(json.dumps(found), flush=True)


def print_demonstration(found: Demonstration) -> None:
    """Print what was learnt beside the closed form."""
    print(f"{'':12}{'learnt':>20}{'closed form':>20}{'difference':>12}")
    for name, meaning in (("w", "slope w"), ("b", "intercept b")):
        learnt, exact = found.theta[name], found.closed_form[name]
        print(f"{meaning:12}{learnt:20.15f}{exact:20.15f}{abs(learnt - exact):12.1e}")
    print(f"loss {found.loss:.9f}, {found.round_ms:.3f} ms per round")


def print_verdict(verdict: Verdict) -> None:
    """Print whether a job withstood, and what."""
    killed = ", ".join(f"{name} {count}" for name, count in sorted(verdict.kills.items()))
    print(f"{'PASS' if verdict.passed else 'FAIL'}: {verdict.reason}")
    print(f"seed {verdict.seed}, kill -9: {killed}; frozen and woken: {verdict.freezes}")
    print(f"messages lost: {verdict.lost}, sent twice: {verdict.repeated}")
    print(f"θ sha256 {verdict.theta_sha256}")
    if verdict.undisturbed_sha256:
        print(f"undisturbed {verdict.undisturbed_sha256}")


def print_result(result: Result) -> None:
    """Print how a run ended."""
    loss = "" if result.loss is None else f", loss {result.loss:.6g}"
    print(f"{result.status} after {result.steps} steps and {result.seconds:.2f} s{loss}: {result.reason}")
    print_metrics(result.metrics)
    print(f"θ sha256 {result.theta_sha256 or '–'}")
    print(f"run {result.run}")


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Print a metric a line."""
    for name, value in metrics.items():
        print(f"{name} {value:.6g}")


def print_status(status: pb.StatusReply) -> None:
    """Print a status for people."""
    from rich.console import Console

    from paramserver.client.cli.live import render

    Console(highlight=False).print(render(status))
