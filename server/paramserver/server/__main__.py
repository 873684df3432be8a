"""`python -m paramserver.server`: the server process."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from threadpoolctl import threadpool_limits

from paramserver.server.process import serve
from paramserver.wire.errors import ParamserverError, RequestError
from paramserver.wire.memory import keep_freed_memory


def main(argv: Sequence[str] | None = None) -> int:
    """Run a server until it is told to stop; return the exit status."""
    parser = argparse.ArgumentParser(prog="paramserver serve", description="Hold parameters and apply gradients.")
    parser.add_argument("--listen", default="127.0.0.1:50051", metavar="ADDR", help="host:port or unix:PATH")
    parser.add_argument("--address-file", type=Path, metavar="PATH", help="write the bound address here when ready")
    parser.add_argument("--state", type=Path, metavar="DIR", help="keep jobs here; a restart goes on from there")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    keep_freed_memory()
    try:
        # The engine's thread works on cached blocks; a library's threads beside it would cost more than they bring.
        with threadpool_limits(limits=1):
            asyncio.run(serve(arguments.listen, arguments.address_file, arguments.state))
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ParamserverError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
