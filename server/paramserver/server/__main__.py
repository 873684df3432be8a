"""`python -m paramserver.server`: the server process."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from threadpoolctl import threadpool_limits

from paramserver.server.place import Place
from paramserver.server.process import serve
from paramserver.wire.errors import ParamserverError, RequestError
from paramserver.wire.memory import keep_freed_memory


def main(argv: Sequence[str] | None = None) -> int:
    """Run a server until it is told to stop; return the exit status."""
    parser = argparse.ArgumentParser(prog="paramserver serve", description="Hold parameters and apply gradients.")
    parser.add_argument("--listen", default="127.0.0.1:50051", metavar="ADDR", help="host:port or unix:PATH")
    parser.add_argument("--address-file", type=Path, metavar="PATH", help="write the bound address here when ready")
    parser.add_argument("--state", type=Path, metavar="DIR", help="keep jobs here; a restart goes on from there")
    parser.add_argument(
        "--partition", type=_place, default=Place(), metavar="I/K", help="hold part I, from 0, of θ cut over K servers"
    )
    parser.add_argument(
        "--peers",
        type=lambda text: text.split(","),
        default=[],
        metavar="ADDR,…",
        help="to partition 0, the coordinator: where partitions 1, 2, … are",
    )
    parser.add_argument(
        "--data-port",
        type=int,
        default=0,
        metavar="PORT",
        help="where workers connect for tensors, beside gRPC (default 0: any free port)",
    )
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.data_port <= 65_535:
        parser.error(f"--data-port {arguments.data_port}: a port is a number from 0 to 65535")
    if len(arguments.peers) != (arguments.partition.partitions - 1 if arguments.partition.partition == 0 else 0):
        parser.error(
            f"--peers: {len(arguments.peers)} addresses for {arguments.partition}; partition 0 of K names the K - 1 "
            "others, and nobody else does"
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    keep_freed_memory()
    try:
        # The engine's thread works on cached blocks; a library's threads beside it would cost more than they bring.
        with threadpool_limits(limits=1):
            asyncio.run(
                serve(
                    arguments.listen,
                    arguments.address_file,
                    arguments.state,
                    arguments.partition,
                    arguments.peers,
                    arguments.data_port,
                )
            )
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ParamserverError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _place(text: str) -> Place:
    """Read `I/K`."""
    try:
        partition, partitions = map(int, text.split("/"))
    except ValueError:
        partition, partitions = 0, 0
    if not 0 <= partition < partitions:
        raise argparse.ArgumentTypeError(f"{text!r} is not I/K with I from 0 to K - 1, such as 0/2")
    return Place(partition, partitions)


if __name__ == "__main__":
    sys.exit(main())
