"""`python -m paramserver.worker`: the worker process."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from paramserver.wire.errors import ParamserverError, Unreachable
from paramserver.wire.memory import keep_freed_memory
from paramserver.worker.process import exit_now, work_until_signalled
from paramserver.worker.trainer import TRANSPORTS, Identity, Trainer


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker until it is told to stop; return the exit status."""
    parser = argparse.ArgumentParser(prog="paramserver work", description="Compute gradients for a server.")
    parser.add_argument(
        "--server",
        type=lambda text: text.split(","),
        default=["127.0.0.1:50051"],
        metavar="ADDR[,ADDR…]",
        help="host:port or unix:PATH; of several servers that share θ, all of them, the coordinator first",
    )
    parser.add_argument("--name", default=f"{socket.gethostname()}-{os.getpid()}", help="unique among the workers")
    parser.add_argument("--shards", type=_shards, default=((), ()), metavar="WHICH", help="auto, 0,1 or pinned:3")
    parser.add_argument("--base", type=Path, metavar="DIR", help="where relative paths of a job start")
    parser.add_argument("--connect-timeout", type=float, default=60.0, metavar="S", help="give up after S seconds")
    parser.add_argument(
        "--transport",
        choices=TRANSPORTS,
        default="auto",
        help="shm: shared memory with a server on this machine, or an error; stream: messages; grpc: messages in gRPC "
        "alone; auto: shm, else stream",
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    accepts, pinned = arguments.shards
    trainer = Trainer(Identity(arguments.name, accepts, pinned), arguments.base, transport=arguments.transport)
    keep_freed_memory()
    try:
        asyncio.run(work_until_signalled(arguments.server, trainer, arguments.connect_timeout))
    except Unreachable as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except ParamserverError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _shards(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Read `auto`, `0,1` or `pinned:3` as (accepted, pinned) shards."""
    if text == "auto":
        return (), ()
    try:
        numbers = tuple(int(part) for part in text.removeprefix("pinned:").split(","))
    except ValueError:
        numbers = (-1,)
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, a list of shards such as 0,1, or pinned:3")
    return (numbers, numbers) if text.startswith("pinned:") else (numbers, ())


if __name__ == "__main__":
    exit_now(main())
